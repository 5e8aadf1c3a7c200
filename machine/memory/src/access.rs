//! Guest memory as devices and loaders see it: checked, observed access by guest-physical address.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use vireo_core::{HostRam, Partition, RamRange};

use crate::mapping::Mapping;
use crate::{GuestSlice, MemoryError, RamLayout};

/// Bytes of a page.
const PAGE: u64 = 4096;

/// Learns of every write the host makes to guest memory, after it was made.
pub trait WriteObserver: Send + Sync {
    /// `len` bytes at `gpa` may have changed.
    fn host_wrote(&self, gpa: u64, len: u64);
}

impl WriteObserver for Arc<dyn Partition> {
    fn host_wrote(&self, gpa: u64, len: u64) {
        Partition::host_wrote(&**self, gpa, len);
    }
}

/// The RAM of one machine.
///
/// Access is by any thread at any time; the guest and other devices may write the same bytes meanwhile. What was read
/// is a copy: check that, and never read again what was checked. Only [`GuestInt`] accesses to aligned addresses
/// and the atomic operations are indivisible.
pub struct GuestMemory {
    mapping: Arc<Mapping>,
    layout: RamLayout,
    startup: RamLayout,
    observer: OnceLock<Box<dyn WriteObserver>>,
}

impl GuestMemory {
    /// Makes zeroed RAM laid out as given. Host memory is used as the guest touches it.
    pub fn new(layout: RamLayout) -> Result<Arc<Self>, MemoryError> {
        Self::with_reserve(layout.clone(), layout)
    }

    /// The same, of which the guest finds only a part at its start, and gets the rest later. `startup` is of the same board, and
    /// not larger.
    pub fn with_reserve(startup: RamLayout, layout: RamLayout) -> Result<Arc<Self>, MemoryError> {
        let mapping = Arc::new(Mapping::new(layout.size(), startup.size())?);
        Ok(Arc::new(Self { mapping, layout, startup, observer: OnceLock::new() }))
    }

    /// Where the RAM is.
    pub fn layout(&self) -> &RamLayout {
        &self.layout
    }

    /// What of it the guest finds at its start.
    pub fn startup(&self) -> &RamLayout {
        &self.startup
    }

    /// Registers who learns of writes; once, before the guest or any device runs. Writes made before (a loader's) are
    /// not told. Returns false, and changes nothing, if there is an observer already.
    #[must_use]
    pub fn set_observer(&self, observer: Box<dyn WriteObserver>) -> bool {
        self.observer.set(observer).is_ok()
    }

    /// The ranges to hand to [`Partition::map_ram`].
    pub fn ram_ranges(&self) -> Vec<RamRange> {
        let host: Arc<dyn HostRam> = self.mapping.clone();
        let range = |s: &crate::RamSpan| RamRange {
            gpa: s.gpa,
            len: s.len,
            host: host.clone(),
            offset: s.offset,
            writable: true,
        };
        self.layout.spans().iter().map(range).collect()
    }

    /// Asks the host to back the memory with huge pages: faster, but a guest that touches little then takes more host
    /// memory. False if the host does not do it.
    pub fn advise_huge_pages(&self) -> bool {
        self.mapping.advise_huge_pages()
    }

    /// Copies guest memory at `gpa` into `to`.
    pub fn read(&self, gpa: u64, to: &mut [u8]) -> Result<(), MemoryError> {
        let from = self.pointer(gpa, to.len() as u64)?;
        // SAFETY: `pointer` checked that `to.len()` bytes are inside the mapping; `to` is a Rust slice and so never
        // guest memory. A racing guest may tear the copy, which callers must expect.
        unsafe { std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    /// Copies `from` to guest memory at `gpa`.
    pub fn write(&self, gpa: u64, from: &[u8]) -> Result<(), MemoryError> {
        let to = self.pointer(gpa, from.len() as u64)?;
        // SAFETY: as in `read`, with the roles exchanged.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
        self.wrote(gpa, from.len() as u64);
        Ok(())
    }

    /// Sets `len` bytes at `gpa` to `value`.
    pub fn fill(&self, gpa: u64, len: u64, value: u8) -> Result<(), MemoryError> {
        let to = self.pointer(gpa, len)?;
        // SAFETY: `pointer` checked that `len` bytes are inside the mapping, so `len` fits a usize.
        unsafe { std::ptr::write_bytes(to, value, len as usize) };
        self.wrote(gpa, len);
        Ok(())
    }

    /// Reads a little-endian integer, in one access if `gpa` is aligned to its size.
    pub fn read_obj<T: GuestInt>(&self, gpa: u64) -> Result<T, MemoryError> {
        let from = self.pointer(gpa, size_of::<T>() as u64)?.cast::<T>();
        // SAFETY: `pointer` checked the bounds, the alignment is checked here, and any bits are a valid integer.
        let raw = unsafe { if from.is_aligned() { from.read_volatile() } else { from.read_unaligned() } };
        Ok(T::from_le(raw))
    }

    /// Writes a little-endian integer, in one access if `gpa` is aligned to its size.
    pub fn write_obj<T: GuestInt>(&self, gpa: u64, value: T) -> Result<(), MemoryError> {
        let to = self.pointer(gpa, size_of::<T>() as u64)?.cast::<T>();
        let raw = value.to_le();
        // SAFETY: as in `read_obj`.
        unsafe { if to.is_aligned() { to.write_volatile(raw) } else { to.write_unaligned(raw) } };
        self.wrote(gpa, size_of::<T>() as u64);
        Ok(())
    }

    /// Runs one atomic operation on the aligned 32-bit word at `gpa`; `true` from it means that it may have written.
    /// This is how rings and flag words shared with the guest are read and changed.
    pub fn atomic_u32<R>(
        &self,
        gpa: u64,
        operation: impl FnOnce(&AtomicU32) -> (R, bool),
    ) -> Result<R, MemoryError> {
        let word = self.aligned_pointer(gpa, 4)?.cast::<u32>();
        // SAFETY: in bounds and aligned; the reference is to an atomic, which allows for other writers, and ends here.
        let (result, wrote) = operation(unsafe { AtomicU32::from_ptr(word) });
        if wrote {
            self.wrote(gpa, 4);
        }
        Ok(result)
    }

    /// As [`Self::atomic_u32`], for 64 bits.
    pub fn atomic_u64<R>(
        &self,
        gpa: u64,
        operation: impl FnOnce(&AtomicU64) -> (R, bool),
    ) -> Result<R, MemoryError> {
        let word = self.aligned_pointer(gpa, 8)?.cast::<u64>();
        // SAFETY: as in `atomic_u32`.
        let (result, wrote) = operation(unsafe { AtomicU64::from_ptr(word) });
        if wrote {
            self.wrote(gpa, 8);
        }
        Ok(result)
    }

    /// Sets bits in the aligned 64-bit word at `gpa`; returns what was there.
    pub fn fetch_or_u64(&self, gpa: u64, bits: u64, order: Ordering) -> Result<u64, MemoryError> {
        self.atomic_u64(gpa, |word| (word.fetch_or(bits, order), true))
    }

    /// Gives whole pages back to the host: they hold zeros, and take host memory again when they are touched.
    pub fn discard(&self, gpa: u64, len: u64) -> Result<(), MemoryError> {
        if !(gpa | len).is_multiple_of(PAGE) {
            return Err(MemoryError::Unaligned { gpa, size: PAGE });
        }
        let offset = self.layout.offset_of(gpa, len).ok_or(MemoryError::NotRam { gpa, len })?;
        self.mapping.discard(offset, len)?;
        self.wrote(gpa, len);
        Ok(())
    }

    /// A handle on `len` bytes at `gpa`, for I/O straight into or out of guest memory.
    pub fn slice(self: &Arc<Self>, gpa: u64, len: u64) -> Result<GuestSlice, MemoryError> {
        let start = self.pointer(gpa, len)?;
        Ok(GuestSlice::new(self.clone(), gpa, len as usize, start))
    }

    /// Tells the observer about a write made by other means than these accessors.
    pub(crate) fn wrote(&self, gpa: u64, len: u64) {
        if let Some(observer) = self.observer.get().filter(|_| len != 0) {
            observer.host_wrote(gpa, len);
        }
    }

    fn pointer(&self, gpa: u64, len: u64) -> Result<*mut u8, MemoryError> {
        let offset = self.layout.offset_of(gpa, len).ok_or(MemoryError::NotRam { gpa, len })?;
        // SAFETY: the layout's spans are inside its size, which is the mapping's length.
        Ok(unsafe { self.mapping.as_ptr().add(offset as usize) })
    }

    fn aligned_pointer(&self, gpa: u64, size: u64) -> Result<*mut u8, MemoryError> {
        if !gpa.is_multiple_of(size) {
            return Err(MemoryError::Unaligned { gpa, size });
        }
        self.pointer(gpa, size)
    }
}

impl std::fmt::Debug for GuestMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestMemory").field("layout", &self.layout).finish_non_exhaustive()
    }
}

mod sealed {
    pub trait Sealed {}
}

/// Integers that live in guest memory, little-endian: `u8` to `u64`.
pub trait GuestInt: Copy + sealed::Sealed {
    /// From the guest's byte order to the host's.
    fn from_le(raw: Self) -> Self;
    /// From the host's byte order to the guest's.
    fn to_le(self) -> Self;
}

macro_rules! guest_int {
    ($($t:ty),*) => {$(
        impl sealed::Sealed for $t {}
        impl GuestInt for $t {
            fn from_le(raw: Self) -> Self { <$t>::from_le(raw) }
            fn to_le(self) -> Self { <$t>::to_le(self) }
        }
    )*};
}
guest_int!(u8, u16, u32, u64);

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::layout::tests::HOLES;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<(u64, u64)>>>);

    impl WriteObserver for Log {
        fn host_wrote(&self, gpa: u64, len: u64) {
            self.0.lock().unwrap().push((gpa, len));
        }
    }

    impl Log {
        fn take(&self) -> Vec<(u64, u64)> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    fn memory(mib: u64) -> (Arc<GuestMemory>, Log) {
        let m = GuestMemory::new(RamLayout::new(mib << 20, &HOLES).unwrap()).unwrap();
        let log = Log::default();
        assert!(m.set_observer(Box::new(log.clone())));
        (m, log)
    }

    #[test]
    fn each_write_is_told_once_and_reads_are_not() {
        let (m, log) = memory(16);
        m.write(0xff_fffe, &[1, 2]).unwrap();
        m.write_obj(0x1003, 0x1122_3344_5566_7788u64).unwrap();
        m.fill(0x2000, 0x3000, 0xee).unwrap();
        m.fetch_or_u64(0x8000, 5, Ordering::SeqCst).unwrap();
        m.write(0x9000, &[]).unwrap();
        assert_eq!(log.take(), [(0xff_fffe, 2), (0x1003, 8), (0x2000, 0x3000), (0x8000, 8)]);
        let mut two = [0; 2];
        m.read(0xff_fffe, &mut two).unwrap();
        assert_eq!(two, [1, 2]);
        assert_eq!(m.read_obj::<u64>(0x1003).unwrap(), 0x1122_3344_5566_7788);
        assert_eq!(m.read_obj::<u16>(0x1003).unwrap(), 0x7788);
        assert_eq!(m.read_obj::<u32>(0x4ffc).unwrap(), 0xeeee_eeee);
        assert_eq!(m.read_obj::<u8>(0x5000).unwrap(), 0);
        assert_eq!(m.atomic_u32(0x8000, |w| (w.load(Ordering::Acquire), false)).unwrap(), 5);
        assert_eq!(log.take(), []);
    }

    #[test]
    fn what_was_given_back_is_zeros_and_costs_nothing() {
        let (m, log) = memory(16);
        m.fill(0x20_0000, 0x40_0000, 7).unwrap();
        let used = m.mapping.resident();
        log.take();
        m.discard(0x20_0000, 0x20_0000).unwrap();
        assert_eq!(log.take(), [(0x20_0000, 0x20_0000)]);
        assert_eq!(m.read_obj::<u8>(0x3f_ffff).unwrap(), 0);
        assert_eq!(m.read_obj::<u8>(0x40_0000).unwrap(), 7, "what is beside it stays");
        assert!(used - m.mapping.resident() >= 0x1f_0000, "{used} {}", m.mapping.resident());
        m.discard(0x1000, 0).unwrap();
        for (gpa, len) in [(0x1000, 0x800), (0x800, 0x1000)] {
            assert!(matches!(m.discard(gpa, len), Err(MemoryError::Unaligned { .. })));
        }
        for (gpa, len) in [(0x9_f000, 0x2000), (0xff_f000, 0x2000), (u64::MAX - 0xfff, 0x2000)] {
            assert!(matches!(m.discard(gpa, len), Err(MemoryError::NotRam { .. })));
        }
        assert_eq!(log.take(), []);
    }

    #[test]
    fn accesses_outside_ram_name_address_and_length_and_write_nothing() {
        let (m, log) = memory(16);
        for (gpa, len) in
            [(0xff_ffff, 2), (0x9_ffff, 2), (0xb_ffff, 2), (0xa_0000, 1), (u64::MAX, 2), (1 << 40, 1)]
        {
            let e = m.write(gpa, &vec![1; len]).unwrap_err();
            assert_eq!(e.to_string(), format!("guest-physical {gpa:#x}, {len} bytes, is not RAM"));
            assert!(m.read(gpa, &mut vec![0; len]).is_err());
            assert!(m.fill(gpa, len as u64, 1).is_err() && m.slice(gpa, len as u64).is_err());
        }
        assert!(matches!(m.atomic_u64(0x1004, |_| ((), true)), Err(MemoryError::Unaligned { .. })));
        assert_eq!(log.take(), []);
        assert_eq!(m.read_obj::<u8>(0xff_ffff).unwrap(), 0);
    }

    #[test]
    fn engine_ranges_and_accessors_see_the_same_bytes_on_both_sides_of_the_hole() {
        let (m, _) = memory(3072 + 16);
        for (range, gpa) in m.ram_ranges().iter().zip([0u64, 0xc_0000, 1 << 32]) {
            assert_eq!(range.gpa, gpa);
            range.validate(40).unwrap();
            m.write_obj(gpa + 0x10, 0xabcdu16 + gpa as u16).unwrap();
            // SAFETY: the range was validated, and nothing else writes here.
            let seen = unsafe { range.host.as_ptr().add(range.offset as usize + 0x10).cast::<u16>().read() };
            assert_eq!(seen, 0xabcd + gpa as u16);
        }
        assert_eq!(m.layout().limit(), (1 << 32) + (16 << 20));
    }

    #[test]
    fn a_second_observer_is_refused() {
        let (m, _) = memory(16);
        assert!(!m.set_observer(Box::new(Log::default())));
    }
}
