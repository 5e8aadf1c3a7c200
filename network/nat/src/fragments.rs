//! Packets of guests that come in fragments (RFC 791, 8200, 5722).

use std::net::IpAddr;

use vireo_frame::{Frame, Mac};

use crate::slots::{Nanos, SECOND};
use crate::wire::{Fragment, Packet, Way};

/// Packets that are put together at a time.
const PACKETS: usize = 16;
/// Fragments of one.
const PIECES: usize = 64;
/// Bytes of its payload.
const LONGEST: usize = 65_495;
/// How long its fragments may take.
const PATIENCE: Nanos = 15 * SECOND;

/// A packet of which some is there.
#[derive(Debug)]
struct Partial {
    of: (IpAddr, IpAddr, u8, u32),
    since: Nanos,
    bytes: Vec<u8>,
    /// From where to where, in no order.
    there: Vec<(usize, usize)>,
    length: Option<usize>,
}

/// Packets that are being put together.
#[derive(Debug, Default)]
pub struct Fragments {
    partial: Vec<Partial>,
}

impl Fragments {
    /// A fragment has come; if it was the last that was missing, the whole packet in a frame to `to`.
    pub fn add(
        &mut self,
        now: Nanos,
        frame: &Frame<'_>,
        packet: &Packet,
        fragment: Fragment,
        to: Mac,
    ) -> Option<Vec<u8>> {
        self.partial.retain(|p| now.saturating_sub(p.since) < PATIENCE);
        let of = (packet.source, packet.destination, packet.protocol, fragment.id);
        let at = self.partial.iter().position(|p| p.of == of).unwrap_or_else(|| {
            if self.partial.len() >= PACKETS {
                self.partial.remove(0);
            }
            self.partial.push(Partial { of, since: now, bytes: Vec::new(), there: Vec::new(), length: None });
            self.partial.len() - 1
        });
        match self.partial[at].add(frame, packet, fragment) {
            Some(false) => None,
            // Whoever sends what overlaps has something else in mind than that it arrives.
            None => {
                self.partial.remove(at);
                None
            }
            Some(true) => {
                let whole = self.partial.remove(at);
                let way =
                    Way { to, from: packet.from, source: packet.source, destination: packet.destination };
                let mut frame = vec![0; way.headers()];
                way.write(&mut frame, packet.protocol, whole.bytes.len());
                frame.extend_from_slice(&whole.bytes);
                Some(frame)
            }
        }
    }
}

impl Partial {
    /// Whether all is there now; `None`: it cannot be a packet.
    fn add(&mut self, frame: &Frame<'_>, packet: &Packet, fragment: Fragment) -> Option<bool> {
        let length = packet.end - packet.at;
        let (from, to) = (fragment.offset, fragment.offset + length);
        let last = (!fragment.more).then_some(to);
        let overlaps = self.there.iter().any(|(a, b)| from < *b && *a < to);
        let odd = length == 0 || fragment.more && !length.is_multiple_of(8);
        let ends_twice = last.is_some() && self.length.is_some() || self.length.is_some_and(|l| to > l);
        if overlaps || odd || ends_twice || to > LONGEST || self.there.len() >= PIECES {
            return None;
        }
        self.length = self.length.or(last);
        self.bytes.resize(self.bytes.len().max(to), 0);
        frame.read(packet.at, &mut self.bytes[from..to]).ok()?;
        self.there.push((from, to));
        // Nothing overlaps, and nothing is behind the end.
        let there: usize = self.there.iter().map(|(a, b)| b - a).sum();
        Some(self.length == Some(there) && self.bytes.len() == there)
    }
}
