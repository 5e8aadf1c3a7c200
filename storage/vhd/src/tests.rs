//! Images against a model of a disk, and after crashes. Against programs of others: `tests/tests/vhd.rs`.

use std::sync::Arc;

use proptest::prelude::*;
use vireo_vdisk::crash::ForgetfulMedium;
use vireo_vdisk::{Medium, Place, SECTOR};

use super::*;

const BLOCK: u32 = 4096;
/// Three blocks and a half.
const SIZE: u64 = 7 * 2048;

/// So that a test and an image have the same medium.
struct Shared(Arc<ForgetfulMedium>);

impl Medium for Shared {
    fn len(&self) -> std::io::Result<u64> {
        self.0.len()
    }
    fn read(&self, at: u64, to: &mut [u8]) -> std::io::Result<()> {
        self.0.read(at, to)
    }
    fn write(&self, at: u64, from: &[u8]) -> std::io::Result<()> {
        self.0.write(at, from)
    }
    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.0.set_len(len)
    }
    fn flush(&self) -> std::io::Result<()> {
        self.0.flush()
    }
}

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

fn opened(bytes: Vec<u8>) -> (Vhd<Shared>, Arc<ForgetfulMedium>) {
    let medium = Arc::new(ForgetfulMedium::new(bytes));
    (Vhd::open(Shared(medium.clone()), true).expect("it opens"), medium)
}

/// What the parent has at each byte.
const PARENT: u8 = 0xee;

fn read<M: Medium>(vhd: &mut Vhd<M>, at: u64, len: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for e in vhd.resolve(at, len).expect("it resolves") {
        let mut part = vec![0; e.len as usize];
        match e.place {
            Place::Medium(at) => vhd.medium().read(at, &mut part).expect("it reads"),
            Place::Zero => {}
            Place::Parent => part.fill(PARENT),
        }
        bytes.extend(part);
    }
    assert_eq!(bytes.len() as u64, len);
    bytes
}

fn write<M: Medium>(vhd: &mut Vhd<M>, at: u64, bytes: &[u8]) {
    let mut rest = bytes;
    for e in vhd.place(at, bytes.len() as u64).expect("it has room") {
        let Place::Medium(at) = e.place else { panic!("{e:?} is no place to write to") };
        let (part, more) = rest.split_at(e.len as usize);
        vhd.medium().write(at, part).expect("it writes");
        rest = more;
    }
    vhd.written(at, bytes.len() as u64).expect("it is on the disk");
}

/// What a disk is before anything is written.
fn fresh(kind: &Kind) -> Vec<u8> {
    vec![if matches!(kind, Kind::Differencing { .. }) { PARENT } else { 0 }; SIZE as usize]
}

#[test]
fn an_image_says_what_it_was_made_to_be() {
    for kind in kinds() {
        let (mut vhd, _) = opened(created(&kind));
        assert_eq!((vhd.size(), vhd.footer().id, vhd.footer().created), (SIZE, [1; 16], 42));
        assert_eq!(vhd.parent().cloned(), matches!(kind, Kind::Differencing { .. }).then(parent));
        assert_eq!(vhd.examine().unwrap(), []);
        assert_eq!(read(&mut vhd, 0, SIZE), fresh(&kind));
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

/// What happens to a disk.
#[derive(Clone, Debug)]
enum Act {
    Write { at: u64, sectors: u64, byte: u8 },
    Flush,
    Reopen,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let sectors = SIZE / SECTOR;
    let write = (0..sectors, 1..=12u64, 1..=200u8).prop_map(move |(at, n, byte)| Act::Write {
        at: at * SECTOR,
        sectors: n.min(sectors - at),
        byte,
    });
    prop::collection::vec(prop_oneof![6 => write, 2 => Just(Act::Flush), 1 => Just(Act::Reopen)], 1..24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// What is read is what was written.
    #[test]
    fn a_disk_keeps_what_it_is_given(acts in acts()) {
        for kind in kinds() {
            let mut model = fresh(&kind);
            let (mut vhd, mut medium) = opened(created(&kind));
            for act in &acts {
                match act {
                    Act::Write { at, sectors, byte } => {
                        let data = vec![*byte; (sectors * SECTOR) as usize];
                        write(&mut vhd, *at, &data);
                        model[*at as usize..][..data.len()].copy_from_slice(&data);
                    }
                    Act::Flush => vhd.flush().unwrap(),
                    Act::Reopen => {
                        vhd.flush().unwrap();
                        (vhd, medium) = opened(medium.contents());
                    }
                }
                prop_assert_eq!(&read(&mut vhd, 0, SIZE), &model);
            }
            prop_assert_eq!(vhd.examine().unwrap(), vec![]);
            drop(medium);
        }
    }

    /// After a crash at any point the image opens; each sector is what it was at the last flush, or what was written since.
    #[test]
    fn a_crash_loses_nothing_that_was_flushed(acts in acts(), seed in any::<u64>()) {
        for kind in kinds() {
            crashes(&kind, &acts, seed);
        }
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

/// Sectors that may be found: for each, the byte at the last flush, and those written since.
fn crashes(kind: &Kind, acts: &[Act], seed: u64) {
    let (mut vhd, medium) = opened(created(kind));
    let sectors = (SIZE / SECTOR) as usize;
    let first = fresh(kind)[0];
    // For each act: the length of the journal after it, and what each sector may be from there on.
    let mut may: Vec<Vec<u8>> = vec![vec![first]; sectors];
    let mut states = vec![(0, may.clone())];
    for act in acts {
        match act {
            Act::Write { at, sectors, byte } => {
                write(&mut vhd, *at, &vec![*byte; (sectors * SECTOR) as usize]);
                let first = (at / SECTOR) as usize;
                may[first..first + *sectors as usize].iter_mut().for_each(|m| m.push(*byte));
                // During the write, too.
                states.last_mut().expect("the first").1.clone_from(&may);
            }
            Act::Flush | Act::Reopen => {
                vhd.flush().unwrap();
                may.iter_mut().for_each(|m| *m = vec![*m.last().expect("one")]);
            }
        }
        states.push((medium.points(), may.clone()));
    }
    let mut random = seed;
    let mut choose = |n: u64| {
        random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (random >> 33) % n
    };
    for point in 0..=medium.points() {
        // The last act that had begun.
        let n = states.iter().rposition(|(at, _)| *at <= point).expect("the first");
        let bytes = medium.after_crash(point, &mut choose);
        let mut after = Vhd::open(ForgetfulMedium::new(bytes), true).expect("it opens after a crash");
        assert!(after.examine().unwrap().iter().all(|f| !f.is_harmful()));
        let disk = read(&mut after, 0, SIZE);
        for (sector, found) in disk.chunks(SECTOR as usize).enumerate() {
            assert!(found.iter().all(|b| b == &found[0]), "sector {sector} is torn");
            assert!(
                states[n].1[sector].contains(&found[0]),
                "sector {sector} is {} after a crash at {point}",
                found[0]
            );
        }
        // And it can be used.
        write(&mut after, 0, &[201; 512]);
        after.flush().unwrap();
        assert_eq!(read(&mut after, 0, 512), [201; 512]);
    }
}
