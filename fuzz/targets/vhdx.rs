//! Bytes as a VHDX: opened to be read and to be changed, its log replayed, examined.
#![no_main]

use std::sync::{Arc, OnceLock};

use libfuzzer_sys::fuzz_target;
use vireo_fuzz::{Input, Patched, use_image};
use vireo_vdisk::Medium;
use vireo_vhdx::{Guid, Kind, MIB, NewVhdx, Open, ParentLink, Vhdx, dump};

/// What has meaning in what we make: headers, region tables, log, metadata and its items, block table.
const PARTS: [(u64, u64); 9] = [
    (65_536, 100),
    (131_072, 100),
    (196_608, 100),
    (MIB, 200),
    (MIB + 4096, 64),
    (2 * MIB, 300),
    (2 * MIB + 65_536, 400),
    (3 * MIB, 64),
    (0, 600),
];
/// Structures with a checksum at their byte 4.
const SUMMED: [(u64, usize); 5] =
    [(65_536, 4096), (131_072, 4096), (196_608, 65_536), (262_144, 65_536), (MIB, 8192)];
const RANDOM: Guid = Guid([3; 16]);

/// A fixed disk, a dynamic one, a child, and one whose log has something to do.
fn images() -> &'static [Arc<[u8]>] {
    static IMAGES: OnceLock<Vec<Arc<[u8]>>> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let parent = ParentLink {
            linkage: Guid([7; 16]),
            relative: Some("base.vhdx".into()),
            ..ParentLink::default()
        };
        let kinds = [Kind::Fixed, Kind::Dynamic, Kind::Differencing(parent)];
        let mut images: Vec<Arc<[u8]>> = kinds.into_iter().map(made).collect();
        images.push(with_a_log(&images[1]));
        images
    })
}

fn bytes_of(medium: &Patched) -> Arc<[u8]> {
    let len = medium.len().expect("a length") as usize;
    medium.piece(0, len).into()
}

fn made(kind: Kind) -> Arc<[u8]> {
    let medium = Patched::new(&Arc::from([]));
    let (id, random) = (Guid([1; 16]), Guid([2; 16]));
    NewVhdx { size: 3 * MIB + 16384, kind, block: 1 << 20, sector: 512, physical_sector: 4096, id, random }
        .create(&medium)
        .expect("it can be made");
    bytes_of(&medium)
}

/// Of an image that was not closed: its header names the log, which is still there.
fn with_a_log(image: &Arc<[u8]>) -> Arc<[u8]> {
    let medium = Patched::new(image);
    let mut vhdx = Vhdx::open(medium.clone(), Open::Write { random: RANDOM }).expect("it opens");
    vhdx.place(0, 4096).and_then(|_| vhdx.written(0, 4096)).and_then(|()| vhdx.flush()).expect("it works");
    // It is closed when it is dropped.
    let open = bytes_of(&medium);
    drop(vhdx);
    open
}

/// Puts right checksums where they belong: with wrong ones, nothing else would be looked at.
fn sum(medium: &Patched) {
    let len = medium.len().expect("a length");
    for (at, size) in SUMMED.into_iter().filter(|(at, size)| at + *size as u64 <= len) {
        let mut bytes = medium.piece(at, size);
        // An entry of the log says how long it is.
        if at == MIB {
            let len = u32::from_le_bytes(std::array::from_fn(|n| bytes[8 + n])) as usize;
            bytes.truncate(len.clamp(64, size));
        }
        bytes[4..8].fill(0);
        let sum = crc32c::crc32c(&bytes);
        medium.write(at + 4, &sum.to_le_bytes()).expect("it is on the medium");
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let medium = Patched::new(&images()[usize::from(input.u8() % 4)]);
    medium.patch(&mut input, &PARTS);
    if input.u8() % 8 != 0 {
        sum(&medium);
    }
    _ = dump(&medium, true);
    if let Ok(mut vhdx) = Vhdx::open(medium.clone(), Open::Read) {
        let size = vhdx.size().min(4 * MIB) / 4096 * 4096;
        _ = vhdx.resolve(0, size);
        _ = vhdx.examine();
    }
    let Ok(mut vhdx) = Vhdx::open(medium, Open::Write { random: RANDOM }) else { return };
    if vhdx.metadata().block <= 4 << 20 {
        use_image(&mut vhdx, 4096, &mut input);
    }
});
