//! Keyboard and mouse as their drivers use them, and as no driver would.

use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use vireo_memory::{GuestMemory, Holes, RamLayout};
use vireo_screen::{Buttons, Key, Keyboard, Leds, Pointer, PointerState};
use vireo_vmbus::driver::Driver;
use vireo_vmbus::ring::{RingPair, kind};
use vireo_vmbus::{Channel, Device};

use crate::{SyntheticKeyboard, SyntheticMouse};

struct Rig<D> {
    device: Arc<D>,
    driver: Driver,
    channel: Arc<Channel>,
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

impl<D: Device> Rig<D> {
    fn new(device: Arc<D>) -> Self {
        let holes = Holes { legacy: 0xa_0000..0xc_0000, pci: 0xc000_0000..0x1_0000_0000 };
        let memory = GuestMemory::new(RamLayout::new(16 << 20, &holes).unwrap()).unwrap();
        let driver = Driver::new(&memory, 0x20_0000, 10, 10);
        let rings = RingPair::new(&memory, &driver.pages(), driver.split()).unwrap();
        let channel = Channel::new(&memory, rings, [0; 120], 0, Box::new(|_| ()));
        device.open(0, Arc::clone(&channel)).unwrap();
        Self { device, driver, channel }
    }

    fn send(&self, data: &[u8]) {
        while self.driver.send(kind::IN_BAND, 1, &[], data).is_none() {
            std::thread::yield_now();
        }
        self.channel.doorbell().ring();
    }

    /// The next message, which no completion is.
    fn receive(&self) -> Vec<u8> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match self.driver.receive() {
                Some(packet) if packet.kind == kind::IN_BAND => return packet.data,
                Some(_) => self.channel.doorbell().ring(),
                None => std::thread::sleep(Duration::from_millis(1)),
            }
            assert!(Instant::now() < deadline, "no answer");
        }
    }

    fn ask(&self, data: &[u8]) -> Vec<u8> {
        self.send(data);
        self.receive()
    }
}

#[test]
fn keys_come_when_the_driver_is_ready() {
    let rig = Rig::new(SyntheticKeyboard::new());
    assert!(!rig.device.key(Key::plain(0x1e), true), "nobody takes it yet");
    assert_eq!(rig.ask(&words(&[1, 2 << 16])), words(&[2, 0]));
    assert!(!rig.device.key(Key::plain(0x1e), true));
    assert_eq!(rig.ask(&words(&[1, 1 << 16])), words(&[2, 1]));
    while !rig.device.key(Key::plain(0x1e), true) {}
    rig.device.key(Key::extended(0x53), false);
    // 12 bytes, filled up to whole 8.
    assert_eq!(rig.receive()[..12], words(&[3, 0x1e, 0]));
    assert_eq!(rig.receive()[..12], words(&[3, 0x53, 6]));
}

#[test]
fn lights_are_known_when_the_guest_says_so() {
    let rig = Rig::new(SyntheticKeyboard::new());
    assert_eq!(rig.device.leds(), None);
    rig.send(&words(&[4, 5]));
    rig.ask(&words(&[1, 1 << 16]));
    assert_eq!(rig.device.leds(), Some(Leds { scroll: true, num: false, caps: true }));
    rig.device.close(0);
    assert_eq!(rig.device.leds(), None);
    assert!(!rig.device.key(Key::plain(1), true), "the driver has gone");
}

#[test]
fn a_guest_that_reads_nothing_loses_keys_and_holds_up_nobody() {
    let rig = Rig::new(SyntheticKeyboard::new());
    rig.ask(&words(&[1, 1 << 16]));
    while !rig.device.key(Key::plain(0x1e), true) {}
    let taken = (0..100_000).take_while(|_| rig.device.key(Key::plain(0x1e), true)).count();
    assert!((1000..4000).contains(&taken), "{taken}");
}

#[test]
fn the_mouse_says_what_it_is_and_reports() {
    let rig = Rig::new(SyntheticMouse::new());
    rig.device.report(PointerState::default());
    let wrong = rig.ask(&words(&[1, 12, 0, 4, 1 << 16]));
    assert_eq!((wrong[8], wrong[20]), (1, 0), "version 1.0 is not spoken");
    let accepted = rig.ask(&words(&[1, 12, 0, 4, 2 << 16]));
    // Length in the pipe's header: what drivers copy.
    assert_eq!(accepted[..20], words(&[1, 13, 1, 5, 2 << 16]));
    assert_eq!(accepted[20], 1);
    let info = rig.receive();
    assert_eq!(info[8..12], words(&[2]));
    let descriptor = &info[16 + 32..];
    let (length, reports) = (usize::from(descriptor[0]), u16::from_le_bytes([descriptor[7], descriptor[8]]));
    assert_eq!((length, descriptor[1], descriptor[6]), (9, 0x21, 0x22));
    let reports = &descriptor[length..length + usize::from(reports)];
    // Drivers look for a mistake of the first hosts in this byte.
    assert!(reports.starts_with(&[5, 1, 9, 2]) && reports.ends_with(&[0xc0, 0xc0]) && reports[14] == 0x29);
    rig.send(&words(&[1, 9, 3, 1, 0]));
    let state = PointerState {
        x: 0x1234,
        y: 0xffff,
        buttons: Buttons { left: true, right: false, middle: true },
        wheel: -128,
    };
    let report = loop {
        rig.device.report(state);
        if let Some(packet) = rig.driver.receive().filter(|p| p.kind == kind::IN_BAND) {
            break packet.data;
        }
    };
    assert_eq!(report[..16], words(&[1, 14, 4, 6]));
    assert_eq!(report[16..22], [5, 0x34, 0x12, 0xff, 0x7f, 0x81]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn no_message_does_harm(messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..40)) {
        let (keyboard, mouse) = (Rig::new(SyntheticKeyboard::new()), Rig::new(SyntheticMouse::new()));
        for m in &messages {
            keyboard.send(m);
            keyboard.send(&[&words(&[u32::from(m.len() as u8) % 5]), &m[..]].concat());
            mouse.send(&[&words(&[1, 0, m.len() as u32 % 6, 0]), &m[..]].concat());
            while keyboard.driver.receive().is_some() {}
            while mouse.driver.receive().is_some() {}
        }
        keyboard.send(&words(&[1, 1 << 16]));
        while keyboard.receive() != words(&[2, 1]) {}
        mouse.send(&words(&[1, 12, 0, 4, 2 << 16]));
        while mouse.receive()[8..12] != words(&[2]) {}
    }
}
