//! The data plane alone: one thread fills a ring, goes around, and empties another one; only the going around is counted, in time of
//! the processor that did it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::time::{ClockId, clock_gettime};
use vireo_frame::Frame;
use vireo_port::{PortMemory, RingReader, RingWriter, Way};
use vireo_switch::acl::Acl;
use vireo_switch::vlan::{VlanMode, VlanSet};
use vireo_switch::{Guards, Kind, Settings};
use vireo_switchd::Plane;

use crate::AnyResult;
use crate::frames::{LENGTHS, mac, segment};
use crate::table::Table;

const RING: u32 = 1 << 20;
/// Frames in a burst, at most.
const BURST: usize = 512;

/// A worker's end of a port.
struct Worker {
    up: RingWriter,
    down: RingReader,
    _socket: OwnedFd,
}

fn plug(plane: &mut Plane, name: &str, settings: Settings) -> AnyResult<Worker> {
    let memory = PortMemory::create(RING)?;
    let theirs = Arc::new(PortMemory::open(memory.file().try_clone_to_owned()?, RING)?);
    let (ours, socket) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    plane.add(name.into(), settings, memory, ours)?;
    let (up, down) = (RingWriter::new(&theirs, Way::Up), RingReader::new(&theirs, Way::Down));
    Ok(Worker { up, down, _socket: socket })
}

/// Time that this thread has had a processor.
fn processor_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Nanoseconds for a frame of this length between ports with these settings.
fn cost(length: usize, from: Settings, to: Settings, time: Duration) -> AnyResult<f64> {
    let (mut plane, _handle) = Plane::new()?;
    let (mut a, mut b) = (plug(&mut plane, "a", from)?, plug(&mut plane, "b", to)?);
    let (bytes, intent) = segment(length);
    let frame = Frame::new(&bytes, &[], intent)?;
    let (begun, mut spent, mut moved) = (Instant::now(), Duration::ZERO, 0_u64);
    while begun.elapsed() < time {
        let mut put = 0;
        while put < BURST && a.up.put(&frame).is_ok() {
            put += 1;
        }
        a.up.publish();
        let before = processor_time();
        while plane.round(plane.now()) {}
        spent += processor_time() - before;
        let mut got = 0;
        while let Some(record) = b.down.peek()? {
            b.down.consume(record);
            got += 1;
        }
        b.down.publish();
        if got != put {
            return Err(format!("{got} of {put} frames of {length} bytes arrived").into());
        }
        moved += got as u64;
    }
    Ok(spent.as_nanos() as f64 / moved as f64)
}

fn guest(n: u8) -> Settings {
    Settings::new(Kind::Guest(mac(n)))
}

/// All lengths.
pub fn measure(time: Duration, table: &mut Table) -> AnyResult<()> {
    for length in LENGTHS {
        table.add_alone(length, cost(length, guest(1), guest(2), time)?);
    }
    Ok(())
}

/// What policy costs, with the shortest frames, where it matters most.
pub fn measure_policy(time: Duration, table: &mut Table) -> AnyResult<()> {
    // Ten rules that are all looked at, and none of which is about the frame.
    let rules = || -> AnyResult<Vec<_>> {
        (0..10)
            .map(|n| Ok(format!("deny out tcp remote=10.9.{n}.0/24 remote-port={}", n + 1).parse()?))
            .collect()
    };
    let mut stateful = rules()?;
    stateful.push("allow out tcp answers=300".parse()?);
    let guards =
        Guards { dhcp: true, router: true, ipv4: Some([[10, 0, 0, 1].into()].into()), ipv6: Some([].into()) };
    let trunk = VlanMode::Trunk { native: 7, allowed: VlanSet::All };
    let plain = guest(1);
    let with = |change: &dyn Fn(&mut Settings)| {
        let mut settings = guest(1);
        change(&mut settings);
        settings
    };
    let lines = [
        ("none", plain, guest(2)),
        ("access list, 10 rules", with(&|s| s.acl = Acl::new(rules().unwrap_or_default())), guest(2)),
        ("the same, stateful", with(&|s| s.acl = Acl::new(stateful.clone())), guest(2)),
        ("all guards", with(&|s| s.guards = guards.clone()), guest(2)),
        (
            "trunk to access VLAN",
            with(&|s| s.vlan = trunk.clone()),
            Settings { vlan: VlanMode::Access(7), ..guest(2) },
        ),
        ("any address, learned", with(&|s| s.spoofing = true), guest(2)),
    ];
    for (name, from, to) in lines {
        table.add_policy(name, cost(LENGTHS[0], from, to, time)?);
    }
    Ok(())
}
