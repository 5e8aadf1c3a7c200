//! Segment offset to linear address.

use vireo_core::state::Segment;

use crate::cpu::{Cpu, Exec, Stop, seg, vector};

impl Cpu {
    /// Linear address of `size` bytes at `offset` of segment register `seg`, after the checks of limit and rights. Not
    /// for 64-bit stack and flat accesses, which need no check.
    pub fn segment_linear(&mut self, seg: u8, offset: u64, size: u32, write: bool) -> Exec<u64> {
        let s = &self.seg[(seg % 6) as usize];
        if self.mode.is64() {
            let base = if seg == seg::FS || seg == seg::GS { s.base } else { 0 };
            return Ok(base.wrapping_add(offset));
        }
        if !Self::segment_allows(s, self.protected(), offset as u32, size, write) {
            return Err(self.segment_fault(seg));
        }
        Ok(s.base.wrapping_add(offset) & 0xffff_ffff)
    }

    /// Rights and limit (SDM vol. 3A, 5.3 to 5.5).
    fn segment_allows(s: &Segment, protected: bool, offset: u32, size: u32, write: bool) -> bool {
        let kind = s.kind();
        let code = kind & 8 != 0;
        if protected {
            let forbidden = if write { code || kind & 2 == 0 } else { code && kind & 2 == 0 };
            if !s.usable() || s.attributes & Segment::PRESENT == 0 || forbidden {
                return false;
            }
        }
        Self::within_limit(s, offset, size)
    }

    /// Whether `size` bytes at `offset` are within the limit (SDM vol. 3A, 5.3).
    pub fn within_limit(s: &Segment, offset: u32, size: u32) -> bool {
        let expand_down = s.kind() & 0xc == 4;
        let Some(last) = offset.checked_add(size.saturating_sub(1)) else {
            // Wraps at 4 GiB: allowed only where no limit is left to be crossed.
            return !expand_down && s.limit == u32::MAX;
        };
        if expand_down {
            let top = if s.attributes & Segment::DB != 0 { u32::MAX } else { 0xffff };
            offset > s.limit && last <= top
        } else {
            last <= s.limit
        }
    }

    /// #SS(0) for the stack segment, #GP(0) for any other.
    #[cold]
    pub fn segment_fault(&mut self, seg: u8) -> Stop {
        let v = if seg == seg::SS { vector::SS } else { vector::GP };
        self.raise(v, Some(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_ends_at_the_limit() {
        let s = Segment { selector: 0, base: 0, limit: 0xfff, attributes: 0x93 };
        assert!(Cpu::within_limit(&s, 0xffc, 4));
        assert!(!Cpu::within_limit(&s, 0xffd, 4));
        assert!(!Cpu::within_limit(&s, 0xffff_fffe, 4));
    }

    #[test]
    fn an_expand_down_segment_has_room_above_its_limit() {
        let s = Segment { selector: 0, base: 0, limit: 0xfff, attributes: 0x97 };
        assert!(!Cpu::within_limit(&s, 0xfff, 2));
        assert!(Cpu::within_limit(&s, 0x1000, 2));
        assert!(Cpu::within_limit(&s, 0xfffe, 2));
        assert!(!Cpu::within_limit(&s, 0xffff, 2));
        let big = Segment { attributes: 0x97 | Segment::DB, ..s };
        assert!(Cpu::within_limit(&big, 0xffff, 2));
    }
}
