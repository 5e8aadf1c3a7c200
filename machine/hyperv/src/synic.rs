//! The synthetic interrupt controller of one vCPU (TLFS 11): messages, events, and the interrupts that tell of them.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use vireo_core::{MsiMessage, Partition};
use vireo_memory::GuestMemory;

use crate::{EVENTS, Message, SINTS, msr};

/// A SINT's bits: 7 to 0 are the vector.
const SINT_MASKED: u64 = 1 << 16;
/// The guest looks by itself: no interrupt.
const SINT_POLLING: u64 = 1 << 18;
/// Vector, masked, automatic EOI, polling.
const SINT_WRITABLE: u64 = 0xff | 0b111 << 16;
/// Vectors below are exceptions'.
const FIRST_VECTOR: u64 = 16;

/// Messages that wait for a slot, at most: what is posted beyond that is refused.
const QUEUE_MAX: usize = 1024;

/// A guest does not take its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the guest takes no messages: {QUEUE_MAX} wait for it")]
pub struct QueueFull;

/// What a SynIC acts on.
pub struct Wires<'a> {
    /// Where message and event pages are.
    pub memory: &'a GuestMemory,
    /// Takes interrupts.
    pub partition: &'a dyn Partition,
    /// Whose SynIC it is: vCPU number, equal to its APIC id.
    pub vp: u32,
}

impl Wires<'_> {
    /// A fixed, edge-triggered interrupt for the vCPU.
    pub fn interrupt(&self, vector: u8) {
        interrupt(self.partition, self.vp, vector);
    }
}

/// A fixed, edge-triggered interrupt for a vCPU.
pub fn interrupt(partition: &dyn Partition, vp: u32, vector: u8) {
    let address = 0xfee0_0000 | u64::from(vp & 0xff) << 12;
    partition.deliver_msi(MsiMessage { address, data: vector.into() });
}

/// The registers, and what waits.
#[derive(Debug)]
pub struct Synic {
    control: u64,
    event_page: u64,
    message_page: u64,
    sints: [u64; SINTS],
    queues: [VecDeque<Message>; SINTS],
}

/// Offsets in a message slot (TLFS 11.8.1).
mod slot {
    pub const SIZE: u64 = 256;
    pub const KIND: u64 = 0;
    /// Payload's size in bits 7:0, flags in 15:8.
    pub const SIZE_AND_FLAGS: u64 = 4;
    pub const ORIGIN: u64 = 8;
    pub const PAYLOAD: u64 = 16;
    /// More messages wait: the guest writes to EOM when it is done with this one.
    pub const PENDING: u32 = 1 << 8;
}

impl Default for Synic {
    fn default() -> Self {
        Self {
            control: 0,
            event_page: 0,
            message_page: 0,
            sints: [SINT_MASKED; SINTS],
            queues: Default::default(),
        }
    }
}

impl Synic {
    /// Reads one of its MSRs; `None`: it is not one.
    pub fn read(&self, index: u32) -> Option<u64> {
        Some(match index {
            msr::SCONTROL => self.control,
            msr::SVERSION => 1,
            msr::SIEFP => self.event_page,
            msr::SIMP => self.message_page,
            msr::EOM => 0,
            msr::SINT0..=msr::SINT15 => self.sints[(index - msr::SINT0) as usize],
            _ => return None,
        })
    }

    /// Writes one of its MSRs; `None`: it is not one; `Some(false)`: not this value.
    pub fn write(&mut self, index: u32, value: u64, wires: &Wires<'_>) -> Option<bool> {
        match index {
            msr::SCONTROL => self.control = value & 1,
            msr::SVERSION => return Some(false),
            msr::SIEFP => self.event_page = value,
            msr::SIMP => self.message_page = value,
            msr::EOM => {}
            msr::SINT0..=msr::SINT15 => {
                if value & SINT_MASKED == 0 && value & 0xff < FIRST_VECTOR {
                    return Some(false);
                }
                let sint = (index - msr::SINT0) as usize;
                let was_masked = self.sints[sint] & SINT_MASKED != 0;
                self.sints[sint] = value & SINT_WRITABLE;
                if was_masked && self.has_something(sint, wires.memory) {
                    // It came while nobody was to be told.
                    self.interrupt(sint, wires);
                }
            }
            _ => return None,
        }
        // Whatever was written, a slot may now be free, there, or listened to.
        (0..SINTS).for_each(|sint| self.deliver(sint, wires));
        Some(true)
    }

    /// Sends a message, now or when the slot is free.
    pub fn post(&mut self, sint: usize, message: Message, wires: &Wires<'_>) -> Result<(), QueueFull> {
        let queue = &mut self.queues[sint];
        if queue.len() >= QUEUE_MAX {
            return Err(QueueFull);
        }
        queue.push_back(message);
        self.deliver(sint, wires);
        Ok(())
    }

    /// Whether a message of this kind and origin waits.
    pub fn has_waiting(&self, sint: usize, kind: u32, origin: u64) -> bool {
        self.queues[sint].iter().any(|m| m.kind == kind && m.origin == origin)
    }

    /// Sets an event's bit; the guest is interrupted if it was clear. Lost if the guest has no event page.
    pub fn signal(&self, sint: usize, event: u16, wires: &Wires<'_>) {
        let Some(page) = msr::page(self.event_page).filter(|_| self.control & 1 != 0 && event < EVENTS)
        else {
            return;
        };
        let word = page + sint as u64 * u64::from(EVENTS / 8) + u64::from(event / 32) * 4;
        let bit = 1_u32 << (event % 32);
        let before = wires.memory.atomic_u32(word, |w| (w.fetch_or(bit, Ordering::SeqCst), true));
        // A page that is no RAM takes no events.
        if before.is_ok_and(|before| before & bit == 0) {
            self.interrupt(sint, wires);
        }
    }

    /// Whether a message or an event is there for the guest to find.
    fn has_something(&self, sint: usize, memory: &GuestMemory) -> bool {
        let there = |word: u64| memory.read_obj::<u32>(word).is_ok_and(|w| w != 0);
        let message = msr::page(self.message_page).map(|page| page + sint as u64 * slot::SIZE + slot::KIND);
        let bytes = u64::from(EVENTS / 8);
        let events = msr::page(self.event_page).map(|page| page + sint as u64 * bytes);
        message.is_some_and(there) || events.is_some_and(|at| (at..at + bytes).step_by(4).any(there))
    }

    fn interrupt(&self, sint: usize, wires: &Wires<'_>) {
        let value = self.sints[sint];
        if value & (SINT_MASKED | SINT_POLLING) == 0 {
            wires.interrupt(value as u8);
        }
    }

    /// Moves the next message to its slot if that is free; else makes the guest say when it is.
    fn deliver(&mut self, sint: usize, wires: &Wires<'_>) {
        let Some(page) = msr::page(self.message_page).filter(|_| self.control & 1 != 0) else { return };
        if self.queues[sint].is_empty() {
            return;
        }
        let slot = page + sint as u64 * slot::SIZE;
        let free = || wires.memory.atomic_u32(slot + slot::KIND, |w| (w.load(Ordering::SeqCst) == 0, false));
        if !free().unwrap_or(false) {
            let flags = slot + slot::SIZE_AND_FLAGS;
            _ = wires.memory.atomic_u32(flags, |w| (w.fetch_or(slot::PENDING, Ordering::SeqCst), true));
            // It may have become free before the guest could see the flag.
            if !free().unwrap_or(false) {
                return;
            }
        }
        let Some(message) = self.queues[sint].pop_front() else { return };
        let more = !self.queues[sint].is_empty();
        if write_slot(wires.memory, slot, &message, more).is_ok() {
            self.interrupt(sint, wires);
        }
    }

    /// For a saved state.
    pub fn registers(&self) -> ([u64; 3], [u64; SINTS], Vec<Vec<Message>>) {
        let queues = self.queues.iter().map(|q| q.iter().cloned().collect()).collect();
        ([self.control, self.event_page, self.message_page], self.sints, queues)
    }

    /// From a saved state; `None` if no SynIC can be so.
    pub fn from_registers(pages: [u64; 3], sints: [u64; SINTS], queues: &[Vec<Message>]) -> Option<Self> {
        let [control, event_page, message_page] = pages;
        let sane = |s: &u64| s & !SINT_WRITABLE == 0 && (s & SINT_MASKED != 0 || s & 0xff >= FIRST_VECTOR);
        let fits =
            |q: &Vec<Message>| q.len() <= QUEUE_MAX && q.iter().all(|m| m.payload().len() <= Message::MAX);
        if control > 1 || !sints.iter().all(sane) || queues.len() != SINTS || !queues.iter().all(fits) {
            return None;
        }
        let queues = std::array::from_fn(|i| queues[i].iter().cloned().collect());
        Some(Self { control, event_page, message_page, sints, queues })
    }
}

/// Writes a message; its kind last, since by that the guest knows it is there.
fn write_slot(
    memory: &GuestMemory,
    slot: u64,
    message: &Message,
    more: bool,
) -> Result<(), vireo_memory::MemoryError> {
    let flags = if more { slot::PENDING } else { 0 };
    memory.write_obj(slot + slot::SIZE_AND_FLAGS, message.payload().len() as u32 | flags)?;
    memory.write_obj(slot + slot::ORIGIN, message.origin)?;
    memory.write(slot + slot::PAYLOAD, message.payload())?;
    memory.atomic_u32(slot + slot::KIND, |w| (w.store(message.kind, Ordering::SeqCst), true))
}
