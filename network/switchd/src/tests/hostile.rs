//! Workers that break every rule. Others notice nothing.

use super::*;
use rustix::io::pwrite;
use vireo_switch::Reason;

/// Offsets in the file: the words of the ring to the switch, those of the one from it, the data.
const HEAD_UP: u64 = 0;
const TAIL_DOWN: u64 = 1024 + 128;
const DATA_UP: u64 = 4096;

impl Worker {
    fn poke(&self, at: u64, bytes: &[u8]) {
        assert_eq!(pwrite(self.memory.file(), bytes, at), Ok(bytes.len()));
    }
}

/// What a hostile worker does, with two good ones beside it, which have traffic before and after.
fn beside_good_ones(harm: impl Fn(&mut Plane, &mut Worker)) -> (Vec<String>, Plane) {
    let (mut plane, _handle) = plane();
    let (mut a, mut b) = (plug(&mut plane, "a", guest(1)), plug(&mut plane, "b", guest(2)));
    let mut evil = plug(&mut plane, "evil", guest(6));
    for turn in 0..3 {
        a.send(&plain(mac(2), mac(1), 1000));
        b.send(&plain(mac(1), mac(2), 1000));
        if turn == 1 {
            harm(&mut plane, &mut evil);
        }
        plane.hear();
        settle(&mut plane);
        plane.hear();
        assert!(!a.receive().is_empty() && !b.receive().is_empty());
    }
    (plane.report().into_iter().map(|p| p.name).collect(), plane)
}

#[test]
fn indices_that_are_none_close_the_port() {
    for head in [8_u32, RING_MIN + 16, 1 << 31, u32::MAX, 16] {
        // 16: a descriptor of zeros.
        let (left, _) = beside_good_ones(|_, evil| {
            evil.poke(HEAD_UP, &head.to_le_bytes());
            vireo_port::wire::ring(&evil.socket);
        });
        assert_eq!(left, ["a", "b"], "{head:#x}");
    }
    for tail in [1_u32 << 31, u32::MAX] {
        let (left, _) = beside_good_ones(|plane, evil| {
            evil.poke(TAIL_DOWN, &tail.to_le_bytes());
            // The switch notices when it looks for room.
            let mut c = plug(plane, "c", guest(7));
            for _ in 0..RING_MIN / 1024 + 2 {
                c.send(&plain(mac(6), mac(7), 1000));
                settle(plane);
            }
        });
        assert_eq!(left, ["a", "b"], "{tail:#x}");
    }
}

#[test]
fn lengths_that_are_none_close_the_port_and_frames_that_are_none_are_counted() {
    for length in [0_u32, 13, 65_558, RING_MIN, u32::MAX] {
        let (left, _) = beside_good_ones(|_, evil| {
            evil.poke(DATA_UP, &length.to_le_bytes());
            evil.poke(HEAD_UP, &(RING_MIN / 2).to_le_bytes());
            vireo_port::wire::ring(&evil.socket);
        });
        assert_eq!(left, ["a", "b"], "{length}");
    }
    // A checksum that would be far outside, of a frame from somebody else, to be cut into nothing.
    let (left, plane) = beside_good_ones(|_, evil| {
        let mut descriptor = [0; 16];
        descriptor[..4].copy_from_slice(&60_u32.to_le_bytes());
        descriptor[4..12].copy_from_slice(&[6, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]);
        evil.poke(DATA_UP, &descriptor);
        evil.poke(DATA_UP + 16, &plain(mac(1), mac(6), 60));
        evil.poke(HEAD_UP, &80_u32.to_le_bytes());
        vireo_port::wire::ring(&evil.socket);
    });
    assert_eq!(left, ["a", "b", "evil"]);
    let evil = plane.report().into_iter().find(|p| p.name == "evil").unwrap();
    assert_eq!(evil.dropped.get(Reason::Malformed.name()), Some(&1));
}

#[test]
fn who_claims_to_have_read_what_it_has_not_harms_itself() {
    let (left, _) = beside_good_ones(|plane, evil| {
        let mut c = plug(plane, "c", guest(7));
        for n in 0..2000_u32 {
            c.send(&plain(mac(6), mac(7), 2000));
            settle(plane);
            evil.poke(TAIL_DOWN, &(n * 16).to_le_bytes());
        }
    });
    assert!(left.contains(&"a".to_string()) && left.contains(&"b".to_string()));
}

#[test]
fn what_is_said_and_is_none_closes_the_port() {
    for said in [&b"{}"[..], b"[[[[[[[[[[[[", b"{\"tell\":\"burn\"}", &[b'['; 16_000], &[0; 2]] {
        let (left, _) = beside_good_ones(|_, evil| {
            rustix::net::send(&evil.socket, said, rustix::net::SendFlags::empty()).unwrap();
        });
        assert_eq!(left, ["a", "b"]);
    }
}

#[test]
fn who_rings_without_end_or_reads_no_answers_is_not_waited_for() {
    let (left, _) = beside_good_ones(|plane, evil| {
        for _ in 0..100_000 {
            vireo_port::wire::ring(&evil.socket);
        }
        plane.hear();
    });
    assert_eq!(left, ["a", "b", "evil"]);
    let (left, _) = beside_good_ones(|plane, evil| {
        let word = vireo_port::wire::Word::Address { mac: mac(77) };
        // Until its own socket is full of answers.
        for _ in 0..100_000 {
            if vireo_port::wire::send(&evil.socket, &word, None, false).is_err() {
                plane.hear();
            }
            if plane.find("evil").is_none() {
                return;
            }
        }
    });
    assert_eq!(left, ["a", "b"]);
}

/// A socket whose close takes ten seconds: what it has sent is not read, and it waits for that.
fn lingering() -> (OwnedFd, (std::net::TcpListener, std::net::TcpStream)) {
    use std::io::Write;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut socket = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let reader = listener.accept().unwrap().0;
    socket.set_nonblocking(true).unwrap();
    while socket.write(&[0; 65_536]).is_ok() {}
    socket.set_nonblocking(false).unwrap();
    rustix::net::sockopt::set_socket_linger(&socket, Some(Duration::from_secs(10))).unwrap();
    (socket.into(), (listener, reader))
}

fn send_files(socket: &OwnedFd, bytes: &[u8], files: &[OwnedFd]) -> rustix::io::Result<usize> {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
    use std::os::fd::AsFd;
    let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&files)));
    rustix::net::sendmsg(socket, &[std::io::IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
}

#[test]
fn files_that_take_long_to_close_hold_up_nobody() {
    // In a message, with a bell, more than one; and where nobody has read them before the port goes.
    for (bytes, count) in [(&b"{}"[..], 1), (&[0], 1), (b"{}", 2)] {
        let (left, _) = beside_good_ones(|plane, evil| {
            let (mut kept, mut files) = (Vec::new(), Vec::new());
            for _ in 0..count * 2 {
                let (file, reader) = lingering();
                files.push(file);
                kept.push(reader);
            }
            send_files(&evil.socket, bytes, &files[..count]).unwrap();
            send_files(&evil.socket, bytes, &files[count..]).unwrap();
            drop(files);
            let begun = std::time::Instant::now();
            plane.hear();
            assert_eq!(plane.find("evil"), None);
            assert!(begun.elapsed() < Duration::from_secs(5), "{bytes:?}");
        });
        assert_eq!(left, ["a", "b"]);
    }
}

/// Counts lines of the log.
#[derive(Default)]
struct Lines(std::sync::atomic::AtomicUsize);

impl tracing::Subscriber for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }
    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn a_switch_s_sockets_take_no_files() {
    let path = std::env::temp_dir().join(format!("vireo-files-{}", std::process::id()));
    let listener = vireo_port::wire::listen(&path, SocketType::SEQPACKET).unwrap();
    let socket = vireo_port::wire::connect(&path).unwrap();
    let accepted = rustix::net::accept(&listener).unwrap();
    std::fs::remove_file(&path).unwrap();
    let sent = send_files(&socket, b"{}", &[socket.try_clone().unwrap()]);
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut version = release.split('.').map(|n| n.parse().unwrap_or(0));
    let version: (u32, u32) = (version.next().unwrap(), version.next().unwrap());
    if version >= (6, 16) {
        assert_eq!(sent, Err(rustix::io::Errno::PERM));
        return;
    }
    // Then they are found here.
    let mut buffer = [0; 100];
    let heard = vireo_port::wire::receive(&accepted, false, &mut buffer);
    assert!(matches!(heard, vireo_port::wire::Heard::Message(_, Some(_))));
}

#[test]
fn nobody_fills_the_log() {
    let lines = Arc::new(Lines::default());
    // With one alone, tracing asks it of nothing that another test's thread has said first.
    let _second = tracing::Dispatch::new(Arc::clone(&lines));
    let _said_here = tracing::subscriber::set_default(Arc::clone(&lines));
    let count = || lines.0.load(std::sync::atomic::Ordering::Relaxed);
    let (mut plane, _handle) = plane();
    let guest_asks = plug(&mut plane, "guest", guest(1));
    for _ in 0..1000 {
        let word = vireo_port::wire::Word::Address { mac: mac(77) };
        vireo_port::wire::send(&guest_asks.socket, &word, None, false).unwrap();
        plane.hear();
        let mut answer = [0; 100];
        assert!(matches!(
            vireo_port::wire::receive(&guest_asks.socket, false, &mut answer),
            vireo_port::wire::Heard::Message(..)
        ));
    }
    let of_guest = count();
    assert!((1..10).contains(&of_guest), "{of_guest}");
    // A worker that comes again and again.
    for _ in 0..1000 {
        let evil = plug(&mut plane, "evil", guest(6));
        rustix::net::send(&evil.socket, b"{}", rustix::net::SendFlags::empty()).unwrap();
        plane.hear();
        assert_eq!(plane.find("evil"), None);
    }
    assert!((1..100).contains(&(count() - of_guest)), "{}", count());
}

#[test]
fn who_writes_while_it_is_read_gets_a_frame_of_its_own_through_at_most() {
    let (mut plane, _handle) = plane();
    let mut evil = plug(&mut plane, "evil", guest(6));
    let mut good = plug(&mut plane, "good", guest(1));
    let file = evil.memory.file().try_clone_to_owned().unwrap();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let its = Arc::clone(&stop);
    let writer = std::thread::spawn(move || {
        let mut n = 0_u64;
        while !its.load(std::sync::atomic::Ordering::Relaxed) {
            // Source addresses, over all that is in the ring.
            n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = DATA_UP + (n >> 40) % u64::from(RING_MIN) / 80 * 80 + 16 + 6;
            _ = pwrite(&file, &mac((n >> 56) as u8 & 15).0, at);
        }
    });
    for _ in 0..300 {
        let frame = plain(mac(1), mac(6), 64);
        while evil.up.put(&Frame::whole(&frame).unwrap()).is_ok() {}
        evil.up.publish();
        settle(&mut plane);
        for (frame, _) in good.receive() {
            assert_eq!(frame[6..12], mac(6).0, "what was checked is what arrives");
        }
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    writer.join().unwrap();
    assert!(plane.switch().counters(evil.id).unwrap().dropped[Reason::Spoofed as usize] > 0);
}
