//! `vireo run`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use vireo_core::PartitionStats;
use vireo_screen::Size;
use vireo_worker::console::standard_error;
use vireo_worker::{
    DiskSpec, DynamicMemory, EngineChoice, EnlightenmentChoice, GuestEnd, NicSpec, Outcome, RunError,
    RunSpec, ScreenSpec, SerialSpec, VncSpec, parse_memory, parse_translation_memory,
};

/// Shown below the options.
pub const AFTER_HELP: &str = "\
On a terminal, Ctrl-A is the escape: Ctrl-A x ends the machine, Ctrl-A p presses the power button, Ctrl-A h helps.

Exit status: 0 the guest switched itself off; 1 the machine could not be started; 2 wrong usage;
3 the guest's processor shut down (triple fault); 4 ended by the user, or by
SIGINT, SIGTERM or SIGHUP; 5 the engine failed; 6 the guest reset and --no-reboot was given.";

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
    /// Least memory that the guest is left with: what it does not need goes back to the host while it runs.
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    memory_min: Option<u64>,
    /// Most memory that the guest gets while it runs, in pieces of 128M where it is more than --memory.
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    memory_max: Option<u64>,
    /// How much more memory than it needs the guest is to have, in percent of that [default: 20].
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(0..=2000))]
    memory_buffer: Option<u32>,
    /// Number of virtual processors.
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u32,
    /// What executes the guest: auto, kvm or soft.
    #[arg(long, value_name = "ENGINE", default_value = "auto")]
    engine: EngineChoice,
    /// Memory for translated code and what goes with it, where the guest's code is translated: 16M to 2G.
    #[arg(long, value_name = "SIZE", default_value = "200M", value_parser = parse_translation_memory)]
    translation_memory: u64,
    /// The processor that the guest sees.
    #[arg(long, value_name = "MODEL", default_value = "vireo-v2")]
    cpu_model: String,
    /// A disk: an image (raw, VHD, VHDX) or a block device. Options: bus=scsi|virtio|ide, readonly, iops=N, bandwidth=BYTES (per
    /// second), format=raw|vhd|vhdx. A comma that is the name's own is written twice. May be given often.
    #[arg(long = "disk", value_name = "FILE[,OPTION…]")]
    disks: Vec<DiskSpec>,
    /// A CD or DVD in its drive: an ISO image. Options as of a disk; bus=scsi|ide. May be given often.
    #[arg(long = "cdrom", value_name = "FILE[,OPTION…]", value_parser = DiskSpec::parse_cd)]
    cds: Vec<DiskSpec>,
    /// A network adapter, plugged into nat (a private network that reaches the host's), switch=NAME or tap=NAME. Options:
    /// model=netvsc|virtio|e1000, mac=ADDRESS; of nat forward=tcp:127.0.0.1:8080:80, mtu=N, and host=off (the router's address is
    /// not the host's loopback then); of a switch port=NAME and vlan=N. May be given often.
    #[arg(long = "nic", value_name = "NETWORK[,OPTION…]")]
    nics: Vec<NicSpec>,
    /// Gives the machine a screen of this size, a keyboard and a mouse (`vireo vm screenshot`, `vireo vm type`).
    #[arg(long, value_name = "WIDTHxHEIGHT", num_args = 0..=1, default_missing_value = "1024x768")]
    screen: Option<Size>,
    /// Serves screen, keyboard and mouse by VNC, at unix:PATH or HOST:PORT. Options: password-file=FILE (its first line, at most
    /// 8 characters), tls (with a certificate of its own) or tls=CERTIFICATE:KEY, size=WIDTHxHEIGHT.
    #[arg(long, value_name = "ADDRESS[,OPTION…]")]
    vnc: Option<VncSpec>,
    /// Makes a Unix socket by which the running machine can be changed (`vireo vm`).
    #[arg(long, value_name = "SOCKET")]
    control: Option<PathBuf>,
    /// The hypervisor interface that the guest finds: a named set of Hyper-V's (hyperv-1, hyperv-1-flush), none, or auto: the most
    /// that the engine offers.
    #[arg(long, value_name = "SET", default_value = "auto")]
    enlightenments: EnlightenmentChoice,
    /// First serial port: stdio, socket:PATH or file:PATH.
    #[arg(long, value_name = "WHERE", default_value = "stdio")]
    serial: SerialSpec,
    /// A further console, of virtio (hvc0): socket:PATH or file:PATH.
    #[arg(long, value_name = "WHERE", value_parser = SerialSpec::parse_further)]
    virtio_console: Option<SerialSpec>,
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
        dynamic_memory: DynamicMemory {
            minimum: args.memory_min,
            maximum: args.memory_max,
            buffer: args.memory_buffer,
        },
        cpus: args.cpus,
        engine: args.engine,
        translation_memory: args.translation_memory,
        cpu_model: args.cpu_model.clone(),
        enlightenments: args.enlightenments,
        disks: args.disks.iter().chain(&args.cds).cloned().collect(),
        nics: args.nics.clone(),
        screen: screen(args),
        control: args.control.clone(),
        serial: args.serial.clone(),
        virtio_console: args.virtio_console.clone(),
        no_reboot: args.no_reboot,
    };
    let (report, code) = match vireo_worker::run(&spec) {
        Ok(outcome) => report(&outcome, args.stats),
        Err(e) => (format!("vireo: {e}\n"), if matches!(e, RunError::EngineFailed(_)) { 5 } else { 1 }),
    };
    print_last(&report);
    ExitCode::from(code)
}

/// A screen, if there is to be one.
fn screen(args: &RunArgs) -> Option<ScreenSpec> {
    let size = args.vnc.as_ref().and_then(|v| v.size).or(args.screen).unwrap_or(ScreenSpec::SIZE);
    let wanted = args.screen.is_some() || args.vnc.is_some();
    wanted.then(|| ScreenSpec { size, vnc: args.vnc.clone() })
}

/// The last words on standard error. A terminal that takes nothing must not keep the process.
fn print_last(text: &str) {
    match standard_error() {
        Ok(errors) => {
            errors.offer(text.as_bytes());
            errors.finish();
        }
        Err(_) => eprint!("{text}"),
    }
}

/// What there is to say at the end of a machine, and the exit code.
fn report(outcome: &Outcome, stats: bool) -> (String, u8) {
    let mut text = if stats { describe_stats(outcome) } else { String::new() };
    if outcome.unread_output > 0 {
        let lost = outcome.unread_output;
        text += &format!("vireo: {lost} bytes of console output were lost: nobody read them in time\n");
    }
    if let Some((bytes, why)) = &outcome.failed_output {
        text += &format!("vireo: {bytes} bytes of console output could not be written: {why}\n");
    }
    let code = match &outcome.end {
        GuestEnd::PowerOff => 0,
        GuestEnd::Shutdown { vcpu, rip } => {
            text += &format!("vireo: the guest's processor {vcpu} shut down (triple fault) at {rip:#x}\n");
            3
        }
        GuestEnd::Quit => {
            text += "vireo: ended by the user\n";
            4
        }
        GuestEnd::Reset => {
            text += "vireo: the guest reset the machine\n";
            6
        }
    };
    (text, code)
}

fn describe_stats(outcome: &Outcome) -> String {
    let PartitionStats { instructions, exits, tlb_fills, tlb_flushes, interrupts, timer_fires, other } =
        &outcome.stats;
    let seconds = outcome.ran.as_secs_f64();
    let mut text = format!("engine          {}\n", outcome.engine);
    for why in &outcome.passed_over {
        text += &format!("                {why}\n");
    }
    text += &format!("time            {seconds:.3} s\nresets          {}\n", outcome.resets);
    let counters = [
        ("instructions", instructions),
        ("exits", exits),
        ("TLB fills", tlb_fills),
        ("TLB flushes", tlb_flushes),
        ("interrupts", interrupts),
        ("timer fires", timer_fires),
    ];
    for (name, value) in counters {
        text += &match value {
            Some(v) => format!("{name:<15} {v} ({:.0} per second)\n", *v as f64 / seconds.max(1e-9)),
            None => format!("{name:<15} not counted by this engine\n"),
        };
    }
    for (name, value) in other {
        text += &format!("{name:<15} {value}\n");
    }
    text
}
