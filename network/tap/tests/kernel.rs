//! The host's kernel at both ends: two networks, each with a TAP device, and a cable between them that the test holds.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use vireo_frame::{Ability, Adapter, Checksum, End, Frame, Full, Link, Tag};
use vireo_tap::trial::{Namespace, payload};
use vireo_tap::{Tap, TapError};

/// Far beyond what anything here takes.
const HANGS: Duration = Duration::from_secs(60);

/// One end of the cable: what its device has goes to the other device.
#[derive(Default)]
struct Half {
    near: Option<Arc<Tap>>,
    far: Option<Arc<Tap>>,
    /// Every so many frames there is no room, for a moment; 0: never.
    narrow: u64,
    frames: AtomicU64,
    longest: AtomicUsize,
    to_cut: AtomicU64,
    to_sum: AtomicU64,
    flushes: AtomicU64,
    carrier: Mutex<Option<bool>>,
    told: Condvar,
}

impl End for Half {
    fn put(&self, frame: &Frame<'_>) -> Result<(), Full> {
        let count = self.frames.fetch_add(1, Ordering::Relaxed) + 1;
        if self.narrow != 0 && count.is_multiple_of(self.narrow) {
            let near = self.near.clone().unwrap();
            std::thread::spawn(move || near.room());
            return Err(Full);
        }
        self.longest.fetch_max(frame.len(), Ordering::Relaxed);
        self.to_cut.fetch_add(frame.intent().segmentation.is_some().into(), Ordering::Relaxed);
        let wanted = matches!(frame.intent().checksum, Checksum::Wanted { .. });
        self.to_sum.fetch_add(wanted.into(), Ordering::Relaxed);
        self.far.as_ref().map_or(Ok(()), |far| far.put(frame))
    }
    fn flush(&self) {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        self.far.as_ref().inspect(|far| far.flush());
    }
    fn room(&self) {
        self.far.as_ref().inspect(|far| far.room());
    }
}

impl Adapter for Half {
    fn set_carrier(&self, up: bool, _speed: u64) {
        *self.carrier.lock().unwrap() = Some(up);
        self.told.notify_all();
    }
}

impl Half {
    fn waits_for_carrier(&self, up: bool) {
        let carrier = self.carrier.lock().unwrap();
        let wait = self.told.wait_timeout_while(carrier, HANGS, |c| *c != Some(up)).unwrap();
        assert_eq!(*wait.0, Some(up), "carrier");
    }
}

/// Two networks and their cable.
struct Lab {
    networks: [Namespace; 2],
    taps: [Arc<Tap>; 2],
    halves: [Arc<Half>; 2],
}

impl Lab {
    /// Their ends of the cable take so much.
    fn new(mtu: u32, abilities: [Ability; 2], narrow: u64) -> Option<Self> {
        let networks = [Namespace::new()?, Namespace::new()?];
        let taps = [0, 1].map(|n| {
            let tap = networks[n].run(|| Tap::open("wire")).unwrap();
            networks[n].ip(&format!("address add 10.9.8.{}/24 dev wire", n + 1));
            networks[n].ip(&format!("address add fd09::{}/64 dev wire nodad", n + 1));
            networks[n].ip(&format!("link set wire mtu {mtu} up"));
            assert_eq!((tap.mtu(), tap.name().as_str()), (mtu, "wire"));
            tap
        });
        let halves = [0, 1].map(|n| {
            let (near, far) = (Some(Arc::clone(&taps[n])), Some(Arc::clone(&taps[1 - n])));
            let half = Arc::new(Half { near, far, narrow, ..Half::default() });
            taps[n].set_adapter_ability(abilities[n]);
            taps[n].plug(Some(Arc::clone(&half) as _));
            half
        });
        halves.iter().for_each(|half| half.waits_for_carrier(true));
        Some(Self { networks, taps, halves })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.taps.iter().for_each(|tap| tap.plug(None));
    }
}

/// Sends from one network to the other by TCP and compares.
fn transfer(lab: &Lab, from: usize, v6: bool, bytes: &[u8]) {
    let to = 1 - from;
    let address: SocketAddr =
        if v6 { format!("[fd09::{}]:7", to + 1) } else { format!("10.9.8.{}:7", to + 1) }.parse().unwrap();
    let listener = lab.networks[to].run(|| TcpListener::bind(address)).unwrap();
    let mut sender = lab.networks[from].run(|| TcpStream::connect_timeout(&address, HANGS)).unwrap();
    let (mut receiver, _) = listener.accept().unwrap();
    receiver.set_read_timeout(Some(HANGS)).unwrap();
    sender.set_write_timeout(Some(HANGS)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || sender.write_all(bytes).unwrap());
        let mut got = Vec::new();
        receiver.read_to_end(&mut got).unwrap();
        assert!(got == bytes, "{} of {} bytes, or others", got.len(), bytes.len());
    });
}

fn tcp_both_ways(mtu: u32, abilities: [Ability; 2], narrow: u64) -> Option<Lab> {
    let lab = Lab::new(mtu, abilities, narrow)?;
    let bytes = payload(6 << 20);
    for v6 in [false, true] {
        for from in [0, 1] {
            transfer(&lab, from, v6, &bytes);
        }
    }
    for (n, half) in lab.halves.iter().enumerate() {
        let longest = half.longest.load(Ordering::Relaxed);
        let (cut, sum) = (half.to_cut.load(Ordering::Relaxed), half.to_sum.load(Ordering::Relaxed));
        let frames = half.frames.load(Ordering::Relaxed);
        println!(
            "mtu {mtu}, end {n}: {frames} frames, longest {longest}, {cut} to be cut, {sum} to be summed"
        );
        if abilities[n].tcp4 {
            assert!(mtu > 20_000 || longest > 4 * mtu as usize && cut > 20, "frames that are cut later");
            assert!(sum >= cut);
        } else {
            assert!(longest <= mtu as usize + 14 && cut == 0);
            assert_eq!(sum > 0, abilities[n].checksum);
        }
    }
    for tap in &lab.taps {
        assert_eq!(tap.lost().written, 0);
    }
    Some(lab)
}

const NONE: Ability = Ability { checksum: false, tcp4: false, tcp6: false, udp: false, tag: false };

#[test]
fn tcp_with_all_offloads() {
    for mtu in [1500, 9000, 65_000] {
        tcp_both_ways(mtu, [Ability::ALL; 2], 0);
    }
}

#[test]
fn tcp_without_offloads() {
    for mtu in [1500, 9000, 65_000] {
        tcp_both_ways(mtu, [NONE; 2], 0);
    }
}

#[test]
fn tcp_between_an_end_that_takes_all_and_one_that_sums_only() {
    let sums = Ability { checksum: true, ..NONE };
    tcp_both_ways(1500, [Ability::ALL, sums], 0);
}

#[test]
fn an_adapter_without_room_gets_the_frame_again() {
    let Some(lab) = tcp_both_ways(1500, [Ability::ALL, NONE], 5) else { return };
    assert!(lab.halves.iter().all(|half| half.flushes.load(Ordering::Relaxed) > 0));
}

#[test]
fn datagrams_and_such_as_are_cut_later() {
    let Some(lab) = Lab::new(1500, [Ability::ALL, NONE], 0) else { return };
    let address = "10.9.8.2:9";
    let receiver = lab.networks[1].run(|| UdpSocket::bind(address)).unwrap();
    receiver.set_read_timeout(Some(HANGS)).unwrap();
    let sender = lab.networks[0].run(|| UdpSocket::bind("10.9.8.1:10")).unwrap();
    let bytes = payload(12_345);
    // UDP_SEGMENT: datagrams of 1000 bytes of one long write.
    let size: libc::c_int = 1000;
    let set = || {
        // SAFETY: an option that is an int.
        unsafe { libc::setsockopt(sender.as_raw_fd(), 17, 103, std::ptr::from_ref(&size).cast(), 4) }
    };
    assert_eq!(set(), 0, "{}", std::io::Error::last_os_error());
    for round in 0..3 {
        assert_eq!(sender.send_to(&bytes, address).unwrap(), bytes.len());
        let mut got = Vec::<u8>::new();
        while got.len() < bytes.len() {
            let mut datagram = [0; 2000];
            let (length, from) = receiver.recv_from(&mut datagram).unwrap();
            assert_eq!(length, size.unsigned_abs().min(bytes.len() as u32 - got.len() as u32) as usize);
            assert_eq!(from.port(), 10);
            got.extend(&datagram[..length]);
        }
        assert!(got == bytes, "round {round}");
    }
    // Before Linux 6.2 the kernel cuts them itself.
    let longest = lab.halves[0].longest.load(Ordering::Relaxed);
    assert_eq!(longest > 12_345, lab.taps[0].ability().udp, "one frame was cut by the other end");
}

/// A tag beside the bytes, and segments that the kernel may not know, are put into bytes.
#[test]
fn a_tag_goes_into_the_bytes() {
    let Some(lab) = Lab::new(1500, [Ability::ALL; 2], 0) else { return };
    struct Wire(Mutex<Vec<Vec<u8>>>);
    impl End for Wire {
        fn put(&self, frame: &Frame<'_>) -> Result<(), Full> {
            let mut bytes = Vec::new();
            frame.append_to(&mut bytes).unwrap();
            self.0.lock().unwrap().push(bytes);
            Ok(())
        }
        fn flush(&self) {}
        fn room(&self) {}
    }
    impl Adapter for Wire {
        fn set_carrier(&self, _: bool, _: u64) {}
    }
    // A bridge hands what it gets from the one device to the other.
    let [network, _] = &lab.networks;
    let other = network.run(|| Tap::open("other")).unwrap();
    network.ip("link add bridge type bridge");
    for device in ["wire", "other"] {
        network.ip(&format!("link set {device} master bridge up"));
    }
    network.ip("link set bridge up");
    let wire = Arc::new(Wire(Mutex::default()));
    other.plug(Some(Arc::clone(&wire) as _));
    let mut bytes = [0xee; 100];
    bytes[..14].copy_from_slice(&[2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
    let intent = vireo_frame::Intent { tag: Some(Tag(0x6005)), ..Default::default() };
    let expected = [&bytes[..12], &[0x81, 0, 0x60, 5], &bytes[12..]].concat();
    let end = Instant::now() + HANGS;
    // A bridge's new ports learn for a moment.
    while !wire.0.lock().unwrap().contains(&expected) {
        lab.taps[0].put(&Frame::new(&bytes, &[], intent).unwrap()).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert!(Instant::now() < end, "{:02x?}", wire.0.lock().unwrap());
    }
    other.plug(None);
}

#[test]
fn carrier_follows_the_interface_and_who_is_unplugged_is_left_alone() {
    let Some(lab) = Lab::new(1500, [NONE; 2], 0) else { return };
    let [half, _] = &lab.halves;
    lab.networks[0].ip("link set wire down");
    half.waits_for_carrier(false);
    let before = lab.taps[0].lost().written;
    let frame = [0xff; 60];
    lab.taps[0].put(&Frame::whole(&frame).unwrap()).unwrap();
    assert_eq!(lab.taps[0].lost().written, before + 1, "nothing goes to what is down");
    lab.networks[0].ip("link set wire mtu 4000 up");
    half.waits_for_carrier(true);
    assert_eq!(lab.taps[0].mtu(), 4000);

    lab.taps[0].plug(None);
    let (count, lost) = (half.frames.load(Ordering::Relaxed), lab.taps[0].lost().read);
    let socket = lab.networks[0].run(|| UdpSocket::bind("10.9.8.1:10")).unwrap();
    let end = Instant::now() + HANGS;
    while lab.taps[0].lost().read == lost {
        _ = socket.send_to(b"to nobody", "10.9.8.77:9");
        std::thread::sleep(Duration::from_millis(10));
        assert!(Instant::now() < end);
    }
    assert_eq!(half.frames.load(Ordering::Relaxed), count);

    lab.taps[0].plug(Some(Arc::clone(half) as _));
    half.waits_for_carrier(true);
    lab.networks[0].ip("link delete wire");
    half.waits_for_carrier(false);
    lab.taps[0].put(&Frame::whole(&frame).unwrap()).unwrap();
}

/// What is behind the device takes nothing for a while: the device is full, tells when it is not, and nothing is lost.
#[test]
fn who_fills_the_device_is_told_when_there_is_room() {
    let Some(network) = Namespace::new() else { return };
    let tap = network.run(|| Tap::open("wire")).unwrap();
    // A bridge, and behind it a wire of a megabit a second with room for 64 MiB.
    network.ip("link add bridge type bridge");
    network.ip("link add name near type veth peer name away");
    for device in ["wire", "near", "away", "bridge"] {
        network.ip(&format!("link set {device} up"));
    }
    network.ip("link set wire master bridge");
    network.ip("link set near master bridge");
    let words = "qdisc add dev near root tbf rate 1mbit burst 20kb limit 64mb";
    let tc = network.run(|| std::process::Command::new("tc").args(words.split(' ')).output()).unwrap();
    if !tc.status.success() {
        let why = String::from_utf8_lossy(&tc.stderr);
        eprintln!("SKIPPED: this test needs a host with the queueing discipline tbf: {why}");
        return;
    }
    #[derive(Default)]
    struct Sender(AtomicBool);
    impl End for Sender {
        fn put(&self, _: &Frame<'_>) -> Result<(), Full> {
            Ok(())
        }
        fn flush(&self) {}
        fn room(&self) {
            self.0.store(true, Ordering::Release);
        }
    }
    impl Adapter for Sender {
        fn set_carrier(&self, _: bool, _: u64) {}
    }
    let sender = Arc::new(Sender::default());
    tap.plug(Some(Arc::clone(&sender) as _));
    let mut bytes = [0xee; 1400];
    bytes[..14].copy_from_slice(&[2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
    let end = Instant::now() + HANGS;
    let mut put = 0;
    while tap.put(&Frame::whole(&bytes).unwrap()).is_ok() {
        put += 1;
        assert!(Instant::now() < end, "it is never full");
        if put < 20 {
            // The bridge's ports learn for a moment, and hand on nothing.
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    println!("full after {put} frames");
    // What the wire holds is dropped.
    network
        .run(|| std::process::Command::new("tc").args("qdisc del dev near root".split(' ')).output())
        .unwrap();
    while !sender.0.load(Ordering::Acquire) {
        assert!(Instant::now() < end, "nobody tells of room");
        std::thread::yield_now();
    }
    tap.put(&Frame::whole(&bytes).unwrap()).unwrap();
    assert_eq!(tap.lost().written, 0);
    tap.plug(None);
}

#[test]
fn what_is_no_tap_device_is_refused() {
    for name in ["", "a-name-that-is-far-too-long", "a b", "a/b", "tap%d", ".."] {
        assert!(matches!(Tap::open(name), Err(TapError::Name(_))), "{name}");
    }
    let null = std::fs::File::open("/dev/null").unwrap();
    assert!(matches!(Tap::from_fd(null.into()), Err(TapError::Unfit { .. })));
    let Some(network) = Namespace::new() else { return };
    let (first, second) = network.run(|| (Tap::open("wire").unwrap(), Tap::open("wire")));
    let text = second.err().unwrap().to_string();
    assert!(text.starts_with("cannot use the TAP device wire: "), "{text}");
    drop(first);
    // Not as this needs it: without the headers of offloads.
    let bare = std::fs::File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    assert!(matches!(Tap::from_fd(bare.into()), Err(TapError::Unfit { .. })), "attached to nothing");
}

#[test]
fn a_device_of_several_queues_is_opened_as_well() {
    let Some(network) = Namespace::new() else { return };
    network.ip("tuntap add dev many mode tap vnet_hdr multi_queue");
    assert_eq!(network.run(|| Tap::open("many")).unwrap().name(), "many");
}
