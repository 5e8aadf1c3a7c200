//! Images against a model of a disk, and after crashes. Against programs of others: `tests/qemu.rs`.

use proptest::prelude::*;
use vireo_vdisk::crash::ForgetfulMedium;
use vireo_vdisk::trial::{Act, PARENT, Random, Trial, read, unmap, write, zero};
use vireo_vdisk::{Compact, Fact};

use super::*;
use crate::bytes::{put, seal};

/// Three blocks and a bit.
const SIZE: u64 = 3 * MIB + 16384;
const RANDOM: Guid = Guid([3; 16]);

fn parent() -> ParentLink {
    ParentLink {
        linkage: Guid([7; 16]),
        relative: Some(".\\base ü.vhdx".into()),
        absolute: Some("C:\\disks\\base ü.vhdx".into()),
        ..ParentLink::default()
    }
}

fn new(kind: Kind, sector: u32) -> NewVhdx {
    let (block, id) = (1 << 20, Guid([1; 16]));
    NewVhdx { size: SIZE, kind, block, sector, physical_sector: 4096, id, random: Guid([2; 16]) }
}

fn images() -> [NewVhdx; 4] {
    [
        new(Kind::Fixed, 512),
        new(Kind::Dynamic, 512),
        new(Kind::Differencing(parent()), 512),
        new(Kind::Differencing(parent()), 4096),
    ]
}

fn created(new: &NewVhdx) -> Vec<u8> {
    let medium = ForgetfulMedium::default();
    new.create(&medium).expect("it can be made");
    medium.contents()
}

fn opened(bytes: Vec<u8>) -> (Vhdx<ForgetfulMedium>, ForgetfulMedium) {
    let medium = ForgetfulMedium::new(bytes);
    (Vhdx::open(medium.clone(), Open::Write { random: RANDOM }).expect("it opens"), medium)
}

fn fresh(new: &NewVhdx) -> u8 {
    if matches!(new.kind, Kind::Differencing(_)) { PARENT } else { 0 }
}

fn trial(new: &NewVhdx, run: impl FnOnce(&Trial<'_>)) {
    let open = |medium| -> Box<dyn Compact> {
        Box::new(Vhdx::open(medium, Open::Write { random: RANDOM }).expect("it opens"))
    };
    run(&Trial { new: created(new), fresh: fresh(new), open: &open });
}

#[test]
fn an_image_says_what_it_was_made_to_be() {
    for new in images() {
        let (mut vhdx, _) = opened(created(&new));
        let m = vhdx.metadata().clone();
        assert_eq!((m.size, m.block, m.sector, m.id), (SIZE, 1 << 20, new.sector, Guid([1; 16])));
        assert_eq!(m.fixed, new.kind == Kind::Fixed);
        assert_eq!(m.parent, matches!(new.kind, Kind::Differencing(_)).then(parent));
        assert!(read(&mut vhdx, 0, SIZE).iter().all(|b| *b == fresh(&new)));
        assert_eq!(vhdx.examine().unwrap(), []);
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let with = |f: fn(&mut NewVhdx)| {
        let mut n = new(Kind::Dynamic, 512);
        f(&mut n);
        n.create(&ForgetfulMedium::default())
    };
    assert!(matches!(with(|n| n.size = 0), Err(VhdxError::BadSize { size: 0, .. })));
    assert!(matches!(with(|n| n.size = MAX_SIZE + 512), Err(VhdxError::BadSize { .. })));
    assert!(matches!(with(|n| (n.sector, n.size) = (4096, 4096 + 512)), Err(VhdxError::BadSize { .. })));
    assert!(matches!(with(|n| n.block = 3 << 20), Err(VhdxError::BadBlock(_))));
    assert!(matches!(with(|n| n.sector = 520), Err(VhdxError::BadSector(520))));
    let (mut vhdx, _) = opened(created(&new(Kind::Dynamic, 512)));
    for (at, len) in [(SIZE, 512), (0, SIZE + 512), (u64::MAX - 511, 512), (256, 512), (0, 100)] {
        assert!(matches!(vhdx.resolve(at, len), Err(VhdxError::OutOfRange { .. })));
        assert!(matches!(vhdx.place(at, len), Err(VhdxError::OutOfRange { .. })));
    }
    let mut vhdx = Vhdx::open(ForgetfulMedium::new(created(&new(Kind::Dynamic, 512))), Open::Read).unwrap();
    assert!(matches!(vhdx.place(0, 512), Err(VhdxError::ReadOnly)));
}

#[test]
fn a_change_of_the_disk_changes_what_children_name() {
    let (mut vhdx, medium) = opened(created(&new(Kind::Dynamic, 512)));
    let before = vhdx.data_write();
    vhdx.flush().unwrap();
    assert_eq!(vhdx.data_write(), before, "nothing was written");
    write(&mut vhdx, 0, &[5; 512]);
    assert_ne!(vhdx.data_write(), before);
    vhdx.close().unwrap();
    let (vhdx, _) = opened(medium.contents());
    assert_ne!(vhdx.data_write(), before);
}

#[test]
fn what_is_given_up_is_used_again_and_shows_nothing_of_before() {
    for new in images() {
        let child = matches!(new.kind, Kind::Differencing(_));
        let (mut vhdx, medium) = opened(created(&new));
        write(&mut vhdx, 0, &vec![5; MIB as usize]);
        vhdx.flush().unwrap();
        unmap(&mut vhdx, 0, MIB);
        assert_eq!(read(&mut vhdx, 0, 4096), [0; 4096], "the parent is hidden");
        let before = medium.contents().len();
        write(&mut vhdx, MIB, &[6; 4096]);
        let during = medium.contents().len();
        vhdx.flush().unwrap();
        // Two more blocks: the second needs room.
        write(&mut vhdx, 2 * MIB, &[7; 4096]);
        let again = medium.contents().len();
        if new.kind != Kind::Fixed {
            assert_eq!((during - before, again - during), (MIB as usize, 0), "{:?}", new.kind);
        }
        let rest = if child { PARENT } else { 0 };
        assert_eq!(read(&mut vhdx, 2 * MIB, 8192), [[7; 4096], [rest; 4096]].concat());
        zero(&mut vhdx, MIB, 2 * MIB);
        assert_eq!(read(&mut vhdx, MIB, 2 * MIB), vec![0; 2 << 20]);
        vhdx.flush().unwrap();
        assert_eq!(vhdx.examine().unwrap().iter().filter(|f| f.is_harmful()).count(), 0);
    }
}

#[test]
fn a_compacted_image_is_shorter_and_children_still_know_it() {
    for new in &images()[1..] {
        let (mut vhdx, medium) = opened(created(new));
        for (n, byte) in [(0, 0), (1, 2), (2, 3)] {
            write(&mut vhdx, n * MIB, &[byte; 8192]);
        }
        vhdx.close().unwrap();
        let (mut vhdx, _) = opened(medium.contents());
        let identity = vhdx.data_write();
        vhdx.deallocate(0, MIB).unwrap();
        let medium = vhdx.medium().clone();
        let before = medium.contents().len() as u64;
        assert!(vireo_vdisk::compact(&mut vhdx, &mut |_, _| true).unwrap());
        assert_eq!(medium.contents().len() as u64, before - MIB, "{:?}", new.kind);
        assert_eq!(vhdx.data_write(), identity);
        vhdx.close().unwrap();
        let (mut vhdx, _) = opened(medium.contents());
        let disk: Vec<u8> = (0..3).map(|n| read(&mut vhdx, n * MIB, 4096)[0]).collect();
        assert_eq!(disk, [0, 2, 3]);
        assert_eq!((vhdx.data_write(), vhdx.examine().unwrap()), (identity, vec![]));
    }
}

#[test]
fn a_link_to_a_parent_changes_as_a_whole_or_not_at_all() {
    let (mut vhdx, medium) = opened(created(&new(Kind::Differencing(parent()), 512)));
    let mut random = Random(5);
    for n in 1..4u8 {
        let before = vhdx.parent().cloned().unwrap();
        let link =
            ParentLink { linkage2: Some(Guid([n; 16])), volume: Some("x".repeat(5000)), ..before.clone() };
        let from = medium.points();
        vhdx.relink(link.clone()).unwrap();
        for point in from..=medium.points() {
            for _ in 0..5 {
                let after = ForgetfulMedium::new(medium.after_crash(point, |n| random.below(n)));
                let found = Vhdx::open(after, Open::Read).unwrap().parent().cloned().unwrap();
                let done = point == medium.points();
                assert!(found == link || found == before && !done, "{found:?} after a crash at {point}");
            }
        }
    }
    let (mut base, _) = opened(created(&new(Kind::Dynamic, 512)));
    assert!(base.relink(parent()).is_err());
}

#[test]
fn a_disk_grows_as_far_as_its_table_goes() {
    let medium = ForgetfulMedium::default();
    // The table's first MiB has entries for more than four times as much.
    new(Kind::Dynamic, 512).create(&medium).unwrap();
    let mut vhdx = Vhdx::open(medium.clone(), Open::Write { random: RANDOM }).unwrap();
    let most = 131_072 / 8193 * 8192 * MIB;
    vhdx.grow(most).unwrap();
    assert!(matches!(vhdx.grow(2 * most), Err(VhdxError::FullTable { .. })));
    assert!(matches!(vhdx.grow(SIZE), Err(VhdxError::BadSize { .. })));
    write(&mut vhdx, most - 4096, &[4; 4096]);
    vhdx.close().unwrap();
    let (mut vhdx, _) = opened(medium.contents());
    assert_eq!((vhdx.size(), read(&mut vhdx, most - 4096, 4096)), (most, vec![4; 4096]));
}

/// An image with something in its log: a crash just after the log was made durable.
fn with_a_log() -> Vec<u8> {
    let (mut vhdx, medium) = opened(created(&new(Kind::Dynamic, 512)));
    write(&mut vhdx, 2 * MIB, &[6; 1024]);
    vhdx.flush().unwrap();
    // What the flush wrote in its place is not durable.
    medium.after_crash(medium.points(), |_| 0)
}

#[test]
fn the_log_is_replayed_in_memory_where_the_file_may_not_be_written() {
    let bytes = with_a_log();
    let medium = ForgetfulMedium::new(bytes.clone());
    let mut vhdx = Vhdx::open(medium.clone(), Open::Read).expect("it opens");
    assert_eq!(read(&mut vhdx, 2 * MIB, 1536)[..1024], [6; 1024]);
    let findings = vhdx.examine().unwrap();
    assert!(!findings[0].is_harmful() && findings[0].to_string().contains("log"), "{findings:?}");
    assert!(vhdx.place(0, 512).is_err() && vhdx.zero(0, 512).is_err() && vhdx.flush().is_ok());
    vhdx.close().unwrap();
    assert_eq!((medium.points(), medium.contents() == bytes), (0, true), "the file is as it was");
    let (mut vhdx, medium) = opened(bytes);
    assert_eq!(read(&mut vhdx, 2 * MIB, 1536)[..1024], [6; 1024]);
    drop(vhdx);
    // Once.
    let mut vhdx = Vhdx::open(ForgetfulMedium::new(medium.contents()), Open::Read).unwrap();
    assert_eq!(read(&mut vhdx, 2 * MIB, 512), [6; 512]);
}

/// What is under a name of a group, or at a place in a list.
fn under<'a>(fact: &'a Fact, path: &[&str]) -> &'a Fact {
    path.iter().fold(fact, |fact, name| match fact {
        Fact::Group(facts) => {
            &facts.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("{name}: {facts:?}")).1
        }
        Fact::List(facts) => &facts[name.parse::<usize>().expect("a number")],
        other => panic!("{name}: {other:?}"),
    })
}

#[test]
fn a_dump_tells_what_the_structures_say_even_if_they_are_damaged() {
    let mut bytes = with_a_log();
    let told = |bytes: &[u8]| dump(&ForgetfulMedium::new(bytes.to_vec()), true).unwrap();
    let fact = told(&bytes);
    let expect = |path: &[&str], value: Fact| assert_eq!(*under(&fact, path), value, "{path:?}");
    expect(&["file", "creator"], "Vireo".into());
    expect(&["metadata", "size"], SIZE.into());
    expect(&["log", "replay_needed"], true.into());
    expect(&["log", "entries", "0", "ranges", "0", "at"], (3 * MIB).into());
    expect(&["block_table", "states", "not present"], 4u64.into());
    expect(&["block_table", "runs", "0", "count"], 4u64.into());
    // A header, and both region tables.
    for at in [65536 + 20, 196608 + 20, 262144 + 20] {
        bytes[at] ^= 1;
    }
    let fact = told(&bytes);
    assert_eq!(*under(&fact, &["headers", "0", "checksum"]), false.into());
    assert!(matches!(under(&fact, &["block_table"]), Fact::Text(t) if t.contains("region table")));
}

#[test]
fn a_closed_image_has_no_log() {
    let (mut vhdx, medium) = opened(created(&new(Kind::Differencing(parent()), 512)));
    write(&mut vhdx, MIB, &[6; 1024]);
    vhdx.close().unwrap();
    let mut vhdx = Vhdx::open(ForgetfulMedium::new(medium.contents()), Open::Read).unwrap();
    assert_eq!(read(&mut vhdx, MIB - 512, 2048)[512..1536], [6; 1024]);
}

#[test]
fn a_log_that_is_not_ours_or_torn_does_nothing() {
    let bytes = with_a_log();
    // The entry begins the log, at 1 MiB: its signature, its checksum, its identity, a byte of a page.
    for at in [0, 4, 32, 5000] {
        let mut bytes = bytes.clone();
        bytes[MIB as usize + at] ^= 1;
        let (mut vhdx, _) = opened(bytes);
        assert_eq!(read(&mut vhdx, 2 * MIB, 512), [0; 512]);
    }
}

#[test]
fn a_log_with_right_checksums_may_still_not_write_anywhere() {
    let bytes = with_a_log();
    let entry = MIB as usize..MIB as usize + 8192;
    // Where its page goes: the header, no page's start, beyond the end.
    for at in [65536u64, 3 * MIB + 512, 1 << 40, u64::MAX - 4095] {
        let mut bytes = bytes.clone();
        let e = &mut bytes[entry.clone()];
        put(e, 64 + 16, &at.to_le_bytes());
        seal(e, 4);
        let medium = ForgetfulMedium::new(bytes);
        assert!(matches!(Vhdx::open(medium, Open::Write { random: RANDOM }), Err(VhdxError::Damaged(_))));
    }
}

#[test]
fn many_pages_go_through_the_log_in_turn() {
    // Each block has its entry in another page of the table.
    let size = 512 * MIB * 130;
    let new = NewVhdx { size, ..new(Kind::Dynamic, 512) };
    let medium = ForgetfulMedium::default();
    new.create(&medium).unwrap();
    let mut vhdx = Vhdx::open(medium.clone(), Open::Write { random: RANDOM }).unwrap();
    for n in 0..130 {
        // One byte for each is enough; the block's payload is left alone.
        vhdx.place(n * 512 * MIB, 512).unwrap();
    }
    vhdx.flush().unwrap();
    let after = ForgetfulMedium::new(medium.after_crash(medium.points(), |_| 0));
    for open in [Open::Read, Open::Write { random: RANDOM }] {
        let mut vhdx = Vhdx::open(after.clone(), open).unwrap();
        for n in 0..130 {
            let place = vhdx.resolve(n * 512 * MIB, 512).unwrap()[0].place;
            // What is beyond the end of a file that may not be extended is zero.
            let zero = open == Open::Read && place == vireo_vdisk::Place::Zero;
            assert!(zero || matches!(place, vireo_vdisk::Place::Medium(_)), "block {n}");
        }
    }
}

fn acts(sector: u64) -> impl Strategy<Value = Vec<Act>> {
    let sectors = SIZE / sector;
    let write = (0..4u64, 0..6u64, 1..=12u64, 1..=200u8).prop_map(move |(block, n, count, byte)| {
        // Near the ends of blocks.
        let first = (block * MIB / sector + n).saturating_sub(3).min(sectors - 1);
        Act::Write { sector: first, count: count.min(sectors - first), byte }
    });
    // Whole blocks, or nearly.
    let range = (0..4u64, 1..=2u64, 0..3u64).prop_map(move |(block, n, less)| {
        let first = block * MIB / sector;
        (first, (n * MIB / sector - less).min(sectors - first))
    });
    let zero = range.clone().prop_map(|(sector, count)| Act::Zero { sector, count });
    let unmap = range.prop_map(|(sector, count)| Act::Unmap { sector, count });
    let flush = prop_oneof![2 => Just(Act::Flush), 1 => Just(Act::Reopen)];
    let by = move || prop_oneof![1..4u64, Just(MIB / sector)];
    let grow = by().prop_map(|by| Act::Grow { by });
    let some = prop::collection::vec(
        prop_oneof![6 => write, 2 => zero, 2 => unmap, 4 => flush, 1 => grow, 1 => Just(Act::Compact)],
        1..10,
    );
    // Thereafter sectors may be missing.
    let shrink = prop::option::of(by().prop_map(|by| Act::Shrink { by }));
    let again = prop::option::of(by().prop_map(|by| Act::Grow { by }));
    (some, shrink, again)
        .prop_map(|(acts, shrink, again)| acts.into_iter().chain(shrink).chain(again).collect())
}

proptest! {
    // Each looks at some MiB many times.
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn a_disk_keeps_what_it_is_given(acts in acts(4096)) {
        images().iter().for_each(|new| trial(new, |t| t.keeps(&acts)));
    }

    #[test]
    fn a_crash_loses_nothing_that_was_flushed(acts in acts(4096), seed in any::<u64>()) {
        images().iter().for_each(|new| trial(new, |t| t.survives(&acts, Random(seed))));
    }
}

#[test]
fn a_crash_while_blocks_move_or_the_disk_grows_loses_nothing() {
    for new in &images()[1..] {
        let block = MIB / u64::from(new.sector);
        let write = |block_number, byte| Act::Write { sector: block_number * block, count: 3, byte };
        let acts = [
            write(0, 1),
            write(1, 2),
            write(2, 3),
            Act::Flush,
            Act::Unmap { sector: 0, count: block },
            Act::Flush,
            Act::Compact,
            write(1, 4),
            Act::Grow { by: 2 * block },
            write(4, 5),
            Act::Flush,
            Act::Zero { sector: block, count: block },
            Act::Compact,
            write(0, 6),
            Act::Flush,
        ];
        trial(new, |t| {
            t.keeps(&acts);
            t.survives(&acts, Random(new.sector.into()));
        });
    }
}

/// Parts of an image that have meaning: start, length, and how many bytes their checksum is of, if they have one.
const PARTS: [(usize, usize, usize); 6] = [
    (65536, 100, 4096),
    (131072, 100, 4096),
    (196608, 100, 65536),
    (1 << 20, 200, 0),
    (2 << 20, 300, 0),
    ((2 << 20) + 65536, 400, 0),
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// No bytes make it panic.
    #[test]
    fn any_bytes_are_an_image_or_an_error(
        flips in prop::collection::vec((0..PARTS.len(), any::<prop::sample::Index>(), any::<u8>()), 0..6),
        entries in prop::collection::vec((0..4usize, any::<u64>()), 0..3),
        log in any::<bool>(),
        fix in any::<bool>(),
    ) {
        let mut bytes = if log { with_a_log() } else { created(&new(Kind::Differencing(parent()), 512)) };
        for (part, at, byte) in flips {
            let (start, len, summed) = PARTS[part];
            bytes[start + at.index(len)] = byte;
            if fix && summed > 0 {
                seal(&mut bytes[start..start + summed], 4);
            }
        }
        for (n, entry) in entries {
            put(&mut bytes, (3 << 20) + 8 * n, &(entry & 0x7f_fff7).to_le_bytes());
        }
        _ = dump(&ForgetfulMedium::new(bytes.clone()), true);
        if let Ok(mut vhdx) = Vhdx::open(ForgetfulMedium::new(bytes.clone()), Open::Read) {
            let size = vhdx.size().min(4 * MIB) / 4096 * 4096;
            _ = vhdx.resolve(0, size);
            _ = vhdx.examine();
        }
        if let Ok(mut vhdx) = Vhdx::open(ForgetfulMedium::new(bytes), Open::Write { random: RANDOM }) {
            let size = vhdx.size().min(4 * MIB) / 4096 * 4096;
            _ = vhdx.resolve(0, size);
            if vhdx.metadata().block <= 4 << 20 && vhdx.place(0, 4096).is_ok() {
                _ = vhdx.written(0, 4096);
                _ = vhdx.flush();
                _ = vhdx.unmap(0, size);
                _ = vhdx.grow(vhdx.size() + 2 * MIB);
                _ = vireo_vdisk::compact(&mut vhdx, &mut |_, _| true);
                _ = vhdx.relink(parent());
            }
        }
    }
}
