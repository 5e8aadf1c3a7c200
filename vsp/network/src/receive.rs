//! Frames to the guest: where they go, and what stands before them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vireo_frame::headers::{Headers, Network, protocol};
use vireo_frame::{Ability, Checksum, Filter, Frame, Mac};
use vireo_vmbus::ring::TransferRange;

use crate::buffer::ReceiveBuffer;
use crate::rndis::{Infos, OVERHEAD_MAX, Packet};
use crate::steering::Steering;

/// What there is to know for a frame to the guest, as of the driver's last wishes.
pub struct Reception {
    /// Where frames go; `None`: nowhere.
    pub buffer: Option<std::sync::Arc<ReceiveBuffer>>,
    /// The adapter's address.
    pub address: Mac,
    /// What the driver wants.
    pub filter: Filter,
    /// Others' frames, too.
    pub promiscuous: bool,
    /// What frames may leave to be done.
    pub ability: Ability,
    /// Spread over channels.
    pub steering: Steering,
    /// Bytes of the longest frame without a tag, but for those that are to be segmented.
    pub frame_max: usize,
}

impl Reception {
    /// One that takes nothing.
    pub fn none() -> Self {
        Self {
            buffer: None,
            address: Mac::default(),
            filter: Filter::default(),
            promiscuous: false,
            ability: Ability { tag: true, ..Ability::default() },
            steering: Steering::default(),
            frame_max: 0,
        }
    }

    /// Whether the driver wants a frame.
    pub fn wants(&self, frame: &Frame<'_>) -> bool {
        let Some(to) = Mac::first_of(frame.head()) else { return false };
        let tag = if frame.head()[12..14] == [0x81, 0] { 4 } else { 0 };
        let fits = frame.len() <= self.frame_max + tag || frame.intent().segmentation.is_some();
        let theirs = to.is_group() || to == self.address || self.promiscuous;
        fits && theirs && self.filter.wants(to)
    }
}

/// Sections of the receive buffer that are free. The one that was used last is used first: its memory is near.
#[derive(Default)]
pub struct Sections {
    free: Mutex<Vec<u32>>,
    /// An answer waits for one: frames get none until it was told of one. Changes with the lock held.
    awaited: AtomicBool,
}

impl Sections {
    fn lock(&self) -> MutexGuard<'_, Vec<u32>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of a new buffer are free; of none, none.
    pub fn reset(&self, count: u32) {
        let mut free = self.lock();
        *free = (0..count).rev().collect();
        self.awaited.store(false, Ordering::Relaxed);
    }

    /// Takes `count` of them for a frame, or none; `short` is called if there are not so many, before others can free some.
    pub fn take(&self, count: usize, short: impl FnOnce()) -> Option<Vec<u32>> {
        let mut free = self.lock();
        let rest = free.len().checked_sub(count);
        let Some(rest) = rest.filter(|_| !self.awaited.load(Ordering::Relaxed)) else {
            short();
            return None;
        };
        Some(free.split_off(rest))
    }

    /// Takes one for an answer. Where there is none, the next is kept for it.
    pub fn take_for_answer(&self) -> Option<u32> {
        let mut free = self.lock();
        let section = free.pop();
        self.awaited.store(section.is_none(), Ordering::Relaxed);
        section
    }

    /// Whether there is one now for an answer that waits; said once, as the answer may have no room in its ring.
    pub fn has_for_answer(&self) -> bool {
        self.awaited.load(Ordering::Relaxed) && {
            let free = self.lock();
            !free.is_empty() && self.awaited.swap(false, Ordering::Relaxed)
        }
    }

    /// Gives some back.
    pub fn give(&self, sections: &[u32]) {
        self.lock().extend_from_slice(sections);
    }
}

/// Sections of packets that the driver has not given back, by the transaction that each packet has.
#[derive(Default)]
pub struct InFlight {
    /// By transaction less one.
    packets: Vec<Option<Vec<u32>>>,
    /// Places in it that are free.
    free: Vec<u32>,
}

impl InFlight {
    /// The transaction of the packet that is added next.
    pub fn next(&self) -> u64 {
        self.free.last().map_or(self.packets.len() as u64, |&at| at.into()) + 1
    }

    /// A packet is on its way with these.
    pub fn add(&mut self, sections: Vec<u32>) {
        match self.free.pop() {
            Some(at) => self.packets[at as usize] = Some(sections),
            None => self.packets.push(Some(sections)),
        }
    }

    /// The driver gives a packet back.
    pub fn take(&mut self, transaction: u64) -> Option<Vec<u32>> {
        let at = u32::try_from(transaction.checked_sub(1)?).ok()?;
        let sections = self.packets.get_mut(at as usize)?.take()?;
        self.free.push(at);
        Some(sections)
    }

    /// Takes all of them.
    pub fn take_all(&mut self) -> impl Iterator<Item = Vec<u32>> {
        std::mem::take(self).packets.into_iter().flatten()
    }

    /// Whether the driver has given all back.
    pub fn is_empty(&self) -> bool {
        self.free.len() == self.packets.len()
    }
}

/// What may be left to be done to a frame: sums of coalesced ones alone. The driver has no way to tell a sum that is right from one that
/// is not there yet. A guest that routes sends frames on with the sums that they have, one whose user has turned off the adapter's help
/// looks at them, and so do DHCP clients; while Linux asks for no coalesced frames where it may send them on.
pub fn ability_for(frame: &Frame<'_>, ability: Ability) -> Ability {
    let intent = frame.intent();
    let whole = intent.segmentation.is_some() && ability.takes(&intent);
    Ability { checksum: whole, ..ability }
}

/// What is said of a frame to the guest.
pub fn infos(frame: &Frame<'_>, hash: Option<u32>) -> Infos {
    const TCP_RIGHT: u32 = 1 << 3;
    const UDP_RIGHT: u32 = 1 << 4;
    const IP_RIGHT: u32 = 1 << 5;
    let intent = frame.intent();
    let transport = match intent.checksum {
        Checksum::Unknown => None,
        Checksum::Wanted { offset: 16, .. } => Some(protocol::TCP),
        Checksum::Wanted { offset: 6, .. } => Some(protocol::UDP),
        _ => match Headers::read(frame.head()).map(|h| h.network) {
            Some(Network::Ip(ip)) => Some(ip.protocol),
            _ => None,
        },
    };
    let checksum = match transport {
        Some(protocol::TCP) => Some(TCP_RIGHT | IP_RIGHT),
        Some(protocol::UDP) => Some(UDP_RIGHT | IP_RIGHT),
        _ => None,
    };
    let tag = intent.tag.map(|t| u32::from(t.0 >> 13 | (t.0 >> 12 & 1) << 3 | t.vlan() << 4));
    Infos { checksum, tag, hash, ..Infos::default() }
}

/// How many sections a frame takes.
pub fn sections_of(frame: &Frame<'_>, section: u32) -> usize {
    frame.len().div_ceil((section - OVERHEAD_MAX) as usize).max(1)
}

/// Writes a frame into as many sections; what is used of each. `scratch` keeps its memory.
pub fn write(
    frame: &Frame<'_>,
    mut infos: Infos,
    buffer: &ReceiveBuffer,
    sections: &[u32],
    scratch: &mut Vec<u8>,
) -> Vec<TransferRange> {
    const FIRST: u32 = 2;
    const LAST: u32 = 4;
    let room = (buffer.section() - OVERHEAD_MAX) as usize;
    let mut ranges = Vec::with_capacity(sections.len());
    for (n, section) in sections.iter().enumerate() {
        let (from, to) = (n * room, frame.len().min((n + 1) * room));
        if sections.len() > 1 {
            let first = if n == 0 { FIRST } else { 0 };
            let last = if n + 1 == sections.len() { LAST } else { 0 };
            infos.fragment = Some(1 | (1 | first | last) << 8);
        }
        let bytes = to - from;
        Packet::head(bytes as u32, &infos, scratch);
        let data_at = scratch.len() as u32;
        match frame.head().get(from..to) {
            Some(data) => {
                buffer.write(*section, 0, scratch);
                buffer.write(*section, data_at, data);
            }
            None => {
                scratch.resize(data_at as usize + bytes, 0);
                // Memory that is gone has nothing in it.
                _ = frame.read(from, &mut scratch[data_at as usize..]);
                buffer.write(*section, 0, scratch);
            }
        }
        ranges.push(TransferRange { bytes: data_at + bytes as u32, offset: buffer.offset(*section) });
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_have_the_transactions_that_were_given_back() {
        let mut packets = InFlight::default();
        for n in 0..4 {
            assert_eq!(packets.next(), u64::from(n) + 1);
            packets.add(vec![n]);
        }
        assert_eq!((packets.take(2), packets.take(4)), (Some(vec![1]), Some(vec![3])));
        for nobodys in [0, 2, 4, 5, u64::MAX] {
            assert_eq!(packets.take(nobodys), None, "{nobodys}");
        }
        for transaction in [4, 2, 5] {
            assert_eq!(packets.next(), transaction);
            packets.add(vec![7]);
        }
        assert!(!packets.is_empty());
        assert_eq!(packets.take_all().count(), 5);
        assert!(packets.is_empty());
        assert_eq!((packets.next(), packets.take(1)), (1, None));
    }

    #[test]
    fn a_section_is_kept_for_an_answer_that_waits() {
        let sections = Sections::default();
        sections.reset(1);
        let taken = sections.take(1, || panic!("there is one")).unwrap();
        assert_eq!((sections.take_for_answer(), sections.has_for_answer()), (None, false));
        sections.give(&taken);
        let mut short = false;
        assert_eq!((sections.take(1, || short = true), short), (None, true));
        assert!(sections.has_for_answer(), "said once");
        assert!(!sections.has_for_answer());
        assert_eq!(sections.take_for_answer(), Some(taken[0]));
    }
}
