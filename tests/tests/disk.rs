//! `vireo disk`, with QEMU's tools for a second opinion.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use vireo_tests::{Process, vireo};
use vireo_vdisk::trial::peer::{Folder, qemu, text};

/// Runs `vireo disk` with arguments; gives exit code, output and errors.
fn disk(arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(vireo());
    command.arg("disk").args(arguments);
    let mut process = Process::start(command, Duration::from_secs(60)).expect("it starts");
    let code = process.wait().expect("it ends");
    (code, process.output(), process.errors())
}

/// The same, of what has to succeed; gives what it prints.
fn done(arguments: &[&str]) -> String {
    let (code, output, errors) = disk(arguments);
    assert_eq!((code, errors.as_str()), (0, ""), "{arguments:?}");
    output
}

#[test]
fn disks_of_each_format_become_disks_of_each_other() {
    let folder = Folder::new("disk-convert");
    let raw = folder.join("a.img");
    // Some content, with holes.
    let mut bytes = vec![0u8; 9 << 20];
    for (n, b) in bytes[3 << 20..4 << 20].iter_mut().enumerate() {
        *b = ((n * 7) >> 3) as u8;
    }
    fs::write(&raw, &bytes).expect("a file");
    let mut from = raw.clone();
    for (n, name) in ["b.vhdx", "c.vhd", "d.vhdx", "e.vhd", "f.img"].into_iter().enumerate() {
        let to = folder.join(name);
        let kind: &[&str] = if n % 2 == 0 { &[] } else { &["--kind", "fixed"] };
        done(&[&["convert", text(&from), text(&to)], kind].concat());
        assert!(done(&["check", text(&to)]).contains("sound"));
        let format = match to.extension().and_then(|e| e.to_str()) {
            Some("vhd") => "vpc",
            Some("vhdx") => "vhdx",
            _ => "raw",
        };
        let compared = qemu("qemu-img", &["compare", "-f", "raw", "-F", format, text(&raw), text(&to)]);
        assert!(compared.contains("identical"), "{name}: {compared}");
        from = to;
    }
    assert!(fs::read(&from).expect("a file") == bytes);
}

#[test]
fn a_disk_is_made_and_described() {
    let folder = Folder::new("disk-info");
    let (base, child) = (folder.join("base.vhdx"), folder.join("child.vhdx"));
    done(&["create", text(&base), "--size", "64T", "--block", "32M", "--sector", "4096"]);
    done(&["create", text(&child), "--parent", text(&base)]);
    let info: serde_json::Value =
        serde_json::from_str(&done(&["info", text(&child), "-o", "json"])).expect("JSON");
    let known = ["format", "kind", "size", "sector", "block", "parent"].map(|k| info[k].to_string());
    let parent = format!("{:?}", text(&base.canonicalize().expect("it is there")));
    let expected = ["\"vhdx\"", "\"differencing\"", "70368744177664", "4096", "2097152", parent.as_str()];
    assert_eq!(known, expected);
    assert!(done(&["info", text(&child)]).contains("64 TiB"));
}

#[test]
fn what_cannot_be_is_said_and_leaves_nothing() {
    let folder = Folder::new("disk-refused");
    let (a, b) = (folder.join("a.vhd"), folder.join("b.vhdx"));
    let refused = |arguments: &[&str], code: i32, why: &str| {
        let (got, output, errors) = disk(arguments);
        assert_eq!((got, output.as_str()), (code, ""), "{arguments:?}: {errors}");
        assert!(errors.contains(why), "{arguments:?}: {errors}");
    };
    refused(&["create", text(&a), "--size", "3T"], 1, "2040 GiB");
    refused(&["create", text(&a), "--size", "1000"], 1, "multiple of 512");
    refused(&["create", text(&a)], 2, "--size");
    refused(&["create", text(&a), "--size", "1M", "--sector", "4096"], 1, "VHDX");
    refused(&["info", text(&a)], 1, "No such file");
    assert!(!a.exists());
    done(&["create", text(&a), "--size", "1M"]);
    refused(&["create", text(&a), "--size", "1M"], 1, "exists");
    refused(&["convert", text(&a), text(&a)], 1, "exists");
    fs::write(&b, [0; 4096]).expect("a file");
    refused(&["info", text(&b)], 1, "is no vhdx");
    refused(&["info", text(&b)], 1, "--format raw");
    refused(&["convert", text(&b), text(&folder.join("d.img"))], 1, "--from-format raw");
    refused(&["create", text(&folder.join("c.vhd")), "--parent", text(&a), "--size", "5M"], 2, "--size");
    refused(&["create", text(&folder.join("c.vhdx")), "--parent", text(&a)], 1, "is vhd");
}

/// A raw disk with a MiB of content in the midst.
fn raw(path: &Path, size: usize) -> Vec<u8> {
    let mut bytes = vec![0u8; size];
    for (n, b) in bytes[3 << 20..4 << 20].iter_mut().enumerate() {
        *b = ((n * 7) >> 3) as u8;
    }
    fs::write(path, &bytes).expect("a file");
    bytes
}

fn is_refused(arguments: &[&str], why: &str) {
    let (code, output, errors) = disk(arguments);
    assert_eq!((code, output.as_str()), (1, ""), "{arguments:?}: {errors}");
    assert!(errors.contains(why), "{arguments:?}: {errors}");
}

#[test]
fn a_disk_is_resized_compacted_and_merged() {
    let folder = Folder::new("disk-change");
    let path = |name: &str| folder.join(name);
    let (img, base, child, flat) = (path("a.img"), path("base.vhdx"), path("child.vhdx"), path("flat.img"));
    let mut bytes = raw(&img, 9 << 20);
    done(&["convert", text(&img), text(&base)]);
    done(&["resize", text(&base), "20M"]);
    is_refused(&["resize", text(&base), "9M"], "--shrink");
    is_refused(&["resize", text(&base), "2M", "--shrink"], "data beyond");
    done(&["resize", text(&base), "9M", "--shrink"]);
    is_refused(&["resize", text(&img), "2M", "--shrink"], "--lose-data");
    done(&["create", text(&child), "--parent", text(&base)]);
    is_refused(&["resize", text(&base), "20M"], "is made on it");
    is_refused(&["merge", text(&base)], "no parent");
    done(&["merge", text(&child), "--to", text(&path("new.vhdx"))]);
    done(&["merge", text(&child)]);
    assert!(!child.exists());
    for merged in [&base, &path("new.vhdx")] {
        assert!(done(&["check", text(merged)]).contains("sound"));
        let compared = qemu("qemu-img", &["compare", "-f", "raw", "-F", "vhdx", text(&img), text(merged)]);
        assert!(compared.contains("identical"), "{compared}");
    }
    // Zeros that a guest wrote.
    qemu("qemu-io", &["-f", "vhdx", "-c", "write -P 5 4M 4M", "-c", "write -P 0 2M 4M", text(&base)]);
    bytes[2 << 20..6 << 20].fill(0);
    bytes[6 << 20..8 << 20].fill(5);
    let before = fs::metadata(&base).expect("it is there").len();
    let compacted: serde_json::Value =
        serde_json::from_str(&done(&["compact", text(&base), "-o", "json"])).expect("JSON");
    assert!(compacted["after"].as_u64() < compacted["before"].as_u64(), "{compacted}");
    assert!(fs::metadata(&base).expect("it is there").len() < before);
    done(&["convert", text(&base), text(&flat)]);
    assert!(fs::read(&flat).expect("a file") == bytes);
    done(&["resize", text(&img), "1M", "--shrink", "--lose-data"]);
    assert_eq!(fs::metadata(&img).expect("it is there").len(), 1 << 20);
}

#[test]
fn what_an_image_says_can_be_dumped() {
    let folder = Folder::new("disk-dump");
    let (vhd, vhdx) = (folder.join("a.vhd"), folder.join("b.vhdx"));
    done(&["create", text(&vhd), "--size", "20M"]);
    done(&["create", text(&vhdx), "--size", "20M", "--sector", "4096"]);
    let json = |path: &Path| -> serde_json::Value {
        serde_json::from_str(&done(&["dump", text(path), "--table", "-o", "json"])).expect("JSON")
    };
    let (a, b) = (json(&vhd), json(&vhdx));
    assert_eq!(a["footer"]["type"], "dynamic");
    assert_eq!(a["block_table"]["runs"][0]["count"], 10);
    assert_eq!(b["metadata"]["sector"], 4096);
    assert_eq!(b["block_table"]["states"]["not present"], 10);
    assert_eq!(b["log"]["replay_needed"], false);
    assert!(done(&["dump", text(&vhdx)]).contains("region_tables"));
    fs::write(folder.join("c.img"), [0; 512]).expect("a file");
    is_refused(&["dump", text(&folder.join("c.img"))], "raw disk");
}

#[test]
fn files_that_a_foreign_disk_names_are_read_only_if_the_user_says_so() {
    let folder = Folder::new("disk-foreign");
    let (img, child, to) = (folder.join("a.img"), folder.join("b.qcow2"), folder.join("c.vhdx"));
    raw(&img, 9 << 20);
    qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-b", text(&img), "-F", "raw", text(&child)]);
    is_refused(&["convert", text(&child), text(&to)], "--follow-backing");
    assert!(!to.exists() && done(&["info", text(&child)]).contains(text(&img)));
    done(&["convert", text(&child), text(&to), "--follow-backing"]);
    let compared = qemu("qemu-img", &["compare", "-f", "raw", "-F", "vhdx", text(&img), text(&to)]);
    assert!(compared.contains("identical"), "{compared}");
    is_refused(&["check", text(&child)], "convert it");
}

/// A signal leaves the disk as it is, and nothing of the new one.
#[test]
fn a_conversion_that_is_ended_leaves_nothing() {
    let folder = Folder::new("disk-ended");
    let (from, to) = (folder.join("a.img"), folder.join("b.vhdx"));
    // So large that it does not end by itself.
    fs::File::create_new(&from).and_then(|f| f.set_len(1 << 40)).expect("a file");
    for signal in [Signal::INT, Signal::TERM] {
        let mut command = Command::new(vireo());
        command.arg("disk").arg("convert").args([&from, &to]);
        let mut process = Process::start(command, Duration::from_secs(60)).expect("it starts");
        while !folder.join(".b.vhdx.vireo-part").exists() {
            std::thread::yield_now();
        }
        process.signal(signal).expect("it runs");
        assert_eq!(process.wait().expect("it ends"), 1);
        assert!(process.errors().contains("cancelled"), "{}", process.errors());
        assert_eq!(fs::read_dir(&*folder).expect("a folder").count(), 1);
    }
}
