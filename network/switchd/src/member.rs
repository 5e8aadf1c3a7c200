//! A port, from the side of the switch.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use vireo_frame::headers::ether_type;
use vireo_frame::{Frame, HEAD_MAX, Intent, Tag};
use vireo_port::{PortMemory, PortRequest, Record, Refused, RingBroken, RingReader, RingWriter, Way, wire};
use vireo_switch::{Bucket, Delivery, Nanos, PortId};

use crate::complaints::Complaints;

/// Bytes that a port of weight 1 may have moved in a round: a longest frame at least. Frames count as so many more than they have, for
/// what each costs.
const QUANTUM: u64 = 128 << 10;
const OVERHEAD: u64 = 512;
/// Lines about what its guest asks for and may not have, at once.
const COMPLAINTS: u32 = 3;
/// Other addresses that its guest may choose in a second.
const ADDRESSES: u64 = 20;

/// A port of the data plane.
#[derive(Debug)]
pub(crate) struct Member {
    pub id: PortId,
    pub name: String,
    /// What its worker asked for, if there is one.
    pub asked: Option<PortRequest>,
    pub socket: OwnedFd,
    pub reader: RingReader,
    pub writer: RingWriter,
    /// It may have frames: it is looked at in each round. Else it wakes us.
    pub is_active: bool,
    /// Frames were put into its ring, of which it has not been told.
    pub has_news: bool,
    /// Its worker is gone, or broke its rings.
    pub is_gone: bool,
    /// Until then it has sent all that it may.
    pub waits_until: Nanos,
    pub complaints: Complaints,
    /// Addresses that its guest may choose: all that is derived from ports is derived anew for each.
    pub addresses: Bucket,
    /// What it may have moved in this round, by weights (deficit round robin, Shreedhar and Varghese 1995).
    credit: u64,
    weight: u64,
}

impl Member {
    pub fn new(id: PortId, name: String, socket: OwnedFd, memory: PortMemory, weight: u16) -> Self {
        let memory = Arc::new(memory);
        Self {
            id,
            name,
            asked: None,
            socket,
            reader: RingReader::new(&memory, Way::Up),
            writer: RingWriter::new(&memory, Way::Down),
            is_active: true,
            has_news: false,
            is_gone: false,
            waits_until: 0,
            complaints: Complaints::new(COMPLAINTS),
            addresses: Bucket::new(ADDRESSES, ADDRESSES),
            credit: 0,
            weight: u64::from(weight.max(1)),
        }
    }

    pub fn set_weight(&mut self, weight: u16) {
        self.weight = u64::from(weight.max(1));
    }

    /// A round begins.
    pub fn begin(&mut self) {
        let share = QUANTUM * self.weight;
        // What the last frame was too long for, is kept; no more.
        self.credit = (self.credit + share).min(share + vireo_frame::FRAME_MAX as u64 + OVERHEAD);
    }

    /// The next frame, if the port may have one moved. One that has none saves nothing up.
    pub fn next(&mut self) -> Result<Option<Record>, RingBroken> {
        let record = self.reader.peek()?;
        match record {
            Some(record) if record.length as u64 + OVERHEAD <= self.credit => Ok(Some(record)),
            Some(_) => Ok(None),
            None => {
                self.credit = 0;
                Ok(None)
            }
        }
    }

    /// The frame is done with.
    pub fn consume(&mut self, record: Record) {
        self.credit -= (record.length as u64 + OVERHEAD).min(self.credit);
        self.reader.consume(record);
    }

    /// Ends a round: its sender may go on.
    pub fn publish(&mut self) {
        if self.reader.publish() {
            wire::ring(&self.socket);
        }
    }

    /// Tells of what was put into its ring.
    pub fn tell(&mut self) {
        self.has_news = false;
        if self.writer.publish() {
            wire::ring(&self.socket);
        }
    }
}

/// The head of a frame that is on its way: a copy, by which all is decided, and which its receivers get.
pub(crate) struct Head {
    bytes: [u8; HEAD_MAX],
    length: usize,
    /// Of the frame, checked.
    pub intent: Intent,
    /// The tag that is in the bytes, if the frame has none beside them.
    inner: Option<Tag>,
}

impl Head {
    pub fn new() -> Self {
        Self { bytes: [0; HEAD_MAX], length: 0, intent: Intent::default(), inner: None }
    }

    /// Takes the head of a frame in; whether it can be one.
    pub fn take(&mut self, reader: &RingReader, record: &Record) -> bool {
        self.length = record.length.min(HEAD_MAX);
        reader.read(record, 0, &mut self.bytes[..self.length]);
        self.intent = record.intent;
        let is_frame = Frame::check(&self.bytes[..self.length], record.length, &mut self.intent).is_ok();
        let word = |at: usize| u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]]);
        let is_tagged = matches!(word(12), ether_type::VLAN | ether_type::SERVICE_VLAN);
        self.inner = (self.intent.tag.is_none() && is_tagged && self.length >= 18).then(|| Tag(word(14)));
        is_frame
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// Puts the frame into another ring as it came.
    pub fn copy(&self, from: &RingReader, record: &Record, to: &mut RingWriter) -> Result<(), Refused> {
        to.put_from(from, record, self.length, self.bytes(), &self.intent)
    }

    /// Puts the frame into a receiver's ring, with the tag that it is to have in place of its own.
    pub fn put(
        &self,
        from: &RingReader,
        record: &Record,
        delivery: Delivery,
        to: &mut RingWriter,
    ) -> Result<(), Refused> {
        let mut intent = self.intent;
        if self.inner.is_some() && delivery.tag == self.inner {
            return self.copy(from, record, to);
        }
        if self.inner.is_none() {
            intent.tag = delivery.tag;
            return to.put_from(from, record, self.length, self.bytes(), &intent);
        }
        // The tag leaves the bytes.
        intent.tag = delivery.tag;
        if let vireo_frame::Checksum::Wanted { start, .. } = &mut intent.checksum {
            *start = start.saturating_sub(4);
        }
        let mut bytes = self.bytes;
        bytes.copy_within(16..self.length, 12);
        to.put_from(from, record, self.length, &bytes[..self.length - 4], &intent)
    }
}
