//! Linux's own drivers use the devices, on the software engine: Debian kernels of 64 and 32 bits, with and without MSI-X.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use vireo_block::{BlockDevice, RamDisk};
use vireo_board::{Attach, Seat};
use vireo_chipset::pci::PciSlot;
use vireo_drivers::{Machine, Setup, Text};
use vireo_tests::HostShare;
use vireo_virtio::{Blk, Console, Device, Rng, VirtioPci};

const DISK: usize = 48 << 20;
const GROWN: usize = 64 << 20;

/// A machine with two disks, a console and a source of random numbers.
struct Tried {
    machine: Machine,
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

impl Tried {
    fn new(guest: &str, cpus: u32, parameter: &str) -> Self {
        let hvc = Arc::<Text>::default();
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
        let machine = Machine::new(Setup {
            guest,
            cpus,
            driver: Some(include_bytes!("driver.sh")),
            parameter,
            devices: attach.collect(),
            failure: Some("VIRTIO-FAILED"),
        });
        Self { machine, hvc, disk, blk, console, functions }
    }

    /// Pauses, saves every device, restores it, and goes on.
    fn move_devices(&self) {
        self.machine.board.pause().unwrap();
        for function in &self.functions {
            let function = function.get().unwrap();
            let text = serde_json::to_string(&function.save()).unwrap();
            function.restore(&serde_json::from_str(&text).unwrap()).unwrap();
        }
        let chipset = self.machine.board.chipset();
        chipset.restore_all(&chipset.save_all()).unwrap();
        self.machine.board.resume();
    }
}

fn drivers_work(guest: &str, cpus: u32, parameter: &str) {
    let _share = HostShare::take(cpus);
    let mut tried = Tried::new(guest, cpus, parameter);
    let serial = Arc::clone(&tried.machine.serial);
    tried.machine.board.resume();
    assert_eq!(serial.line("VIRTIO-HEAD "), "put by the host");
    let tells = serial.line("VIRTIO-DISK ");
    // The id in ten bytes, the last six of its sixteen laid over the first.
    let expected = format!(
        "serial=0a0a0e0e0a0a16171819 sectors={} queues={cpus} discard=1073741824 zeroes=1073741824 physical=512 \
         cache=write back",
        DISK / 512
    );
    assert_eq!(tells, expected);
    assert_eq!(serial.line("VIRTIO-READ-ONLY "), "1 not to be writte");
    serial.line("VIRTIO-BUSY");
    if cpus > 1 {
        tried.machine.reset();
        serial.line("VIRTIO-BUSY");
    }
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(20));
        tried.move_devices();
    }
    serial.line("VIRTIO-IDLE");
    assert_eq!(serial.line("VIRTIO-RNG "), "virtio_rng.0 256");
    serial.line("VIRTIO-TYPE");
    tried.console.push_input(b"typed by the test\n");
    assert_eq!(serial.line("VIRTIO-TYPED "), "typed by the test");
    let numbers: String = (1..=10_000).map(|n| format!("{n}\n")).collect();
    assert_eq!(tried.hvc.all(), format!("Linux says hello\n{numbers}"));
    serial.line("VIRTIO-GROW");
    tried.disk.resize(GROWN);
    tried.blk.look_at_size();
    assert_eq!(serial.line("VIRTIO-GREW "), (GROWN / 512).to_string());
    assert_eq!(serial.line("VIRTIO-AGAIN "), "written by Linux");
    serial.line("VIRTIO-OK");
    tried.machine.waits_for_power_off();
    tried.machine.board.stop();

    let text = serial.all();
    let contents = tried.disk.contents();
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
