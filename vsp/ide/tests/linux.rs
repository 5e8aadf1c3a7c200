//! Linux's own driver uses the controller, on the software engine: Debian kernels of 64 and 32 bits, by bus master and
//! by PIO. Meanwhile the controller is saved, reset and restored again and again; then the whole machine is reset.

use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

use vireo_block::{BlockDevice, Buffer, HostBuffer, Operation, RamDisk, Request};
use vireo_board::{Board, BoardError, BoardEvent, BoardSpec, Boot};
use vireo_chipset::lines::SerialSink;
use vireo_chipset::pci::PciFunction;
use vireo_core::CpuModel;
use vireo_firmware::Start;
use vireo_firmware::linux::File;
use vireo_ide::{IdeController, IdeDrive, attach};
use vireo_memory::GuestMemory;
use vireo_soft::SoftEngine;
use vireo_tests::{Guest, HostShare};

/// Far beyond what a run takes: a guest that hangs is ended.
const LIMIT: Duration = Duration::from_secs(180);
const MIB: usize = 1 << 20;

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
    /// Waits until `found` finds something in it; `meanwhile` is done again and again.
    fn wait<R>(&self, what: &str, found: impl Fn(&str) -> Option<R>, mut meanwhile: impl FnMut()) -> R {
        let end = Instant::now() + LIMIT;
        loop {
            let text = String::from_utf8_lossy(&self.bytes.lock().unwrap()).into_owned();
            if let Some(result) = found(&text) {
                return result;
            }
            assert!(Instant::now() < end, "no {what} in:\n{text}");
            meanwhile();
            let bytes = self.more.wait_timeout(self.bytes.lock().unwrap(), Duration::from_millis(5));
            drop(bytes.unwrap());
        }
    }
}

/// A machine with a disk and a CD.
struct Machine {
    board: Board,
    events: Receiver<BoardEvent>,
    serial: Arc<Text>,
    ide: Arc<IdeController>,
    disk: Arc<RamDisk>,
    contents: Vec<u8>,
}

/// A disk with these bytes.
fn filled(bytes: &[u8]) -> Arc<RamDisk> {
    let disk = Arc::new(RamDisk::new(bytes.len(), 512));
    let (at, len, buffers) = (0, bytes.len() as u64, vec![Buffer::host(&HostBuffer::of(bytes))]);
    let done = Box::new(|result: Result<(), _>| result.unwrap());
    disk.submit(&mut vec![Request { operation: Operation::Write { fua: false }, at, len, buffers, done }]);
    disk
}

fn boot(guest: &Guest) -> Boot {
    let (kernel, initrd) = (std::fs::read(&guest.kernel).unwrap(), std::fs::read(&guest.initrd).unwrap());
    Box::new(move |memory: &GuestMemory| {
        let start = Start {
            vcpus: 1,
            vmbus: false,
            kernel: File { name: "kernel", bytes: &kernel },
            initrd: Some(File { name: "initrd", bytes: &initrd }),
            command_line: "console=ttyS0 panic=-1",
        };
        let started = vireo_firmware::start(memory, &start);
        started.map(|loaded| loaded.entry).map_err(|e| BoardError::Boot(e.to_string()))
    })
}

impl Machine {
    fn new(guest: &str) -> Self {
        let guest = Guest::build(guest);
        let (sender, events) = channel();
        let serial = Arc::<Text>::default();
        // No two blocks are the same.
        let contents: Vec<u8> =
            (0..16 * MIB as u32 / 4).flat_map(|n| n.wrapping_mul(0x9E37_79B1).to_le_bytes()).collect();
        let (disk, medium) = (filled(&contents), filled(&contents));
        let kept = Arc::new(OnceLock::new());
        let made = Arc::clone(&kept);
        let drives =
            [Some(IdeDrive::Disk(Arc::clone(&disk) as _)), None, Some(IdeDrive::Cd(Some(medium))), None];
        let spec = BoardSpec {
            memory: 256 << 20,
            memory_maximum: 256 << 20,
            vcpus: 1,
            translation_memory: 200 << 20,
            cpu_model: CpuModel::named("vireo-v2").unwrap(),
            enlightenments: None,
            windows: false,
            serial: Arc::clone(&serial) as _,
            devices: vec![attach(drives, move |ide| _ = made.set(Arc::clone(ide)))],
            events: sender,
        };
        let board = Board::new(&SoftEngine::new(), &spec, boot(&guest)).unwrap();
        board.resume();
        Self { board, events, serial, ide: Arc::clone(kept.get().unwrap()), disk, contents }
    }

    /// Saves the controller, forgets everything, and restores it.
    fn churn(&self) {
        self.board.pause().unwrap();
        let state = serde_json::to_string(&self.ide.save()).unwrap();
        self.ide.reset();
        self.ide.restore(&serde_json::from_str(&state).unwrap()).unwrap();
        self.board.resume();
    }

    /// Waits for the shell.
    fn shell(&self) {
        self.serial.wait("shell", |text| text.contains("Welcome to Vireo").then_some(()), || ());
        // Neither a prompt nor what is typed comes between what is waited for.
        self.types("PS1=; stty -echo");
    }

    fn types(&self, line: &str) {
        self.board.serial_input().push_while(format!("{line}\n").as_bytes(), || true);
    }

    /// Has the shell do it, while the controller is churned; it must succeed.
    fn does(&self, commands: &str) {
        self.serial.bytes.lock().unwrap().clear();
        self.types(&format!("if {commands}; then echo IDE-WELL; else dmesg | tail -n 20; echo IDE-BAD; fi"));
        let ended = |text: &str| {
            let mut ends = text.split_inclusive('\n').map(str::trim_end);
            ends.find_map(|line| ["IDE-WELL", "IDE-BAD"].into_iter().find(|end| line == *end))
        };
        let end = self.serial.wait(commands, ended, || self.churn());
        let text = String::from_utf8_lossy(&self.serial.bytes.lock().unwrap()).into_owned();
        assert_eq!(end, "IDE-WELL", "{commands}:\n{text}");
    }
}

/// What is read from the disk, directly or by way of the CD, is what the host put there; what is written arrives.
fn works(machine: &Machine, seek_mib: usize) {
    machine.does("cmp /dev/sda /dev/sr0");
    let copy = format!("dd if=/dev/sr0 of=/dev/sda bs=64k count=48 seek={} conv=fsync", seek_mib * 16);
    machine.does(&format!("{copy} && sync && echo 3 >/proc/sys/vm/drop_caches"));
    let three = 3 * MIB;
    let sum = |what| format!("$(dd if={what} bs=1M count=3 | sha256sum)");
    machine.does(&format!(
        "[ \"{}\" = \"{}\" ]",
        sum(format!("/dev/sda skip={seek_mib}")),
        sum("/dev/sr0".into())
    ));
    let written = &machine.disk.contents()[seek_mib * MIB..][..three];
    assert!(*written == machine.contents[..three], "what Linux wrote is on the disk");
    // As it was, for the next time.
    machine.does(&format!(
        "dd if=/dev/sr0 of=/dev/sda bs=1M skip={seek_mib} seek={seek_mib} count=3 conv=fsync"
    ));
    assert!(machine.disk.contents() == machine.contents);
}

fn driver_works(guest: &str) {
    let _share = HostShare::take(1);
    let mut machine = Machine::new(guest);
    machine.shell();
    let ready = "while ! [ -b /dev/sr0 -a -b /dev/sda ]; do sleep 0.1; done";
    // The modes of both devices. (Of a device that is not there it is 0.)
    let mode = "cat /sys/class/ata_device/*/xfer_mode | sort | uniq -c | tr -s ' \\n' ' '";
    machine.does(&format!("{ready}; {mode} | grep '2 XFER_MW_DMA_2'"));
    works(&machine, 5);
    let again =
        "rmmod ata_piix && { ! [ -d /sys/module/ata_generic ] || rmmod ata_generic; } && rmmod libata";
    machine.does(&format!("{again} && cd /lib/modules && insmod libata.ko dma=0 && insmod ata_piix.ko"));
    machine.does(&format!("{ready}; {mode} | grep '2 XFER_PIO_4'"));
    works(&machine, 9);
    machine.does("! dmesg | grep -E 'ata.*(exception|failed command|timeout)|nobody cared|I/O error'");
    // A reset in the middle of it.
    machine.types("while :; do cat /dev/sda; done >/dev/null");
    machine.serial.bytes.lock().unwrap().clear();
    machine.board.reset().unwrap();
    machine.shell();
    machine.does("cmp /dev/sda /dev/sr0");
    machine.types("poweroff -f");
    assert!(matches!(machine.events.recv_timeout(LIMIT), Ok(BoardEvent::PowerOff)));
    machine.board.stop();
}

#[test]
fn debian_6_1_amd64() {
    driver_works("debian-6.1-cloud-amd64");
}

#[test]
fn debian_6_1_i386_pae() {
    driver_works("debian-6.1-686-pae");
}
