//! Runs a machine from start to end.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use vireo_board::{Board, BoardError, BoardEvent, BoardSpec, Boot};
use vireo_core::{CpuModel, PartitionStats};
use vireo_firmware::linux::{File, LinuxBoot, read_file};
use vireo_firmware::{acpi, smbios};
use vireo_memory::GuestMemory;

use crate::console::{Console, ConsoleEvent, HELP};
use crate::{RunError, RunSpec, SerialSpec, engines};

/// How the guest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestEnd {
    /// It switched itself off.
    PowerOff,
    /// It reset and was not to be started again.
    Reset,
    /// A processor shut down (triple fault).
    Shutdown {
        /// Which vCPU.
        vcpu: u32,
        /// Its instruction pointer.
        rip: u64,
    },
    /// The user ended it.
    Quit,
}

/// What there is to say afterwards.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub end: GuestEnd,
    /// Which engine ran it.
    pub engine: String,
    /// Engines that were passed over, and why.
    pub passed_over: Vec<String>,
    /// Counters.
    pub stats: PartitionStats,
    /// Time from power-on to the end.
    pub ran: Duration,
    /// Times the guest reset and was started again.
    pub resets: u32,
}

/// Everything that the main loop waits for.
enum Event {
    Board(BoardEvent),
    Console(ConsoleEvent),
}

/// Runs the machine that the spec describes until its guest, or the user, ends it.
pub fn run(spec: &RunSpec) -> Result<Outcome, RunError> {
    let files = Files::read(spec)?;
    let chosen = engines::choose(spec.engine)?;
    let cpu_model = cpu_model(spec, &chosen)?;
    let max = chosen.capabilities.max_vcpus;
    if spec.cpus == 0 || spec.cpus > max {
        return Err(RunError::Cpus { asked: spec.cpus, engine: chosen.capabilities.engine.to_string(), max });
    }
    let (mut console, listener) = Console::open(&spec.serial)?;
    let (events, inbox) = channel();
    let board_spec = BoardSpec {
        memory: spec.memory,
        vcpus: spec.cpus,
        cpu_model,
        serial: console.sink(),
        events: forward_board_events(&events),
    };
    let mut board = Board::new(&*chosen.engine, &board_spec, files.boot(spec))
        .map_err(|e| RunError::Machine(e.to_string()))?;
    console.start(&spec.serial, listener, Arc::new(move |e| _ = events.send(Event::Console(e))));
    let started = Instant::now();
    board.resume();
    let mut resets = 0;
    let end = serve(&board, spec, &inbox, &mut resets);
    board.stop();
    Ok(Outcome {
        end: end?,
        engine: chosen.capabilities.engine.to_string(),
        passed_over: chosen.passed_over,
        stats: board.partition().stats(),
        ran: started.elapsed(),
        resets,
    })
}

fn cpu_model(spec: &RunSpec, chosen: &engines::Chosen) -> Result<Arc<CpuModel>, RunError> {
    let unknown =
        || RunError::CpuModel { asked: spec.cpu_model.clone(), known: CpuModel::names().join(", ") };
    let model = CpuModel::named(&spec.cpu_model).ok_or_else(unknown)?;
    if !chosen.capabilities.cpu_models.contains(&spec.cpu_model) {
        let why = chosen.capabilities.abilities.iter().find(|a| a.name == "all-cpu-models");
        let missing = match why.and_then(|a| a.absent.clone()) {
            Some(why) => why,
            None => model.missing_on_host().join(", "),
        };
        let engine = chosen.capabilities.engine.to_string();
        return Err(RunError::CpuModelMissing { name: spec.cpu_model.clone(), engine, missing });
    }
    Ok(model)
}

/// The board's channel carries only its own events; a thread passes them on to the common inbox.
fn forward_board_events(to: &Sender<Event>) -> Sender<BoardEvent> {
    let (sender, receiver) = channel();
    let to = to.clone();
    std::thread::Builder::new()
        .name("events".into())
        .spawn(move || receiver.into_iter().all(|e| to.send(Event::Board(e)).is_ok()))
        .ok();
    sender
}

/// Serves events until one of them ends the machine.
fn serve(
    board: &Board,
    spec: &RunSpec,
    inbox: &Receiver<Event>,
    resets: &mut u32,
) -> Result<GuestEnd, RunError> {
    for event in inbox {
        let reset = match event {
            Event::Board(BoardEvent::PowerOff) => return Ok(GuestEnd::PowerOff),
            Event::Board(BoardEvent::Shutdown { vcpu, rip }) => return Ok(GuestEnd::Shutdown { vcpu, rip }),
            Event::Board(BoardEvent::Failed(e)) => return Err(RunError::EngineFailed(e.to_string())),
            Event::Board(BoardEvent::Reset) if spec.no_reboot => return Ok(GuestEnd::Reset),
            Event::Board(BoardEvent::Reset) | Event::Console(ConsoleEvent::Reset) => true,
            Event::Console(ConsoleEvent::Quit) => return Ok(GuestEnd::Quit),
            Event::Console(ConsoleEvent::Input(bytes)) => {
                board.type_bytes(&bytes);
                false
            }
            Event::Console(ConsoleEvent::PowerButton) => {
                board.press_power_button();
                false
            }
            Event::Console(ConsoleEvent::Help) => {
                if spec.serial == SerialSpec::Stdio {
                    eprint!("{HELP}");
                }
                false
            }
        };
        if reset {
            *resets += 1;
            board.reset().map_err(|e| RunError::Machine(format!("the machine could not be reset: {e}")))?;
        }
    }
    Ok(GuestEnd::Quit)
}

/// Kernel and initrd, read once: a reset boots the same bytes again.
struct Files {
    kernel: Vec<u8>,
    initrd: Option<Vec<u8>>,
}

impl Files {
    fn read(spec: &RunSpec) -> Result<Self, RunError> {
        let read =
            |what, path| read_file(what, path, spec.memory).map_err(|e| RunError::Machine(e.to_string()));
        Ok(Self {
            kernel: read("kernel", &spec.kernel)?,
            initrd: spec.initrd.as_deref().map(|p| read("initrd", p)).transpose()?,
        })
    }

    /// Writes tables and kernel into memory.
    fn boot(self, spec: &RunSpec) -> Boot {
        let spec = spec.clone();
        Box::new(move |memory: &GuestMemory| {
            let fail = |e: &dyn std::fmt::Display| BoardError::Boot(e.to_string());
            let tables = acpi::AcpiSpec {
                vcpus: spec.cpus,
                serial_ports: vec![acpi::SerialPort::com1()],
                keyboard: false,
                pci_mmio64: None,
                ecam: None,
            };
            let rsdp = acpi::install(memory, &tables).map_err(|e| fail(&e))?;
            let names = smbios::SystemNames::default();
            let system = smbios::SmbiosSpec { names, uuid: [0; 16], vcpus: spec.cpus, ram: memory.layout() };
            smbios::install(memory, &system).map_err(|e| fail(&e))?;
            let (kernel, initrd) =
                (spec.kernel.display().to_string(), spec.initrd.as_ref().map(|p| p.display().to_string()));
            let boot = LinuxBoot {
                kernel: File { name: &kernel, bytes: &self.kernel },
                initrd: self
                    .initrd
                    .as_deref()
                    .zip(initrd.as_deref())
                    .map(|(bytes, name)| File { name, bytes }),
                command_line: &spec.append,
                rsdp: Some(rsdp),
                reserved: &[],
            };
            let loaded = vireo_firmware::linux::load(memory, &boot).map_err(|e| fail(&e))?;
            tracing::debug!(protocol = ?loaded.protocol, kernel = ?loaded.kernel, initrd = ?loaded.initrd, "loaded");
            Ok(loaded.entry)
        })
    }
}
