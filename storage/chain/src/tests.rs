//! Disks in files.

use std::fs;

use vireo_vdisk::trial::peer::Folder;

use super::*;

fn new(format: Format, kind: Kind) -> NewDisk {
    let size = if matches!(kind, Kind::Differencing(_)) { None } else { Some(5 << 20) };
    NewDisk { format, kind, size, block: None, sector: None, allocate: false }
}

fn open(path: &std::path::Path, writable: bool) -> Disk {
    Disk::open(path, None, writable).expect("it opens")
}

#[test]
fn a_child_has_what_its_parents_have_and_keeps_what_is_its_own() {
    let folder = Folder::new("chain-family");
    for format in [Format::Vhd, Format::Vhdx] {
        let path = |n: &str| folder.join(format!("{n}.{format}"));
        fs::create_dir_all(folder.join("sub")).unwrap();
        create(&path("base"), &new(format, Kind::Dynamic)).unwrap();
        let mut base = open(&path("base"), true);
        base.write(0, &[1; 4096]).unwrap();
        base.close().unwrap();
        create(&path("sub/child"), &new(format, Kind::Differencing(path("base")))).unwrap();
        let mut child = open(&path("sub/child"), true);
        child.write(512, &[2; 512]).unwrap();
        child.close().unwrap();
        create(&path("leaf"), &new(format, Kind::Differencing(path("sub/child")))).unwrap();
        let mut leaf = open(&path("leaf"), true);
        leaf.write(1024, &[3; 512]).unwrap();
        leaf.close().unwrap();
        let mut leaf = open(&path("leaf"), false);
        let mut bytes = vec![9; 8192];
        leaf.read(0, &mut bytes).unwrap();
        assert_eq!([0, 512, 1024, 1536, 4096].map(|at| bytes[at]), [1, 2, 3, 1, 0], "{format}");
        assert_eq!(info(&path("leaf"), None).unwrap().kind, "differencing");
        assert_eq!(check(&path("leaf"), None).unwrap().len(), 3);
        drop(leaf);
        // As one image, of another format.
        let flat = folder.join(format!("flat-{format}.img"));
        convert(&mut open(&path("leaf"), false), &flat, &new(Format::Raw, Kind::Fixed), &mut |_| true)
            .unwrap();
        assert_eq!(fs::read(&flat).unwrap()[..8192], bytes);
    }
}

#[test]
fn a_parent_that_is_missing_or_another_is_refused() {
    let folder = Folder::new("chain-parents");
    let (base, child) = (folder.join("base.vhdx"), folder.join("child.vhdx"));
    create(&base, &new(Format::Vhdx, Kind::Dynamic)).unwrap();
    create(&child, &new(Format::Vhdx, Kind::Differencing(base.clone()))).unwrap();
    // Written since.
    let mut disk = open(&base, true);
    disk.write(0, &[1; 512]).unwrap();
    disk.close().unwrap();
    assert!(matches!(Disk::open(&child, None, false), Err(DiskError::WrongParent { .. })));
    fs::remove_file(&base).unwrap();
    assert!(matches!(Disk::open(&child, None, false), Err(DiskError::NoParent { .. })));
    assert!(matches!(
        create(&folder.join("x.vhd"), &new(Format::Vhd, Kind::Differencing(child))),
        Err(DiskError::Contradiction(_))
    ));
    assert!(!folder.join("x.vhd").exists(), "nothing is left");
}

#[test]
fn an_image_is_its_own_parent() {
    let folder = Folder::new("chain-ring");
    let (a, b) = (folder.join("a.vhd"), folder.join("b.vhd"));
    create(&a, &new(Format::Vhd, Kind::Dynamic)).unwrap();
    create(&b, &new(Format::Vhd, Kind::Differencing(a.clone()))).unwrap();
    // Its own identity at the parent's name: what it links to has it.
    let mut bytes = fs::read(&b).unwrap();
    let id = fs::read(&a).unwrap()[68..84].to_vec();
    let end = bytes.len() - 512;
    for footer in [0, end] {
        bytes[footer + 68..footer + 84].copy_from_slice(&id);
        bytes[footer + 64..footer + 68].fill(0);
        let sum = !bytes[footer..footer + 512].iter().fold(0u32, |s, b| s.wrapping_add((*b).into()));
        bytes[footer + 64..footer + 68].copy_from_slice(&sum.to_be_bytes());
    }
    fs::write(&a, &bytes).unwrap();
    // a has b's link, to a.
    assert!(matches!(Disk::open(&a, None, false), Err(DiskError::TooDeep { .. })));
}

/// What a guest writes on its raw disk is not an image for the host.
#[test]
fn content_does_not_go_against_the_name() {
    let folder = Folder::new("chain-names");
    let (raw, vhdx) = (folder.join("disk.img"), folder.join("disk.vhdx"));
    create(&vhdx, &new(Format::Vhdx, Kind::Dynamic)).unwrap();
    fs::copy(&vhdx, &raw).unwrap();
    assert!(matches!(Disk::open(&raw, None, false), Err(DiskError::Ambiguous { content: Format::Vhdx, .. })));
    assert_eq!(Disk::open(&raw, Some(Format::Raw), false).unwrap().size(), 4 << 20);
    assert_eq!(Disk::open(&raw, Some(Format::Vhdx), false).unwrap().size(), 5 << 20);
    fs::write(&vhdx, [0; 4096]).unwrap();
    assert!(matches!(Disk::open(&vhdx, None, false), Err(DiskError::NotAsNamed { .. })));
    let vhd = folder.join("disk.vhd");
    fs::rename(&raw, &vhd).unwrap();
    let error = Disk::open(&vhd, None, false).err().unwrap();
    assert!(error.to_string().contains("looks like vhdx") && error.sayable() == [Format::Vhdx], "{error}");
}

/// A plain copy of a parent is what its children are made on, but they have theirs.
#[test]
fn a_copy_of_a_parent_may_be_changed() {
    let folder = Folder::new("chain-copy");
    for format in [Format::Vhd, Format::Vhdx] {
        let path = |n: &str| folder.join(format!("{n}.{format}"));
        create(&path("base"), &new(format, Kind::Dynamic)).unwrap();
        fs::copy(path("base"), path("copy")).unwrap();
        fs::copy(path("base"), path("moved")).unwrap();
        create(&path("child"), &new(format, Kind::Differencing(path("base")))).unwrap();
        let grow = |n| resize(&path(n), None, 7 << 20, Shrink::Never);
        assert!(matches!(grow("base"), Err(DiskError::HasChild { .. })), "{format}");
        grow("copy").unwrap();
        // Where its own is gone, or another, this may be it.
        fs::remove_file(path("base")).unwrap();
        assert!(matches!(grow("moved"), Err(DiskError::HasChild { .. })), "{format}");
        create(&path("base"), &new(format, Kind::Dynamic)).unwrap();
        assert!(matches!(grow("moved"), Err(DiskError::HasChild { .. })), "{format}");
    }
}

#[test]
fn a_merged_disk_is_named_as_what_it_is() {
    let folder = Folder::new("chain-merge-name");
    let (base, child) = (folder.join("base.vhdx"), folder.join("child.vhdx"));
    create(&base, &new(Format::Vhdx, Kind::Dynamic)).unwrap();
    create(&child, &new(Format::Vhdx, Kind::Differencing(base))).unwrap();
    for name in ["x.vhd", "x.img", "x.qcow2", "x"] {
        let merged = merge_to(&child, None, &folder.join(name), &mut |_| true);
        assert!(matches!(merged, Err(DiskError::Contradiction(_))), "{name}");
    }
    merge_to(&child, None, &folder.join("x.avhdx"), &mut |_| true).unwrap();
    assert_eq!(fs::read_dir(&*folder).unwrap().count(), 3);
}

/// In memory, where a file system says at once that it is too small.
#[test]
fn a_fixed_disk_has_its_space_or_is_not_made() {
    let at = std::path::Path::new("/dev/shm");
    let system = rustix::fs::statfs(at).unwrap();
    assert!(system.f_type as u64 == 0x0102_1994 && system.f_blocks > 0, "/dev/shm is a tmpfs with an end");
    let all = system.f_blocks * system.f_bsize as u64;
    let path = |n: &str| at.join(format!("vireo-chain-{}-{n}", std::process::id()));
    let folder = Folder::new("chain-allocate");
    let source = folder.join("a.vhdx");
    create(&source, &NewDisk { size: Some(all + (1 << 20)), ..new(Format::Vhdx, Kind::Dynamic) }).unwrap();
    for name in ["a.img", "b.vhd", "c.vhdx"] {
        let path = path(name);
        let format = Format::of_name(&path).unwrap_or(Format::Raw);
        let fixed = |size| NewDisk { size: Some(size), allocate: true, ..new(format, Kind::Fixed) };
        let made = create(&path, &fixed(all + (1 << 20)));
        assert!(made.is_err_and(|e| e.to_string().contains("No space left")) && !path.exists(), "{name}");
        let copied = convert(&mut open(&source, false), &path, &fixed(0), &mut |_| true);
        let text = copied.unwrap_err().to_string();
        assert!(text.contains("No space left") && text.contains(path.to_str().unwrap()), "{text}");
        create(&path, &fixed(5 << 20)).unwrap();
        let allocated = info(&path, None).unwrap().allocated;
        let again = convert(&mut open(&source, false), &path, &fixed(0), &mut |_| true).unwrap_err();
        let same = create(&path, &fixed(5 << 20)).unwrap_err();
        fs::remove_file(&path).unwrap();
        assert!(allocated >= 5 << 20, "{name}: {allocated}");
        assert_eq!(again.to_string(), same.to_string());
    }
}

#[test]
fn a_disk_that_is_written_has_no_other_user() {
    let folder = Folder::new("chain-lock");
    let path = folder.join("a.vhdx");
    create(&path, &new(Format::Vhdx, Kind::Dynamic)).unwrap();
    let writer = open(&path, true);
    assert!(matches!(Disk::open(&path, None, false), Err(DiskError::InUse(_))));
    drop(writer);
    let reader = open(&path, false);
    assert!(matches!(Disk::open(&path, None, true), Err(DiskError::InUse(_))));
    open(&path, false);
    drop(reader);
}

#[test]
fn what_keeps_nothing_is_no_disk() {
    for path in ["/dev/null", "/dev", "/dev/ptmx"] {
        for writable in [false, true] {
            assert!(matches!(Disk::open(path.as_ref(), None, writable), Err(DiskError::NoFile(_))), "{path}");
        }
    }
}

/// As the last requests of a machine that was killed do.
#[test]
fn a_user_that_is_about_to_go_is_waited_for() {
    let folder = Folder::new("chain-lock-soon");
    let path = folder.join("a.vhdx");
    create(&path, &new(Format::Vhdx, Kind::Dynamic)).unwrap();
    let writer = open(&path, true);
    let leaver = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(50));
        drop(writer);
    });
    open(&path, true);
    leaver.join().unwrap();
}

#[test]
fn what_was_cancelled_leaves_nothing() {
    let folder = Folder::new("chain-cancel");
    let (from, to) = (folder.join("a.vhd"), folder.join("b.vhdx"));
    create(&from, &new(Format::Vhd, Kind::Fixed)).unwrap();
    let cancelled =
        convert(&mut open(&from, false), &to, &new(Format::Vhdx, Kind::Dynamic), &mut |p| p.done == 0);
    assert!(matches!(cancelled, Err(DiskError::Cancelled)));
    assert_eq!(fs::read_dir(&*folder).unwrap().count(), 1);
}

/// The whole disk.
fn all(path: &std::path::Path) -> Vec<u8> {
    let mut disk = open(path, false);
    let mut bytes = vec![9; disk.size() as usize];
    disk.read(0, &mut bytes).unwrap();
    bytes
}

fn len(path: &std::path::Path) -> u64 {
    fs::metadata(path).unwrap().len()
}

#[test]
fn disks_grow_and_shrink_but_lose_nothing_unless_told() {
    let folder = Folder::new("chain-resize");
    for (name, kind) in [
        ("a.img", Kind::Fixed),
        ("b.vhd", Kind::Fixed),
        ("c.vhd", Kind::Dynamic),
        ("d.vhdx", Kind::Fixed),
        ("e.vhdx", Kind::Dynamic),
    ] {
        let path = folder.join(name);
        let format = Format::of_name(&path).unwrap_or(Format::Raw);
        create(&path, &new(format, kind)).unwrap();
        let mut disk = open(&path, true);
        disk.write((5 << 20) - 512, &[7; 512]).unwrap();
        disk.close().unwrap();
        assert_eq!(resize(&path, None, 9 << 20, Shrink::Never).unwrap(), 5 << 20, "{name}");
        let bytes = all(&path);
        assert_eq!((bytes.len(), bytes[(5 << 20) - 1]), (9 << 20, 7));
        assert!(bytes[5 << 20..].iter().all(|b| *b == 0), "{name}");
        let refused = |size, how| matches!(resize(&path, None, size, how), Err(DiskError::Contradiction(_)));
        assert!(refused(5 << 20, Shrink::Never));
        assert!(refused(4 << 20, Shrink::Zeros));
        assert_eq!(refused(4 << 20, Shrink::Data), format != Format::Raw);
        if format != Format::Raw {
            assert_eq!(resize(&path, None, 5 << 20, Shrink::Zeros).unwrap(), 9 << 20);
            assert!(all(&path) == bytes[..5 << 20], "{name}");
        }
        assert!(check(&path, None).unwrap().iter().all(|r| !r.harmful));
    }
    // What is made on a disk holds it.
    let (base, child) = (folder.join("c.vhd"), folder.join("child.vhd"));
    create(&child, &new(Format::Vhd, Kind::Differencing(base.clone()))).unwrap();
    assert!(matches!(resize(&base, None, 20 << 20, Shrink::Never), Err(DiskError::HasChild { .. })));
    let short = folder.join("short.vhd");
    create(&short, &NewDisk { size: Some(1 << 20), ..new(Format::Vhd, Kind::Differencing(base)) }).unwrap();
    let grown = resize(&short, None, 2 << 20, Shrink::Never);
    assert!(matches!(grown, Err(DiskError::Contradiction(_))), "its parent's data would be seen");
    resize(&child, None, 20 << 20, Shrink::Never).unwrap();
    assert!(all(&child)[5 << 20..].iter().all(|b| *b == 0));
}

#[test]
fn a_compacted_disk_is_the_same_and_smaller() {
    let folder = Folder::new("chain-compact");
    for (name, kind) in [("a.img", Kind::Fixed), ("b.vhd", Kind::Dynamic), ("c.vhdx", Kind::Dynamic)] {
        let path = folder.join(name);
        let format = Format::of_name(&path).unwrap_or(Format::Raw);
        create(&path, &NewDisk { size: Some(20 << 20), ..new(format, kind) }).unwrap();
        let mut disk = open(&path, true);
        for (n, byte) in [(0u64, 1), (4, 0), (8, 2), (12, 0), (16, 3)] {
            disk.write(n << 20, &vec![byte; 2 << 20]).unwrap();
        }
        disk.close().unwrap();
        let child = folder.join(format!("child-{name}"));
        if format != Format::Raw {
            create(&child, &new(format, Kind::Differencing(path.clone()))).unwrap();
        }
        let (bytes, before) = (all(&path), len(&path));
        let mut steps = 0;
        let cancelled = compact(&path, None, &mut |_| {
            steps += 1;
            steps < 8
        });
        assert!(matches!(cancelled, Err(DiskError::Cancelled)), "{name}");
        assert!(all(&path) == bytes, "{name}, cancelled");
        let compacted = compact(&path, None, &mut |_| true).unwrap();
        assert!(compacted.after < 8 << 20, "{name}: {compacted:?}");
        assert!(all(&path) == bytes, "{name}");
        if format != Format::Raw {
            assert!(before - len(&path) >= 4 << 20, "{name}");
            assert_eq!(check(&child, None).unwrap().iter().map(|r| r.findings.len()).sum::<usize>(), 0);
        }
    }
}

#[test]
fn a_child_becomes_one_with_its_parent_and_may_be_stopped_at_any_moment() {
    let folder = Folder::new("chain-merge");
    for format in [Format::Vhd, Format::Vhdx] {
        let path = |n: &str| folder.join(format!("{n}.{format}"));
        let (base, child, leaf) = (path("base"), path("child"), path("leaf"));
        create(&base, &new(format, Kind::Dynamic)).unwrap();
        let mut disk = open(&base, true);
        disk.write(0, &vec![1; 4 << 20]).unwrap();
        disk.close().unwrap();
        create(&child, &NewDisk { size: Some(7 << 20), ..new(format, Kind::Differencing(base.clone())) })
            .unwrap();
        let mut disk = open(&child, true);
        disk.write(512, &[2; 1024]).unwrap();
        disk.zero(1 << 20, 2 << 20).unwrap();
        disk.write(6 << 20, &[3; 512]).unwrap();
        disk.close().unwrap();
        let bytes = all(&child);
        // Others are made on one of the two.
        create(&leaf, &new(format, Kind::Differencing(child.clone()))).unwrap();
        assert!(matches!(merge(&child, None, &mut |_| true), Err(DiskError::HasChild { .. })));
        fs::remove_file(&leaf).unwrap();
        create(&leaf, &new(format, Kind::Differencing(base.clone()))).unwrap();
        assert!(matches!(merge(&child, None, &mut |_| true), Err(DiskError::HasChild { .. })));
        fs::remove_file(&leaf).unwrap();
        // As a third one.
        merge_to(&child, None, &leaf, &mut |_| true).unwrap();
        assert!(all(&leaf) == bytes && all(&child) == bytes, "{format}");
        for stop in 0..7 {
            let stopped = merge(&child, None, &mut |p| p.done < stop << 20);
            assert!(matches!(stopped, Err(DiskError::Cancelled)));
            assert!(all(&child) == bytes, "{format}, stopped at {stop}");
        }
        merge(&child, None, &mut |_| true).unwrap();
        assert!(!child.exists() && all(&base) == bytes, "{format}");
        assert!(check(&base, None).unwrap().iter().all(|r| !r.harmful));
        assert!(matches!(merge(&base, None, &mut |_| true), Err(DiskError::Contradiction(_))));
    }
}

#[test]
fn a_part_that_a_crash_left_is_no_hindrance() {
    let folder = Folder::new("chain-part");
    let (from, to) = (folder.join("a.vhd"), folder.join("b.vhdx"));
    create(&from, &new(Format::Vhd, Kind::Fixed)).unwrap();
    let part = folder.join(".b.vhdx.vireo-part");
    fs::write(&part, "something").unwrap();
    let locked = file::open(&part, true).unwrap();
    let again = || convert(&mut open(&from, false), &to, &new(Format::Vhdx, Kind::Dynamic), &mut |_| true);
    assert!(matches!(again(), Err(DiskError::InUse(_))));
    drop(locked);
    again().unwrap();
    assert_eq!(fs::read_dir(&*folder).unwrap().count(), 2);
}
