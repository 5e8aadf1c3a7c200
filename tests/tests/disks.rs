//! Disks of real guests: on VMBus, virtio and IDE, disks that come, go and grow, CDs, limits, and what is refused.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vireo_tests::{Guest, GuestRun, HostShare, Machine, vireo, vireo_does};
use vireo_vdisk::trial::peer::{Folder, qemu, run, text};

const LIMIT: Duration = Duration::from_secs(240);
const GUEST: &str = "debian-6.1-cloud-amd64-disk";
const MIB: u64 = 1 << 20;

/// A folder with a disk to boot from, and room for others.
struct Place {
    folder: Folder,
    guest: Guest,
}

impl Place {
    fn new(name: &str, guest: &str) -> Self {
        let place = Self { folder: Folder::new(&format!("disks-{name}")), guest: Guest::build(guest) };
        vireo_does(&["disk", "convert", text(&place.guest.root), text(&place.path("root.vhdx"))]);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Makes an empty disk of so many MiB; gives its path.
    fn disk(&self, name: &str, mib: u64) -> PathBuf {
        let path = self.path(name);
        vireo_does(&["disk", "create", text(&path), "--size", &format!("{mib}M")]);
        path
    }

    /// A CD with a file that tells its name; gives its path.
    fn cd(&self, name: &str) -> PathBuf {
        let (content, path) = (self.path(&format!("{name}-content")), self.path(name));
        fs::create_dir(&content).expect("a folder");
        fs::write(content.join("name"), format!("I am {name}\n")).expect("a file");
        run("xorriso", "xorriso", &["-as", "mkisofs", "-quiet", "-o", text(&path), text(&content)]);
        path
    }

    /// Starts a machine with the root disk as the first, and further options of `vireo run`.
    fn start(&self, run: &GuestRun, options: &[&str]) -> Machine {
        let mut command = run.vireo(vireo());
        command.args(["--no-reboot", "--disk", text(&self.path("root.vhdx"))]).args(options);
        Machine::start(command, &self.path("control"), LIMIT).unwrap()
    }
}

/// Waits for the end of a test of the guest's, and of the machine.
fn finish(machine: &mut Machine, test: &str) {
    machine.process.wait_for(&format!("vireo: {test} ended 0")).unwrap();
    assert_eq!(machine.process.wait().unwrap(), 0, "{}", machine.process.failure("exit code"));
}

/// The serial number by which the guest knows a VHD or VHDX.
fn serial(image: &Path) -> String {
    let info: serde_json::Value =
        serde_json::from_str(&vireo_does(&["disk", "info", text(image), "-o", "json"])).expect("JSON");
    info["id"].as_str().expect("an id").replace('-', "")
}

/// That an image is sound, by our own check and for what it can tell, by QEMU's.
fn is_sound(image: &Path) {
    let said = vireo_does(&["disk", "check", text(image)]);
    assert!(said.contains("sound"), "{}: {said}", image.display());
    if image.extension().is_some_and(|e| e == "vhdx") {
        let said = qemu("qemu-img", &["check", "-f", "vhdx", text(image)]);
        assert!(said.contains("No errors"), "{}: {said}", image.display());
    }
}

/// That the ext4 on a disk is sound, by e2fsck, from a copy that QEMU made.
fn has_sound_ext4(place: &Place, image: &Path, format: &str) {
    let raw = place.path("copy.img");
    qemu("qemu-img", &["convert", "-f", format, "-O", "raw", text(image), text(&raw)]);
    run("e2fsck", "e2fsprogs", &["-f", "-n", text(&raw)]);
}

#[test]
fn two_processors_use_two_disks_on_vmbus() {
    let place = Place::new("vmbus", GUEST);
    let data = place.disk("data.vhdx", 64);
    let disk = format!("vireo.disk={}", serial(&data));
    let guest = place.guest.run_from_disk("verify").cpus(2).parameter(&disk).parameter("vireo.rounds=2");
    let _share = HostShare::take(2);
    let mut machine = place.start(&guest, &["--disk", text(&data)]);
    machine.process.wait_for("vireo: verify round=2 ").unwrap();
    finish(&mut machine, "verify");
    assert_eq!(machine.process.errors(), "");
    is_sound(&data);
    is_sound(&place.path("root.vhdx"));
}

#[test]
fn a_32_bit_kernel_boots_from_vmbus() {
    let place = Place::new("pae", "debian-6.1-686-pae-disk");
    let _share = HostShare::take(1);
    let mut machine = place.start(&place.guest.run_from_disk("verify"), &[]);
    machine.process.wait_for("vireo: root on /dev/sda1 ").unwrap();
    finish(&mut machine, "verify");
    is_sound(&place.path("root.vhdx"));
}

/// Nothing is typed in the guest until the end.
#[test]
fn disks_come_and_go() {
    let place = Place::new("hotplug", GUEST);
    let disks = [place.disk("a.vhdx", 40), place.disk("b.vhd", 48), place.disk("c.img", 56)];
    let _share = HostShare::take(1);
    let mut machine = place.start(&place.guest.run_from_disk("hotplug"), &[]);
    machine.process.wait_for("vireo: hotplug ready, disks: sda \r\n").unwrap();
    for (n, (disk, mib)) in disks.iter().zip([40, 48, 56]).enumerate() {
        let added = machine.change("add", &[text(disk), "-o", "json"]);
        let added: serde_json::Value = serde_json::from_str(&added).expect("JSON");
        assert_eq!(added[0]["name"], format!("scsi0:{}", n + 1));
        let known = added[0]["serial"].as_str().expect("a serial number");
        machine.process.wait_for(&format!(" bytes={} serial={known}\r\n", mib * MIB)).unwrap();
        machine.process.wait_for_times(" written ok\r\n", n + 1).unwrap();
    }
    for (n, name) in ["scsi0:1", "scsi0:2", "scsi0:3"].into_iter().enumerate() {
        machine.change("remove", &[name]);
        machine.process.wait_for_times("vireo: hotplug - sd", n + 1).unwrap();
    }
    let listed = machine.change("list", &[]);
    assert!(listed.contains("root.vhdx") && !listed.contains("a.vhdx"), "{listed}");
    // What has been removed is whole, and nobody's.
    for (disk, format) in disks.iter().zip(["vhdx", "vpc", "raw"]) {
        is_sound(disk);
        has_sound_ext4(&place, disk, format);
    }
    for (n, disk) in disks.iter().enumerate() {
        machine.change("add", &[text(disk)]);
        machine.process.wait_for_times(" kept ok\r\n", n + 1).unwrap();
    }
    machine.process.send(b"stop\n").unwrap();
    machine.process.wait_for("vireo: hotplug events=9 failures=0\r\n").unwrap();
    finish(&mut machine, "hotplug");
}

#[test]
fn a_disk_grows_under_its_guest() {
    let place = Place::new("grow", GUEST);
    let (data, file) = (place.disk("data.vhdx", 64), place.disk("file.img", 64));
    let guest = |disk: &str| place.guest.run_from_disk("grow").parameter(&format!("vireo.disk={disk}"));
    let grows = |machine: &mut Machine, name: &str, arguments: &[&str], mib: u64| {
        machine.change("grow", &[&[name], arguments].concat());
        machine.process.wait_for(&format!(" bytes={}\r\n", mib * MIB)).unwrap();
    };
    let _share = HostShare::take(1);
    let mut machine = place.start(&guest(&serial(&data)), &["--disk", text(&data)]);
    machine.process.wait_for(&format!(" bytes={}\r\n", 64 * MIB)).unwrap();
    grows(&mut machine, "scsi0:1", &["96M"], 96);
    grows(&mut machine, "scsi0:1", &["128G"], 128 << 10);
    // Smaller; more than the block table that it was made with has room for.
    for wrong in ["96M", "1T"] {
        let (code, _, errors) = machine.disk("grow", &["scsi0:1", wrong]);
        assert!(code == 1 && errors.lines().count() == 1, "{errors}");
    }
    machine.process.send(b"stop\n").unwrap();
    finish(&mut machine, "grow");
    is_sound(&data);
    // On virtio, without VMBus, by the size of the file.
    let mut machine = place.start(&guest("/dev/vdb"), &["--enlightenments", "none", "--disk", text(&file)]);
    machine.process.wait_for(&format!(" bytes={}\r\n", 64 * MIB)).unwrap();
    fs::File::options().append(true).open(&file).and_then(|f| f.set_len(80 * MIB)).expect("a larger file");
    grows(&mut machine, "virtio01", &[], 80);
    machine.process.send(b"stop\n").unwrap();
    finish(&mut machine, "grow");
}

#[test]
fn a_panic_is_told_on_standard_error() {
    let place = Place::new("panic", GUEST);
    let _share = HostShare::take(1);
    let mut machine = place.start(&place.guest.run_from_disk("panic"), &[]);
    machine.process.wait_for("vireo: panic").unwrap();
    assert_eq!(machine.process.wait().unwrap(), 6, "{}", machine.process.failure("exit code"));
    let errors = machine.process.errors();
    assert!(
        errors.contains("vireo: the guest's kernel crashed ("),
        "{}",
        machine.process.failure("no crash")
    );
    for line in ["Kernel panic - not syncing: sysrq triggered crash", "Call Trace:"] {
        let told = errors.lines().any(|l| l.starts_with("vireo: | ") && l.contains(line));
        assert!(told, "{}", machine.process.failure(line));
    }
    is_sound(&place.path("root.vhdx"));
}

/// What the shell of a guest needs to find a disk by its size.
const BY_SIZE: &str = ". /vireo/lib/disks.sh; by() { for d in /sys/block/*; do [ $(cat $d/size) != $(($1 * 2048)) ] || echo /dev/${d##*/}; done; }";

/// A disk of 40 MiB by virtio, one of 48 MiB by IDE, CDs in drives of all kinds there are.
fn each_bus(name: &str, cd_buses: &[&str], options: &[&str]) {
    let place = Place::new(name, GUEST);
    let (virtio, ide) = (place.disk("virtio.vhd", 40), place.disk("ide.img", 48));
    let with = |path: &Path, bus: &str| format!("{},bus={bus}", text(path));
    let (virtio_disk, ide_disk) = (with(&virtio, "virtio"), with(&ide, "ide"));
    let cds: Vec<_> = cd_buses.iter().map(|bus| with(&place.cd(&format!("{bus}.iso")), bus)).collect();
    let cds = cds.iter().flat_map(|cd| ["--cdrom", cd]);
    let disks = ["--disk", &virtio_disk, "--disk", &ide_disk].into_iter();
    let all: Vec<_> = disks.chain(cds).chain(options.iter().copied()).collect();
    let _share = HostShare::take(1);
    let mut machine = place.start(&place.guest.run_from_disk(""), &all);
    machine.process.wait_for("/ # ").unwrap();
    machine.shell(BY_SIZE).unwrap();
    for (mib, word, device) in [(40, "virtio", "/dev/vd"), (48, "ide", "/dev/sd")] {
        let written = format!("yes {word} | dd of=$(by {mib}) bs=1M count=4 iflag=fullblock oflag=direct");
        machine.shell(&written).unwrap();
        let path = machine.shell(&format!("by {mib}")).unwrap();
        assert!(path.contains(device), "{path}");
        let serial = machine.shell(&format!("echo $(disk_serial $(basename $(by {mib})))")).unwrap();
        assert!(
            machine.change("list", &["-o", "json"]).contains(&format!("\"{}\"", serial.trim())),
            "{serial}"
        );
    }
    let read =
        "modprobe isofs; for d in /dev/sr*; do mount -o ro $d /mnt && cat /mnt/name && umount /mnt; done";
    let read = machine.shell(read).unwrap();
    for bus in cd_buses {
        assert!(read.contains(&format!("I am {bus}.iso")), "{read}");
    }
    assert!(machine.shell("dd if=/dev/zero of=/dev/sr0 count=1").is_err());
    machine.process.send(b"exit\n").unwrap();
    assert_eq!(machine.process.wait().unwrap(), 0, "{}", machine.process.failure("exit code"));
    for (image, format, word) in [(&virtio, "vpc", "virtio\n"), (&ide, "raw", "ide\n")] {
        let copy = place.path("copy.img");
        qemu("qemu-img", &["convert", "-f", format, "-O", "raw", text(image), text(&copy)]);
        let there = fs::read(&copy).expect("a file");
        let written = word.bytes().cycle().take(4 << 20);
        assert!(there.iter().copied().take(4 << 20).eq(written), "{}", image.display());
        assert!(there[4 << 20..].iter().all(|b| *b == 0), "{}", image.display());
    }
}

#[test]
fn disks_and_cds_are_on_each_bus() {
    each_bus("buses", &["scsi", "ide"], &[]);
}

#[test]
fn disks_and_cds_need_no_interface_of_hyper_v() {
    each_bus("no-hyperv", &["ide"], &["--enlightenments", "none"]);
}

/// What fio reads at random for 4 seconds, in requests.
fn requests_of_fio(machine: &mut Machine, mib: u32) -> u64 {
    let job =
        "--name=read --rw=randread --bs=4k --iodepth=8 --ioengine=libaio --direct=1 --time_based --runtime=4";
    let output = "--output-format=terse --terse-version=3 2>/dev/null | cut -d';' -f5,6";
    let said = machine.shell(&format!("fio {job} --filename=$(by {mib}) {output}")).unwrap();
    let kib = said.trim().strip_prefix("0;").and_then(|kib| kib.parse::<u64>().ok());
    kib.expect("an error of 0, and KiB") / 4
}

#[test]
fn a_disk_may_be_read_only_and_limited() {
    let place = Place::new("limits", GUEST);
    let (fixed, limited, free) =
        (place.disk("fixed.vhdx", 40), place.disk("limited.vhdx", 48), place.disk("free.vhdx", 56));
    let (before, root_before) = (fs::read(&fixed).expect("a file"), place.path("root.vhdx"));
    let (fixed_disk, limited_disk) =
        (format!("{},readonly", text(&fixed)), format!("{},iops=50", text(&limited)));
    let disks = ["--disk", &fixed_disk, "--disk", &limited_disk, "--disk", text(&free)];
    let _share = HostShare::take(1);
    let mut machine = place.start(&place.guest.run_from_disk(""), &disks);
    machine.process.wait_for("/ # ").unwrap();
    machine.shell(BY_SIZE).unwrap();
    assert_eq!(machine.shell("cat /sys/block/$(basename $(by 40))/ro").unwrap().trim(), "1");
    machine.shell("dd if=$(by 40) of=/dev/null bs=1M count=1 iflag=direct").unwrap();
    assert!(machine.shell("dd if=/dev/urandom of=$(by 40) bs=1M count=1 oflag=direct").is_err());
    // Past the kernel's own refusal.
    machine.shell("modprobe sg").unwrap();
    let raw = "/dev/$(ls /sys/block/$(basename $(by 40))/device/scsi_generic)";
    let write = format!("! sg_raw -s 512 -i /dev/urandom {raw} 2a 00 00 00 00 00 00 00 01 00");
    let refused = machine.shell(&format!("{write} 2>&1")).unwrap();
    assert!(refused.to_lowercase().contains("protect"), "{refused}");
    let (limited, free) = (requests_of_fio(&mut machine, 48), requests_of_fio(&mut machine, 56));
    // 4 s at 50, the burst, and those under way; a busy host makes it less.
    assert!((20..=260).contains(&limited), "{limited} requests");
    assert!(free > 2 * limited, "{free} requests without a limit, {limited} with one");
    machine.process.send(b"exit\n").unwrap();
    assert_eq!(machine.process.wait().unwrap(), 0, "{}", machine.process.failure("exit code"));
    assert!(fs::read(&fixed).expect("a file") == before, "a disk that is read only was changed");
    is_sound(&root_before);
}
