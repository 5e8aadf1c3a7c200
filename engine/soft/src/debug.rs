//! Hardware breakpoints: DR0 to DR3 as DR7 enables them, and debug exceptions (SDM vol. 3B, chapter 18; AMD64 manual
//! vol. 2, 13.1).
//!
//! Nothing here is looked at while no breakpoint is enabled. Enabling one makes the run loop go instruction by instruction
//! ([`Cpu::stepwise`]), and keeps the pages that hold watched bytes out of the data side of the TLB, so that each
//! access to them comes to `mmu`'s slow path, which reports it here.

use vireo_core::PageRange;
use vireo_core::state::{cr4, rflags};

use crate::cpu::{Cpu, Exec, Fault, Shadow, Source, Stop, vector};
use crate::mmu::Access;

/// Bits of DR6.
pub mod dr6 {
    /// B0 to B3: which breakpoints were met.
    pub const BREAKPOINTS: u64 = 0xf;
    /// BD: access to a debug register with DR7.GD set.
    pub const BD: u64 = 1 << 13;
    /// BS: single step.
    pub const BS: u64 = 1 << 14;
    /// BT: switch to a task whose TSS has the T bit.
    pub const BT: u64 = 1 << 15;
}

/// What a breakpoint is on: R/W field of DR7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Execution of the instruction at the address.
    Instruction,
    /// Data writes.
    Write,
    /// Port I/O; only with CR4.DE.
    Port,
    /// Data reads and writes.
    Access,
}

/// One enabled breakpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Breakpoint {
    kind: Kind,
    /// Address of the first byte (or port), a multiple of `len`.
    at: u64,
    /// 1, 2, 4 or 8.
    len: u64,
}

impl Breakpoint {
    /// Breakpoint `n` of DR7, if L or G enables it. The processor ignores address bits below the length.
    fn of(n: usize, address: u64, dr7: u64) -> Option<Self> {
        if dr7 >> (2 * n) & 3 == 0 {
            return None;
        }
        let field = dr7 >> (16 + 4 * n);
        let kind = [Kind::Instruction, Kind::Write, Kind::Port, Kind::Access][(field & 3) as usize];
        let len = match kind {
            // Has to have length 1; others are undefined.
            Kind::Instruction => 1,
            _ => [1, 2, 8, 4][(field >> 2 & 3) as usize],
        };
        Some(Self { kind, at: address & !(len - 1), len })
    }

    fn on_data(&self) -> bool {
        matches!(self.kind, Kind::Write | Kind::Access)
    }
}

/// The enabled breakpoints, derived from the debug registers by [`Cpu::breakpoints_changed`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Breakpoints {
    list: [Option<Breakpoint>; 4],
    /// Any is enabled.
    armed: bool,
    /// Any is on instructions: RF means something.
    on_instructions: bool,
    /// B0 to B3 of those met by data and port accesses and not reported yet.
    met: u64,
}

impl Breakpoints {
    fn new(address: &[u64; 4], dr7: u64) -> Self {
        let list = std::array::from_fn(|n| Breakpoint::of(n, address[n], dr7));
        let any = |of: fn(&Breakpoint) -> bool| list.iter().flatten().any(of);
        let armed = any(|_| true);
        Self { list, armed, on_instructions: any(|b| b.kind == Kind::Instruction), met: 0 }
    }

    /// Whether any is enabled.
    #[inline(always)]
    pub fn armed(&self) -> bool {
        self.armed
    }

    /// Whether the page at `linear` (page-aligned) has watched data, so that no access may bypass the slow path. An aligned
    /// breakpoint never crosses a page border.
    pub fn watches(&self, page: u64) -> bool {
        self.armed && self.list.iter().flatten().any(|b| b.on_data() && b.at & !0xfff == page)
    }

    /// Bits of the breakpoints for which `met` holds.
    fn select(&self, met: impl Fn(&Breakpoint) -> bool) -> u64 {
        let bit = |(n, b): (usize, &Option<Breakpoint>)| u64::from(b.as_ref().is_some_and(&met)) << n;
        self.list.iter().enumerate().map(bit).sum()
    }
}

impl Cpu {
    /// To be called after DR0 to DR3 or DR7 changed. True when instructions have to be run one by one from now on, which
    /// the run loop must hear of.
    pub fn breakpoints_changed(&mut self) -> bool {
        let before = self.breakpoints;
        self.breakpoints = Breakpoints::new(&self.debug.address, self.debug.dr7);
        self.breakpoints.met = before.met;
        let list = self.breakpoints.list;
        self.mmu.forget_other_spaces();
        for b in list.iter().flatten().filter(|b| b.on_data()) {
            self.mmu.flush_pages(PageRange::at(b.at));
        }
        self.breakpoints.armed && !before.armed
    }

    /// A debug exception may come after any instruction: TF is set or a breakpoint is enabled. Repeated string instructions
    /// then go one iteration at a time.
    #[inline(always)]
    pub fn stepwise(&self) -> bool {
        self.breakpoints.armed || self.eflags & rflags::TF != 0
    }

    /// Records a debug exception of these conditions: bits of [`dr6`]. B0 to B3 tell of the last one alone, as
    /// processors do; all other bits stay until software clears them (SDM vol. 3B, 18.2.3).
    pub fn debug_exception(&mut self, conditions: u64) {
        self.debug.dr6 = self.debug.dr6 & !dr6::BREAKPOINTS | conditions;
        self.fault = Fault { vector: vector::DB, error: None, source: Source::Exception };
    }

    /// Before each instruction while breakpoints are on: a breakpoint on it is a fault, unless RF or the shadow of MOV SS
    /// holds it back for this one instruction (SDM vol. 3B, 18.3.1.1).
    pub fn before_instruction(&mut self, shadow: Shadow) -> Exec {
        if !self.breakpoints.on_instructions {
            return Ok(());
        }
        let resumed = self.eflags & rflags::RF != 0;
        let at = self.wrap_linear(self.code_base.wrapping_add(self.rip));
        let met = self.breakpoints.select(|b| b.kind == Kind::Instruction && b.at == at);
        if met != 0 && !resumed && shadow != Shadow::MovSs {
            self.debug_exception(met);
            return Err(Stop::Fault);
        }
        self.eflags &= !rflags::RF;
        Ok(())
    }

    /// Notes a data access that was checked and will be made.
    #[cold]
    pub fn data_accessed(&mut self, linear: u64, size: u32, access: Access) {
        let size = u64::from(size);
        let met = self.breakpoints.select(|b| {
            let kind = b.kind == Kind::Access || b.kind == Kind::Write && access == Access::Write;
            // Either begins within the other; addresses wrap at the width of linear ones.
            kind && (self.wrap_linear(b.at.wrapping_sub(linear)) < size
                || self.wrap_linear(linear.wrapping_sub(b.at)) < b.len)
        });
        self.breakpoints.met |= met;
    }

    /// Notes an access to `size` ports from `port`.
    #[inline(always)]
    pub fn port_accessed(&mut self, port: u16, size: u32) {
        if self.breakpoints.armed && self.ctl.cr4 & cr4::DE != 0 {
            let (port, size) = (u64::from(port), u64::from(size));
            let met = self
                .breakpoints
                .select(|b| b.kind == Kind::Port && port < b.at.saturating_add(b.len) && b.at < port + size);
            self.breakpoints.met |= met;
        }
    }

    /// An instruction faulted: it will run again, so what it met does not count.
    pub fn forget_breakpoints(&mut self) {
        self.breakpoints.met = 0;
    }

    /// Whether data or port breakpoints were met that are not reported yet.
    #[inline(always)]
    pub fn breakpoint_met(&self) -> bool {
        self.breakpoints.met != 0
    }

    /// Raises the debug trap for what was met so far, and for a single step.
    pub fn debug_trap(&mut self, stepped: bool) -> Stop {
        let met = std::mem::take(&mut self.breakpoints.met);
        self.debug_exception(met | if stepped { dr6::BS } else { 0 });
        Stop::Trap
    }

    /// An iteration of a repeated string instruction is done, and more are to come: the breakpoint on it was already
    /// passed (SDM vol. 3B, 18.3.1.1).
    pub fn pass_breakpoint(&mut self) {
        if self.breakpoints.on_instructions {
            self.eflags |= rflags::RF;
        }
    }

    /// RF as it is to be kept: it does nothing but hold back instruction breakpoints, and is cleared only while there are
    /// any.
    pub fn effective_rf(&self) -> u64 {
        if self.breakpoints.on_instructions { rflags::RF } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: [u64; 4] = [0x1001, 0x2003, 0x3007, 0x4007];

    #[test]
    fn dr7_says_what_is_enabled() {
        // L0 a write of 1, G1 a read or write of 2, L2 a port of 4, G3 a write of 8.
        let b = Breakpoints::new(&ADDRESS, 0x9e71_0400 | 1 | 1 << 3 | 1 << 4 | 1 << 7);
        let of = |kind, at, len| Some(Breakpoint { kind, at, len });
        assert_eq!(
            b.list,
            [
                of(Kind::Write, 0x1001, 1),
                of(Kind::Access, 0x2002, 2),
                of(Kind::Port, 0x3004, 4),
                of(Kind::Write, 0x4000, 8),
            ]
        );
        assert!(b.armed && !b.on_instructions);
        assert!(b.watches(0x1000) && b.watches(0x2000) && b.watches(0x4000));
        assert!(!b.watches(0x3000) && !b.watches(0));
    }

    #[test]
    fn without_an_enable_bit_there_is_nothing() {
        // LE, GE and GD are no enables.
        let b = Breakpoints::new(&ADDRESS, 0xffff_2700);
        assert_eq!((b.list, b.armed), ([None; 4], false));
        assert!(!b.watches(0x1000));
    }

    #[test]
    fn an_instruction_breakpoint_has_length_1() {
        let b = Breakpoints::new(&ADDRESS, 0x0040_0008);
        assert_eq!(b.list[1], Some(Breakpoint { kind: Kind::Instruction, at: 0x2003, len: 1 }));
        assert!(b.on_instructions && !b.watches(0x2000));
    }
}
