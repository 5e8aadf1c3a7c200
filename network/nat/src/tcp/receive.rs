//! From the guest: any segment, from anybody who can make one.

use std::ops::Range;

use vireo_frame::Frame;

use super::buffer::{PAYLOAD_MAX, Pool};
use super::connection::{Connection, State, reset};
use crate::host::Stream;
use crate::shared::Shared;
use crate::slots::Nanos;
use crate::wire::{Segment, flag};

/// Segments before their turn that a guest is told of at a time: it takes three to know that one was lost.
const EARLY: u8 = 4;
/// Segments that are kept before their turn.
const LATER: usize = 256;

impl<S: Stream> Connection<S> {
    /// A segment has come.
    pub fn input(
        &mut self,
        now: Nanos,
        frame: &Frame<'_>,
        segment: &Segment,
        shared: &mut Shared,
        pool: &mut Pool,
    ) {
        match self.state {
            State::Connecting => {
                // The guest has given up.
                if segment.has(flag::RST) && segment.sequence == self.received {
                    self.abandon();
                }
            }
            State::Calling => self.input_calling(now, segment, shared),
            State::Answering | State::Open | State::Lingering => {
                self.input_open(now, frame, segment, shared, pool);
                self.settle(now, pool);
            }
            State::Over => {}
        }
    }

    fn input_calling(&mut self, now: Nanos, segment: &Segment, shared: &mut Shared) {
        let (ack, rst) = (segment.has(flag::ACK), segment.has(flag::RST));
        if ack && segment.ack != self.una.wrapping_add(1) {
            if !rst {
                reset(&self.way, self.ports, flag::RST, segment.ack, 0, shared);
            }
        } else if rst && ack {
            self.abandon();
        } else if ack && segment.has(flag::SYN) {
            self.learn(segment, shared.mtu);
            self.una = segment.ack;
            self.state = State::Open;
            self.heard = now;
            self.late = None;
            self.clock.answered(segment.ack, now);
            self.ack_due = true;
        }
    }

    fn input_open(
        &mut self,
        now: Nanos,
        frame: &Frame<'_>,
        segment: &Segment,
        shared: &mut Shared,
        pool: &mut Pool,
    ) {
        let window = i64::from(self.edge.wrapping_sub(self.received));
        let offset = i64::from(segment.sequence.wrapping_sub(self.received) as i32);
        if segment.has(flag::SYN) {
            // Our answer was lost; or else somebody has forgotten, and will say so when told where we are (RFC 5961).
            match self.state == State::Answering && offset == -1 && !segment.has(flag::ACK | flag::RST) {
                true => self.next = self.una,
                false => self.ack_due = self.state != State::Answering,
            }
            return;
        }
        if offset > window || offset + i64::from(segment.length()) < 0 {
            self.ack_due = !segment.has(flag::RST) && self.state != State::Answering;
            return;
        }
        if segment.has(flag::RST) {
            // One that only might be right is answered (RFC 5961).
            match offset {
                0 => self.abandon(),
                _ => self.ack_due = self.state != State::Answering,
            }
            return;
        }
        if self.state != State::Lingering {
            self.heard = now;
        }
        if segment.has(flag::ACK) && self.input_ack(now, segment, shared, pool) {
            self.input_payload(frame, segment, offset, window, shared, pool);
        }
    }

    /// What a segment says of what has arrived; whether the rest of it is good.
    fn input_ack(&mut self, now: Nanos, segment: &Segment, shared: &mut Shared, pool: &mut Pool) -> bool {
        let advance = segment.ack.wrapping_sub(self.una);
        let flight = self.high.wrapping_sub(self.una);
        if advance > flight && (advance as i32) < 0 {
            // It is late: others came before it.
            return self.state != State::Answering;
        }
        if advance > flight || (advance == 0 && self.state == State::Answering) {
            match self.state {
                State::Answering => reset(&self.way, self.ports, flag::RST, segment.ack, 0, shared),
                _ => self.ack_due = true,
            }
            return false;
        }
        let window = u32::from(segment.window) << self.shift.unwrap_or(0);
        if advance > 0 {
            self.advance(advance, now, pool);
        } else if flight > 0
            && segment.length() == 0
            && window == self.window
            && self.pace.duplicate(flight, self.high, self.mss)
        {
            self.again = true;
        }
        let (sequence, ack) = self.told_by;
        let later = segment.sequence.wrapping_sub(sequence) as i32;
        if later > 0 || later == 0 && segment.ack.wrapping_sub(ack) as i32 >= 0 {
            self.window = window;
            self.told_by = (segment.sequence, segment.ack);
        }
        true
    }

    /// More has arrived.
    fn advance(&mut self, numbers: u32, now: Nanos, pool: &mut Pool) {
        let mut bytes = numbers as usize;
        if self.state == State::Answering {
            self.state = State::Open;
            bytes -= 1;
        }
        self.fin_acked |= bytes > self.out.len();
        self.out.release(bytes, pool);
        self.una = self.una.wrapping_add(numbers);
        if (self.una.wrapping_sub(self.next) as i32) > 0 {
            self.next = self.una;
        }
        self.clock.answered(self.una, now);
        self.again = self.pace.arrived(numbers, self.una, self.mss) && self.flight() > 0;
        self.late = None;
    }

    fn input_payload(
        &mut self,
        frame: &Frame<'_>,
        segment: &Segment,
        offset: i64,
        window: i64,
        shared: &mut Shared,
        pool: &mut Pool,
    ) {
        if segment.length() == 0 {
            return;
        }
        self.ack_due = true;
        let payload = &segment.payload;
        if offset > 0 {
            self.early = (self.early + 1).min(EARLY);
            let room = (window - offset).max(0) as usize;
            return self.keep(frame, segment.sequence, payload.start..payload.end.min(payload.start + room));
        }
        if self.guest_ended {
            return;
        }
        let skip = (-offset) as usize;
        let from = payload.start.saturating_add(skip).min(payload.end);
        let to = payload.end.min(from.saturating_add(window as usize));
        if from < to {
            self.take(frame, from..to, shared, pool);
            self.take_later(shared, pool);
        }
        let end = segment.sequence.wrapping_add(payload.len() as u32);
        if segment.has(flag::FIN) && end == self.received && self.state == State::Open {
            self.later = Vec::new();
            self.guest_ended = true;
            self.received = self.received.wrapping_add(1);
            if (self.received.wrapping_sub(self.edge) as i32) > 0 {
                self.edge = self.received;
            }
            self.drain(shared, pool);
        }
    }

    /// Takes payload that is the next: the host's end gets it straight from the frame, and what it has no room for is kept.
    fn take(&mut self, frame: &Frame<'_>, part: Range<usize>, shared: &mut Shared, pool: &mut Pool) {
        self.received = self.received.wrapping_add(part.len() as u32);
        let mut from = part.start;
        if self.held.is_empty()
            && self.ready.write
            && let Some(stream) = &mut self.stream
        {
            match stream.send_frame(frame, part.clone()) {
                Ok(count) => from += count.min(part.len()),
                Err(error) => self.failed(&error, true, shared),
            }
        }
        if self.state == State::Over || from == part.end {
            return;
        }
        while from < part.end {
            let room = self.held.room(pool, PAYLOAD_MAX);
            let count = room.len().min(part.end - from);
            let read = frame.read(from, &mut room[..count]);
            self.held.filled(if read.is_ok() { count } else { 0 }, pool);
            if read.is_err() {
                return self.reset(shared);
            }
            from += count;
        }
        self.drain(shared, pool);
    }

    /// Bytes that came before their turn.
    pub(super) fn later_bytes(&self) -> usize {
        self.later.iter().map(|(_, bytes)| bytes.len()).sum()
    }

    /// Keeps payload that comes before its turn, if there is room.
    fn keep(&mut self, frame: &Frame<'_>, sequence: u32, part: Range<usize>) {
        let known = self.later.iter().any(|(at, bytes)| *at == sequence && bytes.len() >= part.len());
        let room = self.later.len() < LATER && self.later_bytes() + part.len() <= self.capacity;
        if part.is_empty() || known || !room || self.guest_ended || self.state != State::Open {
            return;
        }
        let mut bytes = vec![0; part.len()];
        if frame.read(part.start, &mut bytes).is_ok() {
            self.later.push((sequence, bytes));
        }
    }

    /// Takes what came before its turn, as far as that has come.
    fn take_later(&mut self, shared: &mut Shared, pool: &mut Pool) {
        let passed = |this: &Self, at: u32| this.received.wrapping_sub(at) as i32;
        while self.state == State::Open
            && let Some(n) = self.later.iter().position(|(at, _)| passed(self, *at) >= 0)
        {
            let (at, bytes) = self.later.swap_remove(n);
            let mut new = bytes.get(passed(self, at) as usize..).unwrap_or_default();
            self.received = self.received.wrapping_add(new.len() as u32);
            while !new.is_empty() {
                let room = self.held.room(pool, PAYLOAD_MAX);
                let (now, rest) = new.split_at(room.len().min(new.len()));
                room[..now.len()].copy_from_slice(now);
                self.held.filled(now.len(), pool);
                new = rest;
            }
            self.drain(shared, pool);
        }
    }

    /// Whether there is something to be done for it.
    pub fn wants_turn(&self) -> bool {
        match self.state {
            State::Connecting => false,
            State::Over => true,
            State::Answering | State::Calling => self.flight() == 0,
            State::Lingering => self.ack_due,
            State::Open => {
                let unsent = self.end().wrapping_add(self.host_ended.into()) != self.next && !self.fin_acked;
                let window = self.window.min(self.pace.window());
                self.ack_due
                    || self.early > 0
                    || self.again
                    || self.probe
                    || unsent && (self.flight() < window || self.flight() == 0 && self.out.is_empty())
                    || self.ready.read && !self.host_ended && self.out.len() < self.limit
            }
        }
    }
}
