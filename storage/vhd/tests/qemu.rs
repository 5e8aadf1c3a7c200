//! Images between this room and QEMU's tools, both ways. (Of a differencing image they see no parent, so those are not
//! here.)

use std::fs::{self, File, OpenOptions};
use std::path::Path;

use vireo_vdisk::trial::peer::{Folder, qemu, text};
use vireo_vdisk::trial::{read, unmap, write, zero};
use vireo_vdisk::{FileMedium, compact};
use vireo_vhd::{Kind, NewVhd, Vhd};

const MIB: u64 = 1 << 20;

fn open(path: &Path) -> Vhd<FileMedium> {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("it opens");
    Vhd::open(FileMedium::new(file), true).expect("it is a VHD")
}

fn all(vhd: &mut Vhd<FileMedium>) -> Vec<u8> {
    let size = vhd.size();
    read(vhd, 0, size)
}

#[test]
fn qemu_reads_what_we_write() {
    let folder = Folder::new("vhd-we-write");
    let kinds = [Kind::Fixed, Kind::Dynamic { block: 2 << 20 }, Kind::Dynamic { block: 512 << 10 }];
    for (n, kind) in kinds.into_iter().enumerate() {
        let path = folder.join(format!("{n}.vhd"));
        // Not a multiple of a block.
        let size = 11 * MIB + 512 * 3;
        let new = NewVhd { size, kind, id: [n as u8 + 1; 16], created: 800_000_000 };
        new.create(&FileMedium::new(File::create_new(&path).expect("a file"))).expect("it can be made");
        let mut vhd = open(&path);
        write(&mut vhd, 0, &[0x11; 512]);
        write(&mut vhd, 2 * MIB - 1024, &[0x22; 4096]);
        write(&mut vhd, size - 512, &[0x33; 512]);
        vhd.flush().expect("it flushes");
        let ours = folder.join(format!("{n}.ours"));
        fs::write(&ours, all(&mut vhd)).expect("a file");
        // QEMU takes the geometry for the size of what it does not know the maker of.
        let compared = qemu("qemu-img", &["compare", "-f", "raw", "-F", "vpc", text(&ours), text(&path)]);
        assert!(compared.contains("Images are identical"), "{compared}");
        let pattern = |at: u64, len: u64, byte: u8| format!("read -P {byte:#x} {at} {len}");
        for (at, len, byte) in [(0, 512, 0x11), (2 * MIB - 1024, 4096, 0x22), (512, MIB, 0)] {
            qemu("qemu-io", &["-f", "vpc", "-c", &pattern(at, len, byte), text(&path)]);
        }
        // And writes on, by its own rules.
        qemu(
            "qemu-io",
            &["-f", "vpc", "-c", "write -P 0x44 5M 1M", "-c", "write -P 0x55 512 512", text(&path)],
        );
        let mut vhd = open(&path);
        let disk = all(&mut vhd);
        assert!(disk[5 << 20..6 << 20].iter().all(|b| *b == 0x44));
        assert_eq!((disk[0], disk[512], disk[1023], disk[1024]), (0x11, 0x55, 0x55, 0));
        assert!(vhd.examine().expect("it can be read").iter().all(|f| !f.is_harmful()));
    }
}

#[test]
fn we_read_what_qemu_writes() {
    let folder = Folder::new("vhd-qemu-writes");
    for (n, options) in
        ["subformat=fixed,force_size=on", "subformat=dynamic,force_size=on", "subformat=dynamic"]
            .into_iter()
            .enumerate()
    {
        let path = folder.join(format!("{n}.vhd"));
        qemu("qemu-img", &["create", "-q", "-f", "vpc", "-o", options, text(&path), "20M"]);
        let writes = ["write -P 0x61 0 64k", "write -P 0x62 3145216 1M", "write -P 0x63 20447232 512k"];
        for w in writes {
            qemu("qemu-io", &["-f", "vpc", "-c", w, text(&path)]);
        }
        let theirs = folder.join(format!("{n}.raw"));
        qemu("qemu-img", &["convert", "-f", "vpc", "-O", "raw", text(&path), text(&theirs)]);
        let mut vhd = open(&path);
        assert!(all(&mut vhd) == fs::read(&theirs).expect("a file"), "{options}");
        // And we write on, and they read.
        write(&mut vhd, 8 * MIB, &vec![0x64; (3 * MIB) as usize]);
        vhd.flush().expect("it flushes");
        qemu("qemu-io", &["-f", "vpc", "-c", "read -P 0x64 8M 3M", "-c", "read -P 0x61 0 64k", text(&path)]);
        qemu("qemu-img", &["convert", "-f", "vpc", "-O", "raw", text(&path), text(&theirs)]);
        assert!(all(&mut vhd) == fs::read(&theirs).expect("a file"), "{options}, after our write");
    }
}

#[test]
fn qemu_reads_what_we_gave_back_grew_and_compacted() {
    let folder = Folder::new("vhd-we-change");
    for (n, kind) in [Kind::Fixed, Kind::Dynamic { block: 512 << 10 }].into_iter().enumerate() {
        let path = folder.join(format!("{n}.vhd"));
        let new = NewVhd { size: 11 * MIB, kind, id: [1; 16], created: 800_000_000 };
        new.create(&FileMedium::new(File::create_new(&path).expect("a file"))).expect("it can be made");
        let mut vhd = open(&path);
        write(&mut vhd, 3 * MIB, &vec![0x44; 5 << 20]);
        zero(&mut vhd, 4 * MIB, MIB);
        unmap(&mut vhd, 5 * MIB, 3 * MIB / 2);
        vhd.flush().expect("it flushes");
        // More entries than the table has room for.
        vhd.grow(140 * MIB).expect("it grows");
        write(&mut vhd, 139 * MIB, &[0x55; 4096]);
        assert!(compact(&mut vhd, &mut |_, _| true).expect("it moves"));
        let ours = folder.join(format!("{n}.ours"));
        fs::write(&ours, all(&mut vhd)).expect("a file");
        let compared = qemu("qemu-img", &["compare", "-f", "raw", "-F", "vpc", text(&ours), text(&path)]);
        assert!(compared.contains("Images are identical"), "{compared}");
        qemu("qemu-io", &["-f", "vpc", "-c", "write -P 0x77 4M 4M", text(&path)]);
        let disk = all(&mut open(&path));
        assert!(disk[4 << 20..8 << 20].iter().all(|b| *b == 0x77));
        assert_eq!((disk[3 << 20], disk[139 << 20]), (0x44, 0x55));
    }
}
