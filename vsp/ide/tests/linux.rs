//! Linux's own driver uses the controller, on the software engine: Debian kernels of 64 and 32 bits, by bus master and
//! by PIO. Meanwhile the controller is saved, reset and restored again and again; then the whole machine is reset.

use std::sync::{Arc, OnceLock};

use vireo_block::{BlockDevice, Buffer, HostBuffer, Operation, RamDisk, Request};
use vireo_chipset::pci::PciFunction;
use vireo_drivers::{Machine, Setup};
use vireo_ide::{IdeController, IdeDrive, attach};
use vireo_tests::HostShare;

const MIB: usize = 1 << 20;

/// A machine with a disk and a CD.
struct Tried {
    machine: Machine,
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

impl Tried {
    fn new(guest: &str) -> Self {
        // No two blocks are the same.
        let contents: Vec<u8> =
            (0..16 * MIB as u32 / 4).flat_map(|n| n.wrapping_mul(0x9E37_79B1).to_le_bytes()).collect();
        let (disk, medium) = (filled(&contents), filled(&contents));
        let kept = Arc::new(OnceLock::new());
        let made = Arc::clone(&kept);
        let drives =
            [Some(IdeDrive::Disk(Arc::clone(&disk) as _)), None, Some(IdeDrive::Cd(Some(medium))), None];
        let machine = Machine::new(Setup {
            guest,
            cpus: 1,
            driver: None,
            parameter: "",
            devices: vec![attach(drives, move |ide| _ = made.set(Arc::clone(ide)))],
            failure: None,
        });
        machine.board.resume();
        Self { machine, ide: Arc::clone(kept.get().unwrap()), disk, contents }
    }

    /// Saves the controller, forgets everything, and restores it.
    fn churn(&self) {
        self.machine.board.pause().unwrap();
        let state = serde_json::to_string(&self.ide.save()).unwrap();
        self.ide.reset();
        self.ide.restore(&serde_json::from_str(&state).unwrap()).unwrap();
        self.machine.board.resume();
    }

    /// Waits for the shell.
    fn shell(&self) {
        self.machine.serial.wait("shell", |text| text.contains("Welcome to Vireo").then_some(()), || ());
        // Neither a prompt nor what is typed comes between what is waited for.
        self.types("PS1=; stty -echo");
    }

    fn types(&self, line: &str) {
        self.machine.board.serial_input().push_while(format!("{line}\n").as_bytes(), || true);
    }

    /// Has the shell do it, while the controller is churned; it must succeed.
    fn does(&self, commands: &str) {
        self.machine.serial.forget();
        self.types(&format!("if {commands}; then echo IDE-WELL; else dmesg | tail -n 20; echo IDE-BAD; fi"));
        let ended = |text: &str| {
            let mut ends = text.split_inclusive('\n').map(str::trim_end);
            ends.find_map(|line| ["IDE-WELL", "IDE-BAD"].into_iter().find(|end| line == *end))
        };
        let end = self.machine.serial.wait(commands, ended, || self.churn());
        let text = self.machine.serial.all();
        assert_eq!(end, "IDE-WELL", "{commands}:\n{text}");
    }
}

/// What is read from the disk, directly or by way of the CD, is what the host put there; what is written arrives.
fn works(tried: &Tried, seek_mib: usize) {
    tried.does("cmp /dev/sda /dev/sr0");
    let copy = format!("dd if=/dev/sr0 of=/dev/sda bs=64k count=48 seek={} conv=fsync", seek_mib * 16);
    tried.does(&format!("{copy} && sync && echo 3 >/proc/sys/vm/drop_caches"));
    let three = 3 * MIB;
    let sum = |what| format!("$(dd if={what} bs=1M count=3 | sha256sum)");
    tried.does(&format!(
        "[ \"{}\" = \"{}\" ]",
        sum(format!("/dev/sda skip={seek_mib}")),
        sum("/dev/sr0".into())
    ));
    let written = &tried.disk.contents()[seek_mib * MIB..][..three];
    assert!(*written == tried.contents[..three], "what Linux wrote is on the disk");
    // As it was, for the next time.
    tried.does(&format!(
        "dd if=/dev/sr0 of=/dev/sda bs=1M skip={seek_mib} seek={seek_mib} count=3 conv=fsync"
    ));
    assert!(tried.disk.contents() == tried.contents);
}

fn driver_works(guest: &str) {
    let _share = HostShare::take(1);
    let mut tried = Tried::new(guest);
    tried.shell();
    let ready = "while ! [ -b /dev/sr0 -a -b /dev/sda ]; do sleep 0.1; done";
    // The modes of both devices. (Of a device that is not there it is 0.)
    let mode = "cat /sys/class/ata_device/*/xfer_mode | sort | uniq -c | tr -s ' \\n' ' '";
    tried.does(&format!("{ready}; {mode} | grep '2 XFER_MW_DMA_2'"));
    works(&tried, 5);
    let again =
        "rmmod ata_piix && { ! [ -d /sys/module/ata_generic ] || rmmod ata_generic; } && rmmod libata";
    tried.does(&format!("{again} && cd /lib/modules && insmod libata.ko dma=0 && insmod ata_piix.ko"));
    tried.does(&format!("{ready}; {mode} | grep '2 XFER_PIO_4'"));
    works(&tried, 9);
    tried.does("! dmesg | grep -E 'ata.*(exception|failed command|timeout)|nobody cared|I/O error'");
    // A reset in the middle of it.
    tried.types("while :; do cat /dev/sda; done >/dev/null");
    tried.machine.serial.forget();
    tried.machine.board.reset().unwrap();
    tried.shell();
    tried.does("cmp /dev/sda /dev/sr0");
    tried.types("poweroff -f");
    tried.machine.waits_for_power_off();
    tried.machine.board.stop();
}

#[test]
fn debian_6_1_amd64() {
    driver_works("debian-6.1-cloud-amd64");
}

#[test]
fn debian_6_1_i386_pae() {
    driver_works("debian-6.1-686-pae");
}
