//! Memory operands: the look into the TLB before an access, and at the page's attention byte after a store.

use super::context::place::{self, Tlb};
use super::emit::{Alu, Host, Label, Mem, Part, cc};
use super::lower::Lowering;
use super::relocation::Kind;
use super::thunks::{self, T0, T1};
use crate::mmu::{StackPage, slot_of};

/// A linear address of an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// In T0.
    Dynamic,
    /// In this register of the host, which stays as it is.
    In(Host),
    /// So far from the guest's stack pointer.
    Stack(i32),
    /// Known.
    Known(Known),
}

/// A known address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Wherever the code is.
    Fixed(u64),
    /// Relative to the code.
    Relative(u64),
    /// Relative to the code, 32 bits of it.
    Narrow(u64),
}

impl Known {
    /// The address.
    pub fn get(self) -> u64 {
        match self {
            Self::Fixed(at) | Self::Relative(at) | Self::Narrow(at) => at,
        }
    }

    /// 32 bits of it.
    pub fn narrow(self) -> Self {
        let at = self.get() & 0xffff_ffff;
        if let Self::Fixed(_) = self { Self::Fixed(at) } else { Self::Narrow(at) }
    }
}

/// Where the TLB entry of a checked operand is, for the attention byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checked {
    /// Its offset is in T1.
    Dynamic,
    /// The one of a known address.
    Known(Known),
    /// The page of the stack.
    Stack,
    /// The address of the attention byte is in T1.
    Attention,
    /// The address of the attention byte is in the second spare place.
    Saved,
}

/// How a checked memory operand is reached. The fewer steps from the guest's registers to the operand, the sooner a chain
/// of loads, each of which has the address of the next, gets on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// T0 is its host address.
    Host,
    /// T0 + T1 is.
    Pair,
    /// T1 is to be added to its address in the guest, which is a register and a displacement.
    Base,
}

impl Lowering<'_> {
    /// Checks `size` bytes at an address in the TLB; [`Lowering::add_host`] is to follow. Jumps to `slow` on a miss. Overwrites
    /// T1 and the flags.
    pub fn check(&mut self, address: Address, size: u32, write: bool, slow: Label) -> Checked {
        let tag = if write { Tlb::Write } else { Tlb::Read };
        if let Address::Known(known) = address {
            if known.get() as u32 & 0xfff <= 4096 - size {
                return self.check_known(known, tag, slow);
            }
            self.known_address(T0, known);
        }
        match address {
            Address::Stack(disp) if size <= StackPage::MOST => return self.check_stack(disp, size, slow),
            Address::Stack(disp) => {
                self.lea(T0, Mem::at(Host::R15, disp));
                return self.check(Address::Dynamic, size, write, slow);
            }
            address => self.offset_in_page(address, tag),
        }
        self.e.cmp_imm32(T0, 4096 - size as i32);
        self.e.jcc(cc::A, slow);
        Checked::Dynamic
    }

    /// Puts the offset in its page of an address in a register into T0, or some MiB more or less than that if its TLB entry
    /// is that of another page; and the entry's offset into T1. Overwrites the flags.
    pub fn offset_in_page(&mut self, address: Address, tag: Tlb) {
        if let Address::In(r) = address {
            thunks::tlb_offset(&mut self.e, r);
            self.e.load(T0, place::tlb(self.view, T1, tag));
            self.e.alu(Alu::Add, T0, r);
        } else {
            thunks::tlb_offset(&mut self.e, T0);
            self.e.alu(Alu::Add, T0, place::tlb(self.view, T1, tag));
        }
    }

    /// As [`Lowering::check`], of an operand within a page.
    fn check_known(&mut self, known: Known, tag: Tlb, slow: Label) -> Checked {
        let (at, view) = (known.get(), self.view);
        let slot = slot_of(at);
        let negative = (at & !0xfff).wrapping_neg() as i64;
        match i32::try_from(negative) {
            Ok(v) => self.e.alu_imm(Alu::Cmp, place::tlb_slot(view, slot, tag), v),
            Err(_) => {
                self.e.constant(T1, negative as u64);
                self.moves_known(known, Kind::Tag);
                self.e.alu(Alu::Cmp, T1, place::tlb_slot(view, slot, tag));
                self.moves_known(known, Kind::TlbSlot);
            }
        }
        self.e.jcc(cc::NE, slow);
        self.e.load(T0, place::tlb_slot(view, slot, Tlb::Host));
        self.moves_known(known, Kind::TlbSlot);
        if at & 0xfff != 0 {
            self.e.lea(T0, Mem::at(T0, (at & 0xfff) as i32));
        }
        Checked::Known(known)
    }

    /// Loads a known address.
    pub fn known_address(&mut self, to: Host, known: Known) {
        self.e.constant(to, known.get());
        self.moves_known(known, Kind::Address);
    }

    /// The field that was just emitted depends on a known address.
    fn moves_known(&mut self, known: Known, kind: Kind) {
        match known {
            Known::Fixed(_) => {}
            Known::Relative(_) => self.moves(kind, 0),
            Known::Narrow(_) => self.stays(),
        }
    }

    /// After [`Lowering::check`]: T0 has the host address.
    pub fn add_host(&mut self, checked: Checked) {
        if checked == Checked::Dynamic {
            self.e.alu(Alu::Add, T0, place::tlb(self.view, T1, Tlb::Host));
        }
    }

    /// After [`Lowering::check`]: the operand is reached as said. For the ways by two registers `checked` is dynamic.
    pub fn reach(&mut self, checked: Checked, reach: Reach) {
        debug_assert!(reach == Reach::Host || checked == Checked::Dynamic);
        match reach {
            Reach::Host => self.add_host(checked),
            Reach::Pair => self.e.load(T1, place::tlb(self.view, T1, Tlb::Host)),
            Reach::Base => self.e.load(T1, place::tlb(self.view, T1, Tlb::Addend)),
        }
    }

    /// Checks an access near the stack pointer, whose page is known. `slow` is also where an exception of the access
    /// leads: see [`crate::mmu::StackPage`].
    fn check_stack(&mut self, disp: i32, size: u32, slow: Label) -> Checked {
        let view = self.view;
        let again = self.e.here();
        let at = Mem::at(Host::R15, disp);
        self.lea(T0, at);
        self.e.alu(Alu::Add, T0, place::stack_page(view, Tlb::Write));
        self.e.cmp_imm32(T0, 4096 - size as i32);
        let hot = self.e.switch(Part::Cold);
        let missed = self.e.here();
        self.e.store_imm(place::spare(0), 4096 - size as i32);
        self.lea(T0, at);
        self.e.relative_to(&[0xe8], self.thunks.stack_page[view as usize]);
        self.e.jcc(cc::B, slow);
        self.e.jmp(again);
        self.e.switch(hot);
        self.e.jcc(cc::A, missed);
        self.e.alu(Alu::Add, T0, place::stack_page(view, Tlb::Host));
        let from = self.e.here();
        self.open_faults.push((from, slow));
        Checked::Stack
    }

    /// Loads the address of the attention byte of a checked operand to T1.
    pub fn attention(&mut self, checked: Checked) {
        let view = self.view;
        if checked == Checked::Attention {
            return;
        }
        let from = match checked {
            Checked::Dynamic => place::tlb(view, T1, Tlb::Attention),
            Checked::Known(at) => {
                self.e.load(T1, place::tlb_slot(view, slot_of(at.get()), Tlb::Attention));
                return self.moves_known(at, Kind::TlbSlot);
            }
            Checked::Stack => place::stack_page(view, Tlb::Attention),
            Checked::Saved | Checked::Attention => place::spare(1),
        };
        self.e.load(T1, from);
    }

    /// After a store of instruction `n` to the operand at T0: looks at its attention byte. Code goes on at `resume`, in
    /// a moment. Overwrites the flags.
    pub fn look_after_store(&mut self, n: usize, checked: Checked, size: u32, resume: Label) {
        self.look_after_store_at(n, checked, 0, size, resume);
    }

    /// As [`Lowering::look_after_store`], of an operand so far from T0.
    pub fn look_after_store_at(&mut self, n: usize, checked: Checked, disp: i32, size: u32, resume: Label) {
        self.look_after(n, checked, size, resume, |l| l.e.lea(T0, Mem::at(T0, disp)));
    }

    /// As [`Lowering::look_after_store`], of what `operand` says to T0, if there is attention: an address of so many bytes. No
    /// size: it leaves that in spare place 2.
    pub fn look_after(
        &mut self,
        n: usize,
        checked: Checked,
        size: u32,
        resume: Label,
        operand: impl FnOnce(&mut Self),
    ) {
        self.attention(checked);
        self.e.cmp8_imm(Mem::at(T1, 0), 0);
        let site = self.site(n, size as u16, Some(resume), None);
        let hot = self.e.switch(Part::Cold);
        let stub = self.e.here();
        self.e.store(place::spare(1), T1);
        operand(self);
        self.e.store(place::spare(0), T0);
        self.go_with_site(site, self.thunks.wrote[usize::from(self.view.is_user())]);
        self.e.switch(hot);
        self.e.jcc(cc::NE, stub);
    }
}
