//! Linux's own drivers use the devices, on the software engine: Debian kernels of 64 and 32 bits, with and without MSI-X.

mod initrd;

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

use vireo_block::{BlockDevice, RamDisk};
use vireo_board::{Attach, Board, BoardError, BoardEvent, BoardSpec, Boot, Seat};
use vireo_chipset::lines::SerialSink;
use vireo_chipset::pci::PciSlot;
use vireo_core::CpuModel;
use vireo_firmware::Start;
use vireo_firmware::linux::File;
use vireo_memory::GuestMemory;
use vireo_soft::SoftEngine;
use vireo_tests::{Guest, HostShare};
use vireo_virtio::{Blk, Console, Device, Rng, VirtioPci};

/// Far beyond what a run takes: a guest that hangs is ended.
const LIMIT: Duration = Duration::from_secs(180);
const DISK: usize = 48 << 20;
const GROWN: usize = 64 << 20;

/// Text that a guest wrote, and those who wait for more of it.
#[derive(Default)]
struct Text {
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
    fn all(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap()).into_owned()
    }

    fn forget(&self) {
        self.bytes.lock().unwrap().clear();
    }

    /// Waits for a line that starts with `marker`; gives what follows it.
    fn line(&self, marker: &str) -> String {
        let end = Instant::now() + LIMIT;
        let mut bytes = self.bytes.lock().unwrap();
        loop {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let mut lines = text.split_inclusive('\n').filter(|l| l.ends_with('\n'));
            if let Some(line) = lines.find_map(|l| l.strip_prefix(marker)) {
                return line.trim().to_owned();
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || text.contains("VIRTIO-FAILED") {
                // The guest goes on writing until the board is dropped.
                drop(bytes);
                panic!("no {marker} in:\n{text}");
            }
            bytes = self.more.wait_timeout(bytes, left.min(Duration::from_secs(1))).unwrap().0;
        }
    }
}

/// A machine with two disks, a console and a source of random numbers.
struct Machine {
    board: Board,
    events: std::sync::mpsc::Receiver<BoardEvent>,
    serial: Arc<Text>,
    hvc: Arc<Text>,
    disk: Arc<RamDisk>,
    blk: Arc<Blk>,
    console: Arc<Console>,
    functions: Vec<Arc<OnceLock<Arc<VirtioPci>>>>,
}

fn disk(text: &[u8; 16], size: usize) -> RamDisk {
    let disk = RamDisk::new(size, 512);
    let done = Box::new(|result: Result<(), _>| result.unwrap());
    let mut sector = [0; 512];
    sector[..16].copy_from_slice(text);
    let buffers = vec![vireo_block::Buffer::host(&vireo_block::HostBuffer::of(&sector))];
    let operation = vireo_block::Operation::Write { fua: false };
    disk.submit(&mut vec![vireo_block::Request { operation, at: 0, len: 512, buffers, done }]);
    disk
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
    fn new(guest: &str, cpus: u32, parameter: &str) -> Self {
        let guest = Guest::build(guest);
        let (sender, events) = channel();
        let (serial, hvc) = (Arc::<Text>::default(), Arc::<Text>::default());
        let disk = Arc::new(self::disk(b"put by the host\n", DISK));
        disk.describe(|info| info.id = std::array::from_fn(|i| i as u8 + 0x10));
        let constant = self::disk(b"not to be writte", 1 << 20);
        constant.describe(|info| info.read_only = true);
        let blk = Blk::new(Arc::clone(&disk) as _, cpus as u16);
        let console = Console::new(Arc::clone(&hvc) as _);
        let devices: [(&'static str, Arc<dyn Device>); 4] = [
            ("disk", Arc::clone(&blk) as _),
            ("constant disk", Blk::new(Arc::new(constant), 1)),
            ("console", Arc::clone(&console) as _),
            ("random numbers", Rng::new()),
        ];
        let mut functions = Vec::new();
        let attach = (3..).zip(devices).map(|(slot, (name, device))| -> Attach {
            let kept = Arc::new(OnceLock::new());
            functions.push(Arc::clone(&kept));
            Box::new(move |seat: &mut Seat| {
                let slot = PciSlot::new(slot, 0).expect("a slot");
                let function = VirtioPci::attach(seat, slot, name, Arc::clone(&device))?;
                _ = kept.set(Arc::clone(&function));
                Ok(function as _)
            })
        });
        let spec = BoardSpec {
            memory: 256 << 20,
            memory_maximum: 256 << 20,
            vcpus: cpus,
            translation_memory: 200 << 20,
            cpu_model: CpuModel::named("vireo-v2").unwrap(),
            enlightenments: None,
            windows: false,
            serial: Arc::clone(&serial) as _,
            devices: attach.collect(),
            events: sender,
        };
        let append = format!("console=ttyS0 panic=-1 rdinit=/driver {parameter}");
        let board = Board::new(&SoftEngine::new(), &spec, boot(&guest, cpus, append)).unwrap();
        Self { board, events, serial, hvc, disk, blk, console, functions }
    }

    /// Resets the machine while its guest uses the disk; what it said before is forgotten.
    fn reset(&self) {
        self.board.pause().unwrap();
        self.serial.forget();
        self.board.reset().unwrap();
        self.board.resume();
    }

    /// Pauses, saves every device, restores it, and goes on.
    fn move_devices(&self) {
        self.board.pause().unwrap();
        for function in &self.functions {
            let function = function.get().unwrap();
            let text = serde_json::to_string(&function.save()).unwrap();
            function.restore(&serde_json::from_str(&text).unwrap()).unwrap();
        }
        let chipset = self.board.chipset();
        chipset.restore_all(&chipset.save_all()).unwrap();
        self.board.resume();
    }

    fn waits_for_power_off(&self) {
        match self.events.recv_timeout(LIMIT) {
            Ok(BoardEvent::PowerOff) => {}
            Ok(event) => panic!("{event:?} after:\n{}", self.serial.all()),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                panic!("no power-off after:\n{}", self.serial.all())
            }
        }
    }
}

fn drivers_work(guest: &str, cpus: u32, parameter: &str) {
    let _share = HostShare::take(cpus);
    let mut machine = Machine::new(guest, cpus, parameter);
    let serial = Arc::clone(&machine.serial);
    machine.board.resume();
    assert_eq!(serial.line("VIRTIO-HEAD "), "put by the host");
    let tells = serial.line("VIRTIO-DISK ");
    let expected = format!(
        "serial=10111213141516171819 sectors={} queues={cpus} discard=1073741824 zeroes=1073741824 physical=512 \
         cache=write back",
        DISK / 512
    );
    assert_eq!(tells, expected);
    assert_eq!(serial.line("VIRTIO-READ-ONLY "), "1 not to be writte");
    serial.line("VIRTIO-BUSY");
    if cpus > 1 {
        machine.reset();
        serial.line("VIRTIO-BUSY");
    }
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(20));
        machine.move_devices();
    }
    serial.line("VIRTIO-IDLE");
    assert_eq!(serial.line("VIRTIO-RNG "), "virtio_rng.0 256");
    serial.line("VIRTIO-TYPE");
    machine.console.push_input(b"typed by the test\n");
    assert_eq!(serial.line("VIRTIO-TYPED "), "typed by the test");
    let numbers: String = (1..=10_000).map(|n| format!("{n}\n")).collect();
    assert_eq!(machine.hvc.all(), format!("Linux says hello\n{numbers}"));
    serial.line("VIRTIO-GROW");
    machine.disk.resize(GROWN);
    machine.blk.look_at_size();
    assert_eq!(serial.line("VIRTIO-GREW "), (GROWN / 512).to_string());
    assert_eq!(serial.line("VIRTIO-AGAIN "), "written by Linux");
    serial.line("VIRTIO-OK");
    machine.waits_for_power_off();
    machine.board.stop();

    let text = serial.all();
    let contents = machine.disk.contents();
    assert_eq!(&contents[512..528], b"written by Linux");
    assert!(contents[1 << 20..2 << 20].iter().all(|b| *b == 0), "discarded");
    assert!(contents[13 << 20..14 << 20].iter().any(|b| *b != 0), "what dd wrote");
    assert!(!text.contains("nobody cared"), "{text}");
    let msi = text.lines().filter(|line| line.contains("virtio") && line.contains("PCI-MSI")).count();
    let pin = text.lines().filter(|line| line.contains("virtio") && line.contains("IO-APIC")).count();
    println!("{text}");
    if parameter.contains("nomsi") {
        assert!(msi == 0 && pin > 0, "pins are used:\n{text}");
    } else {
        assert!(msi > 4 && pin == 0, "MSI-X is used:\n{text}");
    }
}

#[test]
fn debian_6_1_amd64() {
    drivers_work("debian-6.1-cloud-amd64", 1, "");
}

#[test]
fn debian_6_1_amd64_with_2_cpus_by_pins() {
    drivers_work("debian-6.1-cloud-amd64", 2, "pci=nomsi");
}

#[test]
fn debian_6_1_i386_pae() {
    drivers_work("debian-6.1-686-pae", 1, "");
}
