//! Frames to the guest: where they go, and what stands before them.

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
pub struct Sections(Mutex<Vec<u32>>);

impl Sections {
    fn lock(&self) -> MutexGuard<'_, Vec<u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of a new buffer are free; of none, none.
    pub fn reset(&self, count: u32) {
        *self.lock() = (0..count).rev().collect();
    }

    /// Takes `count` of them, or none; `short` is called if there are not so many, before others can free some.
    pub fn take(&self, count: usize, short: impl FnOnce()) -> Option<Vec<u32>> {
        let mut free = self.lock();
        let Some(rest) = free.len().checked_sub(count) else {
            short();
            return None;
        };
        Some(free.split_off(rest))
    }

    /// Gives some back.
    pub fn give(&self, sections: &[u32]) {
        self.lock().extend_from_slice(sections);
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
