//! All of it: rings, the thread, and a guest that does what drivers do.

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use vireo_memory::{GuestMemory, Holes, RamLayout};
use vireo_vmbus::driver::{Driver, Interrupts};
use vireo_vmbus::ring::{RingPair, kind as packet};
use vireo_vmbus::{Channel, Device};

use crate::error::status;
use crate::message::{Message, Version, negotiation};
use crate::{
    CopyError, CopyTo, MemoryLimits, Pool, Pulse, ServiceError, ServiceState, Services, ShutdownKind,
};

/// Numbers of services, as they are offered.
const SHUTDOWN: usize = 0;
const HEARTBEAT: usize = 1;
const KVP: usize = 3;
const VSS: usize = 4;
const COPY: usize = 5;
/// All of them.
const ALL: usize = 7;

/// The other side of a channel.
struct Line {
    driver: Driver,
    channel: Arc<Channel>,
    interrupts: Interrupts,
}

fn memory() -> Arc<GuestMemory> {
    let holes = Holes { legacy: 0xa_0000..0xc_0000, pci: 0xc000_0000..0x1_0000_0000 };
    GuestMemory::new(RamLayout::new(16 << 20, &holes).unwrap()).unwrap()
}

fn line(memory: &Arc<GuestMemory>, which: usize) -> Line {
    let driver = Driver::new(memory, 0x20_0000 + which as u64 * 0x1_0000, 3, 3);
    let rings = RingPair::new(memory, &driver.pages(), driver.split()).expect("rings");
    let interrupts = Interrupts::default();
    let channel = Channel::new(memory, rings, [0; 120], 0, interrupts.sink());
    Line { driver, channel, interrupts }
}

impl Line {
    /// Waits for the next question, by interrupts alone.
    fn receive(&self, patience: Duration) -> Option<Vec<u8>> {
        let packet = self.interrupts.receive(&self.driver, patience)?;
        assert_eq!(packet.kind, packet::IN_BAND);
        Some(packet.data)
    }

    fn send(&self, packet: &[u8]) {
        if self.driver.send(packet::IN_BAND, 0, &[], packet).expect("room") {
            self.channel.doorbell().ring();
        }
    }
}

fn answer(question: &[u8], status: u32, body: &[u8]) -> Vec<u8> {
    let half = |at: usize| u16::from_le_bytes([question[at], question[at + 1]]);
    let (framework, version) = (Version(3, 0), Version(3, 0));
    Message { framework, version, kind: half(12), status, transaction: question[24], body }.answer()
}

/// What a guest says to a question of its service: a status, and a body; `None`: nothing.
type Daemon = Box<dyn FnMut(&[u8]) -> Option<(u32, Vec<u8>)> + Send>;

/// A driver with its daemon. It ends when there have been no questions for a while.
fn drive(line: Line, version: Version, mut daemon: Daemon) -> JoinHandle<()> {
    std::thread::spawn(move || {
        while let Some(question) = line.receive(Duration::from_secs(4)) {
            let size = usize::from(u16::from_le_bytes([question[18], question[19]]));
            let negotiates = question[12..14] == [0, 0];
            let said = match negotiates {
                true => Some((0, negotiation(&[Version(3, 0)], &[version]))),
                false => daemon(&question[28..28 + size]),
            };
            if let Some((status, body)) = said {
                line.send(&answer(&question, status, &body));
            }
        }
    })
}

/// Services, with a driver for one of them.
struct Rig {
    services: Services,
    device: Arc<dyn Device>,
    memory: Arc<GuestMemory>,
}

impl Rig {
    fn new(which: usize) -> (Self, Line) {
        let memory = memory();
        let limits = MemoryLimits::fixed(16 << 20);
        let services = Services::start(limits, Vec::new(), 16 << 8).expect("a thread");
        let line = line(&memory, which);
        let device = services.device(which);
        device.open(0, Arc::clone(&line.channel)).expect("it opens");
        (Self { services, device, memory }, line)
    }

    fn with(which: usize, version: Version, daemon: Daemon) -> Self {
        let (rig, line) = Self::new(which);
        drive(line, version, daemon);
        rig
    }
}

#[test]
fn a_guest_is_asked_to_end_and_says_that_it_will() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    let daemon: Daemon = Box::new(move |body| {
        seen.lock().unwrap().push((body.len(), body[8]));
        Some((0, body.to_vec()))
    });
    let rig = Rig::with(SHUTDOWN, Version(3, 2), daemon);
    rig.services.shutdown(ShutdownKind::PowerOff).unwrap();
    rig.services.shutdown(ShutdownKind::Restart).unwrap();
    assert_eq!(*asked.lock().unwrap(), [(2060, 1), (2060, 3)]);
    let state = &rig.services.status()[SHUTDOWN];
    assert_eq!((state.state, state.version.as_deref()), (ServiceState::Ready, Some("3.2")));
    assert_eq!(rig.services.thaw(), Err(ServiceError::Absent("backup (VSS)")));
    rig.device.close(0);
    assert_eq!(rig.services.shutdown(ShutdownKind::PowerOff), Err(ServiceError::Absent("shutdown")));
}

#[test]
fn a_guest_that_refuses_is_told_with_its_reason() {
    let rig = Rig::with(SHUTDOWN, Version(3, 0), Box::new(|_| Some((status::FAIL, Vec::new()))));
    let error = rig.services.shutdown(ShutdownKind::PowerOff).unwrap_err().to_string();
    assert!(error.starts_with("the guest refuses to switch itself off: it failed"), "{error}");
}

#[test]
fn a_pulse_is_felt() {
    let rig = Rig::with(
        HEARTBEAT,
        Version(3, 0),
        Box::new(|body| {
            let number = u64::from_le_bytes(*body.first_chunk().unwrap());
            Some((0, (number + 1).to_le_bytes().to_vec()))
        }),
    );
    let end = Instant::now() + Duration::from_secs(20);
    while rig.services.pulse().0 != Pulse::Ok {
        assert!(Instant::now() < end, "{:?}", rig.services.pulse());
        std::thread::sleep(Duration::from_millis(10));
    }
    rig.device.close(0);
    assert_eq!(rig.services.pulse(), (Pulse::Absent, None));
}

/// An answer with a pair: what was asked, and the pair at its place.
fn with_pair(question: &[u8], key: &str, value: &str) -> Vec<u8> {
    let utf16 = |t: &str| t.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let (key, value) = (utf16(key), utf16(value));
    let mut body = question.to_vec();
    body[8..12].copy_from_slice(&1_u32.to_le_bytes());
    body[12..16].copy_from_slice(&(key.len() as u32).to_le_bytes());
    body[16..20].copy_from_slice(&(value.len() as u32).to_le_bytes());
    body[20..20 + key.len()].copy_from_slice(&key);
    body[532..532 + value.len()].copy_from_slice(&value);
    body
}

#[test]
fn pairs_are_told_until_there_are_no_more() {
    let daemon: Daemon = Box::new(|body| {
        assert_eq!((body.len(), body[0], body[1]), (2580, 3, 2));
        Some(match body[4] {
            n @ 0..3 => (0, with_pair(body, &format!("key {n}"), &format!("value {n}"))),
            _ => (status::NO_MORE_ITEMS, body.to_vec()),
        })
    });
    let rig = Rig::with(KVP, Version(4, 0), daemon);
    let items = rig.services.kvp_list(Pool::Auto).unwrap();
    assert_eq!(items.iter().map(|i| &i.value[..]).collect::<Vec<_>>(), ["value 0", "value 1", "value 2"]);
    assert_eq!(rig.services.kvp_get(Pool::Auto, "key 1"), Ok(Some("value 1".into())));
    assert_eq!(rig.services.kvp_get(Pool::Auto, "key 7"), Ok(None));
    assert!(matches!(rig.services.kvp_get(Pool::Auto, ""), Err(ServiceError::Invalid(_))));
}

#[test]
fn a_guest_that_always_has_one_more_comes_to_an_end() {
    let rig = Rig::with(KVP, Version(4, 0), Box::new(|body| Some((0, with_pair(body, "k", "v")))));
    assert_eq!(rig.services.kvp_list(Pool::Guest).unwrap().len(), 1024);
}

#[test]
fn a_pair_is_set_and_deleted() {
    let daemon: Daemon = Box::new(|body| {
        let key = crate::text::from_utf16(if body[0] == 1 { &body[16..528] } else { &body[8..520] });
        assert_eq!((body[1], key.as_str()), (0, "greeting"));
        match body[0] {
            1 => assert_eq!(crate::text::from_utf16(&body[528..]), "hello"),
            operation => assert_eq!((operation, body[4]), (2, 18)),
        }
        Some((if body[0] == 1 { 0 } else { status::NO_MORE_ITEMS }, Vec::new()))
    });
    let rig = Rig::with(KVP, Version(4, 0), daemon);
    rig.services.kvp_set("greeting", "hello").unwrap();
    assert_eq!(rig.services.kvp_delete("greeting"), Ok(false));
}

#[test]
fn a_thaw_follows_a_freeze_that_nobody_ends_and_one_that_failed() {
    for fails in [false, true] {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&asked);
        let daemon: Daemon = Box::new(move |body| {
            seen.lock().unwrap().push(body[0]);
            Some((if fails && body[0] == 5 { status::FAIL } else { 0 }, body.to_vec()))
        });
        let rig = Rig::with(VSS, Version(5, 0), daemon);
        assert!(matches!(rig.services.freeze(Duration::ZERO), Err(ServiceError::Invalid(_))));
        assert_eq!(rig.services.freeze(Duration::from_secs(1)).is_err(), fails);
        let end = Instant::now() + Duration::from_secs(20);
        while rig.services.frozen().is_some() {
            assert!(Instant::now() < end, "no thaw");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(*asked.lock().unwrap(), [2, 5, 6]);
        if !fails {
            rig.services.freeze(Duration::from_secs(500)).unwrap();
            assert!(rig.services.frozen().is_some_and(|f| f.as_secs() > 400));
            rig.services.thaw().unwrap();
            assert_eq!(rig.services.frozen(), None);
        }
    }
}

/// A file that arrives in a guest.
#[derive(Default)]
struct Arrived {
    data: Vec<u8>,
    operations: Vec<u8>,
}

fn copied(refuses: u8) -> (Rig, Arc<Mutex<Arrived>>) {
    let arrived = Arc::new(Mutex::new(Arrived::default()));
    let seen = Arc::clone(&arrived);
    let daemon: Daemon = Box::new(move |body| {
        let mut arrived = seen.lock().unwrap();
        if arrived.operations.last() != Some(&body[0]) {
            arrived.operations.push(body[0]);
        }
        if body[0] == 1 {
            let offset = u64::from_le_bytes(*body[40..].first_chunk().unwrap()) as usize;
            let size = u32::from_le_bytes(*body[48..].first_chunk().unwrap()) as usize;
            arrived.data.resize(offset, 0);
            arrived.data.extend(&body[52..52 + size]);
        }
        Some((if body[0] == refuses { status::DISK_FULL } else { 0 }, body.to_vec()))
    });
    (Rig::with(COPY, Version(1, 1), daemon), arrived)
}

#[test]
fn a_file_arrives_whole() {
    let (rig, arrived) = copied(99);
    let file: Vec<u8> = (0..20_000_u32).flat_map(u32::to_le_bytes).collect();
    let to = CopyTo { path: "/srv/file".into(), overwrite: false, create_path: true };
    let mut told = 0;
    let mut progress = |done| {
        told = done;
        true
    };
    rig.services.copy_file(&mut &file[..], file.len() as u64, &to, &mut progress).unwrap();
    assert_eq!(told, 80_000);
    let arrived = arrived.lock().unwrap();
    assert!(arrived.data == file);
    assert_eq!(arrived.operations, [0, 1, 2]);
}

#[test]
fn a_copy_that_fails_is_cancelled() {
    let to = CopyTo { path: "/srv/file".into(), overwrite: false, create_path: false };
    let copy = |refuses, file: &[u8], size, go_on| {
        let (rig, arrived) = copied(refuses);
        let result = rig.services.copy_file(&mut &file[..], size, &to, &mut |_| go_on);
        let operations = arrived.lock().unwrap().operations.clone();
        (result, operations)
    };
    let file = vec![1; 10_000];
    let (full, operations) = copy(1, &file, 10_000, true);
    assert!(full.is_err_and(|e| e.to_string().contains("its disk is full")));
    assert_eq!(operations, [0, 1, 3]);
    assert!(matches!(copy(99, &file, 10_001, true), (Err(CopyError::Shorter), o) if o == [0, 1, 3]));
    assert!(matches!(copy(99, &file, 10_000, false), (Err(CopyError::Cancelled), o) if o == [0, 1, 3]));
    assert!(matches!(copy(0, &file, 10_000, true), (Err(CopyError::Service(_)), o) if o == [0]));
    assert_eq!(copy(99, &[], 0, true).1, [0, 2], "an empty file");
}

#[test]
fn a_copy_that_begins_too_late_is_cancelled() {
    let (rig, line) = Rig::new(COPY);
    let operations = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&operations);
    let slow: Daemon = Box::new(move |body| {
        seen.lock().unwrap().push(body[0]);
        std::thread::sleep(Duration::from_millis(if body[0] == 0 { 1500 } else { 0 }));
        Some((0, body.to_vec()))
    });
    drive(line, Version(1, 1), slow);
    let to = CopyTo { path: "/srv/file".into(), overwrite: false, create_path: false };
    let patience = Duration::from_secs(1);
    let copied = rig.services.copy_within(patience, &mut &[1][..], 1, &to, &mut |_| true);
    assert!(matches!(copied, Err(CopyError::Service(ServiceError::NoAnswer { .. }))), "{copied:?}");
    assert_eq!(*operations.lock().unwrap(), [0, 3]);
}

#[test]
fn a_guest_without_room_is_not_looked_at_again_and_again() {
    let memory = memory();
    let services = Services::unserved(MemoryLimits::fixed(16 << 20), Vec::new(), 16 << 8);
    for (which, version) in [(HEARTBEAT, Version(3, 0)), (KVP, Version(4, 0))] {
        let (line, now) = (line(&memory, which), Instant::now());
        // As if it read nothing: the first question waits.
        memory.write_obj(line.driver.controls()[1] + 4, u32::MAX).unwrap();
        services.device(which).open(0, Arc::clone(&line.channel)).unwrap();
        assert_eq!(services.hub.turn(now), Some(None));
        let mut question = [0; 28];
        question[24] = 1;
        line.send(&answer(&question, 0, &negotiation(&[Version(3, 0)], &[version])));
        // It is ready, and what is due cannot be asked.
        assert_eq!(services.hub.turn(now), Some(None));
        assert_eq!(services.status()[which].state, ServiceState::Ready);
        if which == KVP {
            let (asker, answered) = std::sync::mpsc::sync_channel(1);
            let deadline = now + Duration::from_secs(1);
            let job = crate::link::Job { body: Vec::new(), asked: now, deadline, asker };
            services.hub.change(|state| state.ask(crate::Asked::Kvp, job)).unwrap();
            assert_eq!(services.hub.turn(now), Some(Some(deadline)));
            assert_eq!(services.hub.turn(deadline), Some(None));
            assert!(matches!(answered.try_recv(), Ok(Err(ServiceError::NoAnswer { .. }))));
        }
        services.device(which).close(0);
    }
}

#[test]
fn while_it_is_paused_nothing_touches_memory() {
    let (rig, line) = Rig::new(HEARTBEAT);
    let question = line.receive(Duration::from_secs(20)).expect("a question");
    assert!(rig.device.pause(Instant::now()));
    line.send(&answer(&question, 0, &negotiation(&[Version(3, 0)], &[Version(3, 0)])));
    let image = |at: u64| {
        let mut bytes = vec![0; 0x8000];
        rig.memory.read(at, &mut bytes).unwrap();
        bytes
    };
    let before = image(0x21_0000);
    std::thread::sleep(Duration::from_millis(300));
    assert!(before == image(0x21_0000));
    assert!(line.driver.is_empty());
    rig.device.resume();
    let beat = line.receive(Duration::from_secs(20)).expect("a beat");
    assert_eq!(beat[12], 1);
    rig.device.close(0);
    line.send(&answer(&beat, 0, &[2, 0, 0, 0, 0, 0, 0, 0]));
    rig.device.reset();
    assert!(line.receive(Duration::from_millis(200)).is_none(), "nobody is there any more");
}

#[test]
fn a_service_has_one_channel_and_a_driver_may_come_again() {
    let (rig, first) = Rig::new(KVP);
    assert!(rig.device.open(1, line(&rig.memory, 9).channel).is_err());
    assert!(rig.device.open(0, Arc::clone(&first.channel)).is_err(), "its rings are taken");
    rig.device.close(0);
    let second = line(&rig.memory, KVP);
    rig.device.open(0, Arc::clone(&second.channel)).unwrap();
    assert_eq!(second.receive(Duration::from_secs(20)).map(|q| q[12]), Some(0), "it begins anew");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn no_packet_does_harm(
        which in 0..ALL,
        packets in prop::collection::vec((any::<bool>(), 0..14_u8, any::<u8>(), prop::collection::vec(any::<u8>(), 0..80)), 1..30),
        noise in prop::collection::vec((0..8_u64, any::<u32>()), 0..4),
    ) {
        let (rig, line) = Rig::new(which);
        for (framed, kind, transaction, body) in packets {
            let packet = if framed {
                let (framework, version) = (Version(3, 0), Version(3, 0));
                Message { framework, version, kind: kind.into(), status: 0, transaction, body: &body }.answer()
            } else {
                let mut packet = vec![kind, 0, 8 + body.len() as u8, 0, 1, 0, 0, 0];
                packet.extend(&body);
                packet
            };
            line.driver.send(packet::IN_BAND, 1, &[], &packet);
            line.channel.doorbell().ring();
            while line.driver.receive().is_some() {}
        }
        for (word, value) in noise {
            rig.memory.write_obj(line.driver.controls()[0] + word * 4, value).unwrap();
            line.channel.doorbell().ring();
        }
        prop_assert!(rig.device.pause(Instant::now() + Duration::from_secs(20)));
        rig.device.close(0);
    }
}
