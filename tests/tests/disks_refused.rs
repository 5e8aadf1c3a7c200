//! Wrong disks get one clear line and a non-zero exit code, and every file stays as it was.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use vireo_tests::{Guest, HostShare, Machine, Process, vireo, vireo_does, vireo_says};
use vireo_vdisk::trial::peer::{Folder, qemu, text};

const LIMIT: Duration = Duration::from_secs(20);
const GUEST: &str = "debian-6.1-cloud-amd64";
/// It cannot be done; the command line was wrong.
const CANNOT: i32 = 1;
const WRONG_USAGE: i32 = 2;

/// A folder with good and bad images.
fn images(name: &str) -> Folder {
    let folder = Folder::new(name);
    let path = |name: &str| folder.join(name);
    let create = |name: &str, options: &[&str]| {
        vireo_does(&[&["disk", "create", text(&path(name))], options].concat());
    };
    fs::create_dir(path("folder")).expect("a folder");
    create("good.vhdx", &["--size", "16M"]);
    create("good.vhd", &["--size", "16M"]);
    create("good.img", &["--size", "16M"]);
    create("4k.vhdx", &["--size", "16M", "--sector", "4096"]);
    create("parent.vhdx", &["--size", "16M"]);
    create("orphan.vhdx", &["--parent", text(&path("parent.vhdx"))]);
    fs::remove_file(path("parent.vhdx")).expect("it was there");
    create("parent2.vhdx", &["--size", "16M"]);
    create("child.vhdx", &["--parent", text(&path("parent2.vhdx"))]);
    let good = fs::read(path("good.vhdx")).expect("a file");
    fs::write(path("cut.vhdx"), &good[..good.len() / 3]).expect("a file");
    fs::write(path("zeros.vhd"), [0; 4096]).expect("a file");
    fs::write(path("text.vhdx"), "This is no disk, it only tells about one.\n").expect("a file");
    fs::write(path("small.img"), [1; 500]).expect("a file");
    fs::write(path("empty.img"), []).expect("a file");
    fs::write(path("existing"), "precious").expect("a file");
    qemu("qemu-img", &["create", "-q", "-f", "qcow2", text(&path("foreign.qcow2")), "16M"]);
    folder
}

/// All files below a folder, with their content.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        match path.is_file() {
            true => _ = found.insert(path.clone(), fs::read(&path).expect("a file")),
            false => _ = found.insert(path, Vec::new()),
        }
    }
    found
}

/// What is wrong with how a refusal was told; nothing when all is well.
fn fault(
    what: &[&str],
    (ended, output, errors): (i32, String, String),
    code: i32,
    names: &str,
) -> Option<String> {
    let lines = errors.lines().count();
    let wrong = if ended != code {
        format!("exit code {ended}, not {code}")
    } else if !output.is_empty() {
        "something on standard output".into()
    } else if !errors.to_lowercase().contains(&names.to_lowercase()) {
        format!("no word about {names:?}")
    } else if errors.contains("panicked") {
        "a panic".into()
    } else if code == CANNOT && (lines != 1 || !errors.starts_with("vireo: ")) {
        format!("{lines} lines, or not from vireo")
    } else if code == WRONG_USAGE && errors.matches("error:").count() != 1 {
        "not one error".into()
    } else {
        return None;
    };
    Some(format!("{}: {wrong}\n{errors}", what.join(" ")))
}

/// Options of `vireo run`, the exit code, and what the message must name.
fn of_a_machine() -> Vec<(Vec<&'static str>, i32, &'static str)> {
    let disk = |disk, code, names| (vec!["--disk", disk], code, names);
    vec![
        disk("", WRONG_USAGE, "--disk"),
        disk(",readonly", WRONG_USAGE, "needs a file"),
        disk("good.vhdx,bus=usb", WRONG_USAGE, "scsi, virtio or ide"),
        disk("good.vhdx,iops=0", WRONG_USAGE, "iops=0"),
        disk("good.vhdx,iops=many", WRONG_USAGE, "iops=many"),
        disk("good.vhdx,bandwidth=fast", WRONG_USAGE, "bandwidth=fast"),
        disk("good.vhdx,cache=none", WRONG_USAGE, "options of a disk"),
        disk("good.vhdx,readonly=maybe", WRONG_USAGE, "options of a disk"),
        disk("good.vhdx,format=floppy", WRONG_USAGE, "format=floppy"),
        disk("missing.vhdx", CANNOT, "missing.vhdx"),
        disk("folder", CANNOT, "neither a file"),
        disk("/dev/null", CANNOT, "neither a file"),
        disk("good.vhdx,format=vhd", CANNOT, "good.vhdx"),
        disk("good.img,format=vhdx", CANNOT, "good.img"),
        disk("orphan.vhdx", CANNOT, "parent.vhdx"),
        disk("cut.vhdx", CANNOT, "cut.vhdx"),
        disk("zeros.vhd", CANNOT, "zeros.vhd"),
        disk("text.vhdx", CANNOT, "text.vhdx"),
        disk("small.img", CANNOT, "less than a sector"),
        disk("empty.img", CANNOT, "less than a sector"),
        disk("foreign.qcow2", CANNOT, "convert"),
        disk("4k.vhdx,bus=ide", CANNOT, "sectors of 512"),
        (vec!["--disk", "good.vhdx", "--disk", "good.vhdx"], CANNOT, "good.vhdx"),
        (vec!["--disk", "child.vhdx", "--disk", "parent2.vhdx"], CANNOT, "parent2.vhdx"),
        (vec!["--enlightenments", "none", "--disk", "good.vhdx,bus=scsi"], CANNOT, "bus=scsi"),
        (vec!["--cdrom", "missing.iso"], CANNOT, "missing.iso"),
        (vec!["--cdrom", "good.img,bus=virtio"], WRONG_USAGE, "scsi or ide"),
        (vec!["--cdrom", ""], WRONG_USAGE, "--cdrom"),
        (vec!["--enlightenments", "none", "--cdrom", "good.img,bus=scsi"], CANNOT, "bus=scsi"),
        (vec!["--disk", "good.vhd", "--serial", "file:good.vhd"], CANNOT, "is the file of a disk"),
        (vec!["--disk", "child.vhdx", "--serial", "file:parent2.vhdx"], CANNOT, "is the parent of a disk"),
        (vec!["--control", "existing"], CANNOT, "existing"),
        (vec!["--control", "nowhere/socket"], CANNOT, "nowhere/socket"),
        (vec!["--control", "folder"], CANNOT, "folder"),
        // The disk is opened before the other is missed: it stays as it was.
        (vec!["--disk", "good.vhd", "--disk", "missing.vhdx", "--control", "new"], CANNOT, "missing.vhdx"),
    ]
}

#[test]
fn machines_with_wrong_disks_do_not_start() {
    let (folder, guest) = (images("refused-run"), Guest::build(GUEST));
    let before = contents(&folder);
    let start = |arguments: &[&str]| {
        let mut command = Command::new(vireo());
        command.args(["run", "--kernel"]).arg(&guest.kernel).args(arguments).current_dir(&*folder);
        let mut process = Process::start(command, LIMIT).expect("it starts");
        let code = process.wait().unwrap_or(-1);
        (code, process.output(), process.errors())
    };
    let mut cases = of_a_machine();
    let five: Vec<_> = ["a.img", "b.img", "c.img", "d.img", "e.img"].map(|n| format!("{n},bus=ide")).into();
    cases.push((
        five.iter().flat_map(|d| ["--disk", d]).map(|s| &*s.to_string().leak()).collect(),
        CANNOT,
        "a.img",
    ));
    let faults: Vec<_> =
        cases.iter().filter_map(|(a, code, names)| fault(a, start(a), *code, names)).collect();
    assert!(faults.is_empty(), "{} of {} cases:\n{}", faults.len(), cases.len(), faults.join("\n"));
    assert!(contents(&folder) == before, "files were changed, left behind, or lost");
}

#[test]
fn a_running_machine_refuses_wrong_changes() {
    let folder = images("refused-vm");
    let path = |name: &str| folder.join(name);
    let (used, fixed, socket) = (path("good.vhdx"), path("good.img"), path("control"));
    let mut command = Guest::build(GUEST).run("idle").vireo(vireo());
    command.arg("--disk").arg(&used).arg("--disk").arg(format!("{},bus=virtio", text(&fixed)));
    let _share = HostShare::take(1);
    let machine = Machine::start(command, &socket, LIMIT).unwrap();
    while !socket.exists() {
        assert!(machine.process.elapsed() < LIMIT, "{}", machine.process.failure("no control socket"));
        std::thread::sleep(Duration::from_millis(10));
    }
    let listed = machine.change("list", &[]);
    let before = contents(&folder);
    let names = |name: &str| text(&path(name)).to_string();
    let [missing, text_file, orphan, busy] =
        ["missing.img", "text.vhdx", "orphan.vhdx", "good.vhdx"].map(names);
    let [virtio, option] = ["good.vhd,bus=virtio", "good.vhd,cache=none"].map(names);
    let cases: [(&str, &[&str], i32, &str); 16] = [
        ("add", &[&missing], CANNOT, "missing.img"),
        ("add", &[&text_file], CANNOT, "text.vhdx"),
        ("add", &[&orphan], CANNOT, "parent.vhdx"),
        ("add", &[&busy], CANNOT, "good.vhdx"),
        ("add", &[&virtio], CANNOT, "bus=scsi"),
        ("add", &[&option], CANNOT, "options of a disk"),
        ("add", &[""], CANNOT, "needs a file"),
        ("add", &[], WRONG_USAGE, "FILE"),
        ("remove", &["scsi0:9"], CANNOT, "scsi0:9"),
        ("remove", &[""], CANNOT, "vireo vm disk list"),
        ("remove", &["virtio00"], CANNOT, "virtio00"),
        ("grow", &["scsi0:9", "1G"], CANNOT, "scsi0:9"),
        ("grow", &["scsi0:0", "1M"], CANNOT, "good.vhdx"),
        ("grow", &["scsi0:0", "65T"], CANNOT, "good.vhdx"),
        ("grow", &["scsi0:0", "much"], WRONG_USAGE, "much"),
        ("list", &["x"], WRONG_USAGE, "x"),
    ];
    let mut faults = Vec::new();
    for (command, arguments, code, names) in cases {
        let what = [&[command], arguments].concat();
        faults.extend(fault(&what, machine.disk(command, arguments), code, names));
    }
    for (socket, names) in [("nowhere", "is the machine running"), ("existing", "is the machine running")] {
        let socket = names_of(&folder, socket);
        let arguments = ["vm", "disk", "list", "--control", &socket];
        faults.extend(fault(&arguments, vireo_says(&arguments), CANNOT, names));
    }
    faults.extend(fault(&["vm disk list"], vireo_says(&["vm", "disk", "list"]), WRONG_USAGE, "--control"));
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert_eq!(machine.change("list", &[]), listed);
    assert!(contents(&folder) == before, "files were changed, left behind, or lost");
}

fn names_of(folder: &Path, name: &str) -> String {
    text(&folder.join(name)).to_string()
}

/// Nor may it be used twice by readers and a writer, or under a child of its own.
#[test]
fn a_disk_has_one_machine() {
    let folder = images("refused-used");
    let guest = Guest::build(GUEST);
    let child = folder.join("child.vhdx");
    let start = |disks: &[String], socket: &str| {
        let mut command = guest.run("idle").vireo(vireo());
        disks.iter().for_each(|d| _ = command.args(["--disk", d]));
        let machine = Machine::start(command, &folder.join(socket), LIMIT).unwrap();
        while !folder.join(socket).exists() {
            assert!(machine.process.elapsed() < LIMIT, "{}", machine.process.failure("no control socket"));
            std::thread::sleep(Duration::from_millis(10));
        }
        machine
    };
    let disk = |name: &str| names_of(&folder, name);
    let _share = HostShare::take(1);
    let first = start(&[disk("good.vhdx"), disk("good.vhd"), disk("good.img"), text(&child).into()], "one");
    for name in ["good.vhdx", "good.vhd", "good.img", "child.vhdx", "parent2.vhdx", "good.vhdx,readonly"] {
        let mut command = guest.run("idle").vireo(vireo());
        command.args(["--disk", &disk(name)]);
        let mut second = Process::start(command, LIMIT).unwrap();
        let said = (second.wait().unwrap_or(-1), second.output(), second.errors());
        let file = name.split(',').next().unwrap_or(name);
        let fault = fault(&[name], said, CANNOT, file);
        assert!(fault.is_none(), "{}", fault.unwrap_or_default());
    }
    // Readers share.
    let shared = start(&[disk("4k.vhdx,readonly")], "two");
    let another = start(&[disk("4k.vhdx,readonly")], "three");
    drop((first, shared, another));
    // A machine that was killed holds nothing.
    drop(start(&[disk("good.vhdx"), disk("parent2.vhdx,readonly"), disk("4k.vhdx")], "four"));
    File::open(child).expect("it is still there");
}
