//! The mouse, which is a HID. Messages have a header of the pipe and one of the protocol.

use std::sync::Arc;
use std::time::Instant;

use uuid::{Uuid, uuid};
use vireo_screen::{Pointer, PointerState};
use vireo_vmbus::{Channel, Device, Offer, OpenError, Pipe, Receiver, VmBus};

use crate::line::Line;

/// What drivers look for: synthetic mice.
const INTERFACE: Uuid = uuid!("cfa8b69e-5b4a-4cc0-b98b-8ba1a1f3f95a");
/// The only one of a machine. Guests name it by this, so it never changes.
const INSTANCE: Uuid = uuid!("58f75a6d-d949-4320-99e1-a2a2576d581c");

/// Kinds of messages.
mod kind {
    pub const PROTOCOL_REQUEST: u32 = 0;
    pub const PROTOCOL_RESPONSE: u32 = 1;
    pub const DEVICE_INFO: u32 = 2;
    pub const DEVICE_INFO_ACK: u32 = 3;
    pub const INPUT_REPORT: u32 = 4;
}

/// Kind of the pipe's header: data.
const PIPE_DATA: u32 = 1;
/// Version 2.0: major in the upper half.
const VERSION: u32 = 2 << 16;

/// What reports mean (HID 1.11 §6.2.2): five buttons, both places, a wheel.
const REPORTS: [u8; 61] = [
    0x05, 0x01, 0x09, 0x02, 0xa1, 0x01, // generic desktop: a mouse
    0x09, 0x01, 0xa1, 0x00, // a pointer
    0x05, 0x09, 0x19, 0x01, 0x29, 0x05, // buttons 1 to 5
    0x15, 0x00, 0x25, 0x01, 0x75, 0x01, 0x95, 0x05, 0x81, 0x02, // a bit each
    0x75, 0x03, 0x95, 0x01, 0x81, 0x03, // 3 bits of nothing
    0x05, 0x01, 0x09, 0x30, 0x09, 0x31, // X and Y
    0x26, 0xff, 0x7f, 0x75, 0x10, 0x95, 0x02, 0x81, 0x02, // 0 to 32767, absolute
    0x09, 0x38, 0x15, 0x81, 0x25, 0x7f, 0x75, 0x08, 0x95, 0x01, 0x81, 0x06, // wheel, relative
    0xc0, 0xc0,
];

/// A message of the device's.
fn message(kind: u32, body: &[u8]) -> Vec<u8> {
    let size = body.len() as u32;
    let header = [PIPE_DATA, size + 8, kind, size];
    let mut bytes: Vec<u8> = header.iter().flat_map(|w| w.to_le_bytes()).collect();
    bytes.extend(body);
    bytes
}

/// What the device says of itself.
fn device_info() -> Vec<u8> {
    // Size of this part, vendor, product and version as Hyper-V's has them, and what is reserved.
    let mut body = 32_u32.to_le_bytes().to_vec();
    for half in [0x045e_u16, 0x0621, 0x0200] {
        body.extend(half.to_le_bytes());
    }
    body.resize(32, 0);
    // The HID descriptor (HID 1.11 §6.2.1): 9 bytes, HID 1.11, no country, one further descriptor: that of reports.
    let length = (REPORTS.len() as u16).to_le_bytes();
    body.extend([9, 0x21, 0x11, 0x01, 0, 1, 0x22, length[0], length[1]]);
    body.extend(REPORTS);
    message(kind::DEVICE_INFO, &body)
}

/// A mouse on VMBus.
#[derive(Default)]
pub struct SyntheticMouse(Arc<Shared>);

#[derive(Default)]
struct Shared {
    line: Line,
}

impl SyntheticMouse {
    /// A mouse without a driver.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Puts it on a bus; its number there, or `None`: there is no room.
    pub fn attach(self: &Arc<Self>, bus: &Arc<VmBus>) -> Option<u64> {
        let offer = Offer { interface: INTERFACE, instance: INSTANCE, memory: 0, user_data: [0; 120] };
        bus.add(offer, |_| Arc::clone(self) as _)
    }
}

impl Pointer for SyntheticMouse {
    fn report(&self, state: PointerState) {
        let held = state.buttons;
        let buttons = u8::from(held.left) | u8::from(held.right) << 1 | u8::from(held.middle) << 2;
        let [x, y] = [state.x, state.y].map(|v| v.min(PointerState::END).to_le_bytes());
        // The descriptor has no -128.
        let wheel = state.wheel.max(-127).to_le_bytes()[0];
        let report = [buttons, x[0], x[1], y[0], y[1], wheel];
        self.0.line.send(message(kind::INPUT_REPORT, &report));
    }
}

impl Receiver for Shared {
    fn message(&self, pipe: &Arc<Pipe>, data: &[u8]) {
        let word = |at: usize| data.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
        let kind = word(8).filter(|_| word(0) == Some(PIPE_DATA));
        match (kind, word(16)) {
            (Some(kind::PROTOCOL_REQUEST), Some(version)) => {
                let accepted = version == VERSION;
                let mut body = version.to_le_bytes().to_vec();
                body.push(accepted.into());
                pipe.send(message(kind::PROTOCOL_RESPONSE, &body));
                if accepted {
                    pipe.send(device_info());
                }
                self.line.set_ready(pipe, false);
            }
            // Of a byte that means nothing.
            (Some(kind::DEVICE_INFO_ACK), _) => self.line.set_ready(pipe, true),
            (kind, _) => tracing::debug!(?kind, "a message that is none of the mouse's"),
        }
    }
}

impl Device for SyntheticMouse {
    fn open(&self, _subchannel: u16, channel: Arc<Channel>) -> Result<(), OpenError> {
        self.0.line.open("mouse", channel, Arc::clone(&self.0) as _)
    }

    fn close(&self, _subchannel: u16) {
        self.0.line.close();
    }

    fn pause(&self, deadline: Instant) -> bool {
        self.0.line.pause(deadline)
    }

    fn resume(&self) {
        self.0.line.resume();
    }

    fn reset(&self) {}
}
