//! What is done to a disk, much of it at once, is what is on it: while it is used, and when others open it.

mod rig;

use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use rig::root::Mounted;
use rig::{ALL, What, contents, difference, open};
use vireo_block::{BlockDevice, Buffer, HostBuffer, Operation};
use vireo_vdisk::trial::peer::Folder;

/// Of the disk: not a multiple of any block, nor of a page.
const SIZE: u64 = (3 << 20) + 5 * 512;
const SECTORS: u64 = SIZE / 512;

/// One request.
#[derive(Clone, Debug)]
struct Act {
    kind: Kind,
    /// Its first sector, and how many.
    sector: u64,
    count: u64,
    /// What is written.
    byte: u8,
    /// The memory begins so many bytes behind a page's start, and is in pieces of so many bytes.
    skew: usize,
    piece: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    DurableWrite,
    Flush,
    Zero,
    Unmap,
}

fn acts() -> impl Strategy<Value = Vec<Vec<Act>>> {
    use Kind::{DurableWrite, Flush, Read, Unmap, Write, Zero};
    let kind =
        prop::sample::select(vec![Read, Read, Write, Write, Write, Write, DurableWrite, Flush, Zero, Unmap]);
    let count = prop_oneof![4 => 1..20_u64, 2 => Just(8_u64), 1 => 100..1500_u64];
    let skew = prop_oneof![3 => Just(0_usize), 1 => Just(512), 1 => 1..4096_usize];
    let piece = prop_oneof![3 => Just(usize::MAX), 1 => Just(4096), 1 => Just(512), 1 => 300..5000_usize];
    let act = (kind, 0..SECTORS, count, any::<u8>(), skew, piece).prop_map(
        |(kind, sector, count, byte, skew, piece)| {
            // Half of them on pages.
            let sector = if byte & 1 == 0 { sector / 8 * 8 } else { sector };
            Act { kind, sector, count: count.min(SECTORS - sector), byte, skew, piece }
        },
    );
    prop::collection::vec(prop::collection::vec(act, 1..16), 1..12)
}

/// What is written by an act: it differs from sector to sector.
fn pattern(act: &Act) -> Vec<u8> {
    (0..act.count * 512).map(|i| act.byte.wrapping_add((i / 512 + act.sector) as u8)).collect()
}

/// Memory for an act.
fn memory(act: &Act, bytes: &[u8]) -> (std::sync::Arc<HostBuffer>, Vec<Buffer>) {
    let host = HostBuffer::new(act.skew + bytes.len());
    host.write(act.skew, bytes);
    let (_, rest) = Buffer::host(&host).split_at(act.skew);
    let (mut rest, _) = rest.split_at(bytes.len());
    let mut pieces = Vec::new();
    while !rest.is_empty() {
        let (head, tail) = rest.split_at(act.piece);
        pieces.push(head);
        rest = tail;
    }
    (host, pieces)
}

fn overlap(a: &Act, b: &Act) -> bool {
    a.kind != Kind::Flush
        && b.kind != Kind::Flush
        && a.sector < b.sector + b.count
        && b.sector < a.sector + a.count
}

/// Does acts that do not overlap, at once.
fn at_once(disk: &dyn BlockDevice, acts: &[&Act], model: &mut [u8]) {
    let mut batch = Vec::new();
    let mut ends = Vec::new();
    for act in acts {
        let (at, len) = (act.sector * 512, act.count * 512);
        let (operation, bytes) = match act.kind {
            Kind::Read => (Operation::Read, vec![0xdd; len as usize]),
            Kind::Write => (Operation::Write { fua: false }, pattern(act)),
            Kind::DurableWrite => (Operation::Write { fua: true }, pattern(act)),
            Kind::Flush => (Operation::Flush, vec![]),
            Kind::Zero => (Operation::WriteZeroes, vec![]),
            Kind::Unmap => (Operation::Unmap, vec![]),
        };
        let (at, len) = if act.kind == Kind::Flush { (0, 0) } else { (at, len) };
        let (host, buffers) = memory(act, &bytes);
        let (request, told) = rig::request(operation, at, len, buffers);
        batch.push(request);
        ends.push((act, host, told));
    }
    disk.submit(&mut batch);
    for (act, host, told) in ends {
        told.recv().expect("every request completes").unwrap_or_else(|e| panic!("{act:?}: {e}"));
        let part = &mut model[(act.sector * 512) as usize..((act.sector + act.count) * 512) as usize];
        match act.kind {
            Kind::Read => {
                let mut found = vec![0; part.len()];
                host.read(act.skew, &mut found);
                assert_eq!(difference(&found, part), None, "{act:?}");
            }
            Kind::Write | Kind::DurableWrite => part.copy_from_slice(&pattern(act)),
            Kind::Zero => part.fill(0),
            Kind::Unmap => {
                let now = rig::read(disk, act.sector * 512, act.count * 512).expect("it can be read");
                for (now, was) in now.chunks(512).zip(part.chunks_mut(512)) {
                    assert!(now == was || now.iter().all(|b| *b == 0), "{act:?}: neither old nor zero");
                    was.copy_from_slice(now);
                }
            }
            Kind::Flush => {}
        }
    }
}

fn keeps(what: What, rounds: &[Vec<Act>], folder: &Path) {
    let (path, mut model) = what.make(folder, SIZE);
    let disk = open(what, &path);
    assert_eq!((disk.info().size, disk.is_direct()), (SIZE, what != What::Buffered));
    for round in rounds {
        let mut rest: Vec<&Act> = round.iter().collect();
        while !rest.is_empty() {
            let mut now: Vec<&Act> = Vec::new();
            rest.retain(|act| {
                let apart = now.iter().all(|other| !overlap(act, other));
                if apart {
                    now.push(act);
                }
                !apart
            });
            at_once(&*disk, &now, &mut model);
        }
    }
    let found = rig::read(&*disk, 0, SIZE).expect("it can be read");
    assert_eq!(difference(&found, &model), None, "{what:?}, in use");
    drop(disk);
    assert_eq!(difference(&contents(&path), &model), None, "{what:?}, for others");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_done_is_what_is_there(rounds in acts()) {
        for what in ALL {
            keeps(what, &rounds, &Folder::new(&format!("live-model-{what:?}")));
        }
    }
}

/// Most requests are too small then for direct transfers, which take place beside them.
#[test]
fn sectors_may_be_smaller_than_those_of_the_file_system() {
    let folder = Folder::new("live-model-large");
    let Some(large) = Mounted::ext4_on_large_sectors(&folder) else { return };
    let mut runner =
        TestRunner::new(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() });
    let result = runner.run(&acts(), |rounds| {
        for what in ALL {
            let folder = large.path.join(format!("{what:?}"));
            _ = std::fs::remove_dir_all(&folder);
            std::fs::create_dir(&folder).expect("a folder");
            keeps(what, &rounds, &folder);
        }
        Ok(())
    });
    result.unwrap_or_else(|e| panic!("{e}"));
}
