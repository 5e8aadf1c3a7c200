//! Dynamic memory with a driver that does what Linux's does, and with one that does not.

use std::cell::RefCell;

use proptest::prelude::*;

use super::balloon::{Balloon, Memory};
use super::*;

const MIB: u64 = 1 << 20;
const LIMITS: MemoryLimits =
    MemoryLimits { minimum: 64 * MIB, startup: 256 * MIB, maximum: 640 * MIB, buffer: 20 };
const LIMIT: u64 = 640 << 8;

/// Pages of a machine, and what was given back.
#[derive(Default)]
struct Ram(RefCell<Vec<Range<u64>>>);

impl Memory for Ram {
    fn discard(&self, pages: Range<u64>) -> bool {
        let there = pages.end <= LIMIT;
        if there {
            self.0.borrow_mut().push(pages);
        }
        there
    }
}

fn message(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend((8 + body.len() as u16).to_le_bytes());
    bytes.extend([1, 0, 0, 0]);
    bytes.extend(body);
    bytes
}

/// An answer with pages.
fn gives(more: bool, pages: &[Range<u64>]) -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend((u32::from(more) | (pages.len() as u32) << 1).to_le_bytes());
    pages.iter().for_each(|p| body.extend((p.start | (p.end - p.start) << 40).to_le_bytes()));
    message(7, &body)
}

fn status(available: u64, committed: u64) -> Vec<u8> {
    let mut body = [available / PAGE, committed / PAGE].map(u64::to_le_bytes).concat();
    body.resize(40, 0);
    message(5, &body)
}

struct Rig {
    balloon: Balloon,
    ram: Ram,
    now: Instant,
}

impl Rig {
    /// With a driver that has introduced itself, and can do these.
    fn new(capabilities: u8) -> Self {
        let reserve = std::iter::once(256 << 8..640 << 8).collect();
        let mut rig =
            Self { balloon: Balloon::new(LIMITS, reserve, LIMIT), ram: Ram::default(), now: Instant::now() };
        rig.balloon.open();
        rig.say(&message(1, &[7, 0, 9, 0, 0, 0, 0, 0]));
        assert_eq!(rig.next().map(|m| (m[0], m[8])), Some((2, 0)), "a version that nobody speaks");
        rig.say(&message(1, &[0, 0, 2, 0, 1, 0, 0, 0]));
        assert_eq!(rig.next().map(|m| (m[0], m[8])), Some((2, 1)));
        let mut body = [0; 24];
        body[0] = capabilities | 7 << 2;
        rig.say(&message(3, &body));
        assert_eq!(rig.next().map(|m| (m[0], m[8])), Some((4, 1)));
        assert_eq!(rig.next().map(|m| (m[0], m[24..27].to_vec())), Some((12, vec![0, 0x80, 2])));
        assert_eq!(rig.next(), None);
        rig
    }

    fn say(&mut self, packet: &[u8]) {
        self.balloon.receive(packet, &self.ram, self.now);
    }

    fn next(&mut self) -> Option<Vec<u8>> {
        self.balloon.next(self.now)
    }

    /// The next message, which is a request for so many pages.
    fn asked(&mut self) -> u64 {
        let message = self.next().expect("a request");
        assert_eq!(message[0], 6);
        u32::from_le_bytes(*message[8..].first_chunk().unwrap()).into()
    }
}

#[test]
fn a_guest_gives_and_gets_what_it_needs_less_and_more() {
    let mut rig = Rig::new(3);
    rig.say(&status(150 * MIB, 100 * MIB));
    assert_eq!((rig.balloon.demand(), rig.balloon.target()), (Some(100 * MIB), 120 * MIB));
    // 136 MiB, and the driver sends them in two messages.
    assert_eq!(rig.asked(), 136 << 8);
    assert_eq!(rig.next(), None, "one request at a time");
    rig.say(&gives(true, &[0x1000..0x1200, 0x2000..0x2600]));
    assert_eq!(rig.next(), None, "there is more to come");
    rig.say(&gives(false, std::slice::from_ref(&(0x3000..0x3000 + (136 << 8) - 0x800))));
    assert_eq!(rig.balloon.assigned(), 120 * MIB);
    assert_eq!(rig.ram.0.borrow().iter().map(|r| r.end - r.start).sum::<u64>(), 136 << 8);
    // It counts what it gave as committed.
    rig.say(&status(20 * MIB, 236 * MIB));
    assert_eq!((rig.balloon.demand(), rig.next()), (Some(100 * MIB), None));
    // It needs 150 MiB now, so 180.
    rig.say(&status(20 * MIB, 286 * MIB));
    let gift = rig.next().expect("pages");
    assert_eq!((gift[0], gift[8]), (8, 0), "the only message");
    assert_eq!(rig.balloon.assigned(), 180 * MIB);
    rig.say(&message(9, &[]));
    assert!(rig.balloon.settled(rig.now));
}

#[test]
fn a_guest_gets_what_is_new_to_it_in_pieces_that_it_takes() {
    let mut rig = Rig::new(3);
    rig.balloon.want(Some(300 * MIB));
    let offer = rig.next().expect("an offer");
    assert_eq!((offer[0], &offer[8..]), (10, &[0, 0, 1, 0, 0, 0, 0x80, 0][..]), "128 MiB from 256 MiB on");
    rig.say(&message(11, &[0, 0x80, 0, 0, 1, 0, 0, 0]));
    assert_eq!((rig.balloon.assigned(), rig.balloon.added()), (384 * MIB, 128 * MIB));
    // That is more than was wanted: the rest comes back by the balloon.
    assert_eq!(rig.asked(), 84 << 8);
    rig.say(&gives(false, std::slice::from_ref(&(0x1000..0x1000 + (84 << 8)))));
    rig.balloon.want(Some(640 * MIB));
    assert_eq!(rig.next().map(|m| m[0]), Some(8), "first what it had before");
    rig.say(&message(9, &[]));
    assert_eq!(rig.next().map(|m| (m[0], m[14])), Some((10, 0)), "then what is new");
    // It takes the half, and the rest is offered later, from where it stopped.
    rig.say(&message(11, &[0, 0x80, 0, 0, 1, 0, 0, 0]));
    assert_eq!((rig.balloon.added(), rig.next()), (256 * MIB, None));
    assert!(rig.balloon.settled(rig.now));
    rig.now += Duration::from_secs(11);
    assert_eq!(rig.next().map(|m| m[8..16].to_vec()), Some(vec![0, 0, 2, 0, 0, 0, 0x80, 0]));
    rig.say(&message(11, &[0xff; 8]));
    assert_eq!(rig.balloon.assigned(), 640 * MIB, "it cannot have taken more than there was");
    rig.balloon.reset();
    assert_eq!((rig.balloon.assigned(), rig.balloon.wanted()), (256 * MIB, None));
}

#[test]
fn a_guest_that_cannot_give_is_asked_again_later() {
    let mut rig = Rig::new(1);
    rig.balloon.want(Some(128 * MIB));
    assert_eq!(rig.asked(), 128 << 8);
    rig.say(&gives(false, std::slice::from_ref(&(0x1000..0x1400))));
    assert_eq!(rig.balloon.assigned(), 252 * MIB);
    assert!(rig.balloon.settled(rig.now) && rig.next().is_none());
    assert_eq!(rig.balloon.due(), Some(rig.now + Duration::from_secs(10)));
    rig.now += Duration::from_secs(10);
    assert_eq!(rig.asked(), 124 << 8);
    // One that cannot take new memory is offered none.
    let mut rig = Rig::new(1);
    rig.balloon.want(Some(640 * MIB));
    assert_eq!(rig.next(), None);
    assert!(rig.balloon.settled(rig.now));
}

#[test]
fn pages_that_were_not_asked_for_stay_and_so_do_those_that_are_none() {
    let mut rig = Rig::new(3);
    rig.say(&gives(false, std::slice::from_ref(&(0x1000..0x1200))));
    assert!(rig.ram.0.borrow().is_empty());
    rig.balloon.want(Some(128 * MIB));
    rig.asked();
    // More than was asked for; then none of the machine's.
    rig.say(&gives(false, &[0x1000..0x1010, 0x2000..0x2000 + (128 << 8)]));
    assert_eq!(rig.balloon.given(), 0x10 * PAGE);
    rig.now += Duration::from_secs(10);
    rig.asked();
    rig.say(&gives(true, &[LIMIT..LIMIT + 1, 0x2000..0x2001]));
    assert_eq!(rig.balloon.given(), 0x10 * PAGE);
    assert_eq!(rig.next(), None);
    rig.now += Duration::from_secs(10);
    rig.asked();
    // Pages that it gave before count once.
    rig.say(&gives(false, &[0x1000..0x1010, 0x1000..0x1020]));
    assert_eq!(rig.balloon.given(), 0x20 * PAGE);
}

#[test]
fn many_small_pieces_go_back_in_many_messages() {
    let mut rig = Rig::new(3);
    rig.balloon.want(Some(128 * MIB));
    rig.asked();
    for block in 0..4_u64 {
        let pages: Vec<_> = (0..400).map(|n| (block * 400 + n) * 2..(block * 400 + n) * 2 + 1).collect();
        rig.say(&gives(block < 3, &pages));
    }
    assert_eq!(rig.balloon.given(), 1600 * PAGE);
    rig.balloon.want(Some(256 * MIB));
    let messages: Vec<_> = std::iter::from_fn(|| rig.next()).collect();
    assert!(messages.iter().all(|m| m[0] == 8 && m.len() <= 4096));
    assert_eq!(messages.iter().map(|m| m[8]).collect::<Vec<_>>(), [1, 1, 1, 0]);
    let counts = messages.iter().map(|m| u32::from_le_bytes(*m[12..].first_chunk().unwrap()));
    assert_eq!(counts.sum::<u32>(), 1600);
    assert_eq!((rig.balloon.given(), rig.balloon.settled(rig.now)), (0, false));
    rig.say(&message(9, &[]));
    assert!(rig.balloon.settled(rig.now));
}

#[test]
fn memory_that_is_fixed_is_left_alone() {
    let mut balloon = Balloon::new(MemoryLimits::fixed(256 * MIB), Vec::new(), LIMIT);
    let (ram, now) = (Ram::default(), Instant::now());
    balloon.open();
    balloon.receive(&message(1, &[3, 0, 0, 0, 1, 0, 0, 0]), &ram, now);
    balloon.receive(&message(3, &[3; 24]), &ram, now);
    balloon.receive(&status(200 * MIB, MIB), &ram, now);
    let sent: Vec<_> = std::iter::from_fn(|| balloon.next(now)).map(|m| m[0]).collect();
    assert_eq!(sent, [2, 4], "version 0.3 knows no information");
    assert_eq!((balloon.target(), balloon.demand()), (256 * MIB, Some(MIB)));
}

proptest! {
    #[test]
    fn no_driver_does_harm(
        steps in prop::collection::vec((0..14_u16, prop::collection::vec(any::<u8>(), 0..60), 0..4_u8), 1..80),
    ) {
        let mut rig = Rig::new(3);
        rig.balloon.want(Some(100 * MIB));
        for (kind, body, then) in steps {
            rig.say(&message(kind, &body));
            // Pages that could be.
            if let [a, b, ..] = body[..] {
                let start = u64::from(a) << 8;
                rig.say(&gives(then == 0, std::slice::from_ref(&(start..start + u64::from(b)))));
            }
            match then {
                0 => rig.balloon.want(Some(640 * MIB)),
                1 => rig.balloon.want(Some(64 * MIB)),
                2 => rig.now += Duration::from_secs(11),
                _ => rig.balloon.want(None),
            }
            for _ in 0..40 {
                let Some(message) = rig.next() else { break };
                prop_assert!(message.len() <= 4096);
            }
            prop_assert!(rig.balloon.assigned() <= LIMITS.maximum);
            _ = rig.balloon.due();
        }
        prop_assert!(rig.ram.0.borrow().iter().all(|r| r.end <= LIMIT));
    }
}
