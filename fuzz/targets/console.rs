//! Any messages to frame buffer, keyboard and mouse on VMBus, while keys are pressed, the pointer moves, viewers look, and channels
//! open and close. The devices always come to rest, and write nothing then.
#![no_main]

use std::sync::Arc;
use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use vireo_board::Windows;
use vireo_fuzz::{Input, PATIENCE, Rig, Witness, guest};
use vireo_input::{SyntheticKeyboard, SyntheticMouse};
use vireo_memory::{DeviceMemory, GuestMemory};
use vireo_screen::{Buttons, Key, Keyboard, Pointer, PointerState, Rect, Screen, Size};
use vireo_video::Provider;
use vireo_vmbus::driver::Driver;
use vireo_vmbus::ring::{RingPair, kind};
use vireo_vmbus::{Channel, Device};

/// Where the rings of each device are.
const RINGS: [u64; 3] = [0x20_0000, 0x22_0000, 0x24_0000];
const PAGE: u64 = 4096;

struct Machine {
    memory: Arc<GuestMemory>,
    witness: Arc<Witness>,
    screen: Arc<Screen>,
    keyboard: Arc<SyntheticKeyboard>,
    mouse: Arc<SyntheticMouse>,
    video: Arc<Provider>,
    sides: [Option<(Driver, Arc<Channel>)>; 3],
    paused: bool,
}

impl Machine {
    fn new() -> Self {
        let memory = Rig::memory();
        let witness = Witness::of(&memory);
        let screen = Screen::new(Size { width: 640, height: 480 });
        let vram = DeviceMemory::new(8 << 20).expect("memory");
        let window = Arc::<Windows>::default().add(&vram);
        let video = Arc::new(Provider::new(&screen, &memory, window).expect("a thread"));
        let (keyboard, mouse) = (SyntheticKeyboard::new(), SyntheticMouse::new());
        Self { memory, witness, screen, keyboard, mouse, video, sides: [None, None, None], paused: false }
    }

    fn device(&self, number: usize) -> &dyn Device {
        match number {
            0 => &*self.video,
            1 => &*self.keyboard,
            _ => &*self.mouse,
        }
    }

    fn open(&mut self, number: usize) {
        if self.sides[number].is_some() || self.paused {
            return;
        }
        let driver = guest(|| Driver::new(&self.memory, RINGS[number], 2, 2));
        let pages = driver.pages();
        self.witness.allow(pages.iter().map(|p| p / PAGE));
        let rings = RingPair::new(&self.memory, &pages, driver.split()).expect("rings");
        let channel = Channel::new(&self.memory, rings, [0; 120], 0, Box::new(|_| ()));
        self.device(number).open(0, Arc::clone(&channel)).expect("the host gives a thread");
        self.sides[number] = Some((driver, channel));
    }

    fn close(&mut self, number: usize) {
        if let Some((driver, _)) = self.sides[number].take() {
            self.device(number).close(0);
            self.witness.forbid(driver.pages().iter().map(|p| p / PAGE));
        }
    }

    fn pause(&mut self, pause: bool) {
        if pause == self.paused {
            return;
        }
        if !pause {
            self.witness.keep_still(false);
        }
        for number in 0..3 {
            if pause {
                assert!(self.device(number).pause(Instant::now() + PATIENCE), "it does not come to rest");
            } else {
                self.device(number).resume();
            }
        }
        self.paused = pause;
        if pause {
            self.witness.keep_still(true);
        }
    }

    /// A message that may be right, or none.
    fn send(&mut self, number: usize, input: &mut Input<'_>) {
        let Some((driver, channel)) = &self.sides[number] else { return };
        let (message, len) = (u32::from(input.u8() % 16), usize::from(input.u8() % 64));
        let head: &[u32] = match number {
            1 => &[message % 6],
            _ => &[1, len as u32 + 8, message, len as u32],
        };
        let mut data: Vec<u8> = head.iter().flat_map(|w| w.to_le_bytes()).collect();
        if input.u8().is_multiple_of(16) {
            data.clear();
        }
        // A place for the frame buffer, and a mode, are rarely found by chance.
        if number == 0 && message == 3 && len % 2 == 0 {
            let gpa = (u64::from(input.u16()) << 12).to_le_bytes();
            data.extend([&gpa[..], &[1], &gpa].concat());
        }
        data.extend(input.bytes(len));
        guest(|| driver.send(kind::IN_BAND, 1, &[], &data));
        channel.doorbell().ring();
    }

    fn act(&mut self, input: &mut Input<'_>) {
        let act = input.u8();
        let number = usize::from(act >> 4) % 3;
        match act % 16 {
            0..6 if !self.paused => self.send(number, input),
            6..8 if !self.paused => {
                if let Some((driver, channel)) = &self.sides[number] {
                    while guest(|| driver.receive()).is_some() {}
                    channel.doorbell().ring();
                }
            }
            8 => {
                _ = self
                    .keyboard
                    .key(Key { code: input.u8() % 0x80, extended: act & 0x80 != 0 }, act & 0x40 != 0)
            }
            9 => self.mouse.report(PointerState {
                x: input.u16(),
                y: input.u16(),
                buttons: Buttons::default(),
                wheel: input.u8().cast_signed(),
            }),
            10 => {
                let picture = self.screen.picture();
                let mut pixels = Vec::new();
                let (x, y) = (u32::from(input.u16()), u32::from(input.u16()));
                picture.read(Rect { x, y, width: 64, height: 2 }, &mut pixels);
                assert!(pixels.len() <= 64 * 2 * 4);
            }
            11 => self.pause(!self.paused),
            12 if !self.paused => self.close(number),
            13 => self.open(number),
            14 if !self.paused => {
                (0..3).for_each(|n| self.close(n));
                (0..3).for_each(|n| self.device(n).reset());
                assert!(!self.screen.picture().is_shown());
            }
            _ => {}
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let mut machine = Machine::new();
    (0..3).for_each(|n| machine.open(n));
    while !input.is_empty() {
        machine.act(&mut input);
    }
    machine.pause(true);
    machine.pause(false);
    (0..3).for_each(|n| machine.close(n));
    assert!(!machine.screen.picture().is_shown());
});
