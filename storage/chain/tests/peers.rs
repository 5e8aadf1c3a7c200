//! Differencing images and sectors of 4096 bytes, which QEMU's tools do not know, read by 7-Zip and libvhdi.

use std::path::Path;

use vireo_chain::{Disk, Format, Kind, NewDisk, Shrink, compact, create, merge, resize};
use vireo_vdisk::trial::peer::{Folder, run, text};

const MIB: u64 = 1 << 20;

fn new(format: Format, kind: Kind, sector: u32) -> NewDisk {
    let sector = Some(sector).filter(|_| !matches!(kind, Kind::Differencing(_)));
    NewDisk { format, size: sector.map(|_| 9 * MIB), kind, block: None, sector, allocate: false }
}

/// The disk as we read it.
fn ours(path: &Path) -> Vec<u8> {
    let mut disk = Disk::open(path, None, false).expect("it opens");
    let mut bytes = vec![9; disk.size() as usize];
    disk.read(0, &mut bytes).expect("it reads");
    bytes
}

/// As 7-Zip does, which finds the parents by itself.
fn theirs(path: &Path) -> Vec<u8> {
    run("7zz", "7zip", &["e", "-so", text(path)]).stdout
}

/// What libvhdi says of it.
fn told(path: &Path) -> String {
    String::from_utf8_lossy(&run("vhdiinfo", "libvhdi-utils", &[text(path)]).stdout).into_owned()
}

fn write(path: &Path, acts: impl FnOnce(&mut Disk)) {
    let mut disk = Disk::open(path, None, true).expect("it opens");
    acts(&mut disk);
    disk.close().expect("it closes");
}

#[test]
fn others_read_our_chains() {
    let folder = Folder::new("peers-chain");
    for (format, sector) in [(Format::Vhd, 512u32), (Format::Vhdx, 512), (Format::Vhdx, 4096)] {
        let path = |name: &str| folder.join(format!("{name}-{sector}.{format}"));
        let (base, child, leaf) = (path("base"), path("child"), path("leaf"));
        let s = u64::from(sector);
        create(&base, &new(format, Kind::Dynamic, sector)).expect("a base");
        write(&base, |d| d.write(0, &vec![1; 5 << 20]).expect("it writes"));
        create(&child, &new(format, Kind::Differencing(base.clone()), sector)).expect("a child");
        write(&child, |d| {
            d.write(3 * s, &vec![2; 5 * s as usize]).expect("it writes");
            // A block, parts of one, and the end.
            d.zero(2 * MIB, 2 * MIB).expect("it clears");
            d.zero(s, s).expect("it clears");
            d.write(9 * MIB - s, &vec![3; s as usize]).expect("it writes");
        });
        create(&leaf, &new(format, Kind::Differencing(child.clone()), sector)).expect("a leaf");
        write(&leaf, |d| d.write(5 * s, &vec![4; s as usize]).expect("it writes"));
        for image in [&base, &child, &leaf] {
            assert!(ours(image) == theirs(image), "{}", image.display());
            let told = told(image);
            let kind = if image == &base { "Dynamic" } else { "Differential" };
            for expected in [kind, "(9437184 bytes)", &format!("{sector} bytes")] {
                assert!(told.contains(expected), "{}: {told}", image.display());
            }
        }
        let bytes = ours(&leaf);
        let same = |what: &str| {
            assert!(ours(&leaf) == bytes, "{format} {sector} {what}");
            assert!(theirs(&leaf) == bytes, "{format} {sector} {what}, by 7-Zip");
        };
        compact(&leaf, None, &mut |_| true).expect("it compacts");
        same("compacted");
        merge(&leaf, None, &mut |_| true).expect("it merges");
        std::fs::rename(&child, &leaf).expect("a name");
        same("merged");
        merge(&leaf, None, &mut |_| true).expect("it merges");
        std::fs::rename(&base, &leaf).expect("a name");
        same("merged to its base");
        resize(&leaf, None, 700 * MIB, Shrink::Never).expect("it grows");
        resize(&leaf, None, 9 * MIB, Shrink::Zeros).expect("it shrinks");
        compact(&leaf, None, &mut |_| true).expect("it compacts");
        same("grown and shrunk");
    }
}
