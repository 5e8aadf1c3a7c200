//! A driver, an adapter and a network that keeps all frames.

use std::collections::HashMap;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use vireo_frame::{Ability, Adapter, End, Filter, Frame, Full, Intent, Link, Mac, NotAllowed};
use vireo_memory::{GuestMemory, Holes, RamLayout};
use vireo_vmbus::driver::{Driver, Interrupts, Received};
use vireo_vmbus::ring::{RingPair, kind};
use vireo_vmbus::{Channel, Device};

use crate::bytes::{le32, words};
use crate::{Bus, Provider, Settings};

pub const RINGS: u64 = 0x20_0000;
/// Where requests of RNDIS, and frames that are not in the send buffer, are.
pub const DATA: u64 = 0x30_0000;
pub const RECEIVE: u64 = 0x100_0000;
pub const RECEIVE_PAGES: u64 = 64;
pub const SEND: u64 = 0x180_0000;
pub const ADDRESS: Mac = Mac([0, 0x15, 0x5d, 0, 0, 1]);
pub const OTHER: Mac = Mac([0, 0x15, 0x5d, 0, 0, 2]);

/// Names that the guest gave its memory, and channels that it was offered.
#[derive(Default)]
pub struct Given {
    pub gpadls: HashMap<u32, Arc<[u64]>>,
    pub offered: u16,
    /// The next who asks for a name waits here.
    pub gate: Option<Receiver<()>>,
}

struct TestBus(Arc<Mutex<Given>>);

impl Bus for TestBus {
    fn gpadl(&self, name: u32) -> Option<Arc<[u64]>> {
        let gate = self.0.lock().unwrap().gate.take();
        gate.inspect(|gate| _ = gate.recv());
        self.0.lock().unwrap().gpadls.get(&name).cloned()
    }
    fn offer_subchannels(&self, count: u16, _most: u16) -> bool {
        self.0.lock().unwrap().offered = count;
        true
    }
}

/// A network that keeps what it gets, takes what it is told to, and may be full.
#[derive(Default)]
pub struct Wire {
    pub adapter: Mutex<Option<Arc<dyn Adapter>>>,
    pub frames: Mutex<Vec<(Vec<u8>, Intent)>>,
    pub came: Condvar,
    pub ability: Mutex<Ability>,
    /// Frames that it takes before it is full; `None`: all.
    pub room: Mutex<Option<usize>>,
    pub told_room: Mutex<u32>,
    pub adapter_ability: Mutex<Ability>,
    pub filter: Mutex<Filter>,
    pub fixed_address: bool,
    /// What was wanted last.
    pub address: Mutex<Option<Mac>>,
    /// It takes a frame for each token, until there is nobody who has any.
    pub gate: Option<Mutex<Receiver<()>>>,
}

impl End for Wire {
    fn put(&self, frame: &Frame<'_>) -> Result<(), Full> {
        if let Some(gate) = &self.gate {
            _ = gate.lock().unwrap().recv();
        }
        let mut room = self.room.lock().unwrap();
        if let Some(left) = &mut *room {
            *left = left.checked_sub(1).ok_or(Full)?;
        }
        let mut bytes = Vec::new();
        frame.append_to(&mut bytes).expect("RAM");
        self.frames.lock().unwrap().push((bytes, frame.intent()));
        self.came.notify_all();
        Ok(())
    }
    fn flush(&self) {}
    fn room(&self) {
        *self.told_room.lock().unwrap() += 1;
        self.came.notify_all();
    }
}

impl Link for Wire {
    fn plug(&self, adapter: Option<Arc<dyn Adapter>>) {
        *self.adapter.lock().unwrap() = adapter;
    }
    fn ability(&self) -> Ability {
        *self.ability.lock().unwrap()
    }
    fn set_adapter_ability(&self, ability: Ability) {
        *self.adapter_ability.lock().unwrap() = ability;
    }
    fn set_filter(&self, filter: &Filter) {
        *self.filter.lock().unwrap() = filter.clone();
    }
    fn set_address(&self, address: Mac) -> Result<(), NotAllowed> {
        *self.address.lock().unwrap() = Some(address);
        if self.fixed_address { Err(NotAllowed) } else { Ok(()) }
    }
    fn mtu(&self) -> u32 {
        9000
    }
}

/// A channel as its driver has it.
pub struct Line {
    pub driver: Driver,
    pub channel: Arc<Channel>,
    interrupts: Interrupts,
}

impl Line {
    fn new(memory: &Arc<GuestMemory>, number: u16) -> Self {
        let driver = Driver::new(memory, RINGS + 0x2_0000 * u64::from(number), 8, 8);
        let rings = RingPair::new(memory, &driver.pages(), driver.split()).expect("rings");
        let interrupts = Interrupts::default();
        let channel = Channel::new(memory, rings, [0; 120], 0, interrupts.sink());
        Self { driver, channel, interrupts }
    }

    /// Sends a packet.
    pub fn send(&self, kind: u16, transaction: u64, ranges: &[(u32, u32, &[u64])], data: &[u8]) {
        let mut data = data.to_vec();
        data.resize(40, 0);
        if self.driver.send(kind, transaction, ranges, &data).expect("room") {
            self.channel.doorbell().ring();
        }
    }

    /// Waits for the next packet, by interrupts alone: one that does not come is a failure.
    pub fn receive(&self) -> Received {
        let packet = self.interrupts.receive(&self.driver, Duration::from_secs(20)).expect("no interrupt");
        if self.driver.awaited_room() != 0 {
            self.channel.doorbell().ring();
        }
        packet
    }
}

pub struct Rig {
    pub memory: Arc<GuestMemory>,
    pub driver: Driver,
    pub channel: Arc<Channel>,
    pub wire: Arc<Wire>,
    pub given: Arc<Mutex<Given>>,
    pub provider: Arc<Provider>,
    interrupts: Interrupts,
    transaction: Mutex<u64>,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.provider.close(0);
        self.provider.unplug();
    }
}

impl Rig {
    pub fn new(wire: Wire) -> Self {
        let holes = Holes { legacy: 0xa_0000..0xc_0000, pci: 0xc000_0000..0x1_0000_0000 };
        let memory = GuestMemory::new(RamLayout::new(32 << 20, &holes).unwrap()).unwrap();
        let Line { driver, channel, interrupts } = Line::new(&memory, 0);
        let (wire, given) = (Arc::new(wire), Arc::<Mutex<Given>>::default());
        let settings = Settings { address: ADDRESS, subchannels: 3 };
        let bus = Box::new(TestBus(Arc::clone(&given)));
        let provider = Provider::new(bus, Arc::clone(&wire) as _, settings);
        provider.open(0, Arc::clone(&channel)).expect("it opens");
        let transaction = Mutex::new(1);
        Self { memory, driver, channel, wire, given, provider, interrupts, transaction }
    }

    /// Opens a further channel, or the first one anew.
    pub fn open(&self, number: u16) -> Line {
        let line = Line::new(&self.memory, number);
        self.provider.open(number, Arc::clone(&line.channel)).expect("it opens");
        line
    }

    /// With a driver of this version that has introduced itself, and wants all frames. `rsc`: it takes coalesced ones.
    pub fn ready(wire: Wire, version: u32, rsc: bool) -> Self {
        let rig = Self::new(wire);
        rig.introduce(version, 1514, rsc);
        assert_eq!(le32(&rig.control(2, &words(&[7, 1, 0, 0x4000])), 12), Some(0), "initialized");
        let wish = if rsc { 2 } else { 1 };
        let wishes =
            [0x80, 3, 28, 0, 1, 4, 4, 4, 4, 0, 0, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, wish, wish, 0, 0, 0, 0];
        assert_eq!(rig.set(0xfc01_020c, &wishes), 0);
        assert_eq!(rig.set(0x0001_010e, &words(&[0xf])), 0, "packet filter");
        rig
    }

    /// The version, what the driver is, its buffers.
    pub fn introduce(&self, version: u32, frame: u32, rsc: bool) {
        let answer = self.ask(&words(&[1, version, version]));
        assert_eq!((le32(&answer, 0), le32(&answer, 12)), (Some(2), Some(1)));
        self.tell(&words(&[125, frame, 0, 8 | u32::from(rsc) << 7, 0]));
        self.tell(&words(&[100, 6, 0x1e]));
        self.give(0xe1, RECEIVE, RECEIVE_PAGES);
        self.give(0xe2, SEND, 16);
        let answer = self.ask(&words(&[101, 0xe1, 0xcafe]));
        assert_eq!((le32(&answer, 0), le32(&answer, 4), le32(&answer, 8)), (Some(102), Some(1), Some(1)));
        let answer = self.ask(&words(&[104, 0xe2, 0]));
        assert_eq!(answer[..12], words(&[105, 1, 6144]));
    }

    /// Gives memory away under a name.
    pub fn give(&self, name: u32, start: u64, pages: u64) {
        // Not in the order in which it lies.
        let pages = (0..pages).map(|n| start + (n ^ 1) * 4096).collect();
        self.given.lock().unwrap().gpadls.insert(name, pages);
    }

    /// The address of a byte of a buffer that was given away.
    pub fn at(&self, start: u64, offset: u32) -> u64 {
        let offset = u64::from(offset);
        start + ((offset / 4096) ^ 1) * 4096 + offset % 4096
    }

    /// Bytes of a buffer that was given away.
    pub fn read(&self, start: u64, offset: u32, length: u32) -> Vec<u8> {
        let byte = |n| self.memory.read_obj::<u8>(self.at(start, offset + n)).expect("RAM");
        (0..length).map(byte).collect()
    }

    pub fn write(&self, start: u64, offset: u32, bytes: &[u8]) {
        for (n, byte) in (0..).zip(bytes) {
            self.memory.write(self.at(start, offset + n), &[*byte]).expect("RAM");
        }
    }

    fn next(&self) -> u64 {
        let mut transaction = self.transaction.lock().unwrap();
        *transaction += 1;
        *transaction
    }

    /// Sends a packet; its name.
    pub fn send(&self, kind: u16, ranges: &[(u32, u32, &[u64])], data: &[u8]) -> u64 {
        let transaction = self.next();
        if self.driver.send(kind, transaction, ranges, data).expect("room") {
            self.channel.doorbell().ring();
        }
        transaction
    }

    /// A message of NVSP.
    pub fn tell(&self, message: &[u8]) -> u64 {
        let mut message = message.to_vec();
        message.resize(40, 0);
        self.send(kind::IN_BAND, &[], &message)
    }

    /// The same, and its answer. Notices that are none are passed over.
    pub fn ask(&self, message: &[u8]) -> Vec<u8> {
        let transaction = self.tell(message);
        let answer = self.receive();
        assert_eq!((answer.kind, answer.transaction), (kind::COMPLETION, transaction));
        answer.data
    }

    /// Waits for the next packet, by interrupts alone: one that does not come is a failure.
    pub fn receive(&self) -> Received {
        let packet = self.interrupts.receive(&self.driver, Duration::from_secs(20)).expect("no interrupt");
        if self.driver.awaited_room() != 0 {
            self.channel.doorbell().ring();
        }
        packet
    }

    /// A message of RNDIS in pages, and what comes of it: the answer's bytes, whose section is given back.
    pub fn control(&self, kind: u32, fields: &[u8]) -> Vec<u8> {
        let message = [&words(&[kind, 8 + fields.len() as u32]), fields].concat();
        self.memory.write(DATA, &message).unwrap();
        let ranges: &[(u32, u32, &[u64])] = &[(message.len() as u32, 0, &[DATA / 4096])];
        let mut data = words(&[107, 1, u32::MAX, 0]);
        data.resize(40, 0);
        self.send(kind::GPA_DIRECT, ranges, &data);
        // The request is taken, and answered; in any order.
        let (first, second) = (self.receive(), self.receive());
        let answer = if first.kind == kind::TRANSFER_PAGES { first } else { second };
        assert_eq!(answer.kind, kind::TRANSFER_PAGES);
        assert_eq!(le32(&answer.data, 4), Some(1), "a control message");
        let message = self.ranges(&answer).remove(0);
        self.give_back(&answer);
        message
    }

    /// What the ranges of a packet have in them.
    pub fn ranges(&self, packet: &Received) -> Vec<Vec<u8>> {
        let head = &packet.head;
        assert_eq!(le32(head, 0), Some(0xcafe));
        let count = le32(head, 4).unwrap() as usize;
        let range = |n: usize| (le32(head, 8 + n * 8).unwrap(), le32(head, 12 + n * 8).unwrap());
        (0..count).map(range).map(|(length, offset)| self.read(RECEIVE, offset, length)).collect()
    }

    /// The driver is done with a packet's sections.
    pub fn give_back(&self, packet: &Received) {
        let data = words(&[108, 1]);
        if self.driver.send(kind::COMPLETION, packet.transaction, &[], &data).expect("room") {
            self.channel.doorbell().ring();
        }
    }

    /// A query; its status and value.
    pub fn query(&self, oid: u32, with: &[u8]) -> (u32, Vec<u8>) {
        let length = with.len() as u32;
        let answer = self.control(4, &[&words(&[9, oid, length, 20, 0]), with].concat());
        let (status, length, offset) = (le32(&answer, 12), le32(&answer, 16), le32(&answer, 20));
        let value = crate::bytes::part(&answer, offset.unwrap() + 8, length.unwrap()).unwrap();
        (status.unwrap(), value.to_vec())
    }

    /// Sets something; the status.
    pub fn set(&self, oid: u32, value: &[u8]) -> u32 {
        let answer = self.control(5, &[&words(&[9, oid, value.len() as u32, 20, 0]), value].concat());
        le32(&answer, 12).unwrap()
    }

    /// Puts a frame from the network.
    pub fn put(&self, bytes: &[u8], intent: Intent) -> Result<(), Full> {
        let adapter = self.wire.adapter.lock().unwrap().clone().expect("it is plugged in");
        let put = adapter.put(&Frame::new(bytes, &[], intent).unwrap());
        adapter.flush();
        put
    }

    /// Waits until the network has so many frames.
    pub fn sent(&self, count: usize) -> Vec<(Vec<u8>, Intent)> {
        let frames = self.wire.frames.lock().unwrap();
        let wait = self.wire.came.wait_timeout_while(frames, Duration::from_secs(20), |f| f.len() < count);
        let (mut frames, wait) = wait.unwrap();
        assert!(!wait.timed_out(), "frames are missing");
        std::mem::take(&mut *frames)
    }
}

/// A data message with this information: kinds and values.
pub fn packet(frame: &[u8], infos: &[(u32, u32)], pad: usize) -> Vec<u8> {
    let info = infos.len() as u32 * 16;
    let data = 36 + info;
    let length = 8 + data + (frame.len() + pad) as u32;
    let mut message = words(&[1, length, data, frame.len() as u32, 0, 0, 0, 36, info, 0, 0]);
    for (kind, value) in infos {
        message.extend(words(&[16, *kind, 12, *value]));
    }
    message.extend_from_slice(frame);
    message.resize(message.len() + pad, 0);
    message
}

/// A frame for somebody that means nothing.
pub fn plain(to: Mac, from: Mac, length: usize) -> Vec<u8> {
    let body = (0..length - 14).map(|n| n as u8);
    to.0.into_iter().chain(from.0).chain([0x88, 0xb5]).chain(body).collect()
}
