//! A machine with a network card, whose other end is the host's network.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use vireo_board::{Attach, Board, BoardError, BoardEvent, BoardSpec, Boot};
use vireo_chipset::lines::SerialSink;
use vireo_core::CpuModel;
use vireo_firmware::Start;
use vireo_firmware::linux::File;
use vireo_memory::GuestMemory;
use vireo_soft::SoftEngine;
use vireo_tests::Guest;

use crate::initrd;

/// Far beyond what a run takes: a guest that hangs is ended.
pub const LIMIT: Duration = Duration::from_secs(180);

/// Text that a guest wrote, and those who wait for more of it.
#[derive(Default)]
pub struct Text {
    bytes: Mutex<Vec<u8>>,
    more: Condvar,
}

impl SerialSink for Text {
    fn write(&self, bytes: &[u8]) {
        self.bytes.lock().unwrap().extend(bytes);
        self.more.notify_all();
    }
}

impl Text {
    pub fn all(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap()).into_owned()
    }

    fn forget(&self) {
        self.bytes.lock().unwrap().clear();
    }

    /// Waits for a line that starts with `marker`; gives what follows it.
    pub fn line(&self, marker: &str) -> String {
        let end = Instant::now() + LIMIT;
        let mut bytes = self.bytes.lock().unwrap();
        loop {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let mut lines = text.split_inclusive('\n').filter(|l| l.ends_with('\n'));
            if let Some(line) = lines.find_map(|l| l.strip_prefix(marker)) {
                return line.trim().to_owned();
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || text.contains("NET-FAILED") {
                drop(bytes);
                panic!("no {marker} in:\n{text}");
            }
            bytes = self.more.wait_timeout(bytes, left.min(Duration::from_secs(1))).unwrap().0;
        }
    }
}

pub struct Machine {
    pub board: Board,
    events: Receiver<BoardEvent>,
    pub serial: Arc<Text>,
}

fn boot(guest: &Guest, cpus: u32, append: String) -> Boot {
    let kernel = std::fs::read(&guest.kernel).unwrap();
    let mut initrd = std::fs::read(&guest.initrd).unwrap();
    initrd.extend(initrd::archive("driver", include_bytes!("driver.sh")));
    Box::new(move |memory: &GuestMemory| {
        let start = Start {
            vcpus: cpus,
            vmbus: false,
            kernel: File { name: "kernel", bytes: &kernel },
            initrd: Some(File { name: "initrd", bytes: &initrd }),
            command_line: &append,
        };
        let started = vireo_firmware::start(memory, &start);
        started.map(|loaded| loaded.entry).map_err(|e| BoardError::Boot(e.to_string()))
    })
}

impl Machine {
    pub fn new(guest: &str, cpus: u32, parameter: &str, devices: Vec<Attach>) -> Self {
        let guest = Guest::build(guest);
        let (sender, events) = channel();
        let serial = Arc::<Text>::default();
        let spec = BoardSpec {
            memory: 256 << 20,
            memory_maximum: 256 << 20,
            vcpus: cpus,
            translation_memory: 200 << 20,
            cpu_model: CpuModel::named("vireo-v2").unwrap(),
            enlightenments: None,
            serial: Arc::clone(&serial) as _,
            windows: false,
            devices,
            events: sender,
        };
        let append = format!("console=ttyS0 panic=-1 rdinit=/driver {parameter}");
        let board = Board::new(&SoftEngine::new(), &spec, boot(&guest, cpus, append)).unwrap();
        Self { board, events, serial }
    }

    /// Resets it while its guest is at work; what that said before is forgotten.
    pub fn reset(&self) {
        self.board.pause().unwrap();
        self.serial.forget();
        self.board.reset().unwrap();
        self.board.resume();
    }

    pub fn waits_for_power_off(&self) {
        match self.events.recv_timeout(LIMIT) {
            Ok(BoardEvent::PowerOff) => {}
            Ok(event) => panic!("{event:?} after:\n{}", self.serial.all()),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                panic!("no power-off after:\n{}", self.serial.all())
            }
        }
    }
}
