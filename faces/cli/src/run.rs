//! `vireo run`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use vireo_core::PartitionStats;
use vireo_worker::{EngineChoice, GuestEnd, Outcome, RunError, RunSpec, SerialSpec, parse_memory};

/// Shown below the options.
pub const AFTER_HELP: &str = "\
On a terminal, Ctrl-A is the escape: Ctrl-A x ends the machine, Ctrl-A p presses the power button, Ctrl-A h helps.

Exit status: 0 the guest switched itself off; 1 the machine could not be started; 2 wrong usage;
3 the guest's processor shut down (triple fault); 4 ended by the user; 5 the engine failed;
6 the guest reset and --no-reboot was given.";

/// Options of `vireo run`.
#[derive(Args)]
pub struct RunArgs {
    /// Kernel to boot: a Linux bzImage, or an ELF file with a PVH entry.
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// Initial RAM disk.
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Kernel command line.
    #[arg(long, value_name = "TEXT", default_value = "console=ttyS0", allow_hyphen_values = true)]
    append: String,
    /// Memory: 512M, 2G; a bare number is in MiB.
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = parse_memory)]
    memory: u64,
    /// Number of virtual processors.
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u32,
    /// What executes the guest: auto, kvm or soft.
    #[arg(long, value_name = "ENGINE", default_value = "auto")]
    engine: EngineChoice,
    /// The processor that the guest sees.
    #[arg(long, value_name = "MODEL", default_value = "vireo-v2")]
    cpu_model: String,
    /// First serial port: stdio, socket:PATH or file:PATH.
    #[arg(long, value_name = "WHERE", default_value = "stdio")]
    serial: SerialSpec,
    /// Print counters at the end.
    #[arg(long)]
    stats: bool,
    /// End when the guest resets, instead of starting it again.
    #[arg(long)]
    no_reboot: bool,
}

/// Runs a machine to its end.
pub fn run(args: &RunArgs) -> ExitCode {
    let spec = RunSpec {
        kernel: args.kernel.clone(),
        initrd: args.initrd.clone(),
        append: args.append.clone(),
        memory: args.memory,
        cpus: args.cpus,
        engine: args.engine,
        cpu_model: args.cpu_model.clone(),
        serial: args.serial.clone(),
        no_reboot: args.no_reboot,
    };
    match vireo_worker::run(&spec) {
        Ok(outcome) => {
            if args.stats {
                print_stats(&outcome);
            }
            report_end(&outcome.end)
        }
        Err(e) => {
            crate::complain(&e);
            ExitCode::from(if matches!(e, RunError::EngineFailed(_)) { 5 } else { 1 })
        }
    }
}

fn report_end(end: &GuestEnd) -> ExitCode {
    ExitCode::from(match end {
        GuestEnd::PowerOff => 0,
        GuestEnd::Shutdown { vcpu, rip } => {
            crate::complain(&format!("the guest's processor {vcpu} shut down (triple fault) at {rip:#x}"));
            3
        }
        GuestEnd::Quit => {
            crate::complain(&"ended by the user");
            4
        }
        GuestEnd::Reset => {
            crate::complain(&"the guest reset the machine");
            6
        }
    })
}

fn print_stats(outcome: &Outcome) {
    let PartitionStats { instructions, exits, tlb_fills, tlb_flushes, interrupts, timer_fires, other } =
        &outcome.stats;
    let seconds = outcome.ran.as_secs_f64();
    eprintln!("engine          {}", outcome.engine);
    for why in &outcome.passed_over {
        eprintln!("                {why}");
    }
    eprintln!("time            {seconds:.3} s");
    eprintln!("resets          {}", outcome.resets);
    let counters = [
        ("instructions", instructions),
        ("exits", exits),
        ("TLB fills", tlb_fills),
        ("TLB flushes", tlb_flushes),
        ("interrupts", interrupts),
        ("timer fires", timer_fires),
    ];
    for (name, value) in counters {
        match value {
            Some(v) => eprintln!("{name:<15} {v} ({:.0} per second)", *v as f64 / seconds.max(1e-9)),
            None => eprintln!("{name:<15} not counted by this engine"),
        }
    }
    for (name, value) in other {
        eprintln!("{name:<15} {value}");
    }
}
