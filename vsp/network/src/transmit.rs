//! Frames from the guest: out of the messages of a packet, and with what is still to be done to them.

use std::net::IpAddr;

use vireo_frame::headers::{ether_type, ether_type_at, protocol};
use vireo_frame::{
    Checksum, Frame, Full, HEAD_MAX, Intent, Link, SegmentKind, Segmentation, Sum, Tag, fit, pseudo_header,
};
use vireo_memory::{GuestSlice, read_pieces};

use crate::bytes::le32;
use crate::rndis::{HEADER, Infos, Packet, message};

/// Data messages of one packet, as drivers are told.
pub const MESSAGES_MAX: u32 = 8;
/// Bytes of them all.
pub const BYTES_MAX: u32 = 0x0010_0000;
/// Messages up to so many bytes are copied whole.
const WHOLE: u32 = 4096;
/// Bytes of longer ones that are: all that comes with a frame, and its head.
const FIRST: u32 = 1024;

/// A packet of data messages on its way.
pub struct Sending {
    /// The guest's name for it.
    pub transaction: u64,
    /// Where its messages are, one behind the other.
    pub memory: Vec<GuestSlice>,
    /// Where the next message starts.
    at: u32,
    /// Messages before that one.
    messages: u32,
    /// Frames that were made of that one already.
    done: usize,
}

impl Sending {
    /// The messages in this memory.
    pub fn new(transaction: u64, memory: Vec<GuestSlice>) -> Self {
        Self { transaction, memory, at: 0, messages: 0, done: 0 }
    }
}

/// What became of the frames of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Frames that the link took.
    pub frames: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Messages that were none.
    pub bad: u64,
}

/// Takes frames out of packets. It keeps its memory.
#[derive(Default)]
pub struct Transmitter {
    first: Vec<u8>,
    tail: Vec<GuestSlice>,
    scratch: Vec<u8>,
}

impl Transmitter {
    /// Gives a link the frames of a packet. What is no message ends it, and what is more than there may be: nobody can stop it.
    ///
    /// # Errors
    /// The link is full: to be called again with the same packet. `sent` has what was taken until then.
    pub fn send(&mut self, packet: &mut Sending, link: &dyn Link, sent: &mut Sent) -> Result<(), Full> {
        let length = packet.memory.iter().fold(0_u32, |n, s| n.saturating_add(s.len() as u32));
        while packet.at < length {
            let may_be = length <= BYTES_MAX && packet.messages < MESSAGES_MAX;
            let Some(bytes) = may_be.then(|| self.message(packet, length)).flatten() else {
                sent.bad += 1;
                return Ok(());
            };
            match self.frame(packet, bytes) {
                Some((range, intent)) => {
                    let frame = Frame::new(&self.first[range], &self.tail, intent);
                    let Ok(frame) = frame else {
                        sent.bad += 1;
                        return Ok(());
                    };
                    let put = &mut |f: &Frame<'_>| link.put(f);
                    fit(&frame, &link.ability(), &mut packet.done, &mut self.scratch, put)?;
                    sent.frames += 1;
                    sent.bytes += frame.len() as u64;
                }
                None => sent.bad += 1,
            }
            packet.at += bytes;
            packet.messages += 1;
            packet.done = 0;
        }
        Ok(())
    }

    /// Copies the next message, or what of it has to be private; its bytes.
    fn message(&mut self, packet: &Sending, length: u32) -> Option<u32> {
        let mut header = [0; HEADER as usize];
        read(&packet.memory, packet.at as usize, &mut header)?;
        let (kind, bytes) = (le32(&header, 0)?, le32(&header, 4)?);
        if kind != message::PACKET || bytes < HEADER || bytes > length - packet.at {
            return None;
        }
        self.first.resize(if bytes <= WHOLE { bytes } else { FIRST } as usize, 0);
        read(&packet.memory, packet.at as usize, &mut self.first)?;
        // The guest may have changed its mind; ours is made up.
        self.first[..HEADER as usize].copy_from_slice(&header);
        Some(bytes)
    }

    /// The head of the message's frame, as a range of the copy, and what is to be done to it. Its tail is in `self`.
    fn frame(&mut self, packet: &Sending, bytes: u32) -> Option<(std::ops::Range<usize>, Intent)> {
        let rndis = Packet::parse(&self.first, bytes)?;
        let (at, length) = (rndis.at as usize, rndis.length as usize);
        let head = if bytes <= WHOLE { length } else { length.min(HEAD_MAX) };
        self.tail.clear();
        slices(&packet.memory, packet.at as usize + at + head, length - head, &mut self.tail);
        let intent = intent(self.first.get_mut(at..at + head)?, length, &rndis.infos)?;
        Some((at..at + head, intent))
    }
}

/// Copies from memory in pieces; `None`: there is not so much.
fn read(memory: &[GuestSlice], offset: usize, to: &mut [u8]) -> Option<()> {
    (read_pieces(memory, offset, to).ok()? == to.len()).then_some(())
}

/// Appends the pieces of a range of memory in pieces.
fn slices(memory: &[GuestSlice], mut offset: usize, mut length: usize, to: &mut Vec<GuestSlice>) {
    for piece in memory {
        if length == 0 {
            return;
        }
        if offset >= piece.len() {
            offset -= piece.len();
            continue;
        }
        let this = piece.split_at(offset).1.split_at(length).0;
        length -= this.len();
        offset = 0;
        to.push(this);
    }
}

/// What is to be done to a frame of `length` bytes, of which `head` are the first, made ready for it; `None`: that cannot be.
fn intent(head: &mut [u8], length: usize, infos: &Infos) -> Option<Intent> {
    let mut intent = Intent { tag: infos.tag.map(tag), ..Intent::default() };
    if let Some(large_send) = infos.large_send {
        let ip = Ip::find(head)?;
        let size = u16::try_from(large_send & 0xf_ffff).ok()?;
        let start = ip.start_of(large_send >> 20 & 0x3ff);
        let kind = if ip.v6 { SegmentKind::Tcp6 } else { SegmentKind::Tcp4 };
        // The driver leaves lengths out (hv_netvsc), and all that is made of them.
        ip.set_length(head, length)?;
        let offset = ip.prepare(head, start, protocol::TCP, length.checked_sub(start)?)?;
        intent.checksum = Checksum::Wanted { start: start as u16, offset };
        intent.segmentation = Some(Segmentation { kind, size });
    } else if let Some(checksum) = infos.checksum {
        let transport = match checksum & 0xc {
            4 => Some(protocol::TCP),
            8 => Some(protocol::UDP),
            _ => None,
        };
        if transport.is_none() && checksum & 0x10 == 0 {
            return Some(intent);
        }
        let ip = Ip::find(head)?;
        if checksum & 0x10 != 0 {
            ip.sum_header(head)?;
        }
        if let Some(transport) = transport {
            let start = ip.start_of(checksum >> 16 & 0x3ff);
            let bytes = ip.end(head)?.min(length).checked_sub(start)?;
            let offset = ip.prepare(head, start, transport, bytes)?;
            intent.checksum = Checksum::Wanted { start: start as u16, offset };
        }
    }
    Some(intent)
}

/// A tag as IEEE has it, from that of NDIS.
fn tag(info: u32) -> Tag {
    Tag(((info & 7) << 13 | (info >> 3 & 1) << 12 | info >> 4 & 0xfff) as u16)
}

/// Where a frame's IP header is.
struct Ip {
    at: usize,
    v6: bool,
    /// Bytes of it, without extensions.
    header: usize,
}

impl Ip {
    fn find(head: &[u8]) -> Option<Self> {
        let (kind, at) = ether_type_at(head)?;
        let first = *head.get(at)?;
        let (v6, header) = match kind {
            ether_type::IPV4 => (false, usize::from(first & 0xf) * 4),
            ether_type::IPV6 => (true, 40),
            _ => return None,
        };
        (header >= 20 && head.len() >= at + header).then_some(Self { at, v6, header })
    }

    /// Where the next header starts, which the driver may have said.
    fn start_of(&self, said: u32) -> usize {
        if said == 0 { self.at + self.header } else { said as usize }
    }

    /// Where the packet ends by its own words.
    fn end(&self, head: &[u8]) -> Option<usize> {
        let field = |at: usize| Some(usize::from(u16::from_be_bytes(*head.get(at..)?.first_chunk()?)));
        match self.v6 {
            true => Some(self.at + 40 + field(self.at + 4)?),
            false => Some(self.at + field(self.at + 2)?),
        }
    }

    /// Writes the length, and with IPv4 the sum of the header, of a packet that ends where the frame does.
    fn set_length(&self, head: &mut [u8], frame: usize) -> Option<()> {
        let (field, bytes) =
            if self.v6 { (4, frame.checked_sub(self.at + 40)?) } else { (2, frame - self.at) };
        let bytes = u16::try_from(bytes).ok()?;
        head[self.at + field..][..2].copy_from_slice(&bytes.to_be_bytes());
        self.sum_header(head)
    }

    fn sum_header(&self, head: &mut [u8]) -> Option<()> {
        if !self.v6 {
            let header = head.get_mut(self.at..self.at + self.header)?;
            header[10..12].fill(0);
            let sum = Sum::default().over(header).finish();
            header[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        Some(())
    }

    /// Puts the sum of the pseudo header where the checksum belongs; where that is, behind `start`.
    fn prepare(&self, head: &mut [u8], start: usize, transport: u8, bytes: usize) -> Option<u16> {
        let address = |at: usize| match self.v6 {
            true => Some(IpAddr::from(*head.get(at..)?.first_chunk::<16>()?)),
            false => Some(IpAddr::from(*head.get(at..)?.first_chunk::<4>()?)),
        };
        let (source, destination) = match self.v6 {
            true => (address(self.at + 8)?, address(self.at + 24)?),
            false => (address(self.at + 12)?, address(self.at + 16)?),
        };
        let sum = pseudo_header(source, destination, transport, bytes).folded();
        let offset = if transport == protocol::UDP { 6 } else { 16 };
        head.get_mut(start + offset..)?.first_chunk_mut::<2>().map(|f| *f = sum.to_be_bytes())?;
        Some(offset as u16)
    }
}
