//! Rings, between us and one who breaks every rule.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use proptest::prelude::*;
use rustix::fs::SealFlags;
use vireo_frame::{Checksum, Frame, Intent, SegmentKind, Segmentation, Tag};

use crate::memory::Word;
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

proptest! {
    #[test]
    fn what_is_put_in_comes_out(
        frames in proptest::collection::vec((14usize..70_000, any::<(u8, u16, u16, u8, u16, Option<u16>)>()), 1..60),
    ) {
        let (_memory, mut writer, mut reader) = pair();
        let mut waiting = std::collections::VecDeque::new();
        for (length, (sum, start, offset, kind, size, tag)) in frames {
            let bytes: Vec<u8> = (0..length.min(65_557)).map(|n| (n as u8).wrapping_mul(kind | 1)).collect();
            let kinds = [SegmentKind::Tcp4, SegmentKind::Tcp6, SegmentKind::Udp];
            let intent = Intent {
                checksum: match sum % 3 {
                    0 => Checksum::Unknown,
                    1 => Checksum::Good,
                    _ => Checksum::Wanted { start: 14 + start % 100, offset: offset % 30 },
                },
                segmentation: kinds.get(usize::from(kind % 6)).map(|kind| Segmentation { kind: *kind, size }),
                tag: tag.map(Tag),
            };
            let frame = Frame::new(&bytes, &[], intent).or_else(|_| Frame::whole(&bytes)).unwrap();
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
    }

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
