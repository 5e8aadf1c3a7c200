//! Guest memory as `virtio-queue` wants it: the traits of `vm-memory` over [`vireo_memory`].
//!
//! Its "bitmap" keeps nothing: it tells guest memory of each write that the queue code made, as every other host write is told.

use std::sync::Arc;

use vireo_memory::{GuestMemory, GuestSlice, MemoryError};
use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};
use vm_memory::{
    GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes, GuestMemoryResult,
    GuestRegionCollection, GuestUsize, MemoryRegionAddress, VolatileSlice,
};

/// All RAM, for queues.
pub(crate) type QueueMemory = GuestRegionCollection<Span>;

/// `memory`, for queues.
pub(crate) fn queue_memory(memory: &Arc<GuestMemory>) -> Result<QueueMemory, MemoryError> {
    let span = |s: &vireo_memory::RamSpan| memory.slice(s.gpa, s.len).map(|slice| Span(WriteTeller(slice)));
    let spans = memory.layout().spans().iter().map(span).collect::<Result<Vec<_>, _>>()?;
    // A layout has spans, sorted and disjoint; RAM without any is no RAM.
    QueueMemory::from_regions(spans).map_err(|_| MemoryError::NotRam { gpa: 0, len: 0 })
}

/// A span of RAM.
#[derive(Debug)]
pub(crate) struct Span(WriteTeller);

impl GuestMemoryRegion for Span {
    type B = WriteTeller;

    fn len(&self) -> GuestUsize {
        self.0.0.len() as u64
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(self.0.0.gpa())
    }

    fn bitmap(&self) -> TellerSlice<'_> {
        self.0.slice_at(0)
    }

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> GuestMemoryResult<VolatileSlice<'_, TellerSlice<'_>>> {
        let memory = &self.0.0;
        let start = usize::try_from(offset.0).unwrap_or(usize::MAX);
        if start.checked_add(count).is_none_or(|end| end > memory.len()) {
            return Err(GuestMemoryError::InvalidGuestAddress(GuestAddress(offset.0)));
        }
        let base = memory.iovec().iov_base.cast::<u8>();
        // SAFETY: `count` bytes from `start` on are inside the slice, as just checked; it stays mapped while it lives, which is
        // as long as this region is borrowed. Nobody makes references to guest memory: all use raw pointers and atomics.
        Ok(unsafe { VolatileSlice::with_bitmap(base.add(start), count, self.0.slice_at(start), None) })
    }
}

impl GuestMemoryRegionBytes for Span {}

/// Tells of writes into a span.
#[derive(Debug)]
pub(crate) struct WriteTeller(GuestSlice);

impl<'a> WithBitmapSlice<'a> for WriteTeller {
    type S = TellerSlice<'a>;
}

impl Bitmap for WriteTeller {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.0.done_write_at(offset, len);
    }

    /// What the dirty log says is not asked by queues.
    fn dirty_at(&self, _offset: usize) -> bool {
        false
    }

    fn slice_at(&self, offset: usize) -> TellerSlice<'_> {
        TellerSlice { memory: &self.0, offset }
    }
}

/// Tells of writes into a part of a span.
#[derive(Clone, Debug)]
pub(crate) struct TellerSlice<'a> {
    memory: &'a GuestSlice,
    offset: usize,
}

impl<'a> WithBitmapSlice<'_> for TellerSlice<'a> {
    type S = TellerSlice<'a>;
}

impl BitmapSlice for TellerSlice<'_> {}

impl<'a> Bitmap for TellerSlice<'a> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.memory.done_write_at(self.offset.saturating_add(offset), len);
    }

    fn dirty_at(&self, _offset: usize) -> bool {
        false
    }

    fn slice_at(&self, offset: usize) -> TellerSlice<'a> {
        TellerSlice { memory: self.memory, offset: self.offset.saturating_add(offset) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::Ordering;

    use vireo_memory::{Holes, RamLayout, WriteObserver};
    use vm_memory::Bytes;

    use super::*;

    struct Log(Arc<Mutex<Vec<(u64, u64)>>>);

    impl WriteObserver for Log {
        fn host_wrote(&self, gpa: u64, len: u64) {
            self.0.lock().unwrap().push((gpa, len));
        }
    }

    #[test]
    fn every_write_is_told_and_both_views_agree() {
        let holes = Holes { legacy: 0xa_0000..0xc_0000, pci: 0xc000_0000..0x1_0000_0000 };
        let memory = GuestMemory::new(RamLayout::new(16 << 20, &holes).unwrap()).unwrap();
        let told = Arc::new(Mutex::new(Vec::new()));
        assert!(memory.set_observer(Box::new(Log(Arc::clone(&told)))));
        let queues = queue_memory(&memory).unwrap();

        queues.write_obj(0x1122_3344u32, GuestAddress(0xc_0002)).unwrap();
        queues.store(0x5566u16, GuestAddress(0xf_fff0), Ordering::Release).unwrap();
        queues.write_slice(&[1, 2, 3], GuestAddress(0x9_fffd)).unwrap();
        assert_eq!(std::mem::take(&mut *told.lock().unwrap()), [(0xc_0002, 4), (0xf_fff0, 2), (0x9_fffd, 3)]);
        assert_eq!(memory.read_obj::<u32>(0xc_0002).unwrap(), 0x1122_3344);
        assert_eq!(queues.load::<u16>(GuestAddress(0xf_fff0), Ordering::Acquire).unwrap(), 0x5566);

        // Not RAM, over an end, not aligned.
        assert!(queues.write_obj(0u32, GuestAddress(0xa_0000)).is_err());
        assert!(queues.write_slice(&[0; 4], GuestAddress(0x9_fffe)).is_err());
        assert!(queues.read_obj::<u64>(GuestAddress(0xff_fffc)).is_err());
        assert!(queues.load::<u16>(GuestAddress(0xf_fff1), Ordering::Acquire).is_err());
        assert!(queues.read_obj::<u64>(GuestAddress(u64::MAX - 2)).is_err());
    }
}
