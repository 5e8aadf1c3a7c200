//! Random numbers and the console.

use std::sync::{Arc, Mutex};

use vireo_virtio::{Console, Rng};

use crate::rig::{NEEDS_RESET, Rig, Ring, Seen, VERSION_1, waits};

#[test]
fn random_numbers_come_and_differ() {
    let rig = Rig::new(Rng::new());
    rig.negotiate(VERSION_1);
    let mut ring = Ring::new(&rig, 0, 16, 0x1_0000);
    rig.driver_ok();
    let mut seen = Vec::new();
    for len in [1, 64, 64, 4096, 100_000] {
        rig.memory.fill(0x10_0000, 0x2_0000, 0).unwrap();
        ring.add(&rig, &[(0x10_0000, len, true)]);
        let given = ring.run(&rig).1;
        assert!((1..=len.min(4096)).contains(&given), "{given} of {len}");
        let mut bytes = vec![0; 0x2_0000];
        rig.memory.read(0x10_0000, &mut bytes).unwrap();
        assert!(bytes[given as usize..].iter().all(|b| *b == 0), "no more than it says");
        seen.push(bytes[..given as usize].to_vec());
    }
    assert_ne!(seen[1], seen[2]);
    // No room is no reason to stand still.
    ring.add(&rig, &[(0x10_0000, 16, false)]);
    assert_eq!(ring.run(&rig).1, 0);
    // However much is asked for, it comes in the end.
    for _ in 0..40 {
        ring.add(&rig, &[(0x10_0000, 4096, true)]);
        assert!(ring.run(&rig).1 > 0);
    }
    assert_eq!(rig.status() & NEEDS_RESET, 0);
}

fn console() -> (Rig, Arc<Console>) {
    let kept = Mutex::new(None);
    let rig = Rig::with_sink(Arc::<Seen>::default(), |seen| {
        let console = Console::new(seen.clone());
        *kept.lock().unwrap() = Some(console.clone());
        console
    });
    let console = kept.lock().unwrap().take().unwrap();
    (rig, console)
}

fn start(rig: &Rig) -> (Ring, Ring) {
    rig.negotiate(VERSION_1);
    let rings = (Ring::new(rig, 0, 16, 0x1_0000), Ring::new(rig, 1, 16, 0x1_4000));
    rig.driver_ok();
    rings
}

#[test]
fn the_console_writes_what_it_gets() {
    let (rig, _) = console();
    let (_, mut transmit) = start(&rig);
    let text: Vec<u8> = (0..10_000).map(|i| i as u8).collect();
    rig.memory.write(0x10_0000, &text).unwrap();
    transmit.add(&rig, &[(0x10_0000, 3000, false), (0x10_0000 + 3000, 7000, false)]);
    transmit.run(&rig);
    assert_eq!(rig.seen.output(), text);
    transmit.add(&rig, &[(0x10_0000, 0, false)]);
    transmit.run(&rig);
    assert_eq!(rig.seen.output(), text);
}

#[test]
fn input_waits_for_the_guest_and_the_guest_for_input() {
    let (rig, console) = console();
    assert_eq!(console.push_input(b"before there is a driver"), 24);
    let (mut receive, _) = start(&rig);
    let read = |len: u32| {
        let mut bytes = vec![0; len as usize];
        rig.memory.read(0x10_0000, &mut bytes).unwrap();
        String::from_utf8(bytes).unwrap()
    };
    receive.add(&rig, &[(0x10_0000, 6, true), (0x10_0006, 1, true)]);
    let (_, len) = receive.run(&rig);
    assert_eq!(read(len), "before ");
    receive.add(&rig, &[(0x10_0000, 64, true)]);
    let (_, len) = receive.run(&rig);
    assert_eq!(read(len), "there is a driver");
    // Buffers are there first.
    receive.add(&rig, &[(0x10_0000, 64, true)]);
    rig.notify(0);
    rig.settle();
    assert_eq!(receive.used_index(&rig), 2, "nothing to tell");
    console.push_input(b"typed");
    let (_, len) = receive.wait(&rig);
    assert_eq!(read(len), "typed");
    // More than there may wait.
    let much = vec![b'x'; 100_000];
    assert_eq!(console.push_input(&much), 64 << 10);
    assert_eq!(console.push_input(&much), 0);
    console.clear_input();
    assert_eq!(console.push_input(b"new"), 3);
    // One without room is returned empty.
    receive.add(&rig, &[(0x10_0000, 64, false)]);
    assert_eq!(receive.run(&rig).1, 0);
    receive.add(&rig, &[(0x10_0000, 64, true)]);
    let (_, len) = receive.run(&rig);
    assert_eq!(read(len), "new");
}

#[test]
fn output_goes_on_while_the_guest_takes_no_input() {
    let (rig, console) = console();
    let (_receive, mut transmit) = start(&rig);
    console.push_input(b"nobody reads this");
    rig.memory.write(0x10_0000, b"hello").unwrap();
    transmit.add(&rig, &[(0x10_0000, 5, false)]);
    transmit.run(&rig);
    waits("the output", || rig.seen.output() == b"hello");
}
