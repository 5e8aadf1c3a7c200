//! Images between this room and QEMU's tools, both ways. (They know neither differencing images nor sectors of 4096
//! bytes.)

use std::fs::{self, File, OpenOptions};
use std::path::Path;

use vireo_vdisk::trial::peer::{Folder, qemu, text};
use vireo_vdisk::trial::{read, unmap, write, zero};
use vireo_vdisk::{FileMedium, Medium, compact};
use vireo_vhdx::{Guid, Kind, MIB, NewVhdx, Open, Vhdx};

fn open(path: &Path) -> Vhdx<FileMedium> {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("it opens");
    Vhdx::open(FileMedium::new(file), Open::Write { random: Guid([9; 16]) }).expect("it is a VHDX")
}

fn all(vhdx: &mut Vhdx<FileMedium>) -> Vec<u8> {
    let size = vhdx.size();
    read(vhdx, 0, size)
}

/// An image with some writes, of a size that is no multiple of a block.
fn written(path: &Path, kind: Kind, block: u32) -> Vhdx<FileMedium> {
    let size = 11 * MIB + 512 * 3;
    let id = Guid([1; 16]);
    let new = NewVhdx { size, kind, block, sector: 512, physical_sector: 4096, id, random: Guid([2; 16]) };
    new.create(&FileMedium::new(File::create_new(path).expect("a file"))).expect("it can be made");
    let mut vhdx = open(path);
    write(&mut vhdx, 0, &[0x11; 512]);
    write(&mut vhdx, 2 * MIB - 1024, &[0x22; 4096]);
    write(&mut vhdx, size - 512, &[0x33; 512]);
    vhdx
}

#[test]
fn qemu_reads_what_we_write() {
    let folder = Folder::new("vhdx-we-write");
    for (n, (kind, block)) in
        [(Kind::Fixed, 2 << 20), (Kind::Dynamic, 1 << 20), (Kind::Dynamic, 32 << 20)].into_iter().enumerate()
    {
        let path = folder.join(format!("{n}.vhdx"));
        let mut vhdx = written(&path, kind, block);
        let ours = folder.join(format!("{n}.ours"));
        fs::write(&ours, all(&mut vhdx)).expect("a file");
        vhdx.close().expect("it closes");
        qemu("qemu-img", &["check", "-q", "-f", "vhdx", text(&path)]);
        let compared = qemu("qemu-img", &["compare", "-f", "raw", "-F", "vhdx", text(&ours), text(&path)]);
        assert!(compared.contains("Images are identical"), "{compared}");
        // And writes on, by its own rules.
        qemu(
            "qemu-io",
            &["-f", "vhdx", "-c", "write -P 0x44 5M 1M", "-c", "write -P 0x55 512 512", text(&path)],
        );
        let disk = all(&mut open(&path));
        assert!(disk[5 << 20..6 << 20].iter().all(|b| *b == 0x44));
        assert_eq!((disk[0], disk[512], disk[1023], disk[1024]), (0x11, 0x55, 0x55, 0));
    }
}

/// The log of an image that was not closed is done by them as we would have it.
#[test]
fn qemu_replays_our_log() {
    let folder = Folder::new("vhdx-our-log");
    let path = folder.join("a.vhdx");
    let mut vhdx = written(&path, Kind::Dynamic, 1 << 20);
    vhdx.flush().expect("it flushes");
    let ours = folder.join("ours");
    fs::write(&ours, all(&mut vhdx)).expect("a file");
    // The table as before the flush: only the log knows. It begins at 3 MiB.
    vhdx.medium().write(3 * MIB, &[0; 4096]).expect("it writes");
    drop(vhdx);
    let found = qemu("qemu-img", &["check", "-r", "all", "-f", "vhdx", text(&path)]);
    assert!(found.contains("repaired") || found.contains("log"), "{found}");
    let compared = qemu("qemu-img", &["compare", "-f", "raw", "-F", "vhdx", text(&ours), text(&path)]);
    assert!(compared.contains("Images are identical"), "{compared}");
}

#[test]
fn we_read_what_qemu_writes() {
    let folder = Folder::new("vhdx-qemu-writes");
    for (n, options) in
        ["subformat=fixed", "subformat=dynamic", "subformat=dynamic,block_size=1M,block_state_zero=off"]
            .into_iter()
            .enumerate()
    {
        let path = folder.join(format!("{n}.vhdx"));
        qemu("qemu-img", &["create", "-q", "-f", "vhdx", "-o", options, text(&path), "20M"]);
        for w in ["write -P 0x61 0 64k", "write -P 0x62 3145216 1M", "write -P 0x63 20447232 512k"] {
            qemu("qemu-io", &["-f", "vhdx", "-c", w, text(&path)]);
        }
        let theirs = folder.join(format!("{n}.raw"));
        qemu("qemu-img", &["convert", "-f", "vhdx", "-O", "raw", text(&path), text(&theirs)]);
        let mut vhdx = open(&path);
        assert!(all(&mut vhdx) == fs::read(&theirs).expect("a file"), "{options}");
        // And we write on, and they read.
        write(&mut vhdx, 8 * MIB, &vec![0x64; 3 << 20]);
        let ours = all(&mut vhdx);
        vhdx.close().expect("it closes");
        qemu("qemu-io", &["-f", "vhdx", "-c", "read -P 0x64 8M 3M", "-c", "read -P 0x61 0 64k", text(&path)]);
        qemu("qemu-img", &["convert", "-f", "vhdx", "-O", "raw", text(&path), text(&theirs)]);
        assert!(ours == fs::read(&theirs).expect("a file"), "{options}, after our write");
    }
}

#[test]
fn qemu_reads_what_we_gave_back_grew_and_compacted() {
    let folder = Folder::new("vhdx-we-change");
    for (n, kind) in [Kind::Fixed, Kind::Dynamic].into_iter().enumerate() {
        let path = folder.join(format!("{n}.vhdx"));
        let mut vhdx = written(&path, kind.clone(), 1 << 20);
        write(&mut vhdx, 3 * MIB, &vec![0x44; 5 << 20]);
        zero(&mut vhdx, 4 * MIB, MIB);
        unmap(&mut vhdx, 5 * MIB, 3 * MIB / 2);
        vhdx.flush().expect("it flushes");
        vhdx.grow(40 * MIB).expect("it grows");
        write(&mut vhdx, 39 * MIB, &[0x55; 4096]);
        assert!(compact(&mut vhdx, &mut |_, _| true).expect("it moves"));
        vhdx.grow(50 * MIB).expect("it grows");
        write(&mut vhdx, 49 * MIB, &[0x66; 4096]);
        let ours = folder.join(format!("{n}.ours"));
        fs::write(&ours, all(&mut vhdx)).expect("a file");
        vhdx.close().expect("it closes");
        qemu("qemu-img", &["check", "-q", "-f", "vhdx", text(&path)]);
        let compared = qemu("qemu-img", &["compare", "-f", "raw", "-F", "vhdx", text(&ours), text(&path)]);
        assert!(compared.contains("Images are identical"), "{compared}");
        // And write where we gave back, by their own rules.
        qemu("qemu-io", &["-f", "vhdx", "-c", "write -P 0x77 4M 4M", text(&path)]);
        let disk = all(&mut open(&path));
        assert!(disk[4 << 20..8 << 20].iter().all(|b| *b == 0x77));
        assert_eq!((disk[3 << 20], disk[39 << 20], disk[49 << 20]), (0x44, 0x55, 0x66), "{kind:?}");
    }
}
