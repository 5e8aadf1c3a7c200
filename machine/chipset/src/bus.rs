//! Port and memory buses: which device answers which address.
//!
//! A bus is built once from non-overlapping ranges that never change after. Beside them it has the ranges that the guest
//! moves ([`MovingRanges`]: what PCI functions decode), which count where no fixed range is. Dispatch takes no lock: the
//! moving ranges are replaced as a whole. What nobody claims reads as all ones and swallows writes, as an ISA or PCI bus does.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;

/// A device on the port bus. An access lies inside one range the device is registered for.
pub trait PioDevice: Send + Sync {
    /// Fills `data` (1, 2 or 4 bytes) from `port` on.
    fn read(&self, port: u16, data: &mut [u8]);
    /// Takes `data` (1, 2 or 4 bytes) from `port` on.
    fn write(&self, port: u16, data: &[u8]);
}

/// A device on the memory bus. An access lies inside one range the device is registered for.
pub trait MmioDevice: Send + Sync {
    /// Fills `data` from `offset` in the range on.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Takes `data` from `offset` in the range on.
    fn write(&self, offset: u64, data: &[u8]);
}

/// A device of 8-bit ports, as on the ISA bus.
pub trait BytePorts: Send + Sync {
    /// Reads one port.
    fn read(&self, port: u16) -> u8;
    /// Writes one port.
    fn write(&self, port: u16, value: u8);
}

/// Puts a device of 8-bit ports on the bus: a wider access becomes byte accesses in rising order.
pub struct IsaBytes<D: ?Sized>(pub Arc<D>);

impl<D: BytePorts + ?Sized> PioDevice for IsaBytes<D> {
    fn read(&self, port: u16, data: &mut [u8]) {
        for (port, byte) in (port..=u16::MAX).zip(data) {
            *byte = self.0.read(port);
        }
    }

    fn write(&self, port: u16, data: &[u8]) {
        for (port, byte) in (port..=u16::MAX).zip(data) {
            self.0.write(port, *byte);
        }
    }
}

/// Why a device cannot be put on a bus.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// The range holds no address.
    #[error("{device}: the {bus} range {start:#x}..{end:#x} is empty")]
    Empty {
        /// "port" or "memory".
        bus: &'static str,
        /// Who asked.
        device: String,
        /// First address.
        start: u64,
        /// First address after the range.
        end: u64,
    },
    /// Another device already has a part of the range.
    #[error(
        "{device}: the {bus} range {start:#x}..{end:#x} overlaps that of {other}; give one of them another"
    )]
    Overlap {
        /// "port" or "memory".
        bus: &'static str,
        /// Who asked.
        device: String,
        /// First address.
        start: u64,
        /// First address after the range.
        end: u64,
        /// Who has it.
        other: String,
    },
}

/// Accesses that no device claimed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unclaimed {
    /// Reads answered with all ones.
    pub reads: u64,
    /// Writes ignored.
    pub writes: u64,
}

struct Entry<D: ?Sized> {
    start: u64,
    end: u64,
    name: String,
    device: Arc<D>,
}

/// Ranges sorted by address, none overlapping another.
struct RangeTable<D: ?Sized> {
    bus: &'static str,
    entries: Vec<Entry<D>>,
}

impl<D: ?Sized> RangeTable<D> {
    const fn new(bus: &'static str) -> Self {
        Self { bus, entries: Vec::new() }
    }

    fn insert(&mut self, start: u64, end: u64, name: &str, device: Arc<D>) -> Result<(), BusError> {
        let (bus, name) = (self.bus, name.to_owned());
        if start >= end {
            return Err(BusError::Empty { bus, device: name, start, end });
        }
        let at = self.entries.partition_point(|entry| entry.end <= start);
        if let Some(next) = self.entries.get(at).filter(|next| next.start < end) {
            return Err(BusError::Overlap { bus, device: name, start, end, other: next.name.clone() });
        }
        self.entries.insert(at, Entry { start, end, name, device });
        Ok(())
    }

    /// The range that holds all `len` bytes from `address` on.
    fn find(&self, address: u64, len: usize) -> Option<&Entry<D>> {
        let at = self.entries.partition_point(|entry| entry.end <= address);
        let entry = self.entries.get(at)?;
        (entry.start <= address && len as u64 <= entry.end - address).then_some(entry)
    }
}

/// The ranges of a bus that change while it is used; none at first.
pub struct MovingRanges<D: ?Sized> {
    bus: &'static str,
    table: ArcSwap<RangeTable<D>>,
}

impl<D: ?Sized> MovingRanges<D> {
    fn new(bus: &'static str) -> Arc<Self> {
        Arc::new(Self { bus, table: ArcSwap::from_pointee(RangeTable::new(bus)) })
    }

    /// Replaces all of them. An access that is on its way may still reach a device where it was. A range that overlaps an
    /// earlier one of the list is left out, whole: what two devices decode is anything on a real bus.
    pub fn replace(&self, ranges: impl IntoIterator<Item = (Range<u64>, String, Arc<D>)>) {
        let mut table = RangeTable::new(self.bus);
        for (range, name, device) in ranges {
            // Refused for its overlap, as said.
            _ = table.insert(range.start, range.end, &name, device);
        }
        self.table.store(Arc::new(table));
    }

    /// Has the device that has all `len` bytes from `address` on do `access`, given where its range starts.
    fn serve(&self, address: u64, len: usize, access: impl FnOnce(u64, &D)) -> bool {
        let table = self.table.load();
        let found = table.find(address, len);
        if let Some(entry) = found {
            access(entry.start, &entry.device);
        }
        found.is_some()
    }
}

#[derive(Default)]
struct Counters {
    reads: AtomicU64,
    writes: AtomicU64,
}

impl Counters {
    fn snapshot(&self) -> Unclaimed {
        Unclaimed { reads: self.reads.load(Ordering::Relaxed), writes: self.writes.load(Ordering::Relaxed) }
    }
}

/// Collects the devices of a [`PioBus`].
pub struct PioBusBuilder {
    table: RangeTable<dyn PioDevice>,
    moving: Arc<MovingRanges<dyn PioDevice>>,
}

impl PioBusBuilder {
    /// Lets `device` answer `ports`. `name` is for messages.
    ///
    /// # Errors
    /// The range is empty or overlaps another.
    pub fn add(&mut self, ports: Range<u16>, name: &str, device: Arc<dyn PioDevice>) -> Result<(), BusError> {
        self.table.insert(ports.start.into(), ports.end.into(), name, device)
    }

    /// The ranges that may change when the bus is finished.
    pub fn moving(&self) -> &Arc<MovingRanges<dyn PioDevice>> {
        &self.moving
    }

    /// The finished bus.
    pub fn build(self) -> PioBus {
        PioBus { table: self.table, moving: self.moving, unclaimed: Counters::default() }
    }
}

/// The port bus.
pub struct PioBus {
    table: RangeTable<dyn PioDevice>,
    moving: Arc<MovingRanges<dyn PioDevice>>,
    unclaimed: Counters,
}

impl PioBus {
    /// Starts an empty bus.
    pub fn builder() -> PioBusBuilder {
        PioBusBuilder { table: RangeTable::new("port"), moving: MovingRanges::new("port") }
    }

    /// Reads `data.len()` ports from `port` on. An access that no single range holds is done byte by byte.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        if let Some(entry) = self.table.find(port.into(), data.len()) {
            entry.device.read(port, data);
        } else if self.moving.serve(port.into(), data.len(), |_, device| device.read(port, data)) {
            // It was where the guest had put it.
        } else if data.len() > 1 {
            for (i, byte) in data.iter_mut().enumerate() {
                self.read(port.wrapping_add(i as u16), std::slice::from_mut(byte));
            }
        } else {
            data.fill(0xFF);
            self.unclaimed.reads.fetch_add(data.len() as u64, Ordering::Relaxed);
        }
    }

    /// Writes `data.len()` ports from `port` on. An access that no single range holds is done byte by byte.
    pub fn write(&self, port: u16, data: &[u8]) {
        if let Some(entry) = self.table.find(port.into(), data.len()) {
            entry.device.write(port, data);
        } else if self.moving.serve(port.into(), data.len(), |_, device| device.write(port, data)) {
            // As above.
        } else if data.len() > 1 {
            for (i, byte) in data.iter().enumerate() {
                self.write(port.wrapping_add(i as u16), std::slice::from_ref(byte));
            }
        } else {
            self.unclaimed.writes.fetch_add(data.len() as u64, Ordering::Relaxed);
        }
    }

    /// Bytes read and written that no device claimed.
    pub fn unclaimed(&self) -> Unclaimed {
        self.unclaimed.snapshot()
    }
}

/// Collects the devices of an [`MmioBus`].
pub struct MmioBusBuilder {
    table: RangeTable<dyn MmioDevice>,
    moving: Arc<MovingRanges<dyn MmioDevice>>,
}

impl MmioBusBuilder {
    /// Lets `device` answer the guest-physical range `addresses`. `name` is for messages.
    ///
    /// # Errors
    /// The range is empty or overlaps another.
    pub fn add(
        &mut self,
        addresses: Range<u64>,
        name: &str,
        device: Arc<dyn MmioDevice>,
    ) -> Result<(), BusError> {
        self.table.insert(addresses.start, addresses.end, name, device)
    }

    /// The ranges that may change when the bus is finished.
    pub fn moving(&self) -> &Arc<MovingRanges<dyn MmioDevice>> {
        &self.moving
    }

    /// The finished bus.
    pub fn build(self) -> MmioBus {
        MmioBus { table: self.table, moving: self.moving, unclaimed: Counters::default() }
    }
}

/// The memory bus: everything that is neither RAM nor the local APIC.
pub struct MmioBus {
    table: RangeTable<dyn MmioDevice>,
    moving: Arc<MovingRanges<dyn MmioDevice>>,
    unclaimed: Counters,
}

impl MmioBus {
    /// Starts an empty bus.
    pub fn builder() -> MmioBusBuilder {
        MmioBusBuilder { table: RangeTable::new("memory"), moving: MovingRanges::new("memory") }
    }

    /// Reads from guest-physical `address` on. An access that no single range holds reads as all ones.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        if let Some(entry) = self.table.find(address, data.len()) {
            entry.device.read(address - entry.start, data);
        } else if !self.moving.serve(address, data.len(), |start, device| device.read(address - start, data))
        {
            data.fill(0xFF);
            self.unclaimed.reads.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Writes from guest-physical `address` on. An access that no single range holds is ignored.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some(entry) = self.table.find(address, data.len()) {
            entry.device.write(address - entry.start, data);
        } else if !self.moving.serve(address, data.len(), |start, device| device.write(address - start, data))
        {
            self.unclaimed.writes.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Accesses that no device claimed.
    pub fn unclaimed(&self) -> Unclaimed {
        self.unclaimed.snapshot()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, Vec<u8>)>>);

    impl BytePorts for Recorder {
        fn read(&self, port: u16) -> u8 {
            port as u8
        }
        fn write(&self, port: u16, value: u8) {
            self.0.lock().unwrap().push((port.into(), vec![value]));
        }
    }

    impl MmioDevice for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    #[test]
    fn overlap_and_empty_are_refused() {
        let device = Arc::new(IsaBytes(Arc::new(Recorder::default())));
        let mut bus = PioBus::builder();
        bus.add(0x20..0x22, "pic", device.clone()).unwrap();
        bus.add(0x22..0x24, "next", device.clone()).unwrap();
        bus.add(0x1E..0x20, "before", device.clone()).unwrap();
        for range in [0x21..0x23, 0x10..0x1F, 0x00..0x100, 0x23..0x24] {
            assert!(matches!(bus.add(range, "late", device.clone()), Err(BusError::Overlap { .. })));
        }
        assert!(matches!(bus.add(0x50..0x50, "none", device), Err(BusError::Empty { .. })));
    }

    #[test]
    fn wide_port_accesses_split() {
        let recorder = Arc::new(Recorder::default());
        let mut bus = PioBus::builder();
        bus.add(0x60..0x62, "a", Arc::new(IsaBytes(recorder.clone()))).unwrap();
        let bus = bus.build();
        let mut data = [0; 4];
        bus.read(0x60, &mut data);
        assert_eq!(data, [0x60, 0x61, 0xFF, 0xFF]);
        bus.write(0x5F, &[1, 2]);
        assert_eq!(*recorder.0.lock().unwrap(), [(0x60, vec![2])]);
        assert_eq!(bus.unclaimed(), Unclaimed { reads: 2, writes: 1 });
        bus.read(0xFFFF, &mut data);
        assert_eq!(data, [0xFF; 4]);
    }

    #[test]
    fn moving_ranges_count_where_no_fixed_one_is() {
        let (fixed, moving) = (Arc::new(Recorder::default()), Arc::new(Recorder::default()));
        let mut bus = MmioBus::builder();
        bus.add(0x1000..0x2000, "fixed", fixed.clone()).unwrap();
        let ranges = Arc::clone(bus.moving());
        let bus = bus.build();
        let entry = |range| (range, String::from("moves"), moving.clone() as Arc<dyn MmioDevice>);
        ranges.replace([entry(0x1800..0x2800), entry(0x2400..0x3000), entry(0x3000..0x3010)]);
        for address in [0x1900, 0x2004, 0x2900, 0x300C] {
            bus.write(address, &[1]);
        }
        assert_eq!(*fixed.0.lock().unwrap(), [(0x900, vec![1])]);
        assert_eq!(
            *moving.0.lock().unwrap(),
            [(0x804, vec![1]), (0xC, vec![1])],
            "the overlapping one is left out"
        );
        ranges.replace([]);
        bus.write(0x2004, &[1]);
        assert_eq!(bus.unclaimed().writes, 2);
    }

    #[test]
    fn memory_accesses_carry_the_offset() {
        let recorder = Arc::new(Recorder::default());
        let mut bus = MmioBus::builder();
        bus.add(0x1000..0x2000, "m", recorder.clone()).unwrap();
        let bus = bus.build();
        bus.write(0x1010, &[1, 2, 3, 4]);
        bus.write(0x1FFE, &[1, 2, 3, 4]);
        bus.write(u64::MAX, &[1]);
        assert_eq!(*recorder.0.lock().unwrap(), [(0x10, vec![1, 2, 3, 4])]);
        let mut data = [0; 8];
        bus.read(0x1003, &mut data);
        assert_eq!(data, [3; 8]);
        bus.read(0x3000, &mut data);
        assert_eq!(data, [0xFF; 8]);
        assert_eq!(bus.unclaimed(), Unclaimed { reads: 1, writes: 2 });
    }
}
