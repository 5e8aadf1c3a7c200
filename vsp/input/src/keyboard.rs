//! The keyboard. Messages are a kind and what belongs to it, without a header of the pipe.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use uuid::{Uuid, uuid};
use vireo_screen::{Key, Keyboard, Leds};
use vireo_vmbus::{Channel, Device, Offer, OpenError, Pipe, Receiver, VmBus};

use crate::line::Line;

/// What drivers look for: synthetic keyboards.
const INTERFACE: Uuid = uuid!("f912ad6d-2b17-48ea-bd65-f927a61c7684");
/// The only one of a machine. Guests name it by this, so it never changes.
const INSTANCE: Uuid = uuid!("d34b2567-b9b6-42b9-8778-0a4ec0b955bf");

/// Kinds of messages.
mod kind {
    pub const PROTOCOL_REQUEST: u32 = 1;
    pub const PROTOCOL_RESPONSE: u32 = 2;
    pub const EVENT: u32 = 3;
    pub const LEDS: u32 = 4;
}

/// Version 1.0: major in the upper half.
const VERSION: u32 = 1 << 16;
/// Bits of an event: the key is let go; it has the prefix E0.
const BREAK: u32 = 1 << 1;
const E0: u32 = 1 << 2;

/// A keyboard on VMBus.
#[derive(Default)]
pub struct SyntheticKeyboard(Arc<Shared>);

#[derive(Default)]
struct Shared {
    line: Line,
    leds: Mutex<Option<Leds>>,
}

impl Shared {
    fn set_leds(&self, leds: Option<Leds>) {
        *self.leds.lock().unwrap_or_else(PoisonError::into_inner) = leds;
    }
}

impl SyntheticKeyboard {
    /// A keyboard without a driver.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Puts it on a bus; its number there, or `None`: there is no room.
    pub fn attach(self: &Arc<Self>, bus: &Arc<VmBus>) -> Option<u64> {
        let offer = Offer { interface: INTERFACE, instance: INSTANCE, memory: 0, user_data: [0; 120] };
        bus.add(offer, |_| Arc::clone(self) as _)
    }
}

impl Keyboard for SyntheticKeyboard {
    fn key(&self, key: Key, down: bool) -> bool {
        let info = if down { 0 } else { BREAK } | if key.extended { E0 } else { 0 };
        // Make code and 16 bits that mean nothing.
        let words = [kind::EVENT, key.code.into(), info];
        self.0.line.send(words.iter().flat_map(|w| w.to_le_bytes()).collect())
    }

    fn leds(&self) -> Option<Leds> {
        *self.0.leds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Receiver for Shared {
    fn message(&self, pipe: &Arc<Pipe>, data: &[u8]) {
        let word = |at: usize| data.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
        match (word(0), word(4)) {
            (Some(kind::PROTOCOL_REQUEST), Some(version)) => {
                let accepted = version == VERSION;
                let answer = [kind::PROTOCOL_RESPONSE, accepted.into()];
                pipe.send(answer.iter().flat_map(|w| w.to_le_bytes()).collect());
                self.line.set_ready(pipe, accepted);
            }
            (Some(kind::LEDS), Some(flags)) => self.set_leds(Some(Leds {
                scroll: flags & 1 != 0,
                num: flags & 2 != 0,
                caps: flags & 4 != 0,
            })),
            (kind, _) => tracing::debug!(?kind, "a message that is none of the keyboard's"),
        }
    }
}

impl Device for SyntheticKeyboard {
    fn open(&self, _subchannel: u16, channel: Arc<Channel>) -> Result<(), OpenError> {
        self.0.line.open("keyboard", channel, Arc::clone(&self.0) as _)
    }

    fn close(&self, _subchannel: u16) {
        self.0.line.close();
        self.0.set_leds(None);
    }

    fn pause(&self, deadline: Instant) -> bool {
        self.0.line.pause(deadline)
    }

    fn resume(&self) {
        self.0.line.resume();
    }

    fn reset(&self) {}
}
