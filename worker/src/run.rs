//! Runs a machine from start to end.

use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use vireo_board::{Attach, Board, BoardError, BoardEvent, BoardSpec, Boot};
use vireo_chain::Disk;
use vireo_chipset::lines::SerialSink;
use vireo_core::{CpuModel, PartitionStats};
use vireo_firmware::Start;
use vireo_firmware::linux::{BootFile, File};
use vireo_hyperv::GuestCrash;
use vireo_memory::GuestMemory;
use vireo_services::Services;

use crate::console::{Console, ConsoleEvent, Events};
use crate::control::{ControlServer, Controlled, Running, Wish};
use crate::disks::Disks;
use crate::nics::Nics;
use crate::output::Output;
use crate::station::StationDevices;
use crate::vmbus::Bus;
use crate::vnc::OpenVnc;
use crate::{RunError, RunSpec, SerialSpec, engines, pci, services, signals};

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
    /// The user ended it, at the console or by a signal (SIGINT, SIGTERM, SIGHUP).
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
    /// Bytes of console output that nobody took before the end.
    pub unread_output: u64,
    /// Bytes of console output that the host refused, and why.
    pub failed_output: Option<(u64, std::io::Error)>,
}

/// Everything that the main loop waits for.
enum Event {
    Board(BoardEvent),
    Console(ConsoleEvent),
    /// Somebody wants something, and to be told that it is done.
    Wish(Wish, SyncSender<()>),
}

/// Runs the machine that the spec describes until its guest, or the user, ends it.
pub fn run(spec: &RunSpec) -> Result<Outcome, RunError> {
    let files = Files::open(spec)?;
    let chosen = engines::choose(spec.engine)?;
    let cpu_model = cpu_model(spec, &chosen)?;
    let max = chosen.capabilities.max_vcpus;
    if spec.cpus == 0 || spec.cpus > max {
        return Err(RunError::Cpus { asked: spec.cpus, engine: chosen.capabilities.engine.to_string(), max });
    }
    spare_files(spec)?;
    let enlightenments = spec.enlightenments.on(&chosen.capabilities);
    // Before the disks, so that it is dropped after them.
    let mut ending = None;
    let vmbus = enlightenments.is_some();
    let limits = spec.memory_limits(vmbus).map_err(RunError::Machine)?;
    let disks = Disks::open(&spec.disks, vmbus)?;
    let services = vmbus.then(|| services::open(limits)).transpose()?;
    let bus = Bus::default();
    let nics = Nics::open(&spec.nics, &bus, vmbus, spec.cpus)?;
    let station = spec.screen.as_ref().map(|s| StationDevices::new(s.size));
    if station.is_some() && !vmbus {
        return Err(RunError::NoVmBus);
    }
    let vnc = spec.screen.as_ref().and_then(|s| s.vnc.as_ref());
    let vnc = vnc.map(OpenVnc::open).transpose().map_err(RunError::Vnc)?;
    let (mut console, listener) = Console::open(&spec.serial)?;
    let further = spec.virtio_console.as_ref().map(FurtherConsole::open).transpose()?;
    let (events, inbox) = channel();
    let board_events = forward_board_events(&events);
    let wish = wishes(events.clone());
    let user = Arc::new(User::new(events, Arc::clone(console.output())));
    // From the moment that there is something to put back or to remove.
    let ending = ending.insert(signals::watch(user.events()).map_err(RunError::Signals)?);
    let board_spec = BoardSpec {
        memory: limits.startup,
        memory_maximum: limits.maximum,
        vcpus: spec.cpus,
        translation_memory: spec.translation_memory,
        cpu_model,
        enlightenments,
        windows: spec.screen.is_some(),
        serial: Arc::clone(console.output()) as Arc<dyn SerialSink>,
        devices: devices(
            spec.cpus,
            services.as_ref().map(|s| (&bus, s)),
            &disks,
            &nics,
            station.as_ref(),
            further.as_ref(),
        ),
        events: board_events,
    };
    let mut board = Board::new(&*chosen.engine, &board_spec, files.boot(spec, vmbus))
        .map_err(|e| RunError::Machine(e.to_string()))?;
    let station = station.map(|s| s.station());
    let vnc = station.clone().zip(vnc).map(|(station, vnc)| vnc.start(station));
    let _vnc = vnc.transpose().map_err(RunError::Vnc)?;
    let resets = Arc::<AtomicU32>::default();
    let started = Instant::now();
    let running = Running {
        engine: chosen.capabilities.engine.to_string(),
        cpus: spec.cpus,
        started,
        resets: Arc::clone(&resets),
        wish,
    };
    let controlled = Arc::new(Controlled { running, disks, nics, station, services });
    let start = |path: &PathBuf| ControlServer::start(path, &controlled).map_err(RunError::Control);
    let _control = spec.control.as_ref().map(start).transpose()?;
    console.start(&spec.serial, listener, Arc::clone(board.serial_input()) as _, user.events());
    let further = further.map(|f| f.start(&user));
    board.resume();
    let machine = Machine { board: &board, console: &console, user: &user, resets: &resets };
    let end = machine.serve(spec, &inbox);
    // Those who wish for something now are told that it is too late.
    drop(inbox);
    board.stop();
    let ran = started.elapsed();
    let unread_output = console.finish() + further.map_or(0, |f| f.finish());
    ending.begin();
    Ok(Outcome {
        end: end?,
        engine: chosen.capabilities.engine.to_string(),
        passed_over: chosen.passed_over,
        stats: board.partition().stats(),
        ran,
        resets: resets.load(Ordering::Relaxed),
        unread_output,
        failed_output: console.output().failure(),
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

/// The console's file starts empty: it must not be one that the machine boots from or keeps its disks in.
fn spare_files(spec: &RunSpec) -> Result<(), RunError> {
    let identity = |p: &Path| std::fs::metadata(p).ok().map(|m| (m.dev(), m.ino()));
    let mut consoles = [Some(&spec.serial), spec.virtio_console.as_ref()].into_iter().flatten();
    consoles.try_for_each(|console| match console {
        SerialSpec::File(path) => {
            identity(path).map_or(Ok(()), |console| spare_others(spec, path, console, identity))
        }
        _ => Ok(()),
    })
}

/// A file that is there already, and is `console`, is none of the machine's others.
fn spare_others(
    spec: &RunSpec,
    path: &Path,
    console: (u64, u64),
    identity: impl Fn(&Path) -> Option<(u64, u64)>,
) -> Result<(), RunError> {
    let refuse = |what| Err(RunError::Console(format!("{} is the {what}", path.display())));
    for (what, file) in [("kernel", Some(&spec.kernel)), ("initrd", spec.initrd.as_ref())] {
        if file.and_then(|f| identity(f)) == Some(console) {
            return refuse(what);
        }
    }
    for disk in &spec.disks {
        if identity(&disk.path) == Some(console) {
            return refuse("file of a disk");
        }
        // One that does not open is refused with its own reason, later.
        let Ok(chain) = Disk::open(&disk.path, disk.format, false) else { continue };
        if chain.files().any(|layer| identity(layer.path) == Some(console)) {
            return refuse("parent of a disk");
        }
    }
    Ok(())
}

/// A console of virtio: whoever is on the other side, and the device.
struct FurtherConsole {
    spec: SerialSpec,
    console: Console,
    listener: Option<UnixListener>,
    device: Arc<vireo_virtio::Console>,
}

impl FurtherConsole {
    fn open(spec: &SerialSpec) -> Result<Self, RunError> {
        let (console, listener) = Console::open(spec)?;
        let device = vireo_virtio::Console::new(Arc::clone(console.output()) as _);
        Ok(Self { spec: spec.clone(), console, listener, device })
    }

    fn start(self, user: &Arc<User>) -> Console {
        let mut console = self.console;
        console.start(&self.spec, self.listener, self.device, user.events());
        console
    }
}

/// The devices beyond the chipset's.
fn devices(
    cpus: u32,
    bus: Option<(&Bus, &Arc<Services>)>,
    disks: &Disks,
    nics: &Arc<Nics>,
    station: Option<&StationDevices>,
    further: Option<&FurtherConsole>,
) -> Vec<Attach> {
    let mut devices = disks.attach();
    devices.extend(nics.attach());
    match bus {
        Some((bus, services)) => {
            let plugs = disks.plugs(cpus).into_iter().chain(nics.plugs());
            let plugs = plugs.chain(station.into_iter().flat_map(StationDevices::plugs));
            devices.push(bus.attach(plugs.chain([services::plug(services)]).collect()));
            devices.extend(station.map(|s| s.attach(bus)));
        }
        // Guests with VMBus have processors with random numbers; others, older ones, may have no other source.
        None => devices.push(pci::attach(pci::RNG, "virtio-rng", vireo_virtio::Rng::new())),
    }
    devices.extend(further.map(|f| pci::attach(pci::CONSOLE, "virtio-console", Arc::clone(&f.device) as _)));
    devices
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

/// How others have the main loop do something, and wait until it is done.
fn wishes(events: Sender<Event>) -> Box<dyn Fn(Wish) -> Result<(), String> + Send + Sync> {
    let events = Mutex::new(events);
    Box::new(move |wish| {
        let (done, wait) = sync_channel(1);
        // The lock is for this moment only: several may wait.
        let sent = events.lock().unwrap_or_else(PoisonError::into_inner).send(Event::Wish(wish, done));
        let ended = || "the machine has ended".to_string();
        sent.map_err(|_| ended())?;
        wait.recv().map_err(|_| ended())
    })
}

/// What the user wants, on its way to the main loop.
struct User {
    inbox: Sender<Event>,
    output: Arc<Output>,
    /// A reset was asked for and is not done: to ask again asks for nothing more.
    reset_pending: AtomicBool,
    /// The end was asked for.
    quits: AtomicBool,
}

impl User {
    fn new(inbox: Sender<Event>, output: Arc<Output>) -> Self {
        Self { inbox, output, reset_pending: AtomicBool::new(false), quits: AtomicBool::new(false) }
    }

    fn events(self: &Arc<Self>) -> Events {
        let user = Arc::clone(self);
        Arc::new(move |event| user.wants(event))
    }

    fn wants(&self, event: ConsoleEvent) {
        if event == ConsoleEvent::Reset && self.reset_pending.swap(true, Ordering::AcqRel) {
            return;
        }
        if event == ConsoleEvent::Quit {
            self.quits.store(true, Ordering::Release);
            // The main loop may be waiting for a port whose output nobody reads.
            self.output.hurry();
        }
        // A main loop that has ended needs no events.
        _ = self.inbox.send(Event::Console(event));
    }
}

/// A machine that runs, as the main loop sees it.
struct Machine<'a> {
    board: &'a Board,
    console: &'a Console,
    user: &'a User,
    resets: &'a AtomicU32,
}

impl Machine<'_> {
    /// Serves events until one of them ends the machine.
    fn serve(&self, spec: &RunSpec, inbox: &Receiver<Event>) -> Result<GuestEnd, RunError> {
        for event in inbox {
            match event {
                Event::Board(BoardEvent::PowerOff) => return Ok(GuestEnd::PowerOff),
                Event::Board(BoardEvent::Shutdown { vcpu, rip }) => {
                    return Ok(GuestEnd::Shutdown { vcpu, rip });
                }
                Event::Board(BoardEvent::Crashed(crash)) => self.console.say(&describe_crash(&crash)),
                Event::Board(BoardEvent::Failed(e)) => return Err(RunError::EngineFailed(e.to_string())),
                Event::Board(BoardEvent::Reset) if spec.no_reboot => return Ok(GuestEnd::Reset),
                Event::Board(BoardEvent::Reset) => self.reset()?,
                Event::Console(ConsoleEvent::Reset) => {
                    self.reset()?;
                    self.user.reset_pending.store(false, Ordering::Release);
                }
                Event::Console(ConsoleEvent::Quit) => return Ok(GuestEnd::Quit),
                Event::Console(ConsoleEvent::PowerButton) => self.board.press_power_button(),
                Event::Console(ConsoleEvent::Help) => self.console.help(),
                Event::Wish(wish, done) => {
                    match wish {
                        Wish::Reset => self.reset()?,
                        Wish::Nmi => self.board.inject_nmi(),
                    }
                    // One that waits no more need not know.
                    _ = done.try_send(());
                }
            }
        }
        Ok(GuestEnd::Quit)
    }

    fn reset(&self) -> Result<(), RunError> {
        loop {
            match self.board.reset() {
                // Disks that are slow, or limited, may have more to do than a pause waits for.
                Err(e @ (BoardError::Busy(_) | BoardError::Pause(_))) => {
                    self.console.say(&format!("vireo: the reset waits: {e}\n"));
                    if self.user.quits.load(Ordering::Acquire) {
                        return Ok(());
                    }
                }
                Err(e) => return Err(RunError::Machine(format!("the machine could not be reset: {e}"))),
                // Not before: whoever counts them takes the guest that answers for the one after it.
                Ok(()) => {
                    self.resets.fetch_add(1, Ordering::Relaxed);
                    return Ok(());
                }
            }
        }
    }
}

/// What a guest's kernel said when it crashed, in lines.
fn describe_crash(crash: &GuestCrash) -> String {
    let parameters = crash.parameters.map(|p| format!("{p:#x}")).join(" ");
    let mut text = format!("vireo: the guest's kernel crashed ({parameters})\n");
    for line in crash.text.iter().flat_map(|t| t.lines()) {
        text += &format!("vireo: | {line}\n");
    }
    text
}

/// Kernel and initrd: a reset boots the same files again.
struct Files {
    kernel: BootFile,
    initrd: Option<BootFile>,
}

impl Files {
    fn open(spec: &RunSpec) -> Result<Self, RunError> {
        let open = |what, path| {
            BootFile::open(what, path, spec.memory).map_err(|e| RunError::Machine(e.to_string()))
        };
        Ok(Self {
            kernel: open("kernel", &spec.kernel)?,
            initrd: spec.initrd.as_deref().map(|p| open("initrd", p)).transpose()?,
        })
    }

    /// Writes tables and kernel into memory.
    fn boot(self, spec: &RunSpec, vmbus: bool) -> Boot {
        let spec = spec.clone();
        Box::new(move |memory: &GuestMemory| {
            let fail = |e: &dyn std::fmt::Display| BoardError::Boot(e.to_string());
            let read = |f: &BootFile| f.read().map(|bytes| (f.name(), bytes)).map_err(|e| fail(&e));
            let kernel = read(&self.kernel)?;
            let initrd = self.initrd.as_ref().map(read).transpose()?;
            let start = Start {
                vcpus: spec.cpus,
                vmbus,
                kernel: File { name: &kernel.0, bytes: &kernel.1 },
                initrd: initrd.as_ref().map(|(name, bytes)| File { name, bytes }),
                command_line: &spec.append,
            };
            let loaded = vireo_firmware::start(memory, &start).map_err(|e| fail(&e))?;
            tracing::debug!(protocol = ?loaded.protocol, kernel = ?loaded.kernel, initrd = ?loaded.initrd, "loaded");
            Ok(loaded.entry)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_pending_reset_is_enough() {
        let (sender, inbox) = channel();
        let user = Arc::new(User::new(sender, Output::start(std::io::sink()).unwrap()));
        let resets = || inbox.try_iter().filter(|e| matches!(e, Event::Console(ConsoleEvent::Reset))).count();
        let events = user.events();
        events(ConsoleEvent::Reset);
        events(ConsoleEvent::PowerButton);
        events(ConsoleEvent::Reset);
        assert_eq!(resets(), 1);
        user.reset_pending.store(false, Ordering::Release);
        events(ConsoleEvent::Reset);
        assert_eq!(resets(), 1, "a reset after the reset");
    }
}
