//! Queues as devices use them: chains whose descriptors were read once and checked, and their way back.

mod gather;

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use serde::{Deserialize, Serialize};
use vireo_memory::{GuestMemory, GuestSlice};
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::core::Core;
use crate::memory::QueueMemory;

pub(crate) use gather::{Gathered, Room};

/// Most pieces of a chain: what a disk request of [`crate::blk::SEGMENTS_MAX`] segments has. Drivers are told; who sends more
/// breaks the rules.
pub(crate) const PIECES_MAX: usize = 256;

/// The vector that stands for "no interrupt" (virtio 1.2 §4.1.4.3).
pub(crate) const NO_VECTOR: u16 = 0xFFFF;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT` (§2.7.6).
const AVAIL_NO_INTERRUPT: u16 = 1;

/// What the driver did wrong; for the log. The device then needs a reset (§2.1.2).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Broken(String);

impl Broken {
    /// With the reason.
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

impl From<virtio_queue::Error> for Broken {
    fn from(e: virtio_queue::Error) -> Self {
        Self(e.to_string())
    }
}

/// A queue and what the transport knows of it.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) queue: Queue,
    /// MSI-X vector.
    pub(crate) vector: u16,
    /// Chains taken and not returned.
    in_flight: u16,
    /// Chains returned since the driver's wish for an interrupt was last looked at.
    untold: u16,
}

/// Saved state of a [`Slot`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SlotState {
    vector: u16,
    max_size: u16,
    size: u16,
    ready: bool,
    event_idx: bool,
    next_avail: u16,
    next_used: u16,
    descriptors: u64,
    driver_area: u64,
    device_area: u64,
}

impl Slot {
    pub(crate) fn new(max_size: u16) -> Result<Self, virtio_queue::Error> {
        Ok(Self { queue: Queue::new(max_size)?, vector: NO_VECTOR, in_flight: 0, untold: 0 })
    }

    pub(crate) fn reset(&mut self) {
        self.queue.reset();
        (self.vector, self.in_flight, self.untold) = (NO_VECTOR, 0, 0);
    }

    pub(crate) fn save(&self) -> SlotState {
        let q = self.queue.state();
        SlotState {
            vector: self.vector,
            max_size: q.max_size,
            size: q.size,
            ready: q.ready,
            event_idx: q.event_idx_enabled,
            next_avail: q.next_avail,
            next_used: q.next_used,
            descriptors: q.desc_table,
            driver_area: q.avail_ring,
            device_area: q.used_ring,
        }
    }

    /// The slot of a saved state; `None`, if none can be like that.
    pub(crate) fn restored(&self, s: &SlotState) -> Option<Self> {
        let state = QueueState {
            max_size: s.max_size,
            next_avail: s.next_avail,
            next_used: s.next_used,
            event_idx_enabled: s.event_idx,
            size: s.size,
            ready: s.ready,
            desc_table: s.descriptors,
            avail_ring: s.driver_area,
            used_ring: s.device_area,
        };
        let same_size = s.max_size == self.queue.max_size();
        let queue = same_size.then(|| Queue::try_from(state).ok()).flatten()?;
        // Whether the driver was told of all that was returned is not known: it may be told once more.
        let untold = queue.size();
        Some(Self { queue, vector: s.vector, in_flight: 0, untold })
    }

    /// The next chain's head and descriptors, each read once.
    fn pop(&mut self, memory: &QueueMemory) -> Result<Option<(u16, Descriptors)>, Broken> {
        if !self.queue.ready() {
            return Ok(None);
        }
        let available = self.queue.avail_idx(memory, Ordering::Acquire)?;
        if available.0 == self.queue.next_avail() {
            return Ok(None);
        }
        // There is one, so the iterator ends only where the ring cannot be read, or the index was taken back.
        let Some(chain) = self.queue.iter(memory)?.next() else {
            return Err(Broken::new("the available ring cannot be read"));
        };
        if self.in_flight >= self.queue.size() {
            return Err(Broken::new("more chains in flight than the queue has entries"));
        }
        let head = chain.head_index();
        if head >= self.queue.size() {
            return Err(Broken::new("a chain starts beyond the queue"));
        }
        let descriptors = Descriptors::read(chain)?;
        self.in_flight += 1;
        Ok(Some((head, descriptors)))
    }

    /// Has the chain that was popped last available again.
    fn put_back(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.queue.set_next_avail(self.queue.next_avail().wrapping_sub(1));
    }

    /// Returns chains, with how much was written: the driver sees all of them at once, and is not told yet.
    pub(crate) fn publish(&mut self, memory: &QueueMemory, chains: &[(u16, u32)]) -> Result<(), Broken> {
        let count = chains.len() as u16;
        self.in_flight = self.in_flight.saturating_sub(count);
        if !self.queue.ready() {
            return Ok(());
        }
        let (ring, size, next) = (self.queue.used_ring(), self.queue.size(), self.queue.next_used());
        let bad = |e: vm_memory::GuestMemoryError| Broken::new(format!("the used ring: {e}"));
        let at = |offset: u64| GuestAddress(ring.wrapping_add(offset));
        for (n, (head, written)) in (0..count).zip(chains) {
            let entry = u64::from(*head) | u64::from(*written) << 32;
            let place = 4 + 8 * u64::from(next.wrapping_add(n) % size.max(1));
            memory.write_obj(entry.to_le(), at(place)).map_err(bad)?;
        }
        let next = next.wrapping_add(count);
        self.queue.set_next_used(next);
        self.untold = self.untold.saturating_add(count);
        memory.store(next.to_le(), at(2), Ordering::Release).map_err(bad)
    }

    /// The vector to interrupt by, if chains were returned that the driver wants to be told of.
    pub(crate) fn tell(&mut self, memory: &QueueMemory) -> Result<Option<u16>, Broken> {
        let untold = std::mem::take(&mut self.untold);
        if untold == 0 || !self.queue.ready() {
            return Ok(None);
        }
        // The driver says what it wants, and looks at the used ring; here it is the other way round.
        fence(Ordering::SeqCst);
        let word = |offset: u64| -> Result<u16, Broken> {
            let address = GuestAddress(self.queue.avail_ring().wrapping_add(offset));
            let word = memory.read_obj::<u16>(address);
            word.map(u16::from_le).map_err(|e| Broken::new(format!("the available ring: {e}")))
        };
        let wanted = if self.queue.event_idx_enabled() {
            // It wants to be told when this entry of the used ring is there (§2.7.10).
            let event = word(4 + 2 * u64::from(self.queue.size()))?;
            self.queue.next_used().wrapping_sub(event).wrapping_sub(1) < untold
        } else {
            word(0)? & AVAIL_NO_INTERRUPT == 0
        };
        Ok(wanted.then_some(self.vector))
    }
}

/// The descriptors of a chain: address and length of what the device reads, then of what it writes.
struct Descriptors {
    readable: Vec<(u64, u32)>,
    writable: Vec<(u64, u32)>,
}

impl Descriptors {
    fn read(chain: DescriptorChain<&QueueMemory>) -> Result<Self, Broken> {
        let (mut readable, mut writable) = (Vec::new(), Vec::new());
        // A chain that ends where one may not end (no next, a bad next, a table that is none) says so by this.
        let mut more = true;
        for descriptor in chain {
            more = descriptor.has_next();
            if readable.len() + writable.len() >= PIECES_MAX {
                return Err(Broken::new("a chain of too many descriptors"));
            }
            let piece = (descriptor.addr().0, descriptor.len());
            if descriptor.is_write_only() {
                writable.push(piece);
            } else if writable.is_empty() {
                readable.push(piece);
            } else {
                return Err(Broken::new("a descriptor to read after one to write"));
            }
        }
        if more {
            return Err(Broken::new("a chain without an end"));
        }
        Ok(Self { readable, writable })
    }
}

/// A queue while its device's thread serves it.
pub struct ServedQueue<'a> {
    core: &'a Arc<Core>,
    index: usize,
    /// Chains that may still be taken in this turn: other queues want theirs.
    left: Cell<u16>,
}

impl<'a> ServedQueue<'a> {
    pub(crate) fn new(core: &'a Arc<Core>, index: usize) -> Self {
        let size = core.slot(index).queue.size();
        Self { core, index, left: Cell::new(size) }
    }

    /// Which of the device's queues it is.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Whether the driver and the device agreed on feature `bit`.
    pub fn has_feature(&self, bit: u32) -> bool {
        self.core.negotiated() & 1 << bit != 0
    }

    /// Whether the turn is over, though there may be more chains.
    pub(crate) fn turn_is_over(&self) -> bool {
        self.left.get() == 0
    }

    /// Has the driver told of chains that were returned by [`Chain::finish`].
    pub fn tell(&self) {
        self.core.tell(self.index);
    }

    /// Takes the next chain. `None`: there is none, or this turn is over.
    ///
    /// # Errors
    /// The driver broke the rules of queues, or describes memory that is none.
    pub fn pop(&self) -> Result<Option<Chain>, Broken> {
        let Some(left) = self.left.get().checked_sub(1) else { return Ok(None) };
        let popped = self.core.slot(self.index).pop(&self.core.queue_memory)?;
        let Some((head, descriptors)) = popped else { return Ok(None) };
        self.left.set(left);
        self.core.run.request_begins();
        let mut chain = Chain {
            core: Arc::clone(self.core),
            index: self.index,
            head,
            readable: Vec::new(),
            writable: Vec::new(),
            returned: false,
        };
        match resolve(&self.core.memory, &descriptors) {
            Ok((readable, writable)) => {
                (chain.readable, chain.writable) = (readable, writable);
                Ok(Some(chain))
            }
            Err(broken) => {
                chain.abandon();
                Err(broken)
            }
        }
    }
}

/// The memory of a chain. Pieces of no length are left out.
fn resolve(memory: &Arc<GuestMemory>, d: &Descriptors) -> Result<(Vec<GuestSlice>, Vec<GuestSlice>), Broken> {
    let slices = |pieces: &[(u64, u32)]| -> Result<Vec<GuestSlice>, Broken> {
        let slice = |(address, len): &(u64, u32)| {
            memory.slice(*address, (*len).into()).map_err(|e| Broken::new(format!("a descriptor: {e}")))
        };
        pieces.iter().filter(|(_, len)| *len != 0).map(slice).collect()
    };
    Ok((slices(&d.readable)?, slices(&d.writable)?))
}

/// A chain of descriptors, on its way through a device. All its memory is RAM, and together less than 4 GiB; the driver may
/// change what is in it at any time. Return it by [`Chain::complete`]: one that is dropped otherwise breaks the device.
pub struct Chain {
    core: Arc<Core>,
    index: usize,
    head: u16,
    readable: Vec<GuestSlice>,
    writable: Vec<GuestSlice>,
    returned: bool,
}

fn total(pieces: &[GuestSlice]) -> usize {
    pieces.iter().map(GuestSlice::len).sum()
}

/// Calls `each` with the parts of `pieces` that make up the `len` bytes from `offset` on: piece, offset in it, and which bytes of
/// the `len` they are. Returns how many there were.
fn walk(
    pieces: &[GuestSlice],
    mut offset: usize,
    len: usize,
    mut each: impl FnMut(&GuestSlice, usize, std::ops::Range<usize>),
) -> usize {
    let mut done = 0;
    for piece in pieces {
        if offset >= piece.len() {
            offset -= piece.len();
            continue;
        }
        let n = (piece.len() - offset).min(len - done);
        if n == 0 {
            break;
        }
        each(piece, offset, done..done + n);
        (done, offset) = (done + n, 0);
    }
    done
}

impl Chain {
    /// What the device reads.
    pub fn readable(&self) -> &[GuestSlice] {
        &self.readable
    }

    /// What the device writes.
    pub fn writable(&self) -> &[GuestSlice] {
        &self.writable
    }

    /// Bytes to read.
    pub fn readable_len(&self) -> usize {
        total(&self.readable)
    }

    /// Bytes to write.
    pub fn writable_len(&self) -> usize {
        total(&self.writable)
    }

    /// Copies what is to be read, from `offset` on; returns how much there was.
    pub fn read(&self, offset: usize, to: &mut [u8]) -> usize {
        let len = to.len();
        walk(&self.readable, offset, len, |piece, at, range| {
            // Inside the piece, as `walk` says.
            _ = piece.read(at, &mut to[range]);
        })
    }

    /// Copies into what is to be written, from `offset` on; returns how much there was room for.
    pub fn write(&self, offset: usize, from: &[u8]) -> usize {
        walk(&self.writable, offset, from.len(), |piece, at, range| {
            // Inside the piece, as `walk` says.
            _ = piece.write(at, &from[range]);
        })
    }

    /// Returns it to the driver, which is told that the first `written` bytes of what was to be written are.
    pub fn complete(mut self, written: u32) {
        self.returned = true;
        self.core.complete(self.index, self.head, written);
    }

    /// As [`Self::complete`], but the driver is not interrupted before [`ServedQueue::tell`]. The device's thread alone does so, and
    /// tells before its turn is over.
    pub fn finish(mut self, written: u32) {
        self.returned = true;
        self.core.publish(self.index, &[(self.head, written)]);
        self.core.abandon();
    }

    /// Has it available again, as if it had not been taken. The device's thread alone does so, with the chain that it took last.
    pub fn put_back(mut self) {
        self.returned = true;
        self.core.slot(self.index).put_back();
        self.core.abandon();
    }

    /// Takes it out of the count of those in flight; the driver never gets it back.
    fn abandon(mut self) {
        self.returned = true;
        self.core.abandon();
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        if !self.returned {
            self.core.broken(&Broken::new("a request was lost"));
            self.core.abandon();
        }
    }
}
