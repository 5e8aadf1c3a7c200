//! The thread: it reads frames and puts them to the adapter.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use vireo_frame::{Adapter, Checksum, FRAME_MAX, Frame, Full, Intent, OFFLOAD_HEADER, Sum, fit};

use crate::tap::{Shared, signal};

/// Frames that are put before they are to go, and before anything else is looked at.
const BURST: usize = 64;
/// What Linux says of TAP devices, in bits a second.
const SPEED: u64 = 10_000_000_000;

/// Starts the thread of a device.
pub(crate) fn start(shared: &Arc<Shared>) -> io::Result<JoinHandle<()>> {
    let shared = Arc::clone(shared);
    let name = format!("tap {}", shared.interface.name());
    std::thread::Builder::new().name(name).spawn(move || {
        let buffer = vec![0; OFFLOAD_HEADER + FRAME_MAX].into();
        let reader = Reader {
            shared,
            buffer,
            scratch: Vec::new(),
            length: 0,
            done: 0,
            full: false,
            gone: false,
            up: None,
            told: None,
        };
        reader.run();
    })
}

struct Reader {
    shared: Arc<Shared>,
    /// A header and a frame.
    buffer: Box<[u8]>,
    scratch: Vec<u8>,
    /// Bytes in the buffer that are still to be put, and how many pieces of the frame are ([`fit`]).
    length: usize,
    done: usize,
    /// The adapter had no room.
    full: bool,
    /// There is no interface any more.
    gone: bool,
    /// Whether the interface is up, if there was no news of it.
    up: Option<bool>,
    /// The carrier that the adapter was told of.
    told: Option<bool>,
}

impl Reader {
    fn run(mut self) {
        while self.wait().is_some() {
            self.deliver();
        }
    }

    /// Waits for something to do. `None`: it is over.
    fn wait(&mut self) -> Option<()> {
        let shared = Arc::clone(&self.shared);
        let mut wanted = PollFlags::empty();
        wanted.set(PollFlags::IN, !self.full);
        wanted.set(PollFlags::OUT, shared.full.load(Ordering::Acquire));
        // Of one that is gone there is nothing but errors: the bell once more, in its place.
        let file = if self.gone { shared.bell() } else { &shared.file };
        let news = shared.interface.news().unwrap_or(shared.bell());
        let mut files = [
            PollFd::new(file, wanted),
            PollFd::new(shared.bell(), PollFlags::IN),
            PollFd::new(news, PollFlags::IN),
        ];
        match poll(&mut files, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => {
                tracing::error!(tap = shared.interface.name(), "cannot wait for frames: {e}");
                return None;
            }
        }
        let [file, bell, news] = files.map(|f| f.revents());
        if file.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL) {
            self.is_gone("poll");
        }
        if !bell.is_empty() {
            self.hear(shared.take_signals())?;
        }
        if !news.is_empty() {
            shared.interface.read_news();
            self.up = None;
        }
        if (self.gone || file.contains(PollFlags::OUT))
            && shared.full.swap(false, Ordering::AcqRel)
            && let Some(adapter) = &*shared.adapter()
        {
            adapter.room();
        }
        Some(())
    }

    /// The interface was taken away: whoever wants frames again has to open another one.
    fn is_gone(&mut self, why: &str) {
        if !std::mem::replace(&mut self.gone, true) {
            let name = self.shared.interface.name();
            tracing::warn!("the TAP device {name} is gone, and with it the network behind it ({why})");
        }
    }

    fn hear(&mut self, signals: u32) -> Option<()> {
        if signals & signal::PLUGGED != 0 {
            (self.told, self.up) = (None, None);
        }
        if signals & (signal::PLUGGED | signal::ROOM) != 0 {
            self.full = false;
        }
        (signals & signal::END == 0).then_some(())
    }

    /// Whether frames can come and go.
    fn carrier(&mut self) -> bool {
        !self.gone && *self.up.get_or_insert_with(|| self.shared.interface.is_up())
    }

    /// Reads frames and puts them.
    fn deliver(&mut self) {
        let up = self.carrier();
        let shared = Arc::clone(&self.shared);
        let adapter = shared.adapter();
        let Some(adapter) = &*adapter else { return self.lose() };
        if self.told != Some(up) {
            adapter.set_carrier(up, SPEED);
            self.told = Some(up);
        }
        let mut put = false;
        for _ in 0..BURST {
            if self.full || self.length == 0 && !self.read() {
                break;
            }
            self.full = self.put(&**adapter).is_err();
            if !self.full {
                (self.length, put) = (0, true);
            }
        }
        if put {
            adapter.flush();
        }
    }

    /// Reads what there is for nobody.
    fn lose(&mut self) {
        for _ in 0..BURST {
            if self.length == 0 && !self.read() {
                break;
            }
            self.length = 0;
            self.shared.lost_read.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Reads a frame, if there is one.
    fn read(&mut self) -> bool {
        if self.gone {
            return false;
        }
        match rustix::io::read(&self.shared.file, &mut self.buffer[..]) {
            Ok(length) => (self.length, self.done) = (length, 0),
            Err(Errno::AGAIN | Errno::INTR) => {}
            // The interface is gone (EBADFD), or whatever else: poll tells.
            Err(e) => self.is_gone(&e.to_string()),
        }
        self.length > 0
    }

    /// Puts the frame in the buffer.
    fn put(&mut self, adapter: &dyn Adapter) -> Result<(), Full> {
        if let Some(put) = self.put_as_it_is(adapter) {
            return put;
        }
        if let Some((header, bytes)) = self.buffer[..self.length].split_first_chunk_mut() {
            make_other_sum(header, bytes);
        }
        self.put_as_it_is(adapter).unwrap_or_else(|| {
            self.shared.lost_read.fetch_add(1, Ordering::Relaxed);
            Ok(())
        })
    }

    /// The same; `None`: it is none.
    fn put_as_it_is(&mut self, adapter: &dyn Adapter) -> Option<Result<(), Full>> {
        let (header, bytes) = self.buffer[..self.length].split_first_chunk()?;
        let frame = Intent::from_offload_header(header).ok().and_then(|i| Frame::new(bytes, &[], i).ok())?;
        let ability = self.shared.adapter_ability();
        Some(fit(&frame, &ability, &mut self.done, &mut self.scratch, &mut |f| adapter.put(f)))
    }
}

/// Makes a sum of what the rest of Vireo makes none of: of a packet within a packet, or of another protocol's, which the kernel leaves to
/// the device on its way from elsewhere. It is trusted to say where; a guest is not.
fn make_other_sum(header: &mut [u8; OFFLOAD_HEADER], bytes: &mut [u8]) {
    let Ok(intent) = Intent::from_offload_header(header) else { return };
    let Checksum::Wanted { start, offset } = intent.checksum else { return };
    if intent.segmentation.is_some() || Frame::new(bytes, &[], intent).is_ok() {
        return;
    }
    let Some(summed) = bytes.get_mut(usize::from(start)..) else { return };
    let sum = Sum::default().over(summed).finish();
    if let Some(place) = summed.get_mut(offset.into()..).and_then(|rest| rest.first_chunk_mut()) {
        // Zero says that there is none.
        *place = if sum == 0 { u16::MAX } else { sum }.to_be_bytes();
        *header = [0; OFFLOAD_HEADER];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// UDP in a packet of IPv4 that is in another one.
    #[test]
    fn the_sum_of_a_packet_within_a_packet_is_made() {
        let ip = |protocol: u8, length: u8| {
            [&[0x45, 0, 0, length, 0, 0, 0, 0, 64, protocol, 0, 0][..], &[10, 0, 0, 1, 10, 0, 0, 2]].concat()
        };
        let addresses = Sum::default().over(&[10, 0, 0, 1, 10, 0, 0, 2, 0, 17, 0, 12]);
        let pseudo = (!addresses.finish()).to_be_bytes();
        let udp = [&[0, 7, 0, 9, 0, 12][..], &pseudo, b"ping"].concat();
        let frame = [&[2; 12][..], &[8, 0], &ip(4, 52), &ip(17, 32), &udp].concat();
        let header = |start: u16, offset: u16| {
            let mut header = [0; OFFLOAD_HEADER];
            header[0] = 1;
            header[6..8].copy_from_slice(&start.to_le_bytes());
            header[8..10].copy_from_slice(&offset.to_le_bytes());
            header
        };
        let (mut inner, mut bytes) = (header(54, 6), frame.clone());
        make_other_sum(&mut inner, &mut bytes);
        assert_eq!(inner, [0; OFFLOAD_HEADER]);
        assert_eq!(addresses.over(&bytes[54..]).finish(), 0, "it is right");
        // One that others make is left to them, and one that is nowhere is made by nobody.
        let plain = [&[2; 12][..], &[8, 0], &ip(17, 32), &udp].concat();
        for (at, offset, frame) in [(34, 6, plain), (54, 60_000, frame.clone()), (60_000, 6, frame)] {
            let (mut header, mut bytes) = (header(at, offset), frame.clone());
            make_other_sum(&mut header, &mut bytes);
            assert_eq!((header[0], bytes), (1, frame));
        }
    }
}
