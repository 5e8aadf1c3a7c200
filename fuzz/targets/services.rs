//! Integration services and a guest that answers as it likes: what it was asked, something else, or nothing; with packets that are
//! none, pages that it does not have, and rings that it breaks. No service asks twice at once, and none reads beyond an answer.
#![no_main]

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use vireo_fuzz::{Input, Rig};
use vireo_memory::GuestMemory;
use vireo_services::message::{Message, Version, kind, negotiation};
use vireo_services::{MemoryLimits, PAGE, Services};
use vireo_vmbus::driver::Driver;
use vireo_vmbus::ring::{RingPair, kind as packet};
use vireo_vmbus::{Channel, Device};

/// Services, as they are offered; the last is dynamic memory.
const SERVICES: u8 = 7;
const MEMORY: u8 = 6;
const LIMITS: MemoryLimits =
    MemoryLimits { minimum: 8 << 20, startup: 12 << 20, maximum: 16 << 20, buffer: 20 };

/// Kinds of messages, by service.
const KINDS: [u16; 6] = [kind::SHUTDOWN, kind::HEARTBEAT, kind::TIME, kind::KVP, kind::VSS, kind::COPY];
/// Versions that drivers choose, by service.
const VERSIONS: [Version; 6] =
    [Version(3, 2), Version(3, 0), Version(4, 0), Version(4, 0), Version(5, 0), Version(1, 1)];

/// The guest's side of one service.
struct Guest {
    which: u8,
    memory: Arc<GuestMemory>,
    device: Arc<dyn Device>,
    driver: Driver,
    channel: Arc<Channel>,
    /// Transaction of the last question.
    asked: Option<u8>,
    /// The guest broke the rules of rings: what it finds there says nothing.
    broken: bool,
}

impl Guest {
    fn open(which: u8, memory: &Arc<GuestMemory>, device: Arc<dyn Device>) -> Self {
        let driver = Driver::new(memory, RINGS.start * PAGE, 4, 4);
        let rings = RingPair::new(memory, &driver.pages(), driver.split()).expect("rings");
        let channel = Channel::new(memory, rings, [0; 120], 0, Box::new(|_| ()));
        device.open(0, Arc::clone(&channel)).expect("it opens");
        Self { which, memory: Arc::clone(memory), device, driver, channel, asked: None, broken: false }
    }

    fn send(&self, bytes: &[u8]) {
        _ = self.driver.send(packet::IN_BAND, 0, &[], bytes);
        self.channel.doorbell().ring();
    }

    fn receive(&mut self) {
        while !self.broken
            && let Some(question) = self.driver.receive()
        {
            assert_eq!(question.kind, packet::IN_BAND);
            if self.which != MEMORY {
                // It has been answered, rightly or by chance.
                self.asked = Some(question.data[24]);
                let size = usize::from(u16::from_le_bytes([question.data[18], question.data[19]]));
                assert_eq!(question.data.len(), (28 + size).next_multiple_of(8));
                assert!(self.driver.receive().is_none(), "one question at a time");
            }
        }
    }

    /// An answer to the last question, with this body.
    fn answer(&self, kind: u16, status: u32, body: &[u8]) {
        let transaction = self.asked.unwrap_or_default();
        let (framework, version) = (Version(3, 0), VERSIONS[usize::from(self.which) % 6]);
        self.send(&Message { framework, version, kind, status, transaction, body }.answer());
    }
}

/// Where a guest's rings are, in pages.
const RINGS: Range<u64> = 0x200..0x210;

/// A message of dynamic memory, and whether it gives the guest's own rings away.
fn of_memory(input: &mut Input) -> (Vec<u8>, bool) {
    let mut breaks = false;
    let kind = input.u8() % 14;
    let mut body = Vec::new();
    match kind {
        1 => body.extend([0, 0, 2, 0, 1, 0, 0, 0]),
        3 => {
            body.push(input.u8());
            body.resize(24, 0);
        }
        7 => {
            let count = u32::from(input.u8() % 8);
            let more = u32::from(input.u8() & 1);
            body.extend([0; 4]);
            body.extend((count << 1 | more).to_le_bytes());
            for _ in 0..count {
                let (start, pages) = (u64::from(input.u16()) % 0x1010, u64::from(input.u16()) % 0x300);
                body.extend((start | pages << 40).to_le_bytes());
                breaks |= start < RINGS.end && start + pages > RINGS.start;
            }
        }
        _ => {
            let len = usize::from(input.u8() % 48);
            body.extend(input.bytes(len));
        }
    }
    let mut message = vec![kind, 0, 8 + body.len() as u8, 0, 1, 0, 0, 0];
    message.extend(body);
    (message, breaks)
}

fn act(guest: &mut Guest, services: &Services, now: &mut Instant, input: &mut Input) {
    match input.u8() % 10 {
        0 => {
            let len = usize::from(input.u8());
            guest.send(input.bytes(len));
        }
        1 => {
            let version = VERSIONS[usize::from(guest.which) % 6];
            guest.answer(kind::NEGOTIATE, 0, &negotiation(&[Version(3, 0)], &[version]));
        }
        2 => {
            let kinds = [KINDS[usize::from(guest.which) % 6], input.u16()];
            let (status, len) = (u32::from(input.u8() % 3), usize::from(input.u8()));
            guest.answer(kinds[usize::from(input.u8() % 8 == 0)], status, input.bytes(len));
        }
        3 => {
            let (message, breaks) = of_memory(input);
            guest.send(&message);
            guest.broken |= breaks;
        }
        4 => *now += Duration::from_millis(u64::from(input.u16())),
        5 => services
            .want_memory([None, Some(8 << 20), Some(13 << 20), Some(16 << 20)][usize::from(input.u8() % 4)]),
        6 => {
            assert!(guest.device.pause(*now));
            services.turn(*now);
            guest.device.resume();
        }
        7 if input.u8().is_multiple_of(4) => {
            guest.device.close(0);
            *guest = Guest::open(guest.which, &guest.memory, Arc::clone(&guest.device));
        }
        8 if input.u8().is_multiple_of(8) => {
            let ring = guest.driver.controls()[usize::from(input.u8() % 2)];
            guest.broken = true;
            _ = guest.memory.write_obj(ring + u64::from(input.u8() % 20) * 4, input.u32());
        }
        _ => pair(input),
    }
}

/// A pair that a guest tells, with what the input says in place of some of it.
fn pair(input: &mut Input) {
    let mut body = vec![3, 2, 0, 0, 0, 0, 0, 0, input.u8() % 13, 0, 0, 0];
    body.extend(u32::from(input.u16()).to_le_bytes());
    body.extend(u32::from(input.u16()).to_le_bytes());
    let len = usize::from(input.u8());
    body.extend(input.bytes(len));
    body.resize(usize::from(input.u16()) % 3000, 0x41);
    if let Ok(Some(item)) = Services::read_pair(u32::from(input.u8() % 2), body) {
        assert!(item.key.encode_utf16().count() <= 256 && item.value.encode_utf16().count() <= 1024);
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let memory = Rig::memory();
    let reserve = std::iter::once((12 << 20) / PAGE..(16 << 20) / PAGE).collect();
    let services = Services::unserved(LIMITS, reserve, (16 << 20) / PAGE);
    let which = input.u8() % SERVICES;
    let mut now = Instant::now();
    let mut guest = Guest::open(which, &memory, services.device(which.into()));
    while !input.is_empty() {
        act(&mut guest, &services, &mut now, &mut input);
        services.turn(now);
        guest.receive();
        let memory = services.memory();
        assert!(
            memory.assigned <= memory.maximum && (memory.minimum..=memory.maximum).contains(&memory.target)
        );
    }
    guest.device.close(0);
});
