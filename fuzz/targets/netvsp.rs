//! Any packets to a network adapter on VMBus, and any frames from its network, while channels open and close, the adapter pauses, and
//! the network is full. The adapter writes to its rings and to the buffer that the guest gave, and to nothing at rest; it always comes
//! to rest; each packet of a guest whose rings are sound is completed at most once.
#![no_main]

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use vireo_frame::{Ability, Adapter, Checksum, End, FRAME_MAX, Filter, Frame, Full, Link, Mac, NotAllowed};
use vireo_fuzz::{Input, PATIENCE, Rig, Witness, guest};
use vireo_memory::GuestMemory;
use vireo_netvsp::{Bus, Provider, Settings};
use vireo_vmbus::driver::Driver;
use vireo_vmbus::ring::{RingPair, kind};
use vireo_vmbus::{Channel, Device};

const PAGE: u64 = 4096;
const RINGS: [u64; 2] = [0x20_0000, 0x22_0000];
const DATA: u64 = 0x30_0000;
const RECEIVE: u64 = 0x40_0000;
const SEND: u64 = 0x60_0000;
const BUFFER_PAGES: u64 = 24;
const ADDRESS: Mac = Mac([0, 0x15, 0x5d, 0, 0, 1]);

/// Gives the same memory under every name but some, which are of nobody.
struct Lists;

impl Bus for Lists {
    fn gpadl(&self, name: u32) -> Option<Arc<[u64]>> {
        match name % 8 {
            0..5 => Some((0..BUFFER_PAGES).map(|n| RECEIVE + (n ^ 1) * PAGE).collect()),
            5 => Some((0..BUFFER_PAGES).map(|n| SEND + n * PAGE).collect()),
            6 => Some([u64::MAX & !0xfff, 0].into()),
            _ => None,
        }
    }
    fn offer_subchannels(&self, _count: u16, _most: u16) -> bool {
        true
    }
}

/// A network that looks at all that it gets, and takes so many frames before it is full.
#[derive(Default)]
struct Wire {
    adapter: Mutex<Option<Arc<dyn Adapter>>>,
    ability: Mutex<Ability>,
    room: AtomicUsize,
}

impl End for Wire {
    fn put(&self, frame: &Frame<'_>) -> Result<(), Full> {
        let left = self.room.load(Ordering::SeqCst);
        if left == 0 {
            return Err(Full);
        }
        self.room.store(left - 1, Ordering::SeqCst);
        assert!(self.ability().takes(&frame.intent()) && frame.len() <= FRAME_MAX);
        let mut bytes = Vec::new();
        frame.append_to(&mut bytes).expect("RAM");
        assert_eq!(bytes.len(), frame.len());
        Ok(())
    }
    fn flush(&self) {}
    fn room(&self) {}
}

impl Link for Wire {
    fn plug(&self, adapter: Option<Arc<dyn Adapter>>) {
        *self.adapter.lock().unwrap() = adapter;
    }
    fn ability(&self) -> Ability {
        *self.ability.lock().unwrap()
    }
    fn set_adapter_ability(&self, _ability: Ability) {}
    fn set_filter(&self, _filter: &Filter) {}
    fn set_address(&self, address: Mac) -> Result<(), NotAllowed> {
        if address.0[5] % 2 == 0 { Ok(()) } else { Err(NotAllowed) }
    }
    fn mtu(&self) -> u32 {
        9000
    }
}

struct Side {
    driver: Driver,
    channel: Arc<Channel>,
    /// Packets that are not completed.
    sent: HashSet<u64>,
}

struct Machine {
    memory: Arc<GuestMemory>,
    witness: Arc<Witness>,
    wire: Arc<Wire>,
    provider: Arc<Provider>,
    sides: [Option<Side>; 2],
    next: u64,
    paused: bool,
}

impl Machine {
    fn new() -> Self {
        let memory = Rig::memory();
        let witness = Witness::of(&memory);
        // A driver may give either to receive in.
        witness
            .allow([RECEIVE, SEND].into_iter().flat_map(|at| (0..BUFFER_PAGES).map(move |n| at / PAGE + n)));
        let wire = Arc::<Wire>::default();
        wire.room.store(usize::MAX, Ordering::SeqCst);
        let settings = Settings { address: ADDRESS, subchannels: 1 };
        let provider = Provider::new(Box::new(Lists), Arc::clone(&wire) as _, settings);
        Self { memory, witness, wire, provider, sides: [None, None], next: 1, paused: false }
    }

    fn open(&mut self, number: usize) {
        if self.paused || self.sides[number].is_some() || (number == 1 && self.sides[0].is_none()) {
            return;
        }
        let driver = guest(|| Driver::new(&self.memory, RINGS[number], 4, 4));
        let pages = driver.pages();
        self.witness.allow(pages.iter().map(|p| p / PAGE));
        let rings = RingPair::new(&self.memory, &pages, driver.split()).expect("rings");
        let channel = Channel::new(&self.memory, rings, [0; 120], 0, Box::new(|_| ()));
        self.sides[number] = Some(Side { driver, channel: Arc::clone(&channel), sent: HashSet::new() });
        self.provider.open(number as u16, channel).expect("the host gives a thread");
    }

    fn close(&mut self, number: usize) {
        if number == 0 {
            self.close(1);
        }
        if let Some(side) = self.sides[number].take() {
            self.provider.close(number as u16);
            self.witness.forbid(side.driver.pages().iter().map(|p| p / PAGE));
        }
    }

    fn send(&mut self, number: usize, of: u16, ranges: &[(u32, u32, &[u64])], data: &[u8]) {
        let Some(side) = &mut self.sides[number] else { return };
        let transaction = self.next;
        self.next += 1;
        if guest(|| side.driver.send(of, transaction, ranges, data)).is_some() {
            side.sent.insert(transaction);
            side.channel.doorbell().ring();
        }
    }

    /// Reads what is there, and gives back what has to be, unless the input is of a guest that does not.
    fn receive(&mut self, number: usize, gives: bool) {
        let Some(side) = &mut self.sides[number] else { return };
        while let Some(packet) = guest(|| side.driver.receive()) {
            match packet.kind {
                kind::COMPLETION => {
                    assert!(side.sent.remove(&packet.transaction), "completed twice, or never sent")
                }
                kind::TRANSFER_PAGES if gives => {
                    let done = [108, 0, 0, 0, 1, 0, 0, 0];
                    guest(|| side.driver.send(kind::COMPLETION, packet.transaction, &[], &done));
                }
                _ => {}
            }
            side.channel.doorbell().ring();
        }
    }

    fn pause(&mut self) {
        if !self.paused {
            assert!(self.provider.pause(Instant::now() + PATIENCE), "it does not come to rest");
            self.witness.keep_still(true);
            self.paused = true;
        }
    }

    fn resume(&mut self) {
        if self.paused {
            self.witness.keep_still(false);
            self.provider.resume();
            self.paused = false;
        }
    }
}

/// Messages that introduce a driver, to be changed here and there.
fn nvsp(input: &mut Input<'_>) -> Vec<u8> {
    let version = [2, 0x3_0002, 0x4_0000, 0x5_0000, 0x6_0000, 0x6_0001][usize::from(input.u8()) % 6];
    let words: Vec<u32> = match input.u8() % 10 {
        0 => vec![1, version, version],
        1 => vec![125, u32::from(input.u16()), 0, 0x88, 0],
        2 => vec![101, input.u8().into(), 0xcafe],
        3 => vec![104, input.u8().into(), 0],
        4 => vec![103],
        5 => vec![106],
        6 => vec![133, 1, input.u8().into()],
        7 => vec![input.u32(), input.u32(), input.u32(), input.u32()],
        8 => vec![131, input.u32()],
        _ => vec![107, (input.u8() % 2).into(), input.u8().into(), u32::from(input.u16()) % 7000],
    };
    let mut bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    bytes.resize(40, 0);
    bytes
}

/// A message of RNDIS: fields that may be right, then bytes.
fn rndis(input: &mut Input<'_>, control: bool) -> Vec<u8> {
    const OIDS: [u32; 12] = [
        0x0001_010e,
        0x0101_0103,
        0xfc01_020c,
        0xfc01_020d,
        0x0001_0204,
        0x0001_021b,
        0x0001_0203,
        0x0001_0101,
        0x0101_0101,
        0x0002_0216,
        0x0001_0106,
        0x0001_0107,
    ];
    let body = usize::from(input.u16()) % 600;
    let bytes = input.bytes(body).to_vec();
    let (kind, fields) = if control {
        let oid = if input.u8() % 4 == 0 { input.u32() } else { OIDS[usize::from(input.u8()) % OIDS.len()] };
        let kind = [2, 4, 5, 5, 4, 3, 6, 8][usize::from(input.u8()) % 8];
        (kind, vec![9, oid, bytes.len() as u32, 20, 0])
    } else {
        let infos = u32::from(input.u8() % 4) * 16;
        let slip = if input.u8() % 8 == 0 { input.u32() } else { 0 };
        let data = (bytes.len() as u32).wrapping_add(slip).saturating_sub(infos);
        (1, vec![36 + infos, data, 0, 0, 0, 36, infos, 0, 0])
    };
    let length = (8 + fields.len() * 4 + bytes.len()) as u32;
    let length = if input.u8() % 16 == 0 { input.u32() } else { length };
    let words = [vec![kind, length], fields].concat();
    [words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>(), bytes].concat()
}

/// A message with a packet, beside which is what is to be done to it.
fn packet(input: &mut Input<'_>) -> Vec<u8> {
    const CHECKSUM: u32 = 0;
    const LARGE_SEND: u32 = 2;
    const TAG: u32 = 6;
    let (bytes, intent) = input.packet(20_000);
    let mut infos: Vec<[u32; 2]> = intent.tag.map(|tag| [TAG, tag.0.into()]).into_iter().collect();
    if let Checksum::Wanted { start, offset } = intent.checksum {
        let start = u32::from(start) & 0x3ff;
        infos.push(match intent.segmentation {
            Some(cut) => [LARGE_SEND, u32::from(cut.size) | start << 20],
            // Of IPv4, which has a sum as well; of TCP or UDP.
            None => [CHECKSUM, if offset == 16 { 4 } else { 8 } | u32::from(input.u8() & 0x13) | start << 16],
        });
    }
    let info_bytes = infos.len() as u32 * 16;
    let data = 36 + info_bytes;
    let length = 8 + data + bytes.len() as u32;
    let fields = [1, length, data, bytes.len() as u32, 0, 0, 0, 36, info_bytes, 0, 0];
    let infos = infos.iter().flat_map(|[kind, value]| [16, *kind, 12, *value]);
    let mut message: Vec<u8> = fields.into_iter().chain(infos).flat_map(u32::to_le_bytes).collect();
    message.extend(bytes);
    message
}

fn send_rndis(machine: &mut Machine, number: usize, input: &mut Input<'_>) {
    let (mut message, control) = match input.u8() % 3 {
        0 => (packet(input), false),
        1 => (rndis(input, true), true),
        _ => (rndis(input, false), false),
    };
    if input.u8() % 4 == 0 {
        message.extend(rndis(input, control));
    }
    let (in_section, from) = (input.u8() % 2 == 0, usize::from(input.u16()));
    let split = if in_section { message.len().min(from.max(8)) } else { 0 };
    let (section, pages) = message.split_at(split);
    let index = u32::from(input.u8() % 4);
    guest(|| machine.memory.write(SEND + u64::from(index) * 6144, section).expect("RAM"));
    guest(|| machine.memory.write(DATA + 100, pages).expect("RAM"));
    let words = [107, u32::from(control), if in_section { index } else { u32::MAX }, section.len() as u32];
    let mut data: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    data.resize(40, 0);
    let numbers: Vec<u64> = (0..(100 + pages.len() as u64).div_ceil(PAGE)).map(|n| DATA / PAGE + n).collect();
    match pages.is_empty() {
        true => machine.send(number, kind::IN_BAND, &[], &data),
        false => machine.send(number, kind::GPA_DIRECT, &[(pages.len() as u32, 100, &numbers)], &data),
    }
}

/// A frame of the network's, with any intent that it can have.
fn put(machine: &Machine, input: &mut Input<'_>) {
    let most = if input.u8() % 8 == 0 { 60_000 } else { 1600 };
    let (mut bytes, intent) = input.packet(most);
    if let (Some(to), true) = (bytes.get_mut(..6), input.u8() % 4 > 0) {
        to.copy_from_slice(&ADDRESS.0);
    }
    let adapter = machine.wire.adapter.lock().unwrap().clone();
    if let (Ok(frame), Some(adapter)) = (Frame::new(&bytes, &[], intent), adapter) {
        _ = adapter.put(&frame);
        adapter.flush();
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let mut machine = Machine::new();
    if input.u8() % 2 == 0 {
        *machine.wire.ability.lock().unwrap() = Ability::ALL;
    }
    machine.open(0);
    while !input.is_empty() {
        let number = usize::from(input.u8() % 8 == 0);
        match input.u8() % 16 {
            0..4 => {
                let message = nvsp(&mut input);
                machine.send(number, kind::IN_BAND, &[], &message);
            }
            4..8 => send_rndis(&mut machine, number, &mut input),
            8..10 => put(&machine, &mut input),
            10 => machine.receive(number, input.u8() % 8 > 0),
            11 => match machine.paused {
                true => machine.resume(),
                false => machine.pause(),
            },
            12 => {
                machine.wire.room.store(usize::from(input.u8()), Ordering::SeqCst);
                let adapter = machine.wire.adapter.lock().unwrap().clone();
                adapter.inspect(|a| a.room());
            }
            13 => {
                let up = input.u8() % 2 == 0;
                let adapter = machine.wire.adapter.lock().unwrap().clone();
                adapter.inspect(|a| a.set_carrier(up, input.u8().into()));
            }
            14 => machine.open(number),
            _ => {
                machine.resume();
                machine.close(number);
            }
        }
    }
    machine.wire.room.store(usize::MAX, Ordering::SeqCst);
    machine.receive(0, true);
    machine.receive(1, true);
    machine.pause();
    machine.resume();
    machine.close(0);
    machine.provider.unplug();
});
