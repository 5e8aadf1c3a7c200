//! Images against a model of a disk, and after crashes. Against programs of others: `tests/qemu.rs`.

use proptest::prelude::*;
use vireo_vdisk::crash::ForgetfulMedium;
use vireo_vdisk::trial::{Act, PARENT, Random, Trial, read, unmap, write, zero};
use vireo_vdisk::{Compact, SECTOR};

use super::*;

const BLOCK: u32 = 4096;
/// Three blocks and a half.
const SIZE: u64 = 7 * 2048;

fn parent() -> ParentLink {
    ParentLink {
        id: [7; 16],
        changed: 5,
        name: "base ü.vhd".into(),
        relative: Some(".\\base ü.vhd".into()),
        absolute: None,
    }
}

fn kinds() -> [Kind; 3] {
    [Kind::Fixed, Kind::Dynamic { block: BLOCK }, Kind::Differencing { block: BLOCK, parent: parent() }]
}

fn created(kind: &Kind) -> Vec<u8> {
    let medium = ForgetfulMedium::default();
    let new = NewVhd { size: SIZE, kind: kind.clone(), id: [1; 16], created: 42 };
    new.create(&medium).expect("it can be made");
    medium.contents()
}

fn opened(bytes: Vec<u8>) -> (Vhd<ForgetfulMedium>, ForgetfulMedium) {
    let medium = ForgetfulMedium::new(bytes);
    (Vhd::open(medium.clone(), true).expect("it opens"), medium)
}

/// What each byte of a disk is before anything is written.
fn fresh(kind: &Kind) -> u8 {
    if matches!(kind, Kind::Differencing { .. }) { PARENT } else { 0 }
}

/// The trial of a kind of image.
fn trial(kind: &Kind, run: impl FnOnce(&Trial<'_>)) {
    let open = |medium| -> Box<dyn Compact> { Box::new(Vhd::open(medium, true).expect("it opens")) };
    run(&Trial { new: created(kind), fresh: fresh(kind), open: &open });
}

#[test]
fn an_image_says_what_it_was_made_to_be() {
    for kind in kinds() {
        let (mut vhd, _) = opened(created(&kind));
        assert_eq!((vhd.size(), vhd.footer().id, vhd.footer().created), (SIZE, [1; 16], 42));
        assert_eq!(vhd.parent().cloned(), matches!(kind, Kind::Differencing { .. }).then(parent));
        assert_eq!(vhd.examine().unwrap(), []);
        assert_eq!(read(&mut vhd, 0, SIZE), vec![fresh(&kind); SIZE as usize]);
    }
}

#[test]
fn geometries_are_those_of_the_specification() {
    let of = |size: u64| {
        let g = Geometry::of(size);
        (g.cylinders, g.heads, g.sectors)
    };
    // As other programs compute them: 64 MiB, 1 GiB, 10 GiB, and all there is.
    assert_eq!(of(64 << 20), (963, 8, 17));
    assert_eq!(of(1 << 30), (2080, 16, 63));
    assert_eq!(of(10 << 30), (20805, 16, 63));
    assert_eq!(of(MAX_SIZE), (65535, 16, 255));
}

#[test]
fn what_cannot_be_is_refused() {
    let new = |size, kind| NewVhd { size, kind, id: [0; 16], created: 0 }.create(&ForgetfulMedium::default());
    for size in [0, 511, 513, MAX_SIZE + 512] {
        assert!(matches!(new(size, Kind::Fixed), Err(VhdError::BadSize(s)) if s == size));
    }
    for block in [0, 512, 4097, 512 << 20] {
        assert!(matches!(new(512, Kind::Dynamic { block }), Err(VhdError::BadBlock(b)) if b == block));
    }
    let tiny = new(MAX_SIZE, Kind::Dynamic { block: 4096 });
    assert!(matches!(tiny, Err(VhdError::Unsupported(what)) if what.contains("blocks")));
    let (mut vhd, _) = opened(created(&kinds()[1]));
    for (at, len) in [(SIZE, 512), (0, SIZE + 512), (u64::MAX - 511, 512), (256, 512), (0, 100)] {
        assert!(matches!(vhd.resolve(at, len), Err(VhdError::OutOfRange { .. })));
        assert!(matches!(vhd.place(at, len), Err(VhdError::OutOfRange { .. })));
    }
    let mut vhd = Vhd::open(ForgetfulMedium::new(created(&kinds()[1])), false).unwrap();
    assert!(matches!(vhd.place(0, 512), Err(VhdError::ReadOnly)));
}

#[test]
fn a_lost_footer_is_found_at_the_start_and_put_back() {
    let bytes = created(&Kind::Dynamic { block: BLOCK });
    let whole = bytes.len();
    for cut in [1, 100, 512] {
        let (mut vhd, medium) = opened(bytes[..whole - cut].to_vec());
        write(&mut vhd, 0, &[9; 512]);
        vhd.flush().unwrap();
        let (mut vhd, _) = opened(medium.contents());
        assert_eq!(read(&mut vhd, 0, 512), [9; 512]);
    }
    let fixed = created(&Kind::Fixed);
    let cut = ForgetfulMedium::new(fixed[..fixed.len() - 100].to_vec());
    assert!(matches!(Vhd::open(cut, false), Err(VhdError::NotVhd)));
}

#[test]
fn what_is_given_up_is_used_again_and_shows_nothing_of_before() {
    let (mut vhd, medium) = opened(created(&Kind::Dynamic { block: BLOCK }));
    write(&mut vhd, 0, &[5; 4096]);
    vhd.flush().unwrap();
    unmap(&mut vhd, 0, 4096);
    let before = medium.contents().len();
    write(&mut vhd, 4096, &[6; 512]);
    vhd.flush().unwrap();
    let during = medium.contents().len();
    write(&mut vhd, 8192, &[7; 512]);
    vhd.flush().unwrap();
    assert_eq!([during - before, medium.contents().len() - during], [8192, 0]);
    let (mut vhd, _) = opened(medium.contents());
    assert_eq!(read(&mut vhd, 8192, 4096), [vec![7; 512], vec![0; 4096 - 512]].concat());
    assert_eq!(read(&mut vhd, 0, 4096), [0; 4096]);
}

#[test]
fn a_compacted_image_is_shorter() {
    for kind in &kinds()[1..] {
        let (mut vhd, medium) = opened(created(kind));
        for (n, byte) in [(0, 0), (1, 2), (2, 3)] {
            write(&mut vhd, n * 4096, &[byte; 512]);
        }
        vhd.deallocate(0, 4096).unwrap();
        let before = medium.contents().len();
        assert!(vireo_vdisk::compact(&mut vhd, &mut |_, _| true).unwrap());
        let less = before - medium.contents().len();
        // A child keeps the block, since it hides the parent's.
        assert_eq!(less, if vhd.parent().is_some() { 0 } else { 8192 });
        let (mut vhd, _) = opened(medium.contents());
        assert_eq!([0, 4096, 8192].map(|at| read(&mut vhd, at, 512)[0]), [0, 2, 3]);
        assert_eq!(vhd.examine().unwrap(), []);
    }
}

#[test]
fn a_child_that_is_cleared_still_hides_its_parent() {
    let (mut vhd, _) = opened(created(&kinds()[2]));
    zero(&mut vhd, 512, 8192);
    assert_eq!(read(&mut vhd, 0, 9216), [vec![PARENT; 512], vec![0; 8192], vec![PARENT; 512]].concat());
    write(&mut vhd, 0, &[8; 512]);
    unmap(&mut vhd, 0, 12288);
    vhd.flush().unwrap();
    assert_eq!(read(&mut vhd, 0, 9216), [vec![0; 8704], vec![PARENT; 512]].concat());
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let sectors = SIZE / SECTOR;
    let write = (0..sectors, 1..=12u64, 1..=200u8).prop_map(move |(sector, n, byte)| Act::Write {
        sector,
        count: n.min(sectors - sector),
        byte,
    });
    // Blocks have 8.
    let range = (0..sectors, 1..=20u64).prop_map(move |(sector, n)| (sector, n.min(sectors - sector)));
    let zero = range.clone().prop_map(|(sector, count)| Act::Zero { sector, count });
    let unmap = range.prop_map(|(sector, count)| Act::Unmap { sector, count });
    let flush = prop_oneof![2 => Just(Act::Flush), 1 => Just(Act::Reopen)];
    // The table is full after 128 blocks.
    let grow = prop_oneof![4 => 1..20u64, 1 => 900..1100u64].prop_map(|by| Act::Grow { by });
    let some = prop::collection::vec(
        prop_oneof![6 => write, 2 => zero, 2 => unmap, 4 => flush, 1 => grow, 1 => Just(Act::Compact)],
        1..24,
    );
    // Thereafter sectors may be missing.
    let shrink = prop::option::of((1..30u64).prop_map(|by| Act::Shrink { by }));
    let again = prop::option::of((1..30u64).prop_map(|by| Act::Grow { by }));
    (some, shrink, again)
        .prop_map(|(acts, shrink, again)| acts.into_iter().chain(shrink).chain(again).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_disk_keeps_what_it_is_given(acts in acts()) {
        kinds().iter().for_each(|kind| trial(kind, |t| t.keeps(&acts)));
    }

    #[test]
    fn a_crash_loses_nothing_that_was_flushed(acts in acts(), seed in any::<u64>()) {
        kinds().iter().for_each(|kind| trial(kind, |t| t.survives(&acts, Random(seed))));
    }

    /// No bytes make it panic, or take more memory than they have themselves.
    #[test]
    fn any_bytes_are_an_image_or_an_error(
        flips in prop::collection::vec((0..2600usize, any::<u8>()), 0..6),
        kind in 0..3usize,
        fix in any::<bool>(),
    ) {
        let mut bytes = created(&kinds()[kind]);
        for (at, byte) in flips {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        if fix {
            // With right checksums it gets further.
            let end = bytes.len() - 512;
            for (at, size, sum) in [(0, 512, 64), (512, 1024, 36), (end, 512, 64)] {
                if at + size <= bytes.len() {
                    let right = checksum(&bytes[at..at + size], sum).to_be_bytes();
                    bytes[at + sum..at + sum + 4].copy_from_slice(&right);
                }
            }
        }
        _ = dump(&ForgetfulMedium::new(bytes.clone()), true);
        if let Ok(mut vhd) = Vhd::open(ForgetfulMedium::new(bytes), true) {
            _ = vhd.examine();
            let size = vhd.size().min(1 << 20);
            _ = vhd.resolve(0, size);
            if vhd.block().is_none_or(|b| b <= 1 << 20) && vhd.place(0, 512).is_ok() {
                _ = vhd.written(0, 512);
                _ = vhd.flush();
            }
        }
    }
}
