//! Hypercalls about other processors: flushing their TLBs (TLFS 9.4.2 to 9.4.5) and interrupting them (10.5).

use vireo_core::{PageRange, Partition, TlbFlusher, TlbScope, VcpuSet};
use vireo_memory::GuestMemory;

use crate::hypercall::Call;
use crate::{Status, synic};

/// Flags of a flush (HV_FLUSH_FLAGS).
mod flag {
    pub const ALL_PROCESSORS: u64 = 1 << 0;
    pub const ALL_SPACES: u64 = 1 << 1;
    pub const NON_GLOBAL_ONLY: u64 = 1 << 2;
    pub const EXTENDED_RANGES: u64 = 1 << 3;
    pub const KNOWN: u64 = ALL_PROCESSORS | ALL_SPACES | NON_GLOBAL_ONLY | EXTENDED_RANGES;
}

/// Formats of a set of processors (HV_GENERIC_SET_FORMAT).
mod format {
    pub const SPARSE: u64 = 0;
    pub const ALL: u64 = 1;
}

const PAGE: u64 = 4096;
/// Of an extended range: it is of large pages.
const LARGE: u64 = 1 << 11;

/// The processors of a partition, for one of them.
pub struct Processors<'a> {
    /// Flushes their TLBs.
    pub flusher: &'a dyn TlbFlusher,
    /// Takes interrupts.
    pub partition: &'a dyn Partition,
    /// Which of them calls.
    pub vp: u32,
    /// How many there are.
    pub count: u32,
}

impl Processors<'_> {
    /// HvCallFlushVirtualAddressSpace, HvCallFlushVirtualAddressList, and with sets of processors (`sets`) those whose names end
    /// in Ex: address space, flags, processors; ranges.
    ///
    /// The space is not looked at: what is flushed is flushed in all.
    pub fn flush(&self, call: &Call, sets: bool, memory: &GuestMemory) -> Result<(), Status> {
        let fixed = if sets { 4 } else { 3 };
        let input = call.words(fixed, memory)?;
        let (header, ranges) = input.split_at(fixed + call.variable);
        let flags = header[1];
        if flags & !flag::KNOWN != 0 {
            return Err(Status::InvalidParameter);
        }
        let named = match sets {
            true => self.set(&header[2..])?,
            // Windows Server 2012 is known to mean all of them by none.
            false if header[2] == 0 => self.all(),
            false => mask(header[2]),
        };
        let of = if flags & flag::ALL_PROCESSORS != 0 { self.all() } else { named };
        let scope = match ranges.get(call.first..) {
            Some(ranges @ [_, ..]) => scope(ranges, flags & flag::EXTENDED_RANGES != 0),
            _ if flags & flag::NON_GLOBAL_ONLY != 0 => TlbScope::NonGlobal,
            _ => TlbScope::All,
        };
        self.flusher.flush_tlbs(self.vp, &of, &scope);
        Ok(())
    }

    /// HvCallSendSyntheticClusterIpi: vector, trust level, mask of processors.
    pub fn send_ipi(&self, call: &Call, memory: &GuestMemory) -> Result<(), Status> {
        let [what, processors] = match call.fast {
            true => call.input,
            false => *call.words(2, memory)?.first_chunk().ok_or(Status::InvalidInput)?,
        };
        self.interrupt(what, &mask(processors))
    }

    /// HvCallSendSyntheticClusterIpiEx: vector, trust level, set of processors.
    pub fn send_ipi_ex(&self, call: &Call, memory: &GuestMemory) -> Result<(), Status> {
        let input = call.words(3, memory)?;
        self.interrupt(input[0], &self.set(&input[1..])?)
    }

    fn interrupt(&self, what: u64, of: &VcpuSet) -> Result<(), Status> {
        // Vectors below 16 are exceptions'. Above the vector is the trust level: there is but one.
        let vector = u8::try_from(what).ok().filter(|v| *v >= 16).ok_or(Status::InvalidParameter)?;
        of.iter_below(self.count).for_each(|vp| synic::interrupt(self.partition, vp, vector));
        Ok(())
    }

    fn all(&self) -> VcpuSet {
        VcpuSet::below(self.count)
    }

    /// A set (HV_VP_SET, TLFS 7.8.7.3): format, which banks of 64 there are, the banks.
    fn set(&self, words: &[u64]) -> Result<VcpuSet, Status> {
        let [form, present, banks @ ..] = words else { return Err(Status::InvalidInput) };
        match *form {
            format::ALL => Ok(self.all()),
            format::SPARSE if present.count_ones() as usize == banks.len() => {
                let mut set = VcpuSet::default();
                let places = (0..64).filter(|bank| present >> bank & 1 != 0);
                places.zip(banks).for_each(|(bank, bits)| set.add_word(bank, *bits));
                Ok(set)
            }
            format::SPARSE => Err(Status::InvalidInput),
            _ => Err(Status::InvalidParameter),
        }
    }
}

fn mask(processors: u64) -> VcpuSet {
    let mut set = VcpuSet::default();
    set.add_word(0, processors);
    set
}

/// Ranges (HV_GVA_RANGE): a page, and in the bits below how many more. Extended ones may be of large pages. Where pages would go
/// beyond the highest address, which no guest means, all are.
fn scope(ranges: &[u64], extended: bool) -> TlbScope {
    if extended && ranges.iter().any(|r| r & LARGE != 0) {
        return TlbScope::All;
    }
    let more = if extended { LARGE - 1 } else { PAGE - 1 };
    let ranges: Option<Vec<_>> = ranges.iter().map(|r| PageRange::new(r & !(PAGE - 1), r & more)).collect();
    ranges.map_or(TlbScope::All, TlbScope::Pages)
}
