//! Whole transfers, both ways, over links that lose, double and reorder.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::guest::Guest;
use super::*;

/// What may happen to a frame, each to one of so many; 0: never.
#[derive(Clone, Copy, Debug, Default)]
struct Faults {
    lost: u32,
    doubled: u32,
    late: u32,
}

struct Link {
    faults: Faults,
    dice: u64,
    frames: BTreeMap<(u64, u64), Vec<u8>>,
    count: u64,
}

impl Link {
    fn new(faults: Faults, seed: u64) -> Self {
        Self { faults, dice: seed | 1, frames: BTreeMap::new(), count: 0 }
    }

    fn throw(&mut self, one_of: u32) -> bool {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        one_of != 0 && (self.dice >> 20).is_multiple_of(one_of.into())
    }

    fn put(&mut self, now: u64, frame: Vec<u8>) {
        if self.throw(self.faults.lost) {
            return;
        }
        for _ in 0..1 + u32::from(self.throw(self.faults.doubled)) {
            let late = if self.throw(self.faults.late) { 3 * MILLISECOND } else { 0 };
            self.count += 1;
            self.frames.insert((now + MILLISECOND / 10 + late, self.count), frame.clone());
        }
    }

    fn take(&mut self, now: u64) -> Option<Vec<u8>> {
        let entry = self.frames.first_entry()?;
        (entry.key().0 <= now).then(|| entry.remove())
    }

    fn due(&self) -> u64 {
        self.frames.first_key_value().map_or(u64::MAX, |((due, _), _)| *due)
    }
}

fn data(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|n| (n >> 8) as u8 ^ (n as u8).wrapping_mul(31) ^ seed).collect()
}

/// Sends `out` from the guest and `back` to it. `pace`: bytes that both applications take at a time; 0: all.
fn transfer(
    mut guest: Guest,
    call: bool,
    out: &[u8],
    back: &[u8],
    faults: Faults,
    seed: u64,
    pace: usize,
) -> Bench {
    let forwards = vec!["tcp:127.0.0.1:80:1000".parse().unwrap()];
    let mut bench = bench(NatConfig { forwards, ..NatConfig::default() });
    let (mut there, mut here) = (Link::new(faults, seed), Link::new(faults, seed ^ 0x5555));
    if call {
        // The guest is known by what it sent before.
        put(&mut bench, &udp(OUTSIDE, (5, 5), b""));
        bench.call(0, "192.0.2.9:4000".parse().unwrap()).unwrap();
    }
    let mut sent = 0;
    for _ in 0..1_000_000 {
        let now = bench.now();
        guest.poll(now).into_iter().for_each(|f| there.put(now, f));
        while let Some(frame) = there.take(now) {
            bench.put(&Frame::whole(&frame).unwrap());
        }
        bench.run();
        if bench.peers() > 0 {
            bench.connect(0, Ok(()));
            if pace > 0 && call {
                bench.peer(0, |p| p.room = p.room.min(pace));
            }
            let count = if pace > 0 { pace.min(back.len() - sent) } else { back.len() - sent };
            if count > 0 {
                bench.send(0, &back[sent..sent + count]);
                sent += count;
            } else {
                bench.end(0);
            }
            if pace > 0 {
                bench.peer(0, |p| p.room = 0);
                bench.make_room(0, pace);
            }
            bench.run();
        }
        for packet in bench.packets() {
            here.put(now, packet);
        }
        while let Some(packet) = here.take(now) {
            for answer in guest.input(now, &packet) {
                there.put(now, answer);
            }
        }
        guest.consume(if pace > 0 { pace } else { usize::MAX / 2 });
        assert!(!guest.reset, "it was reset");
        let all = bench.peers() > 0 && bench.peer(0, |p| p.finished && p.got.len() == out.len());
        if all && guest.ended && guest.fin_arrived {
            bench.peer(0, |p| assert!(p.got == out, "other bytes came to the host"));
            assert!(guest.got == back, "other bytes came to the guest");
            return bench;
        }
        let next = bench.deadline().min(guest.due()).min(there.due()).min(here.due());
        let step = if pace > 0 { MILLISECOND } else { 60 * SECOND };
        bench.pass(next.saturating_sub(now).clamp(MILLISECOND / 100, step));
        assert!(now < 2000 * SECOND, "it takes for ever");
    }
    panic!("it has no end");
}

#[test]
fn bytes_arrive_both_ways_and_the_end_is_told_to_both() {
    let (out, back) = (data(700_000, 1), data(900_000, 2));
    let mut bench = transfer(Guest::new(out.clone(), 1 << 18), false, &out, &back, Faults::default(), 7, 0);
    assert_eq!(bench.stats().sent_again, 0);
    assert!(bench.now() < 2 * SECOND, "{}", bench.now());
    assert!(bench.peer(0, |p| p.closed && !p.aborted));
    assert_eq!((bench.stats().connections, bench.held()), (1, 0));
    bench.pass(11 * SECOND);
    bench.run();
    assert_eq!(bench.stats().connections, 0, "what both have ended is forgotten after a while");
}

#[test]
fn a_guest_that_is_called_gets_and_sends_as_well() {
    let (out, back) = (data(300_000, 3), data(200_000, 4));
    let bench =
        transfer(Guest::listening(out.clone(), 1 << 16, 1000), true, &out, &back, Faults::default(), 7, 0);
    assert!(bench.stats().sent.bytes > 300_000);
}

#[test]
fn slow_applications_get_all() {
    let (out, back) = (data(400_000, 5), data(300_000, 6));
    for room in [2000, 40_000] {
        let mut bench =
            transfer(Guest::new(out.clone(), room), false, &out, &back, Faults::default(), 9, 1500);
        assert!(bench.peer(0, |p| !p.aborted));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn bytes_arrive_whatever_the_link_does(
        seed: u64, lost in 4_u32..40, doubled in 0_u32..20, late in 0_u32..20, out in 0_usize..120_000, back in 0_usize..120_000,
        pace in prop_oneof![Just(0_usize), 500_usize..5000], room in 3000_usize..100_000, called: bool,
    ) {
        let (out, back) = (data(out, seed as u8), data(back, !seed as u8));
        let guest = if called { Guest::listening(out.clone(), room, 1000) } else { Guest::new(out.clone(), room) };
        transfer(guest, called, &out, &back, Faults { lost, doubled, late }, seed, pace);
    }
}
