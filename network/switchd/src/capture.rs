//! Captures: copies of frames for who looks on, written in the format of pcapng (draft-ietf-opsawg-pcapng).

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use vireo_frame::{Ability, Frame, fit};
use vireo_port::wire::{self, Heard};
use vireo_port::{PortMemory, RingReader, Way};

use crate::plane::Handle;

/// Bytes of a capture's ring: what is not read in time is lost to it, and to nobody else.
const RING: u32 = 4 << 20;

/// Sends all frames that pass the switch, or a port of it, until the client goes.
///
/// # Errors
/// The host refuses what it needs, or the client is gone.
pub(crate) fn serve(
    plane: &Handle,
    port: Option<vireo_switch::PortId>,
    client: &UnixStream,
) -> io::Result<()> {
    let memory = PortMemory::create(RING)?;
    let theirs = PortMemory::open(memory.file().try_clone_to_owned()?, RING)?;
    let (socket, its) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
    let number = plane.call(move |plane| plane.add_capture(port, theirs, its)).ok_or_else(gone)?;
    let written = write(&Arc::new(memory), &socket, client);
    plane.call(move |plane| plane.end_capture(number));
    written
}

fn write(memory: &Arc<PortMemory>, socket: &OwnedFd, client: &UnixStream) -> io::Result<()> {
    let mut reader = RingReader::new(memory, Way::Down);
    let mut out = io::BufWriter::with_capacity(1 << 18, client);
    out.write_all(&start())?;
    let (mut bytes, mut scratch, mut buffer) = (Vec::new(), Vec::new(), vec![0; wire::MESSAGE_MAX]);
    let broken = |e: vireo_port::RingBroken| io::Error::other(e);
    loop {
        while let Some(record) = reader.peek().map_err(broken)? {
            bytes.resize(record.length, 0);
            reader.read(&record, 0, &mut bytes);
            reader.consume(record);
            // In the file, tags are in the bytes.
            let takes = Ability { tag: false, ..Ability::ALL };
            let Ok(frame) = Frame::new(&bytes, &[], record.intent) else { continue };
            let mut result = Ok(());
            _ = fit(&frame, &takes, &mut 0, &mut scratch, &mut |frame| {
                result = out.write_all(&packet(frame.head(), SystemTime::now()));
                Ok(())
            });
            result?;
        }
        reader.publish();
        out.flush()?;
        if reader.wait().map_err(broken)? {
            continue;
        }
        let mut fds =
            [PollFd::new(socket, PollFlags::IN), PollFd::from_borrowed_fd(client.as_fd(), PollFlags::RDHUP)];
        poll(&mut fds, None)?;
        let hung_up = !fds[1].revents().is_empty();
        match wire::receive(socket, false, &mut buffer) {
            _ if hung_up => return Ok(()),
            Heard::Gone => return Ok(()),
            _ => {}
        }
    }
}

/// A section, and the one interface in it: Ethernet, times in nanoseconds.
fn start() -> Vec<u8> {
    let section = block(
        0x0a0d_0d0a,
        &[
            &0x1a2b_3c4d_u32.to_le_bytes(),
            // Version 1.0, of unknown length.
            &[1, 0, 0, 0],
            &u64::MAX.to_le_bytes(),
        ],
    );
    // Link type 1, no limit of length; option 9 (if_tsresol), one byte: 10^-9.
    let interface = block(1, &[&[1, 0, 0, 0, 0, 0, 0, 0], &[9, 0, 1, 0, 9, 0, 0, 0], &[0; 4]]);
    [section, interface].concat()
}

/// A frame (an enhanced packet block).
fn packet(bytes: &[u8], at: SystemTime) -> Vec<u8> {
    let time = at.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
    let length = (bytes.len() as u32).to_le_bytes();
    let (high, low) = ((time >> 32) as u32, time as u32);
    block(6, &[&[0; 4], &high.to_le_bytes(), &low.to_le_bytes(), &length, &length, bytes])
}

/// A block: its kind, its length before and behind, and what is in it, in whole words.
fn block(kind: u32, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|p| p.len()).sum();
    let whole = ((length.next_multiple_of(4) + 12) as u32).to_le_bytes();
    let mut bytes = Vec::with_capacity(length + 16);
    bytes.extend(kind.to_le_bytes());
    bytes.extend(whole);
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes.resize(8 + length.next_multiple_of(4), 0);
    bytes.extend(whole);
    bytes
}
