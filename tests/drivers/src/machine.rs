//! The machine.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};

use vireo_board::{Attach, Board, BoardError, BoardEvent, BoardSpec, Boot};
use vireo_core::CpuModel;
use vireo_firmware::Start;
use vireo_firmware::linux::File;
use vireo_memory::GuestMemory;
use vireo_soft::SoftEngine;
use vireo_tests::Guest;

use crate::{LIMIT, Text, initrd};

/// What a machine is made of.
pub struct Setup<'a> {
    /// A guest of `guests/`, by its name.
    pub guest: &'a str,
    /// vCPUs.
    pub cpus: u32,
    /// A shell script that is the guest's first process; `None`: the guest's own.
    pub driver: Option<&'static [u8]>,
    /// Words of the kernel's command line, beside those that all have.
    pub parameter: &'a str,
    /// What is tried.
    pub devices: Vec<Attach>,
    /// What the guest says when it has failed.
    pub failure: Option<&'static str>,
}

/// A machine, paused before its first instruction.
pub struct Machine {
    /// Its board.
    pub board: Board,
    /// What happens to it.
    pub events: Receiver<BoardEvent>,
    /// What its guest says on the serial port.
    pub serial: Arc<Text>,
}

fn boot(setup: &Setup<'_>) -> Boot {
    let guest = Guest::build(setup.guest);
    let read = |path: &_| std::fs::read(path).expect("a file of the guest");
    let (kernel, mut initrd, vcpus) = (read(&guest.kernel), read(&guest.initrd), setup.cpus);
    let mut command_line = String::from("console=ttyS0 panic=-1");
    if let Some(driver) = setup.driver {
        initrd.extend(initrd::archive("driver", driver));
        command_line += " rdinit=/driver";
    }
    command_line = format!("{command_line} {}", setup.parameter);
    Box::new(move |memory: &GuestMemory| {
        let start = Start {
            vcpus,
            vmbus: false,
            kernel: File { name: "kernel", bytes: &kernel },
            initrd: Some(File { name: "initrd", bytes: &initrd }),
            command_line: command_line.trim_end(),
        };
        let started = vireo_firmware::start(memory, &start);
        started.map(|loaded| loaded.entry).map_err(|e| BoardError::Boot(e.to_string()))
    })
}

impl Machine {
    /// Builds it.
    ///
    /// # Panics
    /// It cannot be.
    pub fn new(setup: Setup<'_>) -> Self {
        let boot = boot(&setup);
        let (sender, events) = channel();
        let serial = Arc::new(Text::of(setup.failure));
        let spec = BoardSpec {
            memory: 256 << 20,
            memory_maximum: 256 << 20,
            vcpus: setup.cpus,
            translation_memory: 200 << 20,
            cpu_model: CpuModel::named("vireo-v2").expect("a model"),
            enlightenments: None,
            windows: false,
            serial: Arc::clone(&serial) as _,
            devices: setup.devices,
            events: sender,
        };
        let board = Board::new(&SoftEngine::new(), &spec, boot).expect("a board");
        Self { board, events, serial }
    }

    /// Resets it while its guest is at work; what that said before is forgotten.
    ///
    /// # Panics
    /// It does not come to rest.
    pub fn reset(&self) {
        self.board.pause().expect("it comes to rest");
        self.serial.forget();
        self.board.reset().expect("it is reset");
        self.board.resume();
    }

    /// Waits until the guest has switched it off.
    ///
    /// # Panics
    /// It does not, or something else happens.
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
