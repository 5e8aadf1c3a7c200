//! A frame buffer as its driver uses it, and as no driver would.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use vireo_board::Windows;
use vireo_memory::{DeviceMemory, GuestMemory, Holes, RamLayout};
use vireo_screen::{Rect, Screen, Size};
use vireo_vmbus::driver::Driver;
use vireo_vmbus::ring::{RingPair, kind};
use vireo_vmbus::{Channel, Device};

use crate::Provider;
use crate::provider::memory_for;

const RINGS: u64 = 0x20_0000;
const PICTURE: u64 = 0x40_0000;
const SIZE: Size = Size { width: 640, height: 480 };

struct Rig {
    memory: Arc<GuestMemory>,
    screen: Arc<Screen>,
    provider: Provider,
    driver: Driver,
    channel: Arc<Channel>,
}

fn message(kind: u32, body: &[&[u8]]) -> Vec<u8> {
    let body = body.concat();
    let size = body.len() as u32 + 8;
    let mut m: Vec<u8> = [1, size, kind, size].iter().flat_map(|w| w.to_le_bytes()).collect();
    m.extend(body);
    m
}

fn situation(width: u32, height: u32, pitch: u32, offset: u32) -> Vec<u8> {
    let words = [width, height, pitch].map(u32::to_le_bytes);
    message(5, &[&[7; 8], &[1, 1], &offset.to_le_bytes(), &[32], words.as_flattened()])
}

fn location(gpa: u64) -> Vec<u8> {
    message(3, &[&gpa.to_le_bytes(), &[1], &gpa.to_le_bytes()])
}

impl Rig {
    /// There is no machine around it: a window can be nowhere.
    fn new() -> Self {
        let holes = Holes { legacy: 0xa_0000..0xc_0000, pci: 0xc000_0000..0x1_0000_0000 };
        let memory = GuestMemory::new(RamLayout::new(16 << 20, &holes).unwrap()).unwrap();
        let screen = Screen::new(SIZE);
        let vram = DeviceMemory::new(memory_for(SIZE)).unwrap();
        let provider = Provider::new(&screen, &memory, Arc::<Windows>::default().add(&vram)).unwrap();
        let (driver, channel) = Self::channel(&memory);
        provider.open(0, Arc::clone(&channel)).unwrap();
        Self { memory, screen, provider, driver, channel }
    }

    fn channel(memory: &Arc<GuestMemory>) -> (Driver, Arc<Channel>) {
        let driver = Driver::new(memory, RINGS, 8, 8);
        let rings = RingPair::new(memory, &driver.pages(), driver.split()).unwrap();
        (driver, Channel::new(memory, rings, [0; 120], 0, Box::new(|_| ())))
    }

    fn send(&self, data: &[u8]) {
        while self.driver.send(kind::IN_BAND, 1, &[], data).is_none() {
            std::thread::yield_now();
        }
        self.channel.doorbell().ring();
    }

    /// The next message's kind and body.
    fn receive(&self) -> (u32, Vec<u8>) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(packet) = self.driver.receive() {
                self.channel.doorbell().ring();
                if packet.kind != kind::IN_BAND {
                    continue;
                }
                let word = |at: usize| u32::from_le_bytes(packet.data[at..at + 4].try_into().unwrap());
                return (word(8), packet.data[16..8 + word(4) as usize].to_vec());
            }
            assert!(Instant::now() < deadline, "no answer");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn ask(&self, data: &[u8]) -> (u32, Vec<u8>) {
        self.send(data);
        self.receive()
    }

    /// The driver shows a picture in its own RAM.
    fn show(&self) {
        assert_eq!(self.ask(&location(PICTURE)), (4, PICTURE.to_le_bytes().to_vec()));
        assert_eq!(self.ask(&situation(640, 480, 2560, 0)), (6, vec![7; 8]));
    }

    fn pixel(&self, x: u32, y: u32) -> Vec<u8> {
        let mut pixel = Vec::new();
        self.screen.picture().read(Rect { x, y, width: 1, height: 1 }, &mut pixel);
        pixel
    }
}

#[test]
fn versions_are_agreed_on_or_not() {
    let rig = Rig::new();
    for (major, minor, spoken) in [(3_u16, 5_u16, 1), (3, 2, 1), (3, 0, 0), (3, 6, 0), (4, 2, 0)] {
        let version = [major.to_le_bytes(), minor.to_le_bytes()].concat();
        assert_eq!(rig.ask(&message(1, &[&version])), (2, [&version[..], &[spoken, 1]].concat()));
    }
}

#[test]
fn sizes_are_told_the_preferred_one_first() {
    let rig = Rig::new();
    let (kind, body) = rig.ask(&message(13, &[&[64]]));
    assert_eq!((kind, body[129]), (14, 0));
    assert_eq!(body[131..135], [0x80, 2, 0xe0, 1]);
    // All that fit into 8 MiB, and none twice.
    assert_eq!(body[128], 11);
    assert_eq!(rig.ask(&message(13, &[&[1]])).1[128], 1);
}

#[test]
fn what_the_guest_draws_into_its_ram_is_seen() {
    let rig = Rig::new();
    assert!(!rig.screen.picture().is_shown());
    rig.show();
    // It is told once what we want to know.
    assert_eq!(rig.receive(), (9, vec![1, 0, 0, 1]));
    rig.ask(&situation(640, 480, 2560, 0));
    rig.memory.write(PICTURE + 2560 * 9 + 4 * 5, &[1, 2, 3, 0]).unwrap();
    assert_eq!(rig.pixel(5, 9), [1, 2, 3, 0]);
    let changes = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&changes);
    let viewer = rig.screen.view(Box::new(move || _ = seen.fetch_add(1, Ordering::SeqCst)));
    let corners = [5_i32, 9, 9999, 10].map(i32::to_le_bytes);
    rig.send(&message(10, &[&[0, 1], corners.as_flattened()]));
    // Answered when that was served.
    assert_eq!(rig.ask(&message(1, &[&[3, 0, 5, 0]])).0, 2);
    assert_eq!(changes.load(Ordering::SeqCst), 1);
    assert_eq!(viewer.take().1, [Rect { x: 5, y: 9, width: 635, height: 1 }]);
    // Another mode, and none.
    rig.ask(&situation(320, 200, 1280, 0));
    assert_eq!(rig.screen.picture().size(), Size { width: 320, height: 200 });
    rig.ask(&message(5, &[&[0; 8], &[0]]));
    assert!(!rig.screen.picture().is_shown());
}

#[test]
fn impossible_modes_show_nothing() {
    let rig = Rig::new();
    rig.show();
    rig.receive();
    let memory = memory_for(SIZE) as u32;
    for (width, height, pitch, offset) in [
        (0, 480, 2560, 0),
        (640, 0, 2560, 0),
        (640, 480, 2559, 0),
        (u32::MAX, u32::MAX, u32::MAX, u32::MAX),
        (640, 480, 1 << 31, 0),
        (640, 480, 2560, memory - 2560 * 480 + 1),
    ] {
        rig.ask(&situation(640, 480, 2560, 0));
        assert!(rig.screen.picture().is_shown());
        rig.ask(&situation(width, height, pitch, offset));
        assert!(!rig.screen.picture().is_shown(), "{width}x{height} {pitch} {offset}");
    }
}

#[test]
fn a_place_that_is_none_is_refused_and_the_end_of_ram_is_black() {
    let rig = Rig::new();
    let gpa = 0xf000_0000_u64;
    assert_eq!(rig.ask(&location(gpa)), (4, (!gpa).to_le_bytes().to_vec()));
    // RAM, and then nothing.
    let last = (16_u64 << 20) - 4096;
    assert_eq!(rig.ask(&location(last)), (4, last.to_le_bytes().to_vec()));
    rig.ask(&situation(640, 480, 2560, 0));
    rig.memory.write(last, &[9; 4]).unwrap();
    assert_eq!((rig.pixel(0, 0), rig.pixel(0, 400)), (vec![9; 4], vec![0; 4]));
}

#[test]
fn a_driver_that_goes_leaves_a_black_screen_and_may_come_back() {
    let rig = Rig::new();
    rig.show();
    rig.provider.close(0);
    assert!(!rig.screen.picture().is_shown());
    let (driver, channel) = Rig::channel(&rig.memory);
    rig.provider.open(0, Arc::clone(&channel)).unwrap();
    let rig = Rig { driver, channel, ..rig };
    rig.show();
    assert_eq!(rig.receive().0, 9, "a new driver is told again");
    assert!(rig.provider.pause(Instant::now() + Duration::from_secs(20)));
    rig.provider.resume();
    rig.provider.close(0);
    rig.provider.reset();
    assert!(!rig.screen.picture().is_shown());
}

#[test]
fn viewers_look_while_modes_change() {
    let rig = Rig::new();
    rig.show();
    rig.receive();
    let screen = Arc::clone(&rig.screen);
    let stop = Arc::new(Mutex::new(false));
    let stopped = Arc::clone(&stop);
    let viewer = std::thread::spawn(move || {
        let viewer = screen.view(Box::new(|| ()));
        while !*stopped.lock().unwrap() {
            let (picture, damage) = viewer.take();
            for rect in damage {
                let mut pixels = Vec::new();
                picture.read(rect, &mut pixels);
                assert_eq!(pixels.len() as u64, rect.area() * 4);
            }
        }
    });
    for n in 0..300 {
        let (width, height) = (64 + n % 7 * 90, 48 + n % 5 * 70);
        rig.ask(&situation(width, height, width * 4, n * 64));
    }
    *stop.lock().unwrap() = true;
    viewer.join().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn no_message_does_harm(messages in prop::collection::vec((0_u32..16, prop::collection::vec(any::<u8>(), 0..64)), 1..40)) {
        let rig = Rig::new();
        rig.show();
        for (kind, body) in messages {
            rig.send(&message(kind, &[&body]));
            while rig.driver.receive().is_some() {}
        }
        rig.send(&message(1, &[&[3, 0, 5, 0]]));
        while rig.receive() != (2, vec![3, 0, 5, 0, 1, 1]) {}
        let picture = rig.screen.picture();
        let mut pixels = Vec::new();
        picture.read(Rect { x: 0, y: 0, width: 9, height: 1 }, &mut pixels);
    }
}
