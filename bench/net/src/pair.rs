//! From worker to worker: through a switch that is served as always, and, as a machine's monitor does without one, through TAP devices
//! on the kernel's bridge. Both are links to who sends and receives, so the code around them is the same.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::Thread;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use vireo_frame::{Ability, Adapter, End, Frame, Full, Link};
use vireo_port::{PortRequest, SwitchPort};
use vireo_switchd::{Config, Folders, Service, SwitchKind};
use vireo_tap::Tap;
use vireo_tap::trial::Namespace;

use crate::AnyResult;
use crate::frames::{LENGTHS, mac, segment};
use crate::table::Table;

/// Who sends waits no longer for room: what it waits for may have been lost.
const PATIENCE: Duration = Duration::from_millis(100);
/// Frames between two flushes.
const BATCH: u32 = 32;

/// Who sends, or receives: it counts.
struct Station {
    frames: AtomicU64,
    bytes: AtomicU64,
    has_room: AtomicBool,
    sender: Thread,
}

impl Station {
    fn new() -> Arc<Self> {
        let sender = std::thread::current();
        let (frames, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { frames, bytes, has_room: AtomicBool::new(false), sender })
    }
}

impl End for Station {
    fn put(&self, frame: &Frame<'_>) -> Result<(), Full> {
        self.frames.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(frame.len() as u64, Ordering::Relaxed);
        Ok(())
    }
    fn flush(&self) {}
    fn room(&self) {
        self.has_room.store(true, Ordering::Release);
        self.sender.unpark();
    }
}

impl Adapter for Station {
    fn set_carrier(&self, _up: bool, _speed: u64) {}
}

/// Frames and bytes that arrive in a second, and nanoseconds of all processors for a frame.
pub struct Figures {
    pub frames: f64,
    pub bytes: f64,
    pub cost: f64,
}

fn processor_time() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Sends through one link, and counts what comes out of the other.
fn run(from: &dyn Link, to: &dyn Link, length: usize, time: Duration) -> AnyResult<Figures> {
    let (sender, receiver) = (Station::new(), Station::new());
    from.set_adapter_ability(Ability::ALL);
    to.set_adapter_ability(Ability::ALL);
    from.plug(Some(sender.clone()));
    to.plug(Some(receiver.clone()));
    let (bytes, intent) = segment(length);
    let frame = Frame::new(&bytes, &[], intent)?;
    let (begun, used) = (Instant::now(), processor_time());
    while begun.elapsed() < time {
        for _ in 0..BATCH {
            sender.has_room.store(false, Ordering::Release);
            if from.put(&frame).is_err() {
                from.flush();
                if !sender.has_room.load(Ordering::Acquire) {
                    std::thread::park_timeout(PATIENCE);
                }
            }
        }
        from.flush();
    }
    let (elapsed, used) = (begun.elapsed().as_secs_f64(), processor_time() - used);
    let (frames, bytes) = (receiver.frames.load(Ordering::Relaxed), receiver.bytes.load(Ordering::Relaxed));
    from.plug(None);
    to.plug(None);
    if frames == 0 {
        return Err(format!("no frame of {length} bytes arrived").into());
    }
    Ok(Figures {
        frames: frames as f64 / elapsed,
        bytes: bytes as f64 / elapsed,
        cost: used.as_nanos() as f64 / frames as f64,
    })
}

/// Both ways, all lengths.
pub fn measure(time: Duration, table: &mut Table) -> AnyResult<()> {
    let folder = std::env::temp_dir().join(format!("vireo-bench-net-{}", std::process::id()));
    let folders = Folders::under(&folder);
    folders.make()?;
    let measured = ours(&folders, time, table);
    _ = std::fs::remove_dir_all(&folder);
    measured?;
    if let Some(network) = Namespace::new() {
        kernels(&network, time, table)?;
    }
    Ok(())
}

fn ours(folders: &Folders, time: Duration, table: &mut Table) -> AnyResult<()> {
    Config::new("bench", SwitchKind::Private, None)?.save(&folders.config("bench"))?;
    let _service = Service::start(folders, "bench")?;
    let connect = |n: u8| {
        let request = PortRequest { name: format!("port{n}"), mac: mac(n), vlan: None };
        SwitchPort::connect(&folders.sockets("bench").ports(), request)
    };
    let (a, b) = (connect(1)?, connect(2)?);
    for length in LENGTHS {
        table.add_pair(length, "switch", &run(&*a, &*b, length, time)?);
    }
    Ok(())
}

fn kernels(network: &Namespace, time: Duration, table: &mut Table) -> AnyResult<()> {
    let taps = network.run(|| Ok::<_, vireo_tap::TapError>([Tap::open("tap1")?, Tap::open("tap2")?]))?;
    network.ip("link add bridge type bridge");
    for n in [1, 2] {
        let name = &format!("tap{n}");
        network.ip(&format!("link set {name} master bridge"));
        // It is to be known where each station is, as it is with traffic both ways.
        bridge_entry(network, &mac(n).to_string(), name)?;
        network.ip(&format!("link set {name} up"));
    }
    network.ip("link set bridge up");
    // Ports of a bridge forward as soon as they have their carrier, without the spanning tree protocol.
    std::thread::sleep(Duration::from_millis(200));
    for length in LENGTHS {
        table.add_pair(length, "bridge", &run(&*taps[0], &*taps[1], length, time)?);
    }
    Ok(())
}

fn bridge_entry(network: &Namespace, mac: &str, device: &str) -> AnyResult<()> {
    let words = ["fdb", "add", mac, "dev", device, "master", "static"];
    let out = network.run(|| std::process::Command::new("bridge").args(words).output())?;
    match out.status.success() {
        true => Ok(()),
        false => Err(format!("bridge {}: {}", words.join(" "), String::from_utf8_lossy(&out.stderr)).into()),
    }
}
