//! Any packets to a SCSI controller on VMBus, while its disks come, go, fail and are slow, and channels open and close. Each
//! request of a guest whose rings are sound is answered once; the controller always comes to rest, and writes nothing then.
//!
//! With one disk the target's own thread serves the channels, in an order that the input says.
#![no_main]

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use vireo_block::RamDisk;
use vireo_fuzz::{Bell, Desk, Input, PATIENCE, Rig, Witness, guest};
use vireo_memory::GuestMemory;
use vireo_scsi::{ScsiCd, ScsiDisk, opcode};
use vireo_storvsp::{Controller, Provider};
use vireo_vmbus::driver::{Driver, Received};
use vireo_vmbus::ring::{RingPair, kind};
use vireo_vmbus::{Channel, Device};

/// Where the rings of each channel are, and what requests are about.
const RINGS: [u64; 2] = [0x20_0000, 0x21_0000];
const RINGS_END: u64 = 0x22_0000;
const DATA: u64 = 0x40_0000;
const PAGE: u64 = 4096;
const DISK: usize = 1 << 16;

/// Operations: the protocol's own that introduce a driver, a SCSI command, the only one that is not asked for.
const INTRODUCTION: [(u32, u16); 4] = [(7, 0), (9, 0x602), (10, 0), (8, 0)];
const EXECUTE_SRB: u32 = 3;
const COMPLETE_IO: u32 = 1;
const ENUMERATE_BUS: u32 = 11;

const OPCODES: [u8; 16] = [
    opcode::READ_10,
    opcode::WRITE_10,
    opcode::READ_16,
    opcode::WRITE_16,
    opcode::INQUIRY,
    opcode::TEST_UNIT_READY,
    opcode::REPORT_LUNS,
    opcode::UNMAP,
    opcode::SYNCHRONIZE_CACHE_10,
    opcode::WRITE_SAME_16,
    opcode::READ_CAPACITY_10,
    opcode::SERVICE_ACTION_IN_16,
    opcode::MODE_SENSE_10,
    opcode::VERIFY_10,
    opcode::READ_6,
    opcode::REQUEST_SENSE,
];

/// A request that was sent: bytes of its packet, and whether it is a SCSI command that is to move so many.
struct Sent {
    length: usize,
    transfer: Option<u32>,
}

/// What is sent: kind of packet, ranges (length, offset, pages), data.
#[derive(Clone)]
struct Message {
    kind: u16,
    ranges: Vec<(u32, u32, Vec<u64>)>,
    data: Vec<u8>,
}

impl Message {
    /// An operation of the protocol's own.
    fn control(operation: u32, number: u16) -> Self {
        let mut data = vec![0; 64];
        data[..4].copy_from_slice(&operation.to_le_bytes());
        data[12..14].copy_from_slice(&number.to_le_bytes());
        Self { kind: kind::IN_BAND, ranges: Vec::new(), data }
    }

    /// A SCSI command that may be right.
    fn command(input: &mut Input<'_>) -> Self {
        let (what, unit, at, count) = (input.u8(), input.u8(), input.u8(), input.u8() % 20);
        let op = OPCODES[usize::from(what % 16)];
        let mut cdb = [0; 16];
        cdb[0] = op;
        let (place, amount, len) = match op >> 5 {
            0 => (3, 4, 6),
            1 | 2 => (5, 8, 10),
            4 => (9, 13, 16),
            _ => (5, 9, 12),
        };
        (cdb[place], cdb[amount]) = (at, count);
        if what & 0x80 != 0 {
            for _ in 0..3 {
                cdb[usize::from(input.u8() % 16)] = input.u8();
            }
        }
        let mut transfer = u32::from(count) * 512;
        let mut ranges = Vec::new();
        if what & 0x40 == 0 && count > 0 {
            ranges.push((
                transfer,
                0,
                (0..u64::from(count).div_ceil(8)).map(|n| (DATA / PAGE) + n).collect(),
            ));
        } else {
            for _ in 0..input.u8() % 4 {
                ranges.push(range(input));
            }
            if input.u8().is_multiple_of(2) {
                transfer = if input.u8().is_multiple_of(8) { input.u32() } else { input.u16().into() };
            }
        }
        let mut data = vec![0; if what & 0x20 == 0 { 64 } else { 48 }];
        data[..4].copy_from_slice(&EXECUTE_SRB.to_le_bytes());
        (data[12], data[20], data[21], data[22]) = (52, len, 20, 1);
        // Path, target and unit; most are of what there is.
        (data[17], data[18], data[19]) = (u8::from(unit >> 4 == 1), u8::from(unit >> 4 == 2), unit % 16 % 5);
        data[24..28].copy_from_slice(&transfer.to_le_bytes());
        data[28..44].copy_from_slice(&cdb);
        let kind = if ranges.is_empty() { kind::IN_BAND } else { kind::GPA_DIRECT };
        Self { kind, ranges, data }
    }

    /// Any packet.
    fn any(input: &mut Input<'_>) -> Self {
        let kinds = [kind::IN_BAND, kind::GPA_DIRECT, kind::COMPLETION, input.u16()];
        let kind = kinds[usize::from(input.u8() % 4)];
        let ranges = (0..input.u8() % 3).map(|_| range(input)).collect();
        let operation = u32::from(input.u8() % 16).to_le_bytes();
        let len = usize::from(input.u8() % 90);
        Self { kind, ranges, data: [&operation, input.bytes(len)].concat() }
    }

    fn pages(&self) -> impl Iterator<Item = u64> {
        self.ranges.iter().flat_map(|(.., pages)| pages.iter().copied())
    }

    /// Bytes that it takes in a ring.
    fn size(&self) -> u32 {
        let head: usize = self.ranges.iter().map(|(.., pages)| 8 + pages.len() * 8).sum();
        let head = if self.ranges.is_empty() { 0 } else { 8 + head };
        ((16 + head + self.data.len()).next_multiple_of(8) + 8) as u32
    }

    /// What has to come of it; `None`: nothing, as it is none of the protocol.
    fn sent(&self) -> Option<Sent> {
        let mut data = self.data.clone();
        data.resize(data.len().next_multiple_of(8), 0);
        let length = [64, 48].into_iter().find(|l| data.len() >= *l)?;
        let word = |at: usize| u32::from_le_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]]);
        Some(Sent { length, transfer: (word(0) == EXECUTE_SRB).then(|| word(24)) })
    }
}

/// A range of guest memory that may be right.
fn range(input: &mut Input<'_>) -> (u32, u32, Vec<u64>) {
    let len = if input.u8().is_multiple_of(8) { input.u32() } else { u32::from(input.u16()) % 20_000 };
    let offset = u32::from(input.u16()) % 5000;
    let pages = (u64::from(len) + u64::from(offset)).div_ceil(PAGE).min(8) as usize;
    let pages = (0..pages).map(|_| match input.u8() {
        0..8 => input.u64(),
        n => DATA / PAGE + u64::from(n) % 64,
    });
    (len, offset, pages.collect())
}

/// An open channel: the driver's side of it.
struct Side {
    driver: Driver,
    channel: Arc<Channel>,
    interrupts: Arc<AtomicU32>,
    /// Interrupts that the driver has heard.
    heard: u32,
    /// It has not seen its ring empty since, or asked for no interrupts.
    looks: bool,
    masked: bool,
    /// It waits for room since so many interrupts.
    waits: Option<u32>,
    /// Requests that are not answered.
    sent: HashMap<u64, Sent>,
    /// The guest has broken its rings: nothing is sure any more.
    damaged: bool,
}

impl Side {
    /// Takes up to `most` answers, if the driver has a reason to look for them.
    fn receive(&mut self, most: usize) {
        let interrupts = self.interrupts.load(Ordering::SeqCst);
        if self.damaged || !(self.looks || self.masked || interrupts != self.heard) {
            return;
        }
        (self.heard, self.looks) = (interrupts, true);
        for _ in 0..most {
            let Some(packet) = guest(|| self.driver.receive()) else {
                self.looks = false;
                return;
            };
            self.check(&packet);
            if self.driver.awaited_room() != 0 {
                self.channel.doorbell().ring();
            }
        }
    }

    fn check(&mut self, packet: &Received) {
        let data = &packet.data;
        let word = |at: usize| u32::from_le_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]]);
        if packet.kind == kind::IN_BAND {
            assert_eq!((packet.transaction, word(0)), (0, ENUMERATE_BUS), "what nobody asked for");
            return;
        }
        assert_eq!(packet.kind, kind::COMPLETION);
        let sent = self.sent.remove(&packet.transaction).expect("an answer to a request that waits for it");
        assert_eq!((data.len(), word(0)), (sent.length, COMPLETE_IO));
        if let Some(transfer) = sent.transfer {
            let (srb, scsi, sense) = (data[14], data[15], data[21]);
            assert_eq!(word(8), 0, "the protocol is kept to");
            let right = matches!((srb, scsi, sense), (1 | 0x20, 0, 0) | (0x84 | 0x82, 2, 18));
            assert!(right, "no such end: block {srb:#x}, status {scsi:#x}, {sense} bytes of sense data");
            assert!(word(24) <= transfer, "{} of {transfer} bytes were moved", word(24));
        }
    }
}

/// A guest with a controller, and its host.
struct Machine {
    memory: Arc<GuestMemory>,
    witness: Arc<Witness>,
    provider: Provider,
    controller: Arc<Controller>,
    bell: Arc<Bell>,
    /// All disks that there ever were.
    desks: Vec<Arc<Desk>>,
    /// Things that the disks do before the driver looks for answers.
    pace: usize,
    sides: [Option<Side>; 2],
    next: u64,
    paused: bool,
}

impl Machine {
    fn new(pace: usize) -> Self {
        let memory = Rig::memory();
        let witness = Witness::of(&memory);
        let controller = Controller::new();
        let provider = Provider::new(Weak::new(), 0, Arc::clone(&controller), 1);
        let (bell, desks, sides) = (Arc::default(), Vec::new(), [None, None]);
        Self { memory, witness, provider, controller, bell, desks, pace, sides, next: 1, paused: false }
    }

    fn open(&mut self, number: usize, ring_pages: u32, early: bool) {
        if self.sides[number].is_some() || (number == 1 && self.sides[0].is_none()) {
            return;
        }
        let driver = guest(|| Driver::new(&self.memory, RINGS[number], ring_pages, ring_pages));
        let pages = driver.pages();
        self.witness.allow(pages.iter().map(|p| p / PAGE));
        let rings = RingPair::new(&self.memory, &pages, driver.split()).expect("rings");
        let interrupts: Arc<AtomicU32> = Arc::default();
        let (told, bell) = (Arc::clone(&interrupts), Arc::clone(&self.bell));
        let interrupt = Box::new(move |_| {
            told.fetch_add(1, Ordering::SeqCst);
            bell.ring();
        });
        let channel = Channel::new(&self.memory, rings, [0; 120], 0, interrupt);
        let (heard, looks, masked, waits) = (0, false, false, None);
        let (sent, damaged) = (HashMap::new(), false);
        let kept = Arc::clone(&channel);
        self.sides[number] =
            Some(Side { driver, channel, interrupts, heard, looks, masked, waits, sent, damaged });
        if early {
            self.send(number, &Message::control(7, 0), false);
        }
        self.provider.open(number as u16, kept).expect("the host gives a thread");
    }

    fn close(&mut self, number: usize) {
        if let Some(side) = self.sides[number].take() {
            self.provider.close(number as u16);
            self.witness.forbid(side.driver.pages().iter().map(|p| p / PAGE));
        }
    }

    /// Sends a packet, and rings if the ring says so; whether there was room.
    fn send(&mut self, number: usize, message: &Message, rings: bool) -> bool {
        let Some(side) = &mut self.sides[number] else { return false };
        let in_rings = |page: u64| (RINGS[0] / PAGE..RINGS_END / PAGE).contains(&page);
        let hits_rings = message.pages().any(in_rings);
        self.witness.allow(message.pages());
        let transaction = self.next;
        self.next += 1;
        let ranges: Vec<_> = message.ranges.iter().map(|(l, o, pages)| (*l, *o, &pages[..])).collect();
        let send = || guest(|| side.driver.send(message.kind, transaction, &ranges, &message.data));
        let mut signal = send();
        if signal.is_none() && side.waits.is_none() && !side.damaged {
            // There may be room by now.
            side.waits = Some(side.interrupts.load(Ordering::SeqCst));
            guest(|| side.driver.wait_for_room(message.size()));
            signal = send();
        }
        let Some(signal) = signal else { return false };
        if side.waits.take().is_some() {
            guest(|| side.driver.wait_for_room(0));
        }
        if let Some(sent) = message.sent() {
            side.sent.insert(transaction, sent);
        }
        if signal && rings {
            side.channel.doorbell().ring();
        }
        if hits_rings {
            self.damage();
        }
        true
    }

    /// The rings may hold anything from now on.
    fn damage(&mut self) {
        self.witness.lose();
        self.sides.iter_mut().flatten().for_each(|side| side.damaged = true);
    }

    /// The driver changes its rings as it likes.
    fn noise(&mut self, number: usize, input: &mut Input<'_>) {
        let Some(side) = &self.sides[number] else { return };
        let ring = side.driver.controls()[usize::from(input.u8() % 2)];
        let at = u64::from(input.u8());
        let value = input.u32();
        let place = if at % 2 == 0 { at / 2 % 20 * 4 } else { 4096 + at / 2 * 8 };
        let value = if value.is_multiple_of(4) { value % 4096 } else { value };
        guest(|| self.memory.write_obj(ring + place, value).expect("RAM"));
        side.channel.doorbell().ring();
        self.damage();
    }

    fn add(&mut self, what: u8) {
        let unit: Arc<dyn vireo_scsi::LogicalUnit> = if what % 4 == 3 {
            Arc::new(ScsiCd::new(Some(Arc::new(RamDisk::new(DISK, 512)))).expect("sectors of a CD"))
        } else {
            let desk = Desk::new(DISK, &self.bell);
            self.desks.push(Arc::clone(&desk));
            Arc::new(ScsiDisk::new(desk))
        };
        _ = self.controller.add((what & 0x80 != 0).then_some(what % 5), unit);
    }

    /// All disks do all that they are asked for, while the driver takes answers.
    fn work(&mut self) {
        for rounds in 0.. {
            assert!(rounds < 1_000_000, "it never comes to rest");
            let steps = || (0..self.pace).take_while(|_| self.desks.iter().any(|desk| desk.step(0, false)));
            let idle = steps().count() == 0;
            self.sides.iter_mut().flatten().for_each(|side| side.receive(usize::MAX));
            if idle {
                return;
            }
        }
    }

    /// Until every request is answered.
    fn settle(&mut self) {
        if self.paused {
            return;
        }
        // One that masks interrupts would have to look all the time.
        for number in 0..2 {
            self.mask(number, false);
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let count = self.bell.count();
            self.work();
            let waits = |side: &&Side| {
                let room = side.waits.is_some_and(|before| before == side.interrupts.load(Ordering::SeqCst));
                !side.damaged && (!side.sent.is_empty() || room)
            };
            if self.sides.iter().flatten().find(waits).is_none() {
                return;
            }
            let rung = self.bell.wait(count, deadline);
            let left: Vec<_> = self.sides.iter().flatten().map(|s| (s.sent.len(), s.waits)).collect();
            assert!(rung, "no answer, or no word of room: {left:?}");
        }
    }

    /// Has the controller come to rest, while its disks work.
    fn pause(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.paused {
            self.work();
            self.paused = self.provider.pause(Instant::now() + PATIENCE / 10_000);
            assert!(self.paused || Instant::now() < deadline, "it does not come to rest");
        }
        self.witness.keep_still(true);
    }

    fn resume(&mut self) {
        self.witness.keep_still(false);
        self.paused = false;
        self.provider.resume();
    }

    /// What the host does, whether the guest runs or not.
    fn host(&mut self, input: &mut Input<'_>) {
        let what = input.u8();
        match what % 8 {
            0 => self.add(input.u8()),
            1 => _ = self.controller.remove(input.u8() % 5),
            2 => {
                if let Some(desk) = self.desks.get(usize::from(input.u8() % 4)) {
                    desk.disk().resize(DISK + usize::from(input.u8() % 4) * 4096);
                }
                self.controller.look();
            }
            3 if self.paused => self.resume(),
            3 => self.pause(),
            4 if !self.paused => {
                // One that may be in vain.
                self.paused = self.provider.pause(Instant::now());
                self.witness.keep_still(self.paused);
            }
            5 => {
                (0..2).for_each(|number| self.close(number));
                self.provider.reset();
            }
            _ => {
                for _ in 0..what >> 4 {
                    let (which, fails) = (input.u8(), input.u8().is_multiple_of(8));
                    if let Some(desk) = self.desks.get(usize::from(which % 4)) {
                        desk.step(usize::from(which / 4), fails);
                    }
                }
            }
        }
    }

    /// What the guest does, in a channel.
    fn guest(&mut self, act: u8, input: &mut Input<'_>) {
        let number = usize::from(act >> 7);
        match act % 16 {
            0..6 => _ = self.send(number, &Message::command(input), true),
            6 => _ = self.send(number, &Message::any(input), true),
            7 => {
                let message = Message::control(u32::from(input.u8() % 16), u16::from_le_bytes(input.array()));
                self.send(number, &message, true);
            }
            8 => {
                for (operation, argument) in INTRODUCTION {
                    self.send(number, &Message::control(operation, argument), true);
                }
            }
            9 if act & 0x40 != 0 => self.noise(number, input),
            9 => self.burst(number, input),
            10 => {
                if let Some(side) = &mut self.sides[number] {
                    side.receive(usize::from(input.u8()));
                }
            }
            11 => self.mask(number, act & 0x40 == 0),
            12 => {
                if let Some(side) = &self.sides[number] {
                    side.channel.doorbell().ring();
                }
            }
            13 => {
                // A device loses its further channels with its first, before or after it.
                if number == 0 && act & 0x40 != 0 {
                    self.close(1);
                }
                self.close(number);
                if number == 0 {
                    self.close(1);
                }
            }
            14 => self.open(number, u32::from(input.u8() % 4) + 1, act & 0x40 != 0),
            _ => self.settle(),
        }
    }

    /// Many requests, of which none is done meanwhile: as many as the controller takes, if there are enough.
    fn burst(&mut self, number: usize, input: &mut Input<'_>) {
        let message = Message::command(input);
        let many = u32::from(input.u8());
        for _ in 0..many * many / 8 {
            let count = self.bell.count();
            if self.send(number, &message, true) {
                continue;
            }
            let turns = self.desks.iter().filter(|desk| desk.turn()).count();
            if turns == 0 && !self.bell.wait(count, Instant::now() + PATIENCE / 5000) {
                break;
            }
        }
    }

    /// The driver asks for no interrupts, or for interrupts again and looks once more.
    fn mask(&mut self, number: usize, masked: bool) {
        if let Some(side) = self.sides[number].as_mut().filter(|s| !s.damaged && s.masked != masked) {
            (side.masked, side.looks) = (masked, true);
            guest(|| side.driver.mask(masked));
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let start = input.u8();
    let mut machine = Machine::new(if start & 0x10 == 0 { 1 << 16 } else { 8 });
    machine.open(0, u32::from(start % 4) + 1, false);
    (0..start >> 2 & 3).for_each(|_| machine.add(0));
    if start & 0x80 == 0 {
        machine.guest(8, &mut input);
        machine.settle();
    }
    while !input.is_empty() {
        let act = input.u8();
        if machine.paused || act % 4 == 3 {
            machine.host(&mut input);
        } else {
            machine.guest(input.u8(), &mut input);
        }
    }
    if machine.paused {
        machine.resume();
    }
    machine.settle();
    machine.pause();
    machine.resume();
    (0..2).for_each(|number| machine.close(number));
    machine.work();
    let desks = std::mem::take(&mut machine.desks);
    drop(machine);
    assert!(desks.iter().all(|desk| Arc::strong_count(desk) == 1), "nobody keeps a disk");
});
