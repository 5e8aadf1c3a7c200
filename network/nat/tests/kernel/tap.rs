//! A TAP device as a guest's adapter: the kernel at its other end takes checksums and segmentation as a guest's driver does.

use std::io::{self, IoSlice, Read, Write};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use vireo_frame::{Ability, Adapter, Checksum, End, Frame, Full, Intent, Link, SegmentKind, Segmentation};

const IFF_TAP: i16 = 2;
const IFF_NO_PI: i16 = 0x1000;
const IFF_VNET_HDR: i16 = 0x4000;
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const TUNSETOFFLOAD: libc::Ioctl = 0x4004_54d0_u32 as libc::Ioctl;
const ALL_OFFLOADS: libc::c_ulong = 1 | 2 | 4;
/// Bytes of a header of virtio-net that has no number of buffers (5.1.6).
const HEADER: usize = 10;
const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;

/// A TAP device of the namespace that it was opened in.
pub struct Tap {
    file: std::fs::File,
    offloads: bool,
    over: AtomicBool,
    /// Of so many frames one is lost, each way; 0: none.
    loss: u32,
    dice: Mutex<u32>,
}

impl Tap {
    pub fn open(offloads: bool, loss: u32) -> io::Result<Self> {
        let file = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
        let mut request = [0_u8; 40];
        request[..4].copy_from_slice(b"tap0");
        request[16..18].copy_from_slice(&(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR).to_ne_bytes());
        // SAFETY: the request is an `ifreq`, of 40 bytes, that lives as long as the call.
        let made = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) };
        // SAFETY: this one takes a number.
        let set =
            unsafe { libc::ioctl(file.as_raw_fd(), TUNSETOFFLOAD, if offloads { ALL_OFFLOADS } else { 0 }) };
        if made != 0 || set != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { file, offloads, over: AtomicBool::new(false), loss, dice: Mutex::new(1) })
    }

    pub fn ability(&self) -> Ability {
        match self.offloads {
            true => Ability { checksum: true, tcp4: true, tcp6: true, udp: false, tag: false },
            false => Ability::default(),
        }
    }

    fn is_lost(&self) -> bool {
        if self.loss == 0 {
            return false;
        }
        let mut dice = self.dice.lock().unwrap();
        *dice = dice.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (*dice >> 8).is_multiple_of(self.loss)
    }

    /// Puts what the kernel sends into the link, until it is told to end.
    pub fn run(&self, link: &dyn Link) {
        let mut buffer = vec![0; HEADER + 65_600];
        while !self.over.load(Ordering::Acquire) {
            let mut poll = libc::pollfd { fd: self.file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one descriptor, that lives as long as the call.
            if unsafe { libc::poll(&mut poll, 1, 50) } != 1 {
                continue;
            }
            let Ok(length) = (&self.file).read(&mut buffer) else { continue };
            let (header, bytes) = buffer[..length].split_at(HEADER);
            let frame = Frame::new(bytes, &[], intent(header)).expect("the kernel makes good frames");
            if !self.is_lost() {
                while link.put(&frame).is_err() {
                    std::thread::yield_now();
                }
            }
            link.flush();
        }
    }

    pub fn end(&self) {
        self.over.store(true, Ordering::Release);
    }
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

fn intent(header: &[u8]) -> Intent {
    let checksum = match header[0] & NEEDS_CSUM {
        0 => Checksum::Unknown,
        _ => Checksum::Wanted { start: word(header, 6), offset: word(header, 8) },
    };
    let kind = match header[1] & 0x7f {
        GSO_TCPV4 => Some(SegmentKind::Tcp4),
        GSO_TCPV6 => Some(SegmentKind::Tcp6),
        _ => None,
    };
    let segmentation = kind.map(|kind| Segmentation { kind, size: word(header, 4) });
    Intent { checksum, segmentation, tag: None }
}

impl End for Tap {
    fn put(&self, frame: &Frame<'_>) -> Result<(), Full> {
        let intent = frame.intent();
        assert!(self.ability().takes(&intent), "{intent:?}");
        let mut header = [0; HEADER];
        match intent.checksum {
            Checksum::Wanted { start, offset } => {
                header[0] = NEEDS_CSUM;
                header[6..8].copy_from_slice(&start.to_ne_bytes());
                header[8..10].copy_from_slice(&offset.to_ne_bytes());
            }
            // The kernel looks itself, where it has to.
            Checksum::Good if self.offloads => header[0] = DATA_VALID,
            _ => {}
        }
        if let Some(Segmentation { kind, size }) = intent.segmentation {
            header[1] = if kind == SegmentKind::Tcp4 { GSO_TCPV4 } else { GSO_TCPV6 };
            header[2..4].copy_from_slice(&(frame.headers() as u16).to_ne_bytes());
            header[4..6].copy_from_slice(&size.to_ne_bytes());
        }
        assert!(frame.tail().is_empty());
        if !self.is_lost() {
            // One that the kernel does not take is lost, as on any wire.
            _ = (&self.file).write_vectored(&[IoSlice::new(&header), IoSlice::new(frame.head())]);
        }
        Ok(())
    }

    fn flush(&self) {}

    fn room(&self) {}
}

impl Adapter for Tap {
    fn set_carrier(&self, up: bool, _: u64) {
        assert!(up);
    }
}

/// Ends its thread when it is dropped.
pub struct Plugged(pub Arc<Tap>, pub Option<std::thread::JoinHandle<()>>);

impl Drop for Plugged {
    fn drop(&mut self) {
        self.0.end();
        if let Some(thread) = self.1.take() {
            _ = thread.join();
        }
    }
}
