//! To the guest.

use vireo_frame::headers::protocol;
use vireo_frame::{Full, SegmentKind, Segmentation};

use super::buffer::{PAYLOAD_MAX, Pool};
use super::connection::{BASE, Connection, MOST, SHIFT, State};
use crate::host::Stream;
use crate::outbox::{self, Output};
use crate::shared::Shared;
use crate::slots::Nanos;
use crate::wire::{TCP, Way, flag};

/// Where a checksum is in a header of TCP.
const CHECKSUM: usize = 16;
/// Segments that a frame is cut into at most.
const SEGMENTS: usize = 64;
/// Bytes of a header with all headers before it and the options that are used here.
const HEADER_MAX: usize = 14 + 40 + TCP + 8;
/// Options of a first segment.
const OPTIONS: usize = 8;
/// Bytes that a connection sends before others have their turn.
const TURN: usize = 256 << 10;

/// What a header says.
pub struct Numbers {
    pub ports: (u16, u16),
    pub sequence: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
}

/// The headers of a segment with so many bytes of payload, and their length. In place of the checksum is that of the pseudo header.
pub fn header(way: &Way, numbers: &Numbers, options: &[u8], payload: usize) -> ([u8; HEADER_MAX], usize) {
    let mut bytes = [0; HEADER_MAX];
    let length = TCP + options.len() + payload;
    let start = way.write(&mut bytes, protocol::TCP, length);
    let tcp = &mut bytes[start..];
    tcp[..2].copy_from_slice(&numbers.ports.0.to_be_bytes());
    tcp[2..4].copy_from_slice(&numbers.ports.1.to_be_bytes());
    tcp[4..8].copy_from_slice(&numbers.sequence.to_be_bytes());
    tcp[8..12].copy_from_slice(&numbers.ack.to_be_bytes());
    tcp[12] = ((TCP + options.len()) / 4) as u8 * 16;
    tcp[13] = numbers.flags;
    tcp[14..16].copy_from_slice(&numbers.window.to_be_bytes());
    let sum = way.pseudo(protocol::TCP, length).folded();
    tcp[CHECKSUM..CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
    tcp[TCP..TCP + options.len()].copy_from_slice(options);
    (bytes, start + TCP + options.len())
}

/// What became of a connection's turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It has no more to do.
    Done,
    /// It has, when others had their turn.
    More,
    /// It cannot send before its guest's station is known.
    NoStation,
}

impl<S: Stream> Connection<S> {
    /// Receives from the host's end and sends to the guest, for a moment.
    ///
    /// # Errors
    /// There is no room for more frames.
    pub fn turn(
        &mut self,
        now: Nanos,
        shared: &mut Shared,
        pool: &mut Pool,
        out: &mut dyn Output,
    ) -> Result<Turn, Full> {
        let result = self.take_turn(now, shared, pool, out);
        self.settle(now, pool);
        result
    }

    /// Waits for answers, where there is something to be answered.
    pub fn wait(&mut self, now: Nanos) {
        let waits = match self.state {
            State::Answering | State::Calling => true,
            State::Open => {
                let all_sent = self.next == self.end().wrapping_add(self.host_ended.into());
                self.flight() != 0 || !(all_sent || self.fin_acked)
            }
            _ => false,
        };
        if !waits {
            self.late = None;
        } else if self.late.is_none() {
            self.late = Some(now + self.clock.patience());
        }
    }

    fn take_turn(
        &mut self,
        now: Nanos,
        shared: &mut Shared,
        pool: &mut Pool,
        out: &mut dyn Output,
    ) -> Result<Turn, Full> {
        if matches!(self.state, State::Connecting | State::Over) {
            return Ok(Turn::Done);
        }
        if !self.way.to.is_station() {
            match shared.station(self.way.destination) {
                Some(station) => self.way.to = station,
                None => return Ok(Turn::NoStation),
            }
        }
        if matches!(self.state, State::Answering | State::Calling) {
            if self.flight() == 0 {
                self.send_syn(now, shared, out)?;
            }
            return Ok(Turn::Done);
        }
        let mut left = TURN;
        loop {
            let got = self.receive_from_host(shared, pool);
            if self.state == State::Over {
                return Ok(Turn::Done);
            }
            let sent = self.send_data(now, &mut left, shared, out)?;
            if left == 0 {
                return Ok(Turn::More);
            }
            if got == 0 && sent == 0 {
                break;
            }
        }
        self.open_window(pool);
        if self.probe && self.state == State::Open {
            self.send_plain(self.una.wrapping_sub(1), shared, out)?;
        } else if self.ack_due {
            self.send_plain(self.high, shared, out)?;
        }
        // Those that go with payload do not count, nor does one that has news.
        while self.early > 0 {
            self.send_plain(self.high, shared, out)?;
            self.early -= 1;
        }
        self.probe = false;
        Ok(Turn::Done)
    }

    /// Takes what the host's end has, as far as there is room; says how many bytes.
    fn receive_from_host(&mut self, shared: &mut Shared, pool: &mut Pool) -> usize {
        self.grow_limit(pool);
        let most = (PAYLOAD_MAX / self.mss as usize).max(1) * self.mss as usize;
        if !self.ready.read || self.host_ended || self.out.len() >= self.limit {
            return 0;
        }
        let Some(stream) = &mut self.stream else { return 0 };
        let room = self.out.room(pool, most);
        match stream.receive(room) {
            Ok(0) => {
                self.out.filled(0, pool);
                self.host_ended = true;
                0
            }
            Ok(count) => {
                self.out.filled(count, pool);
                count
            }
            Err(error) => {
                self.out.filled(0, pool);
                self.failed(&error, false, shared);
                0
            }
        }
    }

    /// Has more room for what the host's end sends, if it is the lack of room that makes the guest wait.
    fn grow_limit(&mut self, pool: &mut Pool) {
        let all_sent = self.next == self.end();
        if self.out.len() >= self.limit
            && all_sent
            && self.window as usize > self.limit
            && self.limit < MOST
            && pool.reserve(self.limit)
        {
            self.limit *= 2;
        }
    }

    /// Lets a guest that sends much go further, as long as the host's end takes all; and tells it where the window had been shut.
    pub(super) fn open_window(&mut self, pool: &mut Pool) {
        let since = self.received.wrapping_sub(self.grown) as usize;
        if since >= 2 * self.capacity {
            self.grown = self.received;
            if self.held.is_empty() && self.capacity < MOST && pool.reserve(self.capacity) {
                self.capacity *= 2;
            }
        }
        if self.guest_ended || self.state != State::Open {
            return;
        }
        let free = self.capacity.saturating_sub(self.held.len());
        let known = self.edge.wrapping_sub(self.received) as usize;
        if known < self.capacity / 4 && free >= self.capacity / 2 {
            self.ack_due = true;
        }
    }

    /// Sends what may be sent; says how many bytes.
    fn send_data(
        &mut self,
        now: Nanos,
        left: &mut usize,
        shared: &mut Shared,
        out: &mut dyn Output,
    ) -> Result<usize, Full> {
        if self.again {
            let count = self.frame_limit(out).min(self.flight() as usize).min(self.out.len());
            self.send_frame(now, self.una, count, shared, out)?;
            self.again = false;
            shared.stats.sent_again += 1;
        }
        let mut sent = 0;
        while *left > 0 && !self.fin_acked {
            let offset = self.flight() as usize;
            let Some(available) = self.out.len().checked_sub(offset) else { break };
            let window = self.window.min(self.pace.window()) as usize;
            let mut count = available.min(window.saturating_sub(offset));
            if count < available && count > self.mss as usize {
                count -= count % self.mss as usize;
            }
            // Small segments only where there is no more, or nothing to wait for (RFC 9293, 3.8.6.2.1).
            if count < available && count < self.mss as usize && (offset > 0 || count == 0) {
                break;
            }
            let ends = self.host_ended && count == available;
            if count == 0 && !ends {
                break;
            }
            let count = self.send_frame(now, self.next, count, shared, out)?;
            sent += count;
            *left = left.saturating_sub(count.max(1));
        }
        Ok(sent)
    }

    /// Bytes of a frame's payload at most.
    fn frame_limit(&self, out: &dyn Output) -> usize {
        let (ability, mss) = (out.ability(), self.mss as usize);
        let cut = if self.way.destination.is_ipv6() { ability.tcp6 } else { ability.tcp4 };
        match cut && ability.checksum {
            true => (PAYLOAD_MAX / mss).clamp(1, SEGMENTS) * mss,
            false => mss,
        }
    }

    /// Sends so many bytes from `sequence` on, or less; and that there are no more, if they are the last. Says how many.
    fn send_frame(
        &mut self,
        now: Nanos,
        sequence: u32,
        count: usize,
        shared: &mut Shared,
        out: &mut dyn Output,
    ) -> Result<usize, Full> {
        let offset = sequence.wrapping_sub(self.una) as usize;
        let count = count.min(self.frame_limit(out)).min(self.out.together(offset));
        let last = offset + count == self.out.len();
        let ends = last && self.host_ended;
        let flags = flag::ACK | if last { flag::PSH } else { 0 } | if ends { flag::FIN } else { 0 };
        let numbers = self.numbers(sequence, flags);
        let start = self.way.headers();
        let (bytes, length) = header(&self.way, &numbers, &[], count);
        let mut headers = bytes;
        let headers = &mut headers[..length];
        let sum = Some((start, CHECKSUM));
        let segmentation = (count > self.mss as usize).then_some(Segmentation {
            kind: if self.way.destination.is_ipv6() { SegmentKind::Tcp6 } else { SegmentKind::Tcp4 },
            size: self.mss as u16,
        });
        match count {
            0 => outbox::put(out, headers, sum, None)?,
            _ => {
                let put = |frame: &mut [u8]| outbox::put(out, frame, sum, segmentation);
                self.out.with_headers(offset, count, headers, put).unwrap_or(Ok(()))?;
            }
        }
        shared.stats.received.add(length + count);
        self.acknowledged(&numbers);
        let end = sequence.wrapping_add(count as u32).wrapping_add(ends.into());
        if (end.wrapping_sub(self.next) as i32) > 0 {
            self.next = end;
        }
        if (end.wrapping_sub(self.high) as i32) > 0 {
            self.high = end;
            self.clock.sent(end, now);
        } else {
            self.clock.again();
        }
        Ok(count)
    }

    /// What a header says, but for its place and flags.
    fn numbers(&self, sequence: u32, flags: u8) -> Numbers {
        let shift = if self.shift.is_some() && flags & flag::SYN == 0 { SHIFT } else { 0 };
        let free = self.capacity.saturating_sub(self.held.len()) as u32;
        let known = self.edge.wrapping_sub(self.received);
        // What the guest was told stays.
        let window = free.max(known) >> shift;
        Numbers { ports: self.ports, sequence, ack: self.received, flags, window: window.min(0xffff) as u16 }
    }

    /// The guest was sent a header: it knows what has arrived, and how far it may go.
    fn acknowledged(&mut self, numbers: &Numbers) {
        let shift = if self.shift.is_some() && numbers.flags & flag::SYN == 0 { SHIFT } else { 0 };
        let edge = self.received.wrapping_add(u32::from(numbers.window) << shift);
        if (edge.wrapping_sub(self.edge) as i32) > 0 {
            self.edge = edge;
        }
        self.ack_due = false;
    }

    /// Sends a segment without payload.
    fn send_plain(&mut self, sequence: u32, shared: &mut Shared, out: &mut dyn Output) -> Result<(), Full> {
        let numbers = self.numbers(sequence, flag::ACK);
        let (mut bytes, length) = header(&self.way, &numbers, &[], 0);
        outbox::put(out, &mut bytes[..length], Some((self.way.headers(), CHECKSUM)), None)?;
        shared.stats.received.add(length);
        self.acknowledged(&numbers);
        Ok(())
    }

    /// Sends the first segment.
    fn send_syn(&mut self, now: Nanos, shared: &mut Shared, out: &mut dyn Output) -> Result<(), Full> {
        let calls = self.state == State::Calling;
        let mut numbers = self.numbers(self.una, if calls { flag::SYN } else { flag::SYN | flag::ACK });
        numbers.ack = if calls { 0 } else { self.received };
        let mss = shared.mtu as usize - (self.way.headers() - vireo_frame::headers::HEADER) - TCP;
        let mss = (mss as u16).to_be_bytes();
        let options: [u8; OPTIONS] = [2, 4, mss[0], mss[1], 1, 3, 3, SHIFT];
        let scaled = calls || self.shift.is_some();
        let options = if scaled { &options[..] } else { &options[..4] };
        let (mut bytes, length) = header(&self.way, &numbers, options, 0);
        outbox::put(out, &mut bytes[..length], Some((self.way.headers(), CHECKSUM)), None)?;
        shared.stats.received.add(length);
        self.next = self.una.wrapping_add(1);
        if self.high == self.next {
            self.clock.again();
        } else {
            self.high = self.next;
            self.clock.sent(self.next, now);
        }
        if !calls {
            self.acknowledged(&numbers);
        }
        self.late = Some(now + self.clock.patience());
        Ok(())
    }
}

const _: () = assert!(BASE <= 0xffff + 1 && MOST >> SHIFT <= 0xffff);
