//! Where other threads leave interrupts for a vCPU.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::*};

use super::message::{DeliveryMode, Message};
use super::route::Routing;
use super::vectors::VectorSet;

const NMI: u32 = 1;
const INIT: u32 = 2;
/// A start-up IPI, with its vector in bits 15:8.
const SIPI: u32 = 16;

/// Interrupts on their way to a local APIC, and how to find it. Only atomics: posting never waits.
pub struct Mailbox {
    vectors: [AtomicU64; 4],
    /// Which of them are level-triggered. Written before the vector's bit and read after it.
    level: [AtomicU64; 4],
    events: AtomicU32,
    routing: AtomicU64,
}

/// What a vCPU finds in its mailbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mail {
    /// Interrupts, for [`super::Apic::raise`].
    pub vectors: VectorSet,
    /// Those that are level-triggered.
    pub level: VectorSet,
    /// An NMI.
    pub nmi: bool,
    /// INIT; it comes before [`Mail::startup`].
    pub init: bool,
    /// A start-up IPI and its vector.
    pub startup: Option<u8>,
}

impl Mailbox {
    /// An empty mailbox of the vCPU with this index, at reset.
    pub fn new(index: u32) -> Self {
        let routing = Routing {
            id: index,
            logical: 0,
            flat: true,
            x2apic: false,
            enabled: true,
            software_enabled: false,
            priority: 0,
        };
        Self {
            vectors: Default::default(),
            level: Default::default(),
            events: AtomicU32::new(0),
            routing: AtomicU64::new(routing.pack()),
        }
    }

    /// Where the vCPU is to be found.
    pub fn routing(&self) -> Routing {
        Routing::unpack(self.routing.load(Acquire))
    }

    /// Tells where the vCPU is to be found from now on. Called by its own thread.
    pub fn publish(&self, routing: Routing) {
        let word = routing.pack();
        // The common case is no change, and then the line shall stay shared.
        if self.routing.load(Relaxed) != word {
            self.routing.store(word, Release);
        }
    }

    /// Leaves a message that [`super::route`] addressed to this vCPU. The caller then wakes the vCPU.
    pub fn post(&self, message: &Message) {
        match message.mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                self.post_vector(message.vector, message.level)
            }
            DeliveryMode::Nmi => self.post_event(NMI),
            // There is no system-management mode here, and the PIC's output is a wire, not a message.
            DeliveryMode::Smi | DeliveryMode::ExtInt => {}
            DeliveryMode::Init => self.change_events(|e| (e & !(0xff00 | SIPI)) | INIT),
            DeliveryMode::StartUp => {
                self.change_events(|e| e & !0xff00 | SIPI | u32::from(message.vector) << 8);
            }
        }
    }

    /// Leaves an interrupt.
    pub fn post_vector(&self, vector: u8, level: bool) {
        let (i, bit) = (usize::from(vector >> 6), 1_u64 << (vector & 63));
        if level {
            self.level[i].fetch_or(bit, Relaxed);
        } else {
            self.level[i].fetch_and(!bit, Relaxed);
        }
        self.vectors[i].fetch_or(bit, Release);
    }

    /// Leaves an NMI.
    pub fn post_nmi(&self) {
        self.post_event(NMI);
    }

    fn post_event(&self, bit: u32) {
        self.events.fetch_or(bit, Release);
    }

    fn change_events(&self, change: impl Fn(u32) -> u32) {
        let _ = self.events.fetch_update(Release, Relaxed, |e| Some(change(e)));
    }

    /// Takes everything out. Called by the vCPU's own thread.
    pub fn take(&self) -> Mail {
        let mut mail = Mail::default();
        for i in 0..4 {
            if self.vectors[i].load(Relaxed) != 0 {
                mail.vectors.0[i] = self.vectors[i].swap(0, Acquire);
                mail.level.0[i] = self.level[i].load(Relaxed) & mail.vectors.0[i];
            }
        }
        if self.events.load(Relaxed) != 0 {
            let events = self.events.swap(0, Acquire);
            mail.nmi = events & NMI != 0;
            mail.init = events & INIT != 0;
            mail.startup = (events & SIPI != 0).then_some((events >> 8) as u8);
        }
        mail
    }
}
