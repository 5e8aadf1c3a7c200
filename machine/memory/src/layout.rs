//! Where RAM is in the guest-physical address space.

use std::ops::Range;

use crate::MemoryError;

/// Memory sizes are multiples of this many bytes.
pub const SIZE_STEP: u64 = 1 << 20;
/// The least memory a machine can have, in bytes.
pub const MIN_SIZE: u64 = 16 << 20;

/// The parts of the guest-physical address space that never hold RAM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holes {
    /// Below 1 MiB, for the frame buffer of a VGA. RAM behind it exists but is not reachable, as in a PC.
    pub legacy: Range<u64>,
    /// Below 4 GiB, for PCI memory and interrupt controllers. RAM that it displaces continues at its end.
    pub pci: Range<u64>,
}

/// A contiguous range of RAM in both the guest-physical address space and the memory file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamSpan {
    /// First guest-physical address, page-aligned.
    pub gpa: u64,
    /// Length in bytes, a multiple of 4096.
    pub len: u64,
    /// Where it starts in the memory file, page-aligned.
    pub offset: u64,
}

impl RamSpan {
    /// First address after the span.
    pub fn end(&self) -> u64 {
        self.gpa + self.len
    }
}

/// The spans of RAM of one machine. No two of them touch: between any two is a hole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RamLayout {
    size: u64,
    spans: Vec<RamSpan>,
}

impl RamLayout {
    /// Lays out `size` bytes around the holes, which must be page-aligned, in order, and not reach beyond the address
    /// space (they are constants of a board).
    pub fn new(size: u64, holes: &Holes) -> Result<Self, MemoryError> {
        if size < MIN_SIZE || !size.is_multiple_of(SIZE_STEP) || size.checked_add(holes.pci.end).is_none() {
            return Err(MemoryError::BadSize { asked: size });
        }
        let low_end = size.min(holes.pci.start);
        let mut spans = vec![
            RamSpan { gpa: 0, len: holes.legacy.start, offset: 0 },
            RamSpan { gpa: holes.legacy.end, len: low_end - holes.legacy.end, offset: holes.legacy.end },
        ];
        if size > low_end {
            spans.push(RamSpan { gpa: holes.pci.end, len: size - low_end, offset: low_end });
        }
        Ok(Self { size, spans })
    }

    /// Bytes of memory, the part behind the legacy hole included.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The spans, by rising address.
    pub fn spans(&self) -> &[RamSpan] {
        &self.spans
    }

    /// The ranges of addresses that this layout has beyond `smaller`, which is one around the same holes.
    pub fn beyond(&self, smaller: &Self) -> Vec<Range<u64>> {
        let end_of = |gpa: u64| smaller.spans.iter().find(|s| s.gpa == gpa).map_or(gpa, RamSpan::end);
        let rest = self.spans.iter().map(|span| end_of(span.gpa)..span.end());
        rest.filter(|range| !range.is_empty()).collect()
    }

    /// First address above the RAM below 4 GiB.
    pub fn low_end(&self) -> u64 {
        self.spans[1].end()
    }

    /// First address above all RAM: the `ram_limit` of a partition.
    pub fn limit(&self) -> u64 {
        self.spans.last().map_or(0, RamSpan::end)
    }

    /// Where `len` bytes at `gpa` are in the memory file, if they are all in one span. A length of 0 is allowed at
    /// any address inside a span or at its end.
    pub(crate) fn offset_of(&self, gpa: u64, len: u64) -> Option<u64> {
        let end = gpa.checked_add(len)?;
        let span = self.spans.iter().find(|s| gpa >= s.gpa && end <= s.end())?;
        Some(span.offset + (gpa - span.gpa))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) const HOLES: Holes = Holes { legacy: 0xa_0000..0xc_0000, pci: 0xc000_0000..0x1_0000_0000 };

    #[test]
    fn memory_beyond_the_hole_continues_above_it() {
        let l = RamLayout::new(4 << 30, &HOLES).unwrap();
        assert_eq!(l.low_end(), 3 << 30);
        assert_eq!(l.limit(), 5 << 30);
        assert_eq!(l.spans()[2], RamSpan { gpa: 4 << 30, len: 1 << 30, offset: 3 << 30 });
        let exact = RamLayout::new(3 << 30, &HOLES).unwrap();
        assert_eq!((exact.spans().len(), exact.limit()), (2, 3 << 30));
    }

    #[test]
    fn a_larger_layout_goes_on_where_a_smaller_one_ends() {
        let layout = |mib: u64| RamLayout::new(mib << 20, &HOLES).unwrap();
        let beyond = |large, small| {
            let ranges = layout(large).beyond(&layout(small));
            ranges.iter().map(|r| (r.start >> 20, r.end >> 20)).collect::<Vec<_>>()
        };
        assert_eq!(beyond(512, 512), []);
        assert_eq!(beyond(1024, 512), [(512, 1024)]);
        assert_eq!(beyond(4096, 512), [(512, 3072), (4096, 5120)]);
        assert_eq!(beyond(5120, 4096), [(5120, 6144)]);
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for asked in [0, 1 << 20, (16 << 20) + 1, 15 << 20, u64::MAX, !0xf_ffff] {
            let e = RamLayout::new(asked, &HOLES).unwrap_err();
            assert!(matches!(e, MemoryError::BadSize { asked: a } if a == asked));
            assert!(e.to_string().contains("at least 16 MiB"), "{e}");
        }
        assert!(RamLayout::new(16 << 20, &HOLES).is_ok());
        assert!(RamLayout::new(17 << 20, &HOLES).is_ok());
    }

    proptest! {
        #[test]
        fn every_byte_found_is_inside_the_file_and_no_hole_is_ram(
            mib in 16u64..8192, gpa in prop_oneof![0u64..0x3_0000_0000, any::<u64>()], len in 0u64..0x20_0000
        ) {
            let l = RamLayout::new(mib << 20, &HOLES).unwrap();
            if let Some(offset) = l.offset_of(gpa, len) {
                prop_assert!(offset + len <= l.size());
                for hole in [&HOLES.legacy, &HOLES.pci] {
                    prop_assert!(len == 0 || gpa >= hole.end || gpa + len <= hole.start);
                }
            } else {
                let inside = |a: u64| l.spans().iter().position(|s| a >= s.gpa && a < s.end());
                let last = gpa.checked_add(len.saturating_sub(1)).and_then(inside);
                prop_assert!(inside(gpa).is_none() || inside(gpa) != last);
            }
        }
    }
}
