//! Messages between hypervisor and guest (TLFS 11.8).

use serde::{Deserialize, Serialize};

/// A message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// What it is about. Bit 31: it is the hypervisor's own. Never 0: that is an empty slot.
    pub kind: u32,
    /// Where it is from, for the receiver: a port, in a message from elsewhere.
    pub origin: u64,
    payload: Vec<u8>,
}

impl Message {
    /// A message; `None` if it is of kind 0 or longer than [`Message::MAX`] bytes.
    pub fn new(kind: u32, origin: u64, payload: &[u8]) -> Option<Self> {
        (kind != 0 && payload.len() <= Self::MAX).then(|| Self { kind, origin, payload: payload.to_vec() })
    }

    /// Most bytes of a payload.
    pub const MAX: usize = 240;

    /// What it says.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }
}
