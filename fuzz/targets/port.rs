//! A worker that sets words and data of its port's rings as it likes, and says and sends anything, while the switch goes around. The
//! one beside it is never closed, and gets frames of the hostile one's own address only, which are frames.
#![no_main]

use std::os::fd::OwnedFd;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};
use vireo_frame::{Frame, HEAD_MAX, Intent, Mac};
use vireo_fuzz::Input;
use vireo_port::{PortMemory, RING_MIN, RingReader, RingWriter, Way, wire};
use vireo_switch::{Kind, Settings};
use vireo_switchd::Plane;

const GOOD: Mac = Mac([0, 0x15, 0x5d, 0, 0, 1]);
const EVIL: Mac = Mac([0, 0x15, 0x5d, 0, 0, 6]);
/// Control words of both rings, and the data of what the worker writes.
const WORDS: [u64; 8] = [0, 128, 256, 384, 1024, 1152, 1280, 1408];
const DATA: u64 = 4096;

struct Worker {
    memory: Arc<PortMemory>,
    up: RingWriter,
    down: RingReader,
    socket: OwnedFd,
}

fn plug(plane: &mut Plane, name: &str, mac: Mac) -> Worker {
    let memory = PortMemory::create(RING_MIN).expect("memory");
    let theirs = memory.file().try_clone_to_owned().and_then(|file| PortMemory::open(file, RING_MIN));
    let memory_of_worker = Arc::new(theirs.expect("memory"));
    let pair =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let (ours, socket) = pair.expect("sockets");
    plane.add(name.into(), Settings::new(Kind::Guest(mac)), memory, ours).expect("a port");
    Worker {
        up: RingWriter::new(&memory_of_worker, Way::Up),
        down: RingReader::new(&memory_of_worker, Way::Down),
        memory: memory_of_worker,
        socket,
    }
}

/// A frame whose first bytes are right.
fn frame(to: Mac, input: &mut Input<'_>) -> Vec<u8> {
    let length = usize::from(input.u16()) % 3000;
    let mut bytes = [&to.0[..], &EVIL.0, input.bytes(100)].concat();
    bytes.resize(length.max(14), 0);
    bytes
}

fn act(evil: &mut Worker, input: &mut Input<'_>) {
    let file = evil.memory.file();
    match input.u8() % 8 {
        0 => {
            let value = if input.u8() % 2 == 0 { input.u32() } else { u32::from(input.u16()) * 16 };
            let word = WORDS[usize::from(input.u8() % 8)];
            _ = rustix::io::pwrite(file, &value.to_le_bytes(), word);
        }
        // Data, most of it where the next descriptor is.
        1 => {
            let at = DATA + u64::from(input.u16() % 512) * 16;
            let length = usize::from(input.u8());
            _ = rustix::io::pwrite(file, input.bytes(length), at);
        }
        2 => {
            let bytes = frame(GOOD, input);
            let length = (bytes.len() as u32).to_le_bytes();
            let at = DATA + u64::from(input.u16() % 512) * 16;
            let descriptor = [&length[..], &[input.u8() % 0x20, 0], &input.array::<8>()].concat();
            _ = rustix::io::pwrite(file, &descriptor, at);
            _ = rustix::io::pwrite(file, &bytes, at + 16);
        }
        3 => {
            let bytes = frame(if input.u8() % 4 == 0 { Mac::BROADCAST } else { GOOD }, input);
            _ = evil.up.put(&Frame::whole(&bytes).expect("14 bytes or more"));
        }
        4 => _ = evil.up.publish(),
        5 => {
            let length = usize::from(input.u8());
            _ = rustix::net::send(
                &evil.socket,
                input.bytes(length),
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            );
        }
        _ => wire::ring(&evil.socket),
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let (mut plane, _handle) = Plane::new().expect("file descriptors");
    let mut good = plug(&mut plane, "good", GOOD);
    let mut evil = plug(&mut plane, "evil", EVIL);
    let mut now = 0;
    while !input.is_empty() {
        for _ in 0..=input.u8() % 8 {
            act(&mut evil, &mut input);
        }
        plane.hear();
        // No more often than its ring has frames.
        let mut rounds = 0;
        while plane.round(now) {
            rounds += 1;
            assert!(rounds <= RING_MIN / 32, "it goes around for ever");
        }
        now += 1_000_000;
        while let Some(record) = good.down.peek().expect("the switch breaks no ring") {
            let mut head = [0; HEAD_MAX];
            let head = &mut head[..record.length.min(HEAD_MAX)];
            good.down.read(&record, 0, head);
            good.down.consume(record);
            let mut intent: Intent = record.intent;
            assert!(Frame::check(head, record.length, &mut intent).is_ok() && head[6..12] == EVIL.0);
        }
        good.down.publish();
        good.up
            .put(&Frame::whole(&[&EVIL.0[..], &GOOD.0, &[8, 0]].concat()).expect("14 bytes"))
            .expect("room");
        good.up.publish();
        wire::ring(&good.socket);
    }
    plane.hear();
    while plane.round(now) {}
    let report = plane.report();
    assert!(report.iter().any(|port| port.name == "good"), "others have no part in it");
});
