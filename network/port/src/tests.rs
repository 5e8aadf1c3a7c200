//! Rings, between us and one who breaks every rule.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use rustix::fs::SealFlags;
use vireo_frame::trial::any_packet;
use vireo_frame::{Checksum, FRAME_MAX, Frame, Intent, SegmentKind, Segmentation, Tag};

use crate::memory::Word;
use crate::record;
use crate::{PortMemory, RING_MIN, Refused, RingReader, RingWriter, Way};

fn pair() -> (Arc<PortMemory>, RingWriter, RingReader) {
    let memory = Arc::new(PortMemory::create(RING_MIN).unwrap());
    // The other side's mapping is another one.
    let theirs = PortMemory::open(memory.file().try_clone_to_owned().unwrap(), RING_MIN).unwrap();
    let reader = RingReader::new(&Arc::new(theirs), Way::Up);
    (Arc::clone(&memory), RingWriter::new(&memory, Way::Up), reader)
}

/// What comes next, taken out.
fn take(reader: &mut RingReader) -> Option<(Vec<u8>, Intent)> {
    let record = reader.peek().unwrap()?;
    let mut bytes = vec![0; record.length];
    reader.read(&record, 0, &mut bytes);
    reader.consume(record);
    Some((bytes, record.intent))
}

fn whole(bytes: &[u8]) -> Frame<'_> {
    Frame::whole(bytes).unwrap()
}

#[test]
fn sides_wake_each_other_only_when_they_wait() {
    let (_memory, mut writer, mut reader) = pair();
    writer.put(&whole(&[1; 60])).unwrap();
    assert!(take(&mut reader).is_none(), "not published");
    assert!(!writer.publish(), "nobody waits");
    assert!(!writer.publish() && take(&mut reader).is_some());
    assert!(!reader.wait().unwrap());
    writer.put(&whole(&[2; 60])).unwrap();
    assert!(writer.publish());
    writer.put(&whole(&[3; 60])).unwrap();
    assert!(!writer.publish(), "it was woken already");
    assert!(reader.wait().unwrap(), "something is there");
    writer.put(&whole(&[3; 60])).unwrap();
    assert!(!writer.publish(), "so it did not wait");

    while take(&mut reader).is_some() {}
    reader.publish();
    let mut put = 0;
    while writer.put(&whole(&[4; 1008])) != Err(Refused::Full) {
        put += 1;
    }
    assert_eq!(put, RING_MIN / 1024);
    assert!(!writer.publish() && !writer.wait().unwrap() && writer.is_waiting());
    for _ in 0..put / 2 - 1 {
        take(&mut reader).unwrap();
        assert!(!reader.publish(), "a little room is not worth it");
    }
    take(&mut reader).unwrap();
    assert!(reader.publish() && !writer.is_waiting());
    assert!(writer.wait().unwrap() && writer.put(&whole(&[5; 65_000])).is_ok());
}

#[test]
fn a_frame_goes_on_to_another_ring_with_another_head() {
    let (_m, mut writer, mut reader) = pair();
    let (_m2, mut onward, mut last) = pair();
    let bytes: Vec<u8> = (0..5000_u32).map(|n| n as u8).collect();
    // So often that it is in two pieces in each ring at some time.
    for turn in 0..200 {
        writer.put(&whole(&bytes)).unwrap();
        writer.publish();
        let record = reader.peek().unwrap().unwrap();
        let intent = Intent { tag: Some(Tag(turn)), ..Intent::default() };
        onward.put_from(&reader, &record, 16, &bytes[..12], &intent).unwrap();
        reader.consume(record);
        reader.publish();
        onward.publish();
        let (got, said) = take(&mut last).unwrap();
        assert_eq!((got, said), ([&bytes[..12], &bytes[16..]].concat(), intent));
        last.publish();
    }
}

#[test]
fn memory_that_may_shrink_or_is_too_small_is_refused() {
    let file = || {
        rustix::fs::memfd_create(
            "port-test",
            rustix::fs::MemfdFlags::ALLOW_SEALING | rustix::fs::MemfdFlags::CLOEXEC,
        )
        .unwrap()
    };
    let plain = file();
    rustix::fs::ftruncate(&plain, 1 << 20).unwrap();
    assert!(PortMemory::open(plain, RING_MIN).is_err());
    let sealed = file();
    rustix::fs::ftruncate(&sealed, 4096 + 2 * u64::from(RING_MIN) - 1).unwrap();
    rustix::fs::fcntl_add_seals(&sealed, SealFlags::SHRINK).unwrap();
    assert!(PortMemory::open(sealed, RING_MIN).is_err());
    assert!(PortMemory::create(RING_MIN + 4096).is_err() && PortMemory::create(RING_MIN / 2).is_err());
    let memory = PortMemory::create(RING_MIN).unwrap();
    assert!(rustix::fs::ftruncate(memory.file(), 0).is_err());
}

#[test]
fn indices_that_are_none_break_the_ring() {
    for head in [RING_MIN + 16, 8, u32::MAX - 15, 1 << 31] {
        let (memory, _writer, mut reader) = pair();
        memory.word(Way::Up, Word::Head).store(head, SeqCst);
        assert!(reader.peek().is_err(), "{head}");
    }
    let (memory, mut writer, _reader) = pair();
    while writer.put(&whole(&[0; 1000])).is_ok() {}
    for tail in [1 << 31, u32::MAX, RING_MIN * 2] {
        memory.word(Way::Up, Word::Tail).store(tail, SeqCst);
        assert!(matches!(writer.put(&whole(&[0; 1000])), Err(Refused::Broken(_))), "{tail}");
    }
}

/// A process of another day reads what one of today has written.
#[test]
fn descriptors_say_in_their_places_what_is_to_be_done() {
    let cut = |kind| Some(Segmentation { kind, size: 0x0405 });
    let wanted = Checksum::Wanted { start: 0x0809, offset: 0x0a0b };
    let all = [
        (Intent::default(), [0; 10]),
        (Intent { checksum: Checksum::Good, ..Intent::default() }, [1, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        (Intent { checksum: wanted, ..Intent::default() }, [2, 0, 9, 8, 0xb, 0xa, 0, 0, 0, 0]),
        (
            Intent { segmentation: cut(SegmentKind::Tcp4), ..Intent::default() },
            [4, 0, 0, 0, 0, 0, 5, 4, 0, 0],
        ),
        (
            Intent { segmentation: cut(SegmentKind::Tcp6), ..Intent::default() },
            [8, 0, 0, 0, 0, 0, 5, 4, 0, 0],
        ),
        (
            Intent { segmentation: cut(SegmentKind::Udp), ..Intent::default() },
            [12, 0, 0, 0, 0, 0, 5, 4, 0, 0],
        ),
        (Intent { tag: Some(Tag(0x0607)), ..Intent::default() }, [16, 0, 0, 0, 0, 0, 0, 0, 7, 6]),
    ];
    for (intent, said) in all {
        let bytes = record::describe(0x1234, &intent);
        assert_eq!(bytes[..], [&[0x34, 0x12, 0, 0][..], &said, &[0, 0]].concat(), "{intent:?}");
    }
}

/// What a run of [`what_is_put_in_comes_out`] has looked at: frames, checksums to be made, cuts, tags.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    frames: u32,
    wanted: u32,
    cut: [u32; 3],
    tagged: u32,
}

impl Counts {
    fn add(&mut self, intent: &Intent) {
        self.frames += 1;
        self.wanted += u32::from(matches!(intent.checksum, Checksum::Wanted { .. }));
        self.tagged += u32::from(intent.tag.is_some());
        if let Some(segmentation) = intent.segmentation {
            self.cut[segmentation.kind as usize] += 1;
        }
    }
}

/// Also that enough of what is put in says that something is to be done.
#[test]
fn what_is_put_in_comes_out() {
    let counts = Cell::new(Counts::default());
    let config = ProptestConfig { source_file: Some(file!()), ..ProptestConfig::default() };
    let chosen = proptest::collection::vec(any::<u8>(), 0..100);
    let frames = proptest::collection::vec((chosen, 0..16), 1..60);
    let outcome = TestRunner::new(config).run(&frames, |frames| {
        let (_memory, mut writer, mut reader) = pair();
        let (mut waiting, mut sum) = (VecDeque::new(), counts.get());
        for (chosen, length) in frames {
            let mut chosen = chosen.into_iter();
            let (mut bytes, intent) = any_packet(65_000, &mut || chosen.next().unwrap_or(0));
            bytes.resize(if length == 15 { FRAME_MAX } else { bytes.len().max(14) }, 7);
            let frame = Frame::new(&bytes, &[], intent).or_else(|_| Frame::whole(&bytes)).unwrap();
            sum.add(&frame.intent());
            while writer.put(&frame) == Err(Refused::Full) {
                writer.publish();
                prop_assert_eq!(take(&mut reader), waiting.pop_front());
                reader.publish();
            }
            waiting.push_back((bytes.clone(), frame.intent()));
        }
        writer.publish();
        while let Some(got) = take(&mut reader) {
            prop_assert_eq!(Some(got), waiting.pop_front());
        }
        prop_assert!(waiting.is_empty());
        counts.set(sum);
        Ok(())
    });
    outcome.unwrap_or_else(|e| panic!("{e}"));
    let seen = counts.get();
    let enough = seen.wanted > seen.frames / 3 && seen.tagged > seen.frames / 20;
    assert!(enough && seen.cut.iter().all(|n| *n > seen.frames / 50), "{seen:?}");
}

proptest! {
    #[test]
    fn a_ring_full_of_anything_is_read_or_broken_and_ends(
        seed in any::<[u8; 64]>(), head in any::<u32>(), good in any::<[u16; 8]>(),
    ) {
        let (memory, _writer, mut reader) = pair();
        for (n, block) in (0..RING_MIN).step_by(64).enumerate() {
            let mut bytes = seed;
            bytes.rotate_left(n % 64);
            if n % 3 > 0 {
                // A length that can be, and flags.
                let length = u32::from(good[n % 8]).to_le_bytes();
                bytes[..4].copy_from_slice(&length);
                bytes[5] = 0;
                bytes[4] &= 0x1f;
            }
            memory.write(Way::Up, block, &bytes);
        }
        memory.word(Way::Up, Word::Head).store((head % (RING_MIN + 64)) & !15, SeqCst);
        let (mut total, mut bytes) = (0, vec![0; 70_000]);
        while let Ok(Some(record)) = reader.peek() {
            reader.read(&record, 0, &mut bytes[..record.length]);
            reader.consume(record);
            total += record.length;
            reader.publish();
        }
        prop_assert!(total <= RING_MIN as usize);
    }
}
