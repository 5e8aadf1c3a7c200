//! Workers, good and hostile ones, around a data plane that is driven by hand.

mod hostile;
mod moving;
mod networks;
mod serving;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use vireo_frame::{Frame, Intent, Mac};
use vireo_port::{PortMemory, RING_MIN, RingReader, RingWriter, Way};
use vireo_switch::{Kind, PortId, Settings};

use crate::{Handle, Plane};

/// The other end of a port.
struct Worker {
    id: PortId,
    up: RingWriter,
    down: RingReader,
    memory: Arc<PortMemory>,
    socket: OwnedFd,
}

fn mac(n: u8) -> Mac {
    Mac([0, 0x15, 0x5d, 0, 0, n])
}

fn guest(n: u8) -> Settings {
    Settings::new(Kind::Guest(mac(n)))
}

fn plane() -> (Plane, Handle) {
    Plane::new().expect("the host has file descriptors")
}

/// A socket's two ends.
fn sockets() -> (OwnedFd, OwnedFd) {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .expect("the host has sockets")
}

fn plug(plane: &mut Plane, name: &str, settings: Settings) -> Worker {
    let memory = PortMemory::create(RING_MIN).unwrap();
    let theirs = PortMemory::open(memory.file().try_clone_to_owned().unwrap(), RING_MIN).unwrap();
    let (ours, socket) = sockets();
    let id = plane.add(name.into(), settings, memory, ours).unwrap();
    let memory = Arc::new(theirs);
    Worker {
        id,
        up: RingWriter::new(&memory, Way::Up),
        down: RingReader::new(&memory, Way::Down),
        memory,
        socket,
    }
}

impl Worker {
    fn send(&mut self, bytes: &[u8]) {
        self.send_as(bytes, Intent::default());
    }

    fn send_as(&mut self, bytes: &[u8], intent: Intent) {
        self.up.put(&Frame::new(bytes, &[], intent).unwrap()).unwrap();
        if self.up.publish() {
            vireo_port::wire::ring(&self.socket);
        }
    }

    /// All frames that are there.
    fn receive(&mut self) -> Vec<(Vec<u8>, Intent)> {
        let mut all = Vec::new();
        while let Some(record) = self.down.peek().unwrap() {
            let mut bytes = vec![0; record.length];
            self.down.read(&record, 0, &mut bytes);
            self.down.consume(record);
            all.push((bytes, record.intent));
        }
        self.down.publish();
        all
    }
}

/// A frame that means nothing.
fn plain(to: Mac, from: Mac, length: usize) -> Vec<u8> {
    let mut bytes = [&to.0[..], &from.0, &[0x88, 0xb5]].concat();
    let mut n = 0_u32;
    bytes.resize_with(length.max(14), || {
        n = n.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (n >> 24) as u8
    });
    bytes
}

/// Goes around until nothing moves.
fn settle(plane: &mut Plane) {
    while plane.round(0) {}
}

/// Waits for something that comes soon.
fn soon(mut what: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if what() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("it has not come in ten seconds");
}
