//! A frame, and what is still to be done to it.

use vireo_memory::{GuestSlice, MemoryError, read_pieces};

use crate::Tag;
use crate::headers::{HEADER, Segment, ether_type, protocol};

/// Bytes of the longest frame: the longest IP packet, an Ethernet header and two tags.
pub const FRAME_MAX: usize = 65_535 + HEADER + 8;
/// A head has so many bytes at least, or the whole frame: all headers that anybody decides by.
pub const HEAD_MAX: usize = 256;

/// Pieces that a frame is cut into, at most: all that comes to pieces of 128 bytes. One frame must not cost others thousands.
const SEGMENTS_MAX: usize = 512;
/// Where TCP and UDP have their checksum (RFC 9293, 768).
const TCP_SUM: usize = 16;
const UDP_SUM: usize = 6;

/// What is known of a frame's checksum above IP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// It is in the frame, right or wrong: nobody looked.
    #[default]
    Unknown,
    /// It is right, or the frame comes from memory of this host.
    Good,
    /// The sum from `start` to the end of the frame is to be put `offset` bytes behind `start`, where that of the pseudo header is
    /// (as virtio has it, 5.1.6.2).
    Wanted {
        /// Bytes from the start of the frame: where TCP or UDP begins, and nowhere else.
        start: u16,
        /// Bytes from there: where that has its checksum.
        offset: u16,
    },
}

/// What a frame is cut into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP, over either: each segment is a datagram.
    Udp,
}

/// A frame is longer than the network takes, and is to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segmentation {
    /// How.
    pub kind: SegmentKind,
    /// Bytes of payload in each segment but the last.
    pub size: u16,
}

/// What is still to be done to a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Intent {
    /// Its checksum.
    pub checksum: Checksum,
    /// A cut into segments, which wants a checksum as well.
    pub segmentation: Option<Segmentation>,
    /// A tag that is not in its bytes, and would be the outermost one.
    pub tag: Option<Tag>,
}

/// Bytes, or what is said of them, make no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no frame: {0}")]
pub struct BadFrame(&'static str);

/// A frame: its head, which is private, and the rest, which may be in guest memory.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    head: &'a [u8],
    tail: &'a [GuestSlice],
    length: usize,
    intent: Intent,
    /// Bytes before the payload of what is to be segmented; else 0.
    headers: usize,
}

impl<'a> Frame<'a> {
    /// A frame of these bytes.
    ///
    /// # Errors
    /// It is too short or too long; its head is too short; the checksum is not in the head; or it is to be cut and is not what can
    /// be.
    pub fn new(head: &'a [u8], tail: &'a [GuestSlice], mut intent: Intent) -> Result<Self, BadFrame> {
        let length = tail.iter().fold(head.len(), |sum, s| sum.saturating_add(s.len()));
        let headers = Self::check(head, length, &mut intent)?;
        Ok(Self { head, tail, length, intent, headers })
    }

    /// Whether a frame of `length` bytes that starts with `head` can be one, for those who keep frames in another form; takes out of
    /// an intent what it says for nothing. Bytes of all headers, of what is to be segmented; else 0.
    ///
    /// # Errors
    /// As for [`Self::new`].
    pub fn check(head: &[u8], length: usize, intent: &mut Intent) -> Result<usize, BadFrame> {
        if head.len() < HEADER || length > FRAME_MAX || (head.len() < HEAD_MAX && length > head.len()) {
            return Err(BadFrame("its length is out of range"));
        }
        let Checksum::Wanted { start, offset } = intent.checksum else {
            return match intent.segmentation {
                Some(_) => Err(BadFrame("it is to be cut, and no checksum to be made")),
                None => Ok(0),
            };
        };
        // Whoever makes a sum writes where the intent says. Were that anywhere else than where the frame's own headers have one, it
        // would change what others had decided by.
        let place = Segment::of(&head[..headers_max(head)])
            .ok_or(BadFrame("its checksum is of nothing that has one"))?;
        let field = if place.protocol == protocol::TCP { TCP_SUM } else { UDP_SUM };
        if (usize::from(start), usize::from(offset)) != (place.at, field) {
            return Err(BadFrame("its checksum is not where its headers have one"));
        }
        let headers = place.at + transport_length(head, &place);
        if headers > headers_max(head) {
            return Err(BadFrame("its checksum is not in its headers"));
        }
        let Some(segmentation) = intent.segmentation else { return Ok(0) };
        if segmentation.kind != kind_of(&place) {
            return Err(BadFrame("it is to be cut as something that it is not"));
        }
        let payload =
            length.checked_sub(headers).ok_or(BadFrame("it is to be cut, and has no room for headers"))?;
        if payload > usize::from(segmentation.size) * SEGMENTS_MAX {
            return Err(BadFrame("it is to be cut into too many pieces"));
        }
        if payload <= usize::from(segmentation.size) {
            intent.segmentation = None;
        }
        Ok(headers)
    }

    /// A frame whose bytes are all private, and to which nothing is to be done.
    ///
    /// # Errors
    /// Its length is out of range.
    pub fn whole(bytes: &'a [u8]) -> Result<Self, BadFrame> {
        Self::new(bytes, &[], Intent::default())
    }

    /// Bytes.
    #[expect(clippy::len_without_is_empty, reason = "none is empty")]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Its first bytes: [`HEAD_MAX`] or more, or all.
    pub fn head(&self) -> &'a [u8] {
        self.head
    }

    /// What follows its head, in order: for system calls that take pieces.
    pub fn tail(&self) -> &'a [GuestSlice] {
        self.tail
    }

    /// What is to be done to it.
    pub fn intent(&self) -> Intent {
        self.intent
    }

    /// Bytes of all headers, of what is to be segmented; else 0.
    pub fn headers(&self) -> usize {
        self.headers
    }

    /// Copies bytes from `offset` on; what is beyond its end is left as it is.
    ///
    /// # Errors
    /// The guest's memory is not there.
    pub fn read(&self, offset: usize, to: &mut [u8]) -> Result<(), MemoryError> {
        let from = self.head.get(offset..).unwrap_or_default();
        let (head, rest) = to.split_at_mut(from.len().min(to.len()));
        head.copy_from_slice(&from[..head.len()]);
        read_pieces(self.tail, offset.saturating_sub(self.head.len()), rest).map(|_| ())
    }

    /// Appends all bytes to a buffer.
    ///
    /// # Errors
    /// The guest's memory is not there.
    pub fn append_to(&self, buffer: &mut Vec<u8>) -> Result<(), MemoryError> {
        let start = buffer.len();
        buffer.extend_from_slice(self.head);
        buffer.resize(start + self.length, 0);
        self.read(self.head.len(), &mut buffer[start + self.head.len()..])
    }
}

/// Where headers end, at the latest: a tag may come to them, and they are to be in the head still.
fn headers_max(head: &[u8]) -> usize {
    head.len().min(HEAD_MAX - 4)
}

/// Bytes of a header of TCP, as it says, or of UDP.
fn transport_length(head: &[u8], place: &Segment) -> usize {
    match place.protocol {
        protocol::TCP => head.get(place.at + 12).map_or(0, |b| usize::from(b >> 4) * 4).max(20),
        _ => 8,
    }
}

/// As what it can be cut.
fn kind_of(place: &Segment) -> SegmentKind {
    match (place.protocol, place.ether_type) {
        (protocol::TCP, ether_type::IPV4) => SegmentKind::Tcp4,
        (protocol::TCP, _) => SegmentKind::Tcp6,
        _ => SegmentKind::Udp,
    }
}
