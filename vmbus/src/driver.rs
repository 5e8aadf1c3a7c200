//! The guest's side of a channel, for tests and measurements: what a driver does with its rings, written from the driver's point
//! of view and sharing no code with ours.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use vireo_memory::GuestMemory;

use crate::Interrupt;

const PAGE: u64 = 4096;

/// One ring: control page at `base`, data behind it.
#[derive(Clone, Copy, Debug)]
struct Ring {
    base: u64,
    size: u32,
}

/// A packet as a driver gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// Kind of packet.
    pub kind: u16,
    /// Name of the request that it completes.
    pub transaction: u64,
    /// What is between its descriptor and its data: ranges, if it has some.
    pub head: Vec<u8>,
    /// Its data, filled up to whole 8 bytes.
    pub data: Vec<u8>,
}

/// Both rings of a channel in guest memory, one behind the other.
#[derive(Debug)]
pub struct Driver {
    memory: Arc<GuestMemory>,
    out: Ring,
    inbound: Ring,
}

impl Driver {
    /// Empty rings from `base` on, with `out` and `inbound` pages of data.
    ///
    /// # Panics
    /// They are not all RAM.
    pub fn new(memory: &Arc<GuestMemory>, base: u64, out: u32, inbound: u32) -> Self {
        let ring = |base, pages: u32| Ring { base, size: pages * PAGE as u32 };
        let (out, inbound) = (ring(base, out), ring(base + u64::from(out + 1) * PAGE, inbound));
        let driver = Self { memory: Arc::clone(memory), out, inbound };
        for control in [out.base, inbound.base] {
            memory.fill(control, PAGE, 0).expect("RAM");
        }
        driver.store(out.base + 64, 1);
        driver
    }

    /// Addresses of all pages, as an opening names them.
    pub fn pages(&self) -> Arc<[u64]> {
        let end = self.inbound.base + PAGE + u64::from(self.inbound.size);
        (self.out.base..end).step_by(PAGE as usize).collect()
    }

    /// How many of them are the ring that the driver writes.
    pub fn split(&self) -> usize {
        self.out.size as usize / PAGE as usize + 1
    }

    /// Address of the control page of the ring that the driver writes, and of the other.
    pub fn controls(&self) -> [u64; 2] {
        [self.out.base, self.inbound.base]
    }

    fn load(&self, at: u64) -> u32 {
        self.memory.atomic_u32(at, |w| (w.load(Ordering::SeqCst), false)).expect("RAM")
    }

    fn store(&self, at: u64, value: u32) {
        self.memory.atomic_u32(at, |w| (w.store(value, Ordering::SeqCst), true)).expect("RAM");
    }

    /// Copies with the ring's end in mind.
    fn each(ring: Ring, at: u32, len: usize, mut copy: impl FnMut(u64, std::ops::Range<usize>)) {
        let first = len.min((ring.size - at) as usize);
        copy(ring.base + PAGE + u64::from(at), 0..first);
        copy(ring.base + PAGE, first..len);
    }

    /// Sends a packet whose ranges, if there are any, are of these pages: length, offset in the first, page numbers. `None`: there
    /// is no room, or the ring's indices are none. Else whether the other side has to be signalled.
    pub fn send(
        &self,
        kind: u16,
        transaction: u64,
        ranges: &[(u32, u32, &[u64])],
        data: &[u8],
    ) -> Option<bool> {
        let head = match ranges {
            [] => 0,
            ranges => 8 + ranges.iter().map(|(.., pages)| 8 + pages.len() * 8).sum::<usize>(),
        };
        let offset = 16 + head;
        let length = (offset + data.len()).next_multiple_of(8);
        let mut packet = Vec::with_capacity(length + 8);
        for half in [kind, (offset / 8) as u16, (length / 8) as u16, 1] {
            packet.extend_from_slice(&half.to_le_bytes());
        }
        packet.extend_from_slice(&transaction.to_le_bytes());
        if !ranges.is_empty() {
            packet.extend_from_slice(&0_u32.to_le_bytes());
            packet.extend_from_slice(&(ranges.len() as u32).to_le_bytes());
        }
        for (len, offset, pages) in ranges {
            packet.extend_from_slice(&len.to_le_bytes());
            packet.extend_from_slice(&offset.to_le_bytes());
            pages.iter().for_each(|page| packet.extend_from_slice(&page.to_le_bytes()));
        }
        packet.extend_from_slice(data);
        packet.resize(length, 0);
        let ring = self.out;
        let (write, read) = (self.load(ring.base), self.load(ring.base + 4));
        packet.extend_from_slice(&(u64::from(write) << 32).to_le_bytes());
        if write.max(read) >= ring.size {
            return None;
        }
        let free = if write >= read { ring.size - (write - read) } else { read - write };
        if free as usize <= packet.len() {
            return None;
        }
        Self::each(ring, write, packet.len(), |at, part| self.memory.write(at, &packet[part]).expect("RAM"));
        self.store(ring.base, (write + packet.len() as u32) % ring.size);
        let masked = self.load(ring.base + 8) != 0;
        Some(!masked && self.load(ring.base + 4) == write)
    }

    /// Says that the driver waits for so many bytes to be free (0: it does not any more).
    pub fn wait_for_room(&self, bytes: u32) {
        self.store(self.out.base + 12, bytes);
    }

    /// The next packet of the other side, if there is one.
    pub fn receive(&self) -> Option<Received> {
        let ring = self.inbound;
        let (write, read) = (self.load(ring.base), self.load(ring.base + 4));
        if write == read {
            return None;
        }
        let mut descriptor = [0; 16];
        Self::each(ring, read, 16, |at, part| self.memory.read(at, &mut descriptor[part]).expect("RAM"));
        let half = |at: usize| u16::from_le_bytes([descriptor[at], descriptor[at + 1]]);
        let (offset, length) = (usize::from(half(2)) * 8, usize::from(half(4)) * 8);
        let mut packet = vec![0; length];
        Self::each(ring, read, length, |at, part| self.memory.read(at, &mut packet[part]).expect("RAM"));
        self.store(ring.base + 4, (read + length as u32 + 8) % ring.size);
        let transaction = u64::from_le_bytes(descriptor[8..].try_into().expect("8 bytes"));
        let data = packet.split_off(offset);
        let head = packet.split_off(16);
        Some(Received { kind: half(0), transaction, head, data })
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.load(self.inbound.base) == self.load(self.inbound.base + 4)
    }

    /// The bytes that the other side waits to be free, 0 if it does not.
    pub fn awaited_room(&self) -> u32 {
        self.load(self.inbound.base + 12)
    }

    /// Puts an index into the ring that the driver writes which is none.
    pub fn break_ring(&self) {
        self.store(self.out.base, self.out.size);
    }

    /// Asks for no signals, or for signals again.
    pub fn mask(&self, masked: bool) {
        self.store(self.inbound.base + 8, masked.into());
    }
}

/// Interrupts that a driver gets, and waits for.
#[derive(Clone, Debug, Default)]
pub struct Interrupts(Arc<(Mutex<u32>, Condvar)>);

impl Interrupts {
    /// What a channel interrupts by.
    ///
    /// # Panics
    /// Who waits has panicked.
    pub fn sink(&self) -> Interrupt {
        let told = Arc::clone(&self.0);
        Box::new(move |_| {
            *told.0.lock().expect("no panic") += 1;
            told.1.notify_all();
        })
    }

    /// Waits for the next packet by interrupts alone, for each no longer than `patience`; `None`: one did not come.
    ///
    /// # Panics
    /// Who interrupts has panicked.
    pub fn receive(&self, driver: &Driver, patience: Duration) -> Option<Received> {
        let (count, told) = &*self.0;
        let mut seen = count.lock().expect("no panic");
        loop {
            if let Some(packet) = driver.receive() {
                return Some(packet);
            }
            let before = *seen;
            let wait = told.wait_timeout_while(seen, patience, |n| *n == before).expect("no panic");
            if wait.1.timed_out() {
                return None;
            }
            seen = wait.0;
        }
    }
}
