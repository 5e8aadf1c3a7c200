//! What a guest says when it dies (TLFS 2.4.4: guest crash MSRs).

use serde::{Deserialize, Serialize};
use vireo_memory::GuestMemory;

/// CTL: the parameters are there.
const NOTIFY: u64 = 1 << 63;
/// CTL: parameters 3 and 4 are address and length of a text.
const MESSAGE: u64 = 1 << 62;

/// Longest text that is taken: a page, as the specification has it.
const TEXT_MAX: u64 = 4096;

/// A guest's last words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestCrash {
    /// Five numbers of the guest's choice.
    pub parameters: [u64; 5],
    /// The text that it left, as far as it is one: the end of its kernel's log, usually.
    pub text: Option<String>,
}

/// Learns of a guest's end.
pub trait CrashSink: Send + Sync {
    /// The guest says that it crashed. Called on a vCPU's thread.
    fn crashed(&self, crash: GuestCrash);
}

/// The MSRs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrashRegisters {
    parameters: [u64; 5],
}

impl CrashRegisters {
    /// What CTL reads as: which of its bits do something.
    pub const CTL: u64 = NOTIFY | MESSAGE;

    pub fn parameter(&self, index: usize) -> u64 {
        self.parameters[index]
    }

    pub fn set_parameter(&mut self, index: usize, value: u64) {
        self.parameters[index] = value;
    }

    /// CTL was written: what there is to tell, if it says so.
    pub fn control(&self, value: u64, memory: &GuestMemory) -> Option<GuestCrash> {
        if value & NOTIFY == 0 {
            return None;
        }
        let [.., address, length] = self.parameters;
        let text = if value & MESSAGE != 0 { text(memory, address, length) } else { None };
        Some(GuestCrash { parameters: self.parameters, text })
    }
}

fn text(memory: &GuestMemory, address: u64, length: u64) -> Option<String> {
    let mut bytes = vec![0; length.min(TEXT_MAX) as usize];
    memory.read(address, &mut bytes).ok()?;
    let text: String = String::from_utf8_lossy(&bytes)
        .chars()
        .filter(|c| *c == '\n' || *c == '\t' || !c.is_control())
        .collect();
    Some(text)
}
