//! Any bytes of a VNC client, in any pieces, while the screen changes its size and what it shows. What a session holds for its client
//! stays bounded, and what it sends is whole updates.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use vireo_fuzz::Input;
use vireo_screen::{Key, Keyboard, Mode, Pixels, Pointer, PointerState, Rect, Screen, Size, Station};
use vireo_vnc::session::PART;
use vireo_vnc::{Security, Session};

/// A frame buffer of so many bytes, each as its place says.
struct Pattern(u64);

impl Pixels for Pattern {
    fn read(&self, offset: u64, to: &mut [u8]) -> bool {
        to.iter_mut()
            .enumerate()
            .for_each(|(n, byte)| *byte = (offset as usize + n).wrapping_mul(37) as u8 & 0x81);
        offset + to.len() as u64 <= self.0
    }
}

/// Takes what is typed and pointed, as long as it is possible.
struct Hands;

impl Keyboard for Hands {
    fn key(&self, key: Key, _down: bool) -> bool {
        assert!(key.code > 0 && key.code < 0x80);
        true
    }
}

impl Pointer for Hands {
    fn report(&self, state: PointerState) {
        assert!(state.x <= PointerState::END && state.y <= PointerState::END);
    }
}

/// Heads of messages that may be right.
const HEADS: [&[u8]; 12] = [
    b"RFB 003.008\n",
    b"RFB 003.003\n",
    &[0, 0, 0, 0, 32, 24, 0, 1],
    &[2, 0, 0, 3, 0, 0, 0, 16, 0xff, 0xff, 0xff, 0x21],
    &[2, 0, 0, 2, 0xff, 0xff, 0xfe, 0xcc],
    &[3, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
    &[3, 1, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
    &[4, 1, 0, 0],
    &[5],
    &[6, 0, 0, 0],
    &[251, 0],
    &[255, 0, 0, 1],
];

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let screen = Screen::new(Size { width: 80, height: 50 });
    let station =
        Station { screen: Arc::clone(&screen), keyboard: Arc::new(Hands), pointer: Arc::new(Hands) };
    let mut session = Session::new(&Arc::new(Security::default()), &station, [1; 16], None, Box::new(|| ()));
    if input.u8() % 4 > 0 {
        session.receive(b"RFB 003.008\n\x01\x01").expect("a handshake");
    }
    let mut largest = 80 * 50 * 4;
    while !input.is_empty() {
        let act = input.u8();
        match act % 8 {
            0..4 => {
                let len = usize::from(input.u8() % 32);
                let head = if act & 0x80 == 0 { HEADS[usize::from(act >> 3) % HEADS.len()] } else { &[] };
                let message = [head, input.bytes(len)].concat();
                if session.receive(&message).is_err() {
                    return;
                }
            }
            4 => {
                let (width, height) = (u32::from(input.u16()) % 1500, u32::from(input.u8()) * 4);
                let stride = width * 4 + u32::from(input.u8()) * 4;
                let memory = u64::from(input.u16()) << 7;
                if let Ok(mode) = Mode::new(width, height, stride, input.u8().into(), memory) {
                    largest = largest.max(width as usize * 64 * 4);
                    screen.show(mode, Arc::new(Pattern(memory - memory / 3)));
                }
            }
            5 => {
                let numbers: [i32; 4] = std::array::from_fn(|_| i32::from(input.u16().cast_signed()));
                let size = screen.picture().size();
                let rect = Rect::cut((numbers[0], numbers[1]), (numbers[2], numbers[3]), size);
                screen.changed(rect.into_iter());
            }
            6 if act & 0x80 == 0 => screen.blank(),
            6 => session.look(),
            _ => {
                session.output().clear();
                session.update();
                // A part, a strip that was begun, and what deflating may add.
                assert!(session.output().len() <= PART + largest + largest / 16 + 4096);
            }
        }
    }
});
