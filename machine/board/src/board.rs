//! Building and running a board.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vireo_chipset::clock::{Clock, HostClock};
use vireo_chipset::layout::PCI_HOLE_END;
use vireo_chipset::lines::{SerialSink, SystemEvent, SystemEventSink};
use vireo_chipset::timer_thread::TimerThread;
use vireo_chipset::{Chipset, ChipsetBuilder, Seams};
use vireo_core::{
    CpuModel, Engine, EngineError, EngineKind, Exit, MsiMessage, Partition, PartitionSpec, PauseError,
    RunGate, Vcpu, VcpuState,
};
use vireo_firmware::map::ram_layout;
use vireo_hyperv::{CrashSink, Enlightenments, GuestCrash, Hyperv};
use vireo_memory::{GuestMemory, MemoryError};

use crate::attachment::{Attach, Attachments, Seat};
use crate::bus::{BoardBus, InterruptWires};
use crate::input::SerialInput;
use crate::window::Windows;

/// What a board is made of.
pub struct BoardSpec {
    /// RAM in bytes that the guest finds at its start.
    pub memory: u64,
    /// RAM in bytes that there is: what is beyond the guest's start is offered to it later.
    pub memory_maximum: u64,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Bytes that the engine may use for translated code and what goes with it.
    pub translation_memory: u64,
    /// The CPU that the guest sees.
    pub cpu_model: Arc<CpuModel>,
    /// What the guest is told of the hypervisor interface of Hyper-V; `None`: there is none.
    pub enlightenments: Option<&'static Enlightenments>,
    /// Whether devices may put memory of theirs into the PCI hole ([`crate::Window`]): the engine keeps tables for it.
    pub windows: bool,
    /// Takes what the guest writes to its first serial port.
    pub serial: Arc<dyn SerialSink>,
    /// Devices beyond the chipset's own, attached in this order.
    pub devices: Vec<Attach>,
    /// Takes the board's events.
    pub events: Sender<BoardEvent>,
}

/// What a board tells its owner.
#[derive(Debug)]
pub enum BoardEvent {
    /// The guest switched itself off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// A processor shut down (triple fault).
    Shutdown {
        /// Which.
        vcpu: u32,
        /// Where it was.
        rip: u64,
    },
    /// The guest's kernel says that it crashed. It may go on to reset itself, or hang.
    Crashed(GuestCrash),
    /// The engine failed.
    Failed(EngineError),
}

/// Writes what the machine starts from into guest memory and gives the state of vCPU 0; called at start and at each reset.
pub type Boot = Box<dyn Fn(&GuestMemory) -> Result<VcpuState, BoardError> + Send + Sync>;

/// A board could not be made, started or changed.
#[derive(Debug, thiserror::Error)]
pub enum BoardError {
    /// The engine refused.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Guest memory could not be had.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The chipset could not be built.
    #[error(transparent)]
    Chipset(#[from] vireo_chipset::ChipsetError),
    /// vCPUs did not come to rest.
    #[error(transparent)]
    Pause(#[from] PauseError),
    /// A device could not be attached; the text is for the user.
    #[error("{0}")]
    Device(String),
    /// A device did not come to rest.
    #[error("{0} does not come to rest: requests of the guest are still under way")]
    Busy(String),
    /// What is to boot is unusable; the text is for the user.
    #[error("{0}")]
    Boot(String),
    /// The engine cannot do what the set of enlightenments promises.
    #[error(
        "{0} needs an engine that flushes TLBs of other processors, which {1} does not; hyperv-1 does without"
    )]
    Enlightenments(&'static str, EngineKind),
    /// The host refused a thread.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] std::io::Error),
}

/// How long vCPUs get to come to rest, and then the devices.
const PAUSE_DEADLINE: Duration = Duration::from_secs(5);

struct EventSink {
    owner: Mutex<Sender<BoardEvent>>,
    /// The owner was told of something that ends the guest's run.
    told: AtomicBool,
    /// Last words that may still be passed on.
    crashes: AtomicU32,
}

/// Last words of a guest that are passed on until it starts anew: Linux has two.
const CRASHES: u32 = 2;

impl EventSink {
    fn new(owner: Sender<BoardEvent>) -> Self {
        Self { owner: Mutex::new(owner), told: AtomicBool::new(false), crashes: AtomicU32::new(CRASHES) }
    }

    /// Tells the owner, once until [`EventSink::forget`]: until it has acted, the guest runs on and may ask for a reset
    /// again, or shut a processor down because the first way to reset seems not to work.
    fn send(&self, event: BoardEvent) {
        if !self.told.swap(true, Ordering::AcqRel) {
            self.tell(event);
        }
    }

    fn tell(&self, event: BoardEvent) {
        // An owner that has gone needs no events.
        _ = self.owner.lock().unwrap_or_else(PoisonError::into_inner).send(event);
    }

    /// The guest starts anew, and has asked for nothing yet.
    fn forget(&self) {
        self.told.store(false, Ordering::Release);
        self.crashes.store(CRASHES, Ordering::Release);
    }
}

impl SystemEventSink for EventSink {
    fn raise(&self, event: SystemEvent) {
        self.send(match event {
            SystemEvent::PowerOff => BoardEvent::PowerOff,
            SystemEvent::Reset => BoardEvent::Reset,
        });
    }
}

impl CrashSink for EventSink {
    fn crashed(&self, crash: GuestCrash) {
        let one_less = |left: u32| left.checked_sub(1);
        if self.crashes.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_less).is_ok() {
            self.tell(BoardEvent::Crashed(crash));
        }
    }
}

type SharedVcpu = Mutex<Box<dyn Vcpu>>;

/// A machine: paused after [`Board::new`], ended when dropped.
pub struct Board {
    partition: Arc<dyn Partition>,
    gate: Arc<RunGate>,
    /// Pauses in force, as the gate counts them: time stands still while there is one.
    pauses: Mutex<u32>,
    memory: Arc<GuestMemory>,
    chipset: Arc<Chipset>,
    hyperv: Option<Arc<Hyperv>>,
    clock: Arc<HostClock>,
    timers: Arc<TimerThread>,
    devices: Attachments,
    vcpus: Vec<Arc<SharedVcpu>>,
    threads: Vec<JoinHandle<()>>,
    input: Arc<SerialInput>,
    events: Arc<EventSink>,
    boot: Boot,
}

fn lock_vcpu(v: &SharedVcpu) -> MutexGuard<'_, Box<dyn Vcpu>> {
    v.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Board {
    /// Builds a board, boots it, and leaves it paused before its first instruction.
    pub fn new(engine: &dyn Engine, spec: &BoardSpec, boot: Boot) -> Result<Self, BoardError> {
        // Memory first: it knows what the host can give, and an engine keeps tables as large as what it is asked for.
        let memory = GuestMemory::with_reserve(ram_layout(spec.memory)?, ram_layout(spec.memory_maximum)?)?;
        let cpu_model = match spec.enlightenments {
            Some(set) => Arc::new(spec.cpu_model.with_hypervisor(&set.cpuid())),
            None => Arc::clone(&spec.cpu_model),
        };
        let partition = engine.new_partition(&PartitionSpec {
            vcpus: spec.vcpus,
            cpu_model,
            ram_limit: memory.layout().limit().max(if spec.windows { PCI_HOLE_END } else { 0 }),
            translation_memory: spec.translation_memory,
        })?;
        if let Some(set) =
            spec.enlightenments.filter(|s| s.flushes_tlbs() && partition.tlb_flusher().is_none())
        {
            return Err(BoardError::Enlightenments(set.name(), partition.kind()));
        }
        partition.freeze_clock();
        for range in memory.ram_ranges() {
            partition.map_ram(range)?;
        }
        // The memory is new: nobody else can have registered.
        _ = memory.set_observer(Box::new(Arc::clone(&partition)));
        let events = Arc::new(EventSink::new(spec.events.clone()));
        let clock = HostClock::new(0);
        let timers =
            Arc::new(TimerThread::start(Arc::clone(&clock) as Arc<dyn Clock>).map_err(BoardError::Thread)?);
        let wires = Arc::new(InterruptWires::default());
        let mut chipset = ChipsetBuilder::new(&Seams {
            clock: Arc::clone(&clock) as _,
            timers: Arc::clone(&timers) as _,
            ext_int: Arc::clone(&wires) as _,
            msi: Arc::clone(&wires) as _,
            events: Arc::clone(&events) as _,
            serial: Arc::clone(&spec.serial),
        })?;
        let hyperv = spec.enlightenments.map(|enlightenments| {
            Arc::new(Hyperv::new(vireo_hyperv::Seams {
                memory: Arc::clone(&memory),
                partition: Arc::clone(&partition),
                vendor: spec.cpu_model.vendor(),
                clock: Arc::clone(&clock) as _,
                timers: Arc::clone(&timers) as _,
                enlightenments,
                crashes: Arc::clone(&events) as _,
                vcpus: spec.vcpus,
            }))
        });
        let windows = Arc::<Windows>::default();
        let seat =
            Seat { chipset: &mut chipset, memory: &memory, hyperv: hyperv.as_ref(), windows: &windows };
        let devices = Attachments::attach(&spec.devices, seat)?;
        let chipset = Arc::new(chipset.build()?);
        wires.connect(Arc::clone(&partition));
        let gate = RunGate::new(Arc::clone(&partition), spec.vcpus);
        if spec.windows {
            windows.connect(Arc::clone(&partition), Arc::clone(&gate));
        }
        let mut board = Self {
            input: SerialInput::new(chipset.uart()).map_err(BoardError::Thread)?,
            partition,
            gate,
            pauses: Mutex::new(1),
            memory,
            chipset,
            hyperv,
            clock,
            timers,
            devices,
            vcpus: Vec::new(),
            threads: Vec::new(),
            events,
            boot,
        };
        board.start_threads(spec.vcpus)?;
        board.boot()?;
        Ok(board)
    }

    fn start_threads(&mut self, vcpus: u32) -> Result<(), BoardError> {
        let bus = Arc::new(BoardBus { chipset: Arc::clone(&self.chipset), hyperv: self.hyperv.clone() });
        for index in 0..vcpus {
            let vcpu = Arc::new(Mutex::new(Arc::clone(&self.partition).take_vcpu(index)?));
            self.vcpus.push(Arc::clone(&vcpu));
            let (gate, bus, events) = (Arc::clone(&self.gate), Arc::clone(&bus), Arc::clone(&self.events));
            let thread = std::thread::Builder::new()
                .name(format!("vcpu {index}"))
                .spawn(move || run_vcpu(index, &gate, &vcpu, &bus, &events))
                .map_err(BoardError::Thread)?;
            self.threads.push(thread);
        }
        Ok(())
    }

    /// Loads what the machine starts from and sets all vCPUs; they must stand still.
    fn boot(&self) -> Result<(), BoardError> {
        let first = (self.boot)(&self.memory)?;
        for (index, vcpu) in (0..).zip(&self.vcpus) {
            let state = if index == 0 { first.clone() } else { vireo_firmware::linux::waiting(index) };
            lock_vcpu(vcpu).load(&state)?;
        }
        Ok(())
    }

    /// Takes one pause back; with the last one everything runs.
    pub fn resume(&self) {
        let mut pauses = self.pauses.lock().unwrap_or_else(PoisonError::into_inner);
        *pauses = pauses.saturating_sub(1);
        if *pauses == 0 {
            self.clock.resume();
            self.partition.thaw_clock();
            self.timers.resume();
            self.devices.resume();
        }
        self.gate.resume();
    }

    /// Stops everything: vCPUs first, then devices, then timers, then guest time. Pauses nest.
    ///
    /// # Errors
    /// vCPUs or a device did not come to rest; everything goes on.
    pub fn pause(&self) -> Result<(), BoardError> {
        self.gate.pause_all(PAUSE_DEADLINE)?;
        let mut pauses = self.pauses.lock().unwrap_or_else(PoisonError::into_inner);
        if *pauses == 0
            && let Err(e) = self.devices.pause(Instant::now() + PAUSE_DEADLINE)
        {
            self.gate.resume();
            return Err(e);
        }
        *pauses += 1;
        self.timers.pause();
        self.partition.freeze_clock();
        self.clock.pause();
        Ok(())
    }

    /// Resets the machine; it goes on as it was, running or paused.
    pub fn reset(&self) -> Result<(), BoardError> {
        self.pause()?;
        if let Some(hyperv) = &self.hyperv {
            hyperv.reset();
        }
        self.chipset.reset_all();
        self.devices.reset();
        self.events.forget();
        self.input.clear();
        self.boot()?;
        self.resume();
        Ok(())
    }

    /// The way to the first serial port.
    pub fn serial_input(&self) -> &Arc<SerialInput> {
        &self.input
    }

    /// Presses the ACPI power button.
    pub fn press_power_button(&self) {
        self.chipset.acpi().press_power_button();
    }

    /// Interrupts the first processor as nothing can keep out: for a guest that hangs, or is to write a dump of itself.
    pub fn inject_nmi(&self) {
        /// Of a message that is no interrupt of a vector: an NMI.
        const DELIVERY_NMI: u32 = 4 << 8;
        /// To the local APIC with number 0.
        const FIRST: u64 = 0xfee0_0000;
        self.partition.deliver_msi(MsiMessage { address: FIRST, data: DELIVERY_NMI });
    }

    /// The partition, for statistics, dirty log and clock.
    pub fn partition(&self) -> &Arc<dyn Partition> {
        &self.partition
    }

    /// The interface of Hyper-V, if the guest has it.
    pub fn hyperv(&self) -> Option<&Arc<Hyperv>> {
        self.hyperv.as_ref()
    }

    /// The gate, for throttling.
    pub fn gate(&self) -> &Arc<RunGate> {
        &self.gate
    }

    /// Guest memory.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// The devices.
    pub fn chipset(&self) -> &Arc<Chipset> {
        &self.chipset
    }

    /// Ends the vCPU threads.
    pub fn stop(&mut self) {
        self.gate.end();
        for thread in self.threads.drain(..) {
            // A vCPU thread that panicked has already been reported by its own message.
            _ = thread.join();
        }
        self.timers.pause();
        // One that does not rest now never touches the memory of another machine: it keeps this one's.
        let mut pauses = self.pauses.lock().unwrap_or_else(PoisonError::into_inner);
        if *pauses == 0 && self.devices.pause(Instant::now() + PAUSE_DEADLINE).is_ok() {
            *pauses += 1;
        }
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Tells the owner when a vCPU's thread panics: nobody else would, and the machine would stand still.
struct TellPanic<'a> {
    index: u32,
    events: &'a EventSink,
}

impl Drop for TellPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let e = EngineError::Internal(format!("the thread of vCPU {} panicked", self.index));
            self.events.send(BoardEvent::Failed(e));
        }
    }
}

/// A vCPU's thread.
fn run_vcpu(index: u32, gate: &RunGate, vcpu: &SharedVcpu, bus: &BoardBus, events: &EventSink) {
    let _tell = TellPanic { index, events };
    while gate.enter(index) {
        let mut v = lock_vcpu(vcpu);
        match v.run(bus) {
            Ok(Exit::Kicked) => {}
            Ok(Exit::Shutdown) => {
                let rip = v.save().map_or(0, |s| s.general.rip);
                drop(v);
                events.send(BoardEvent::Shutdown { vcpu: index, rip });
                gate.hold(index);
            }
            Err(e) => {
                drop(v);
                events.send(BoardEvent::Failed(e));
                gate.hold(index);
            }
        }
    }
}
