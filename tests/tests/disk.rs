//! `vireo disk`, with QEMU's tools for a second opinion.

use std::fs;
use std::process::Command;
use std::time::Duration;

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
    refused(&["create", text(&folder.join("c.vhdx")), "--parent", text(&a)], 1, "is vhd");
}
