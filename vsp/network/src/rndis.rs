//! RNDIS: messages, as MS-RNDIS has them, with what NDIS adds to a frame.

use crate::bytes::{le32, part, words};

/// Kinds of messages.
pub mod message {
    #![allow(missing_docs)]
    pub const PACKET: u32 = 1;
    pub const INITIALIZE: u32 = 2;
    pub const HALT: u32 = 3;
    pub const QUERY: u32 = 4;
    pub const SET: u32 = 5;
    pub const RESET: u32 = 6;
    pub const INDICATE: u32 = 7;
    pub const KEEP_ALIVE: u32 = 8;
    pub const COMPLETION: u32 = 0x8000_0000;
}

/// Outcomes, and what is told unasked.
pub mod status {
    #![allow(missing_docs)]
    pub const SUCCESS: u32 = 0;
    pub const FAILURE: u32 = 0xc000_0001;
    pub const NOT_SUPPORTED: u32 = 0xc000_00bb;
    pub const INVALID_DATA: u32 = 0xc001_0015;
    pub const MEDIA_CONNECT: u32 = 0x4001_000b;
    pub const MEDIA_DISCONNECT: u32 = 0x4001_000c;
    pub const LINK_SPEED_CHANGE: u32 = 0x4001_0013;
}

/// What goes with a frame: kinds of per-packet information of NDIS.
pub mod info {
    #![allow(missing_docs)]
    pub const CHECKSUM: u32 = 0;
    pub const LARGE_SEND: u32 = 2;
    pub const TAG: u32 = 6;
    pub const HASH: u32 = 9 - 1;
    /// Of RNDIS itself: which part of a coalesced frame this is.
    pub const FRAGMENT: u32 = 1 | INTERNAL;
    pub const INTERNAL: u32 = 1 << 31;
}

/// Bytes of what all messages start with: kind and length.
pub const HEADER: u32 = 8;
/// Bytes of a data message's own fields.
const PACKET_FIELDS: u32 = 36;
/// Bytes of a piece of information: length, kind, where its value is, and a value of one word.
const INFO: u32 = 16;
/// Bytes before the frame of a data message from us, at most: header, fields, checksum, tag, hash, fragment.
pub const OVERHEAD_MAX: u32 = HEADER + PACKET_FIELDS + 4 * INFO;

/// What comes with a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Infos {
    /// Checksums.
    pub checksum: Option<u32>,
    /// Segments.
    pub large_send: Option<u32>,
    /// A VLAN.
    pub tag: Option<u32>,
    /// A hash.
    pub hash: Option<u32>,
    /// A part.
    pub fragment: Option<u32>,
}

impl Infos {
    fn all(&self) -> impl Iterator<Item = (u32, u32)> {
        let all = [
            (info::CHECKSUM, self.checksum),
            (info::LARGE_SEND, self.large_send),
            (info::TAG, self.tag),
            (info::HASH, self.hash),
            (info::FRAGMENT, self.fragment),
        ];
        all.into_iter().filter_map(|(kind, value)| Some((kind, value?)))
    }

    fn set(&mut self, kind: u32, value: u32) {
        match kind {
            info::CHECKSUM => self.checksum = Some(value),
            info::LARGE_SEND => self.large_send = Some(value),
            info::TAG => self.tag = Some(value),
            info::HASH => self.hash = Some(value),
            _ => {}
        }
    }
}

/// A data message: where its frame is, and what comes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Offset of the frame from the message's start.
    pub at: u32,
    /// Bytes of it.
    pub length: u32,
    /// What comes with it.
    pub infos: Infos,
}

impl Packet {
    /// Reads the first bytes of a message that is `length` bytes long; `None`: it is none, or what comes with the frame is not in
    /// its first bytes.
    pub fn parse(first: &[u8], length: u32) -> Option<Self> {
        let field = |n: usize| le32(first, HEADER as usize + n * 4);
        let (at, bytes) = (field(0)?.checked_add(HEADER)?, field(1)?);
        if at < HEADER + PACKET_FIELDS || at.checked_add(bytes)? > length {
            return None;
        }
        let mut infos = Infos::default();
        let (mut info_at, mut info_left) = (field(5)?.checked_add(HEADER)?, field(6)?);
        while info_left > 0 {
            let this = part(first, info_at, info_left)?;
            let (size, kind, value_at) = (le32(this, 0)?, le32(this, 4)?, le32(this, 8)?);
            if size < INFO || size > info_left {
                return None;
            }
            if let Some(value) = le32(this.get(..size as usize)?, value_at as usize) {
                infos.set(kind, value);
            }
            info_at = info_at.checked_add(size)?;
            info_left -= size;
        }
        Some(Self { at, length: bytes, infos })
    }

    /// What stands before a frame, or a part of one, of so many bytes.
    pub fn head(length: u32, infos: &Infos, to: &mut Vec<u8>) {
        to.clear();
        let count = infos.all().count() as u32;
        let info_bytes = count * INFO;
        let data = PACKET_FIELDS + info_bytes;
        let info_at = if count > 0 { PACKET_FIELDS } else { 0 };
        let fields =
            [message::PACKET, HEADER + data + length, data, length, 0, 0, 0, info_at, info_bytes, 0, 0];
        fields.iter().for_each(|field| to.extend_from_slice(&field.to_le_bytes()));
        for (kind, value) in infos.all() {
            for word in [INFO, kind, INFO - 4, value] {
                to.extend_from_slice(&word.to_le_bytes());
            }
        }
    }
}

/// A message of two words at least: its kind, then its length and these words.
pub fn message(kind: u32, fields: &[u32], rest: &[u8]) -> Vec<u8> {
    let length = HEADER + fields.len() as u32 * 4 + rest.len() as u32;
    [&words(&[kind, length]), &words(fields), rest].concat()
}
