//! Bytes as a VHD: opened, read, changed, examined.
#![no_main]

use std::sync::{Arc, OnceLock};

use libfuzzer_sys::fuzz_target;
use vireo_fuzz::{Input, Patched, use_image};
use vireo_vdisk::Medium;
use vireo_vhd::{Kind, NewVhd, ParentLink, Vhd, dump};

const BLOCK: u32 = 4096;
/// Structures: offset, length, and where the checksum is in it.
const SUMMED: [(u64, usize, usize); 3] = [(0, 512, 64), (512, 1024, 36), (u64::MAX, 512, 64)];

/// A fixed disk, a dynamic one, and a child.
fn images() -> &'static [Arc<[u8]>] {
    static IMAGES: OnceLock<Vec<Arc<[u8]>>> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let parent = ParentLink {
            id: [7; 16],
            changed: 5,
            name: "base.vhd".into(),
            relative: Some(".\\base.vhd".into()),
            absolute: None,
        };
        let kinds =
            [Kind::Fixed, Kind::Dynamic { block: BLOCK }, Kind::Differencing { block: BLOCK, parent }];
        kinds
            .into_iter()
            .map(|kind| made(NewVhd { size: 7 * 2048, kind, id: [1; 16], created: 42 }))
            .collect()
    })
}

fn made(new: NewVhd) -> Arc<[u8]> {
    let medium = Patched::new(&Arc::from([]));
    new.create(&medium).expect("it can be made");
    let len = medium.len().expect("a length") as usize;
    medium.piece(0, len).into()
}

/// Puts right checksums where they belong: with wrong ones, nothing else would be looked at.
fn sum(medium: &Patched) {
    let len = medium.len().expect("a length");
    for (at, size, place) in SUMMED {
        let at = at.min(len.saturating_sub(512));
        if at + size as u64 > len {
            continue;
        }
        let mut bytes = medium.piece(at, size);
        bytes[place..place + 4].fill(0);
        let sum = !bytes.iter().map(|b| u32::from(*b)).sum::<u32>();
        medium.write(at + place as u64, &sum.to_be_bytes()).expect("it is on the medium");
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let medium = Patched::new(&images()[usize::from(input.u8() % 3)]);
    let end = medium.len().expect("a length") - 512;
    medium.patch(&mut input, &[(0, 512), (512, 1024), (1536, 1024), (end, 512)]);
    if input.u8() % 8 != 0 {
        sum(&medium);
    }
    _ = dump(&medium, true);
    let Ok(mut vhd) = Vhd::open(medium, true) else { return };
    _ = vhd.examine();
    if vhd.block().is_none_or(|b| b <= 1 << 20) {
        use_image(&mut vhd, 512, &mut input);
    }
});
