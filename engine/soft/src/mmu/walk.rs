//! Page walks (SDM vol. 3A, chapter 4).

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::*};

use vireo_core::state::{cr0, cr4, efer};

use super::code_pages::Mapped;
use super::ram::HostPage;
use super::tlb::{Entry, View, slot_of};
use crate::cpu::{Cpu, Exec, Stop, vector};

/// Kind of access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Data read.
    Read,
    /// Data write, or read-modify-write.
    Write,
    /// Instruction fetch.
    Exec,
}

/// Bits of a page-table entry.
mod pte {
    pub const P: u64 = 1 << 0;
    pub const RW: u64 = 1 << 1;
    pub const US: u64 = 1 << 2;
    pub const A: u64 = 1 << 5;
    pub const D: u64 = 1 << 6;
    pub const PS: u64 = 1 << 7;
    pub const G: u64 = 1 << 8;
    pub const NX: u64 = 1 << 63;
}

/// Bits of a page-fault error code.
mod fault {
    pub const P: u32 = 1;
    pub const W: u32 = 2;
    pub const U: u32 = 4;
    pub const RSVD: u32 = 8;
    pub const I: u32 = 16;
}

/// Where a linear address leads.
#[derive(Clone, Copy, Debug)]
struct Translation {
    /// Guest-physical address of the byte.
    gpa: u64,
    /// Rights common to all levels.
    rights: u64,
    /// The D bit is set, or there is none to set (paging off).
    dirty: bool,
    mapped: Mapped,
}

/// One level of the walk in progress.
struct Walk {
    /// Address of the table.
    table: u64,
    /// RW, US (and-ed) and NX (or-ed) so far.
    rights: u64,
}

impl Cpu {
    /// Whether `linear` is a 48-bit canonical address.
    #[inline(always)]
    pub fn canonical(linear: u64) -> bool {
        ((linear as i64) << 16 >> 16) as u64 == linear
    }

    /// Translates for `view`, checking rights, setting A and D bits. Raises #PF.
    pub fn translate(&mut self, view: View, linear: u64, access: Access) -> Exec<u64> {
        Ok(self.walk_and_fill(view, linear, access)?.0)
    }

    /// Translates and caches. Gives the guest-physical address, and its page if that is RAM.
    pub fn walk_and_fill(
        &mut self,
        view: View,
        linear: u64,
        access: Access,
    ) -> Exec<(u64, Option<HostPage>)> {
        let t = self.walk(view, linear, access)?;
        let ram = self.mmu.ram.page(t.gpa).filter(|_| !self.apic.owns(t.gpa));
        if let Some(ram) = &ram {
            let page = linear & !0xfff;
            let tag =
                |allowed: bool| if allowed { page.wrapping_neg() } else { Entry::none(slot_of(linear)) };
            let free = !self.breakpoints.watches(page);
            let entry = Entry {
                read: tag(free && self.allowed(&t, view, Access::Read)),
                write: tag(free && t.dirty && ram.writable && self.allowed(&t, view, Access::Write)),
                exec: tag(self.allowed(&t, view, Access::Exec)),
                host: ram.host,
                addend: (ram.host as u64).wrapping_sub(page),
                attention: self.mmu.watch.attention_of((t.gpa >> 12) as u32),
                page: (t.gpa >> 12) as u32,
                mapped: t.mapped,
            };
            self.mmu.fill(view, linear, entry);
        }
        Ok((t.gpa, ram))
    }

    /// Whether the rights found allow an access (SDM vol. 3A, 4.6.1).
    fn allowed(&self, t: &Translation, view: View, access: Access) -> bool {
        let user_page = t.rights & pte::US != 0;
        let (cr0, cr4) = (self.ctl.cr0, self.ctl.cr4);
        if cr0 & cr0::PG == 0 {
            return true;
        }
        if view.is_user() {
            return user_page
                && match access {
                    Access::Read => true,
                    Access::Write => t.rights & pte::RW != 0,
                    Access::Exec => t.rights & pte::NX == 0,
                };
        }
        let smap = user_page && cr4 & cr4::SMAP != 0 && view == View::Kernel;
        match access {
            Access::Read => !smap,
            Access::Write => !smap && (t.rights & pte::RW != 0 || cr0 & cr0::WP == 0),
            Access::Exec => t.rights & pte::NX == 0 && !(user_page && cr4 & cr4::SMEP != 0),
        }
    }

    #[cold]
    fn page_fault(&mut self, view: View, linear: u64, access: Access, code: u32) -> Stop {
        let mut code = code | if view.is_user() { fault::U } else { 0 };
        match access {
            Access::Read => {}
            Access::Write => code |= fault::W,
            // The I bit needs NX or SMEP to be in use (SDM vol. 3A, 4.7).
            Access::Exec if self.nx_enabled() || self.ctl.cr4 & cr4::SMEP != 0 => code |= fault::I,
            Access::Exec => {}
        }
        self.mmu.fault_address = linear;
        // A page fault drops what is cached of its page (SDM vol. 3A, 4.10.4.1).
        self.mmu.forget_page(linear);
        self.raise(vector::PF, Some(code))
    }

    fn nx_enabled(&self) -> bool {
        self.ctl.efer & efer::NXE != 0 && self.ctl.cr4 & cr4::PAE != 0
    }

    fn walk(&mut self, view: View, linear: u64, access: Access) -> Exec<Translation> {
        if self.ctl.cr0 & cr0::PG == 0 {
            let all = Translation {
                gpa: linear & 0xffff_ffff,
                rights: 0,
                dirty: true,
                mapped: Mapped { global: false, shift: 12 },
            };
            return Ok(all);
        }
        let found = loop {
            if let Some(found) = self.walk_tables(view, linear, access)? {
                break found;
            }
        };
        if !self.allowed(&found, view, access) {
            return Err(self.page_fault(view, linear, access, fault::P));
        }
        Ok(found)
    }

    /// One walk from the root. `None`: another processor changed an entry on the way; walk again.
    fn walk_tables(&mut self, view: View, linear: u64, access: Access) -> Exec<Option<Translation>> {
        if self.ctl.cr4 & cr4::PAE == 0 {
            return self.walk_32(view, linear, access);
        }
        if self.long_mode() {
            let root = Walk { table: self.ctl.cr3 & self.address_mask(), rights: pte::RW | pte::US };
            return self.walk_64(view, linear, access, root, 4);
        }
        let p = self.mmu.pdpte[(linear >> 30 & 3) as usize];
        if p & pte::P == 0 {
            return Err(self.page_fault(view, linear, access, 0));
        }
        let root = Walk { table: p & self.address_mask(), rights: pte::RW | pte::US };
        self.walk_64(view, linear, access, root, 2)
    }

    /// Bits 12 to the physical address width.
    fn address_mask(&self) -> u64 {
        ((1u64 << self.shared.physical_bits) - 1) & !0xfff
    }

    /// 8-byte entries, from `level` (4 for PML4, 2 for a PAE page directory) down to 1.
    fn walk_64(
        &mut self,
        view: View,
        linear: u64,
        access: Access,
        root: Walk,
        level: u32,
    ) -> Exec<Option<Translation>> {
        let long = level == 4;
        let mut w = root;
        for level in (1..=level).rev() {
            let shift = 12 + 9 * (level - 1);
            let at = w.table + (linear >> shift & 511) * 8;
            let e = self.read_pte64(at);
            if e & pte::P == 0 {
                return Err(self.page_fault(view, linear, access, 0));
            }
            let leaf = level == 1 || e & pte::PS != 0;
            let mut reserved = !self.address_mask() & 0x000f_ffff_ffff_f000;
            if !long {
                reserved |= 0x7ff0_0000_0000_0000;
            }
            if !self.nx_enabled() {
                reserved |= pte::NX;
            }
            match level {
                4 => reserved |= pte::PS,
                2 | 3 if leaf => reserved |= ((1 << shift) - 1) & !0x1fff,
                _ => {}
            }
            if e & reserved != 0 {
                return Err(self.page_fault(view, linear, access, fault::P | fault::RSVD));
            }
            w.rights = w.rights & e & (pte::RW | pte::US) | (w.rights | e) & pte::NX;
            if !leaf {
                if !self.set_bits64(at, e, pte::A) {
                    return Ok(None);
                }
                w.table = e & self.address_mask();
                continue;
            }
            let offset_mask = (1u64 << shift) - 1;
            let gpa = e & self.address_mask() & !offset_mask | linear & offset_mask;
            let (t, bits) = self.leaf(view, access, gpa, w.rights, e, shift as u8);
            let done = bits.is_none_or(|bits| self.set_bits64(at, e, bits));
            return Ok(done.then_some(t));
        }
        unreachable!("level 1 is always a leaf")
    }

    /// The end of a walk at entry `e`, which maps pages of this size, and the bits (A, D) to set in it, if the access is allowed.
    fn leaf(
        &self,
        view: View,
        access: Access,
        gpa: u64,
        rights: u64,
        e: u64,
        shift: u8,
    ) -> (Translation, Option<u64>) {
        let mapped = Mapped { global: e & pte::G != 0 && self.ctl.cr4 & cr4::PGE != 0, shift };
        let mut t = Translation { gpa, rights, dirty: e & pte::D != 0, mapped };
        let allowed = self.allowed(&t, view, access);
        t.dirty |= allowed && access == Access::Write;
        (t, allowed.then_some(if t.dirty { pte::A | pte::D } else { pte::A }))
    }

    /// 32-bit paging with 4-byte entries and, with CR4.PSE, 4 MiB pages (PSE-36 addresses).
    fn walk_32(&mut self, view: View, linear: u64, access: Access) -> Exec<Option<Translation>> {
        let at = (self.ctl.cr3 & 0xffff_f000) + (linear >> 22 & 1023) * 4;
        let pde = self.read_pte32(at);
        if pde & pte::P == 0 {
            return Err(self.page_fault(view, linear, access, 0));
        }
        let large = pde & pte::PS != 0 && self.ctl.cr4 & cr4::PSE != 0;
        let (at, e, rights, gpa) = if large {
            let high = pde >> 13 & 0xff;
            if pde & 1 << 21 != 0 || high >> (self.shared.physical_bits - 32).min(8) != 0 {
                return Err(self.page_fault(view, linear, access, fault::P | fault::RSVD));
            }
            (at, pde, pde, pde & 0xffc0_0000 | high << 32 | linear & 0x3f_ffff)
        } else {
            if !self.set_bits32(at, pde, pte::A) {
                return Ok(None);
            }
            let at = (pde & 0xffff_f000) + (linear >> 12 & 1023) * 4;
            let e = self.read_pte32(at);
            if e & pte::P == 0 {
                return Err(self.page_fault(view, linear, access, 0));
            }
            (at, e, pde & e, e & 0xffff_f000 | linear & 0xfff)
        };
        let (t, bits) =
            self.leaf(view, access, gpa, rights & (pte::RW | pte::US), e, if large { 22 } else { 12 });
        let done = bits.is_none_or(|bits| self.set_bits32(at, e, bits));
        Ok(done.then_some(t))
    }

    /// A table outside RAM reads as all ones, which is an entry with reserved bits set.
    pub fn read_pte64(&self, gpa: u64) -> u64 {
        self.table_word(gpa).map_or(u64::MAX, |p| {
            // SAFETY: `table_word` gives an address in mapped RAM; entries are 8-aligned because tables are page-aligned.
            unsafe { AtomicU64::from_ptr(p.cast()) }.load(Acquire)
        })
    }

    fn read_pte32(&self, gpa: u64) -> u64 {
        self.table_word(gpa).map_or(u64::from(u32::MAX), |p| {
            // SAFETY: as in `read_pte64`, 4-aligned.
            u64::from(unsafe { AtomicU32::from_ptr(p.cast()) }.load(Acquire))
        })
    }

    /// Sets A (and D). False: another processor changed the entry since it was read.
    fn set_bits64(&mut self, gpa: u64, entry: u64, bits: u64) -> bool {
        let Some(p) = self.writable_table_word(gpa).filter(|_| entry & bits != bits) else { return true };
        // SAFETY: as in `read_pte64`.
        let word = unsafe { AtomicU64::from_ptr(p.cast()) };
        let done = word.compare_exchange(entry, entry | bits, AcqRel, Relaxed).is_ok();
        self.wrote_physical(gpa, 8);
        done
    }

    /// As [`Cpu::set_bits64`] for 4-byte entries.
    fn set_bits32(&mut self, gpa: u64, entry: u64, bits: u64) -> bool {
        let Some(p) = self.writable_table_word(gpa).filter(|_| entry & bits != bits) else { return true };
        // SAFETY: as in `read_pte32`.
        let word = unsafe { AtomicU32::from_ptr(p.cast()) };
        let done = word.compare_exchange(entry as u32, (entry | bits) as u32, AcqRel, Relaxed).is_ok();
        self.wrote_physical(gpa, 4);
        done
    }

    fn table_word(&self, gpa: u64) -> Option<*mut u8> {
        Some(self.mmu.ram.page(gpa)?.host.wrapping_add((gpa & 0xfff) as usize))
    }

    /// `None` also for tables in read-only RAM: their A and D bits stay as they are.
    fn writable_table_word(&self, gpa: u64) -> Option<*mut u8> {
        self.mmu.ram.page(gpa).filter(|p| p.writable)?;
        self.table_word(gpa)
    }

    /// After a write to RAM by guest-physical address within one page.
    fn wrote_physical(&mut self, gpa: u64, len: u32) {
        self.look_after_write((gpa >> 12) as u32, (gpa & 0xfff) as u32, len);
    }
}
