//! The results, for people and for programs.

use std::path::Path;
use std::process::Command;

use serde::Serialize;

use crate::Format;
use crate::boot::Boots;
use crate::clock::Clock;
use crate::idle::Idle;

/// What was measured, where, and with what.
#[derive(Serialize)]
pub struct Report {
    /// Version of ours.
    pub vireo: String,
    /// Version of the peer.
    pub qemu: String,
    /// Package and version of the guest's kernel.
    pub kernel: String,
    /// The host's processor, and how many.
    pub host: String,
    /// Load average of the host over the minute before the measurement: a busy host makes noise.
    pub load_before: f64,
    /// Boots, for each number of processors.
    pub boots: Vec<Boots>,
    /// Memory of an idle guest.
    pub idle: Option<Idle>,
    /// Clocks, for each number of processors.
    pub clocks: Vec<Clock>,
}

impl Report {
    /// An empty report that knows its host.
    pub fn of_this_host(vireo: &Path, guest: &Path) -> Result<Self, String> {
        let read =
            |path: &Path| std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()));
        let cpuinfo = read(Path::new("/proc/cpuinfo"))?;
        let model = cpuinfo.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": "));
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let load = read(Path::new("/proc/loadavg"))?;
        Ok(Self {
            vireo: version(vireo)?,
            qemu: version(Path::new("qemu-system-x86_64"))?,
            kernel: read(&guest.join("version"))?.trim().into(),
            host: format!("{} processor(s), {}", processors, model.map_or("unknown", |(_, m)| m)),
            load_before: load.split(' ').next().and_then(|w| w.parse().ok()).unwrap_or(f64::NAN),
            boots: Vec::new(),
            idle: None,
            clocks: Vec::new(),
        })
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
        println!("ours      {}", self.vireo);
        println!("peer      {}, software emulation (tcg, one thread per processor)", self.qemu);
        println!("guest     {}, 512 MiB", self.kernel);
        println!("host      {}, load {} before", self.host, self.load_before);
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

/// The first line that a program says about its version.
fn version(program: &Path) -> Result<String, String> {
    let out = Command::new(program).arg("--version").output();
    let out = out.map_err(|e| format!("{} does not start: {e}", program.display()))?;
    let text = String::from_utf8_lossy(&out.stdout);
    text.lines().next().map(str::to_string).ok_or_else(|| format!("{} tells no version", program.display()))
}
