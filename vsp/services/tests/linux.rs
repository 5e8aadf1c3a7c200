//! Linux's clock, on the software engine: it is the host's after its start, and again right after a pause.

use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime};

use vireo_board::{Board, BoardError, BoardSpec, Boot};
use vireo_chipset::lines::SerialSink;
use vireo_core::CpuModel;
use vireo_firmware::Start;
use vireo_firmware::linux::File;
use vireo_hyperv::Enlightenments;
use vireo_memory::GuestMemory;
use vireo_services::{HostTime, MemoryLimits, Services};
use vireo_soft::SoftEngine;
use vireo_tests::{Guest, HostShare};
use vireo_vmbus::VmBus;

/// Far beyond what a run takes: a guest that hangs is ended.
const LIMIT: Duration = Duration::from_secs(120);
const MEMORY: u64 = 256 << 20;
/// How far the guest's clock may be from the host's, on a host that has much else to do.
const CLOSE: f64 = 2.0;
/// How long the machine stands still.
const PAUSE: Duration = Duration::from_secs(6);

/// What the guest said of its clock: when it came, uptime, seconds since 1970.
type Reading = (f64, f64, f64);

/// All readings, and the line that is being written.
#[derive(Default)]
struct Clocks {
    line: Mutex<(Vec<u8>, Vec<Reading>)>,
    more: Condvar,
}

fn host_clock() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64()
}

impl SerialSink for Clocks {
    fn write(&self, bytes: &[u8]) {
        let mut line = self.line.lock().unwrap();
        for byte in bytes {
            if *byte != b'\n' {
                line.0.push(*byte);
                continue;
            }
            let text = String::from_utf8_lossy(&std::mem::take(&mut line.0)).into_owned();
            let mut words = text.split_whitespace().skip_while(|w| *w != "VIREO-CLOCK").skip(1);
            let mut number = || words.next().and_then(|w| w.parse().ok());
            if let (Some(uptime), Some(clock)) = (number(), number()) {
                line.1.push((host_clock(), uptime, clock));
                self.more.notify_all();
            }
        }
    }
}

impl Clocks {
    /// Waits for a line, after `from` of them, for which this is so; its number, and the line.
    fn wait(&self, what: &str, from: usize, so: impl Fn(Reading) -> bool) -> (usize, Reading) {
        let end = Instant::now() + LIMIT;
        let mut line = self.line.lock().unwrap();
        loop {
            if let Some(at) = line.1.iter().skip(from).position(|l| so(*l)) {
                return (from + at, line.1[from + at]);
            }
            assert!(Instant::now() < end, "no {what} in {:?}", line.1);
            line = self.more.wait_timeout(line, Duration::from_secs(1)).unwrap().0;
        }
    }
}

fn boot(guest: &Guest) -> Boot {
    let (kernel, initrd) = (std::fs::read(&guest.kernel).unwrap(), std::fs::read(&guest.initrd).unwrap());
    Box::new(move |memory: &GuestMemory| {
        let start = Start {
            vcpus: 1,
            vmbus: true,
            kernel: File { name: "kernel", bytes: &kernel },
            initrd: Some(File { name: "initrd", bytes: &initrd }),
            command_line: "console=ttyS0 panic=-1 vireo.mode=clock vireo.seconds=100",
        };
        let started = vireo_firmware::start(memory, &start);
        started.map(|loaded| loaded.entry).map_err(|e| BoardError::Boot(e.to_string()))
    })
}

#[test]
fn the_clock_is_right_after_a_pause() {
    let _share = HostShare::take(1);
    let guest = Guest::build("debian-6.1-cloud-amd64");
    let services = Arc::new(Services::start(MemoryLimits::fixed(MEMORY), Vec::new(), MEMORY >> 12).unwrap());
    let clocks = Arc::<Clocks>::default();
    let (events, _inbox) = channel();
    let attached = Arc::clone(&services);
    let spec = BoardSpec {
        memory: MEMORY,
        memory_maximum: MEMORY,
        vcpus: 1,
        translation_memory: 200 << 20,
        cpu_model: CpuModel::named("vireo-v2").unwrap(),
        enlightenments: Some(Enlightenments::best(true)),
        windows: false,
        serial: Arc::clone(&clocks) as _,
        devices: vec![Box::new(move |seat| {
            let hyperv = Arc::clone(seat.hyperv.expect("its interface"));
            let bus = VmBus::new(&hyperv, seat.memory);
            let time = HostTime(move || hyperv.reference_time());
            attached.attach(&bus, Arc::new(time)).expect("room");
            Ok(bus)
        })],
        events,
    };
    let mut board = Board::new(&SoftEngine::new(), &spec, boot(&guest)).unwrap();
    board.resume();
    let close = |(host, _, clock): Reading| (clock - host).abs() < CLOSE;
    let (before, (_, uptime_before, clock_before)) = clocks.wait("clock that is right", 0, close);
    board.pause().unwrap();
    std::thread::sleep(PAUSE);
    board.resume();
    // One line may have been on its way.
    let (_, (_, uptime, clock)) = clocks.wait("clock that is right after the pause", before + 2, close);
    let stepped = (clock - clock_before) - (uptime - uptime_before);
    assert!(stepped > PAUSE.as_secs_f64() / 2.0, "the pause is no time for the guest: {stepped}");
    assert!(uptime - uptime_before < 10.0, "it took {} s to be right", uptime - uptime_before);
    board.stop();
}
