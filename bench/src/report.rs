//! The results, for people and for programs.

use serde::Serialize;

use crate::Format;
use crate::boot::Boots;
use crate::clock::Clock;
use crate::idle::Idle;
use crate::setting::Setting;

/// What was measured, where, and with what.
#[derive(Serialize)]
pub struct Report {
    /// Where, and with what.
    #[serde(flatten)]
    pub setting: Setting,
    /// Boots, for each number of processors.
    pub boots: Vec<Boots>,
    /// Memory of an idle guest.
    pub idle: Option<Idle>,
    /// Clocks, for each number of processors.
    pub clocks: Vec<Clock>,
}

impl Report {
    /// An empty report.
    pub fn of(setting: Setting) -> Self {
        Self { setting, boots: Vec::new(), idle: None, clocks: Vec::new() }
    }

    /// Prints it on standard output.
    pub fn print(&self, format: Format) -> Result<(), serde_json::Error> {
        match format {
            Format::Json => println!("{}", serde_json::to_string_pretty(self)?),
            Format::Table => self.print_table(),
        }
        Ok(())
    }

    fn print_table(&self) {
        print!("{}", self.setting);
        println!();
        println!("{:<34} {:>4} {:>10} {:>10} {:>10}", "", "CPUs", "vireo", "TCG", "ours/TCG");
        for b in &self.boots {
            let row = |what, ours: f64, peer: f64| {
                println!("{what:<34} {:>4} {ours:>8.2} s {peer:>8.2} s {:>10.2}", b.cpus, ours / peer);
            };
            let (userland, end) = (&b.to_userland, &b.to_end);
            row("boot to userland, best", userland.best.vireo, userland.best.tcg);
            row("boot to userland, median", userland.median.vireo, userland.median.tcg);
            row("boot to power-off, best", end.best.vireo, end.best.tcg);
            row("boot to power-off, median", end.median.vireo, end.median.tcg);
        }
        if let Some(idle) = &self.idle {
            let row = |what, ours: u64, peer: u64| {
                let mib = |kib: u64| kib as f64 / 1024.0;
                let (ours, peer) = (mib(ours), mib(peer));
                println!("{what:<34} {:>4} {ours:>6.1} MiB {peer:>6.1} MiB {:>10.2}", 1, ours / peer);
            };
            row("memory overhead, idle guest", idle.overhead_kib.vireo, idle.overhead_kib.tcg);
            row("memory touched by the idle guest", idle.guest_ram_kib.vireo, idle.guest_ram_kib.tcg);
        }
        for c in &self.clocks {
            let (ours, peer) = (c.drift_ms_per_s.vireo, c.drift_ms_per_s.tcg);
            println!("{:<34} {:>4} {ours:>5.2} ms/s {peer:>5.2} ms/s", "clock drift, all CPUs busy", c.cpus);
        }
        println!();
        println!("Overhead: memory of the process (PSS) that is not the guest's RAM.");
        println!(
            "Drift: known to some 20 ms in the time measured (--clock-seconds), the delay of a line of console output."
        );
    }
}
