//! Loads and stores by linear address.
//!
//! Hits are single host instructions on guest memory (so that ordering between vCPUs is the host's, which
//! is the guest's); everything else (miss, page crossing, MMIO, fault) is out of line.

use super::tlb::{Entry, View};
use super::walk::Access;
use super::watch::Written;
use crate::cpu::{Cpu, Exec, vector};

/// An integer that memory can hold.
pub trait Value: Copy + 'static {
    /// Its size in bytes: 1, 2, 4 or 8.
    const SIZE: u32;
    /// Zero-extends.
    fn to_u64(self) -> u64;
    /// Truncates.
    fn from_u64(v: u64) -> Self;
    /// One host load.
    ///
    /// # Safety
    /// `p` points to `SIZE` readable bytes of guest memory (any alignment).
    unsafe fn load(p: *const u8) -> Self;
    /// One host store.
    ///
    /// # Safety
    /// `p` points to `SIZE` writable bytes of guest memory (any alignment).
    unsafe fn store(p: *mut u8, v: Self);
}

macro_rules! value {
    ($t:ty, $size:literal, $class:ident, $load:literal, $store:literal) => {
        impl Value for $t {
            const SIZE: u32 = $size;
            #[inline(always)]
            fn to_u64(self) -> u64 {
                u64::from(self)
            }
            #[inline(always)]
            fn from_u64(v: u64) -> Self {
                v as $t
            }
            #[inline(always)]
            // SAFETY: as the trait asks of the caller.
            unsafe fn load(p: *const u8) -> Self {
                let v: $t;
                // SAFETY: the caller vouches for the address. Guests race on it, so the access is one instruction, not a
                // Rust memory access.
                unsafe {
                    std::arch::asm!($load, v = out($class) v, p = in(reg) p,
                        options(nostack, readonly, preserves_flags));
                }
                v
            }
            #[inline(always)]
            // SAFETY: as the trait asks of the caller.
            unsafe fn store(p: *mut u8, v: Self) {
                // SAFETY: as for load.
                unsafe {
                    std::arch::asm!($store, v = in($class) v, p = in(reg) p, options(nostack, preserves_flags));
                }
            }
        }
    };
}
value!(u8, 1, reg_byte, "mov {v}, byte ptr [{p}]", "mov byte ptr [{p}], {v}");
value!(u16, 2, reg, "mov {v:x}, word ptr [{p}]", "mov word ptr [{p}], {v:x}");
value!(u32, 4, reg, "mov {v:e}, dword ptr [{p}]", "mov dword ptr [{p}], {v:e}");
value!(u64, 8, reg, "mov {v}, qword ptr [{p}]", "mov qword ptr [{p}], {v}");

/// One piece of an access: within one page.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// RAM: host address, and page for the attention that a write has to look at.
    Ram(*mut u8, u32),
    /// Anything else: guest-physical address.
    Bus(u64),
}

impl Cpu {
    /// Reads `T` at a linear address as the current privilege; `seg` only chooses #SS or #GP for a non-canonical one.
    #[inline(always)]
    pub fn load<T: Value>(&mut self, seg: u8, linear: u64) -> Exec<T> {
        let e = self.mmu.entry(self.mmu.view(), linear);
        if Entry::hits(e.read, linear, T::SIZE) {
            // SAFETY: a valid entry maps the whole page for reading, and the access ends within it.
            return Ok(unsafe { T::load(e.host.wrapping_add((linear & 0xfff) as usize)) });
        }
        self.load_slow(self.mmu.view(), seg, linear, T::SIZE).map(T::from_u64)
    }

    /// Writes `T` at a linear address as the current privilege.
    #[inline(always)]
    pub fn store<T: Value>(&mut self, seg: u8, linear: u64, v: T) -> Exec {
        let e = self.mmu.entry(self.mmu.view(), linear);
        if Entry::hits(e.write, linear, T::SIZE) {
            // SAFETY: a valid entry maps the whole page for writing, and the access ends within it.
            unsafe { T::store(e.host.wrapping_add((linear & 0xfff) as usize), v) };
            let page = e.page;
            self.look_after_write(page, (linear & 0xfff) as u32, T::SIZE);
            return Ok(());
        }
        self.store_slow(self.mmu.view(), seg, linear, T::SIZE, v.to_u64())
    }

    /// Reads `T` as the processor itself does (descriptor tables, TSS): supervisor, whatever the CPL.
    pub fn load_sys<T: Value>(&mut self, linear: u64) -> Exec<T> {
        self.load_slow(View::Kernel, crate::cpu::seg::DS, linear, T::SIZE).map(T::from_u64)
    }

    /// Writes `T` as the processor itself does.
    pub fn store_sys<T: Value>(&mut self, linear: u64, v: T) -> Exec {
        self.store_slow(View::Kernel, crate::cpu::seg::DS, linear, T::SIZE, v.to_u64())
    }

    /// Reads `T` as supervisor code would with the given privilege level (0 for stack switches to ring 0).
    pub fn load_as<T: Value>(&mut self, cpl: u8, seg: u8, linear: u64) -> Exec<T> {
        self.load_slow(view_of(cpl), seg, linear, T::SIZE).map(T::from_u64)
    }

    /// Writes `T` with the given privilege level.
    pub fn store_as<T: Value>(&mut self, cpl: u8, seg: u8, linear: u64, v: T) -> Exec {
        self.store_slow(view_of(cpl), seg, linear, T::SIZE, v.to_u64())
    }

    /// Fails as a write of `size` bytes would, without writing.
    pub fn check_write(&mut self, seg: u8, linear: u64, size: u32) -> Exec {
        let view = self.mmu.view();
        self.places(view, seg, linear, size, Access::Write).map(|_| ())
    }

    /// Host address for reading `size` bytes, or `None` when they are not in one RAM page. Raises what the read raises.
    pub fn host_read(&mut self, seg: u8, linear: u64, size: u32) -> Exec<Option<*const u8>> {
        let view = self.mmu.view();
        let e = self.mmu.entry(view, linear);
        if Entry::hits(e.read, linear, size) {
            return Ok(Some(e.host.wrapping_add((linear & 0xfff) as usize).cast_const()));
        }
        Ok(match self.accessed(view, seg, linear, size, Access::Read)? {
            (Place::Ram(p, _), None) => Some(p.cast_const()),
            _ => None,
        })
    }

    /// Host address for reading and writing `size` bytes and their page (for [`Cpu::wrote`] afterwards), or `None` when
    /// they are not in one writable RAM page. Raises what the write raises.
    pub fn host_write(&mut self, seg: u8, linear: u64, size: u32) -> Exec<Option<(*mut u8, u32)>> {
        let view = self.mmu.view();
        let e = self.mmu.entry(view, linear);
        if Entry::hits(e.write, linear, size) {
            return Ok(Some((e.host.wrapping_add((linear & 0xfff) as usize), e.page)));
        }
        Ok(match self.accessed(view, seg, linear, size, Access::Write)? {
            (Place::Ram(p, page), None) => Some((p, page)),
            _ => None,
        })
    }

    /// Reads bytes (at most a page) in pieces; raises before anything is read from a device.
    pub fn read_bytes(&mut self, seg: u8, linear: u64, data: &mut [u8]) -> Exec {
        let view = self.mmu.view();
        let (first, second) = self.accessed(view, seg, linear, data.len() as u32, Access::Read)?;
        let (a, b) = data.split_at_mut(in_first_page(linear, data.len()));
        self.read_piece(first, a);
        if let Some(second) = second {
            self.read_piece(second, b);
        }
        Ok(())
    }

    /// Writes bytes (at most a page) in pieces; raises before anything is written.
    pub fn write_bytes(&mut self, seg: u8, linear: u64, data: &[u8]) -> Exec {
        let view = self.mmu.view();
        self.write_bytes_as(view, seg, linear, data)
    }

    fn write_bytes_as(&mut self, view: View, seg: u8, linear: u64, data: &[u8]) -> Exec {
        let (first, second) = self.accessed(view, seg, linear, data.len() as u32, Access::Write)?;
        let (a, b) = data.split_at(in_first_page(linear, data.len()));
        self.write_piece(first, a);
        if let Some(second) = second {
            self.write_piece(second, b);
        }
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn load_slow(&mut self, view: View, seg: u8, linear: u64, size: u32) -> Exec<u64> {
        let (first, second) = self.accessed(view, seg, linear, size, Access::Read)?;
        let mut data = [0; 8];
        match (first, second) {
            (Place::Ram(p, _), None) => return Ok(load_sized(p, size)),
            (first, None) => self.read_piece(first, &mut data[..size as usize]),
            (first, Some(second)) => {
                let (a, b) = data[..size as usize].split_at_mut(in_first_page(linear, size as usize));
                self.read_piece(first, a);
                self.read_piece(second, b);
            }
        }
        Ok(u64::from_le_bytes(data))
    }

    #[cold]
    #[inline(never)]
    fn store_slow(&mut self, view: View, seg: u8, linear: u64, size: u32, v: u64) -> Exec {
        let (first, second) = self.accessed(view, seg, linear, size, Access::Write)?;
        match (first, second) {
            (Place::Ram(p, page), None) => {
                store_sized(p, size, v);
                self.look_after_write(page, (linear & 0xfff) as u32, size);
                Ok(())
            }
            (Place::Bus(gpa), None) => {
                self.physical_write(gpa, &v.to_le_bytes()[..size as usize]);
                Ok(())
            }
            _ => self.write_bytes_as(view, seg, linear, &v.to_le_bytes()[..size as usize]),
        }
    }

    /// As [`Cpu::places`], for an access that is then made: breakpoints on its bytes are met.
    fn accessed(
        &mut self,
        view: View,
        seg: u8,
        linear: u64,
        size: u32,
        access: Access,
    ) -> Exec<(Place, Option<Place>)> {
        let places = self.places(view, seg, linear, size, access)?;
        if self.breakpoints.armed() {
            self.data_accessed(linear, size, access);
        }
        Ok(places)
    }

    /// Checks and translates an access of up to a page: one piece, or two when it crosses into the next page.
    fn places(
        &mut self,
        view: View,
        seg: u8,
        linear: u64,
        size: u32,
        access: Access,
    ) -> Exec<(Place, Option<Place>)> {
        let last = self.wrap_linear(linear.wrapping_add(u64::from(size.max(1) - 1)));
        let linear = self.wrap_linear(linear);
        if self.long_mode() && !(Self::canonical(linear) && Self::canonical(last)) {
            return Err(self.segment_fault(seg));
        }
        if view == View::UserAligned
            && size.is_power_of_two()
            && size <= 8
            && linear & u64::from(size - 1) != 0
        {
            return Err(self.raise(vector::AC, Some(0)));
        }
        let first = self.place(view, linear, access)?;
        if linear >> 12 == last >> 12 {
            return Ok((first, None));
        }
        let second = self.place(view, last & !0xfff, access)?;
        Ok((first, Some(second)))
    }

    fn place(&mut self, view: View, linear: u64, access: Access) -> Exec<Place> {
        let e = self.mmu.entry(view, linear);
        let tag = match access {
            Access::Read => e.read,
            Access::Write => e.write,
            Access::Exec => e.exec,
        };
        if Entry::hits(tag, linear, 1) {
            return Ok(Place::Ram(e.host.wrapping_add((linear & 0xfff) as usize), e.page));
        }
        let (gpa, ram) = self.walk_and_fill(view, linear, access)?;
        Ok(match ram.filter(|p| p.writable || access != Access::Write) {
            Some(p) => Place::Ram(p.host.wrapping_add((gpa & 0xfff) as usize), (gpa >> 12) as u32),
            None => Place::Bus(gpa),
        })
    }

    /// Linear addresses outside long mode have 32 bits.
    pub fn wrap_linear(&self, linear: u64) -> u64 {
        if self.long_mode() { linear } else { linear & 0xffff_ffff }
    }

    fn read_piece(&mut self, place: Place, data: &mut [u8]) {
        match place {
            Place::Ram(p, _) => {
                let (words, bytes) = data.as_chunks_mut::<8>();
                for (i, w) in words.iter_mut().enumerate() {
                    // SAFETY: `places` found the whole piece in one mapped page.
                    *w = unsafe { u64::load(p.wrapping_add(8 * i)) }.to_le_bytes();
                }
                for (i, b) in (8 * words.len()..).zip(bytes) {
                    // SAFETY: as above.
                    *b = unsafe { u8::load(p.wrapping_add(i)) };
                }
            }
            Place::Bus(gpa) => self.physical_read(gpa, data),
        }
    }

    fn write_piece(&mut self, place: Place, data: &[u8]) {
        match place {
            Place::Ram(p, page) => {
                let (words, bytes) = data.as_chunks::<8>();
                for (i, w) in words.iter().enumerate() {
                    // SAFETY: `places` found the whole piece in one mapped, writable page.
                    unsafe { u64::store(p.wrapping_add(8 * i), u64::from_le_bytes(*w)) };
                }
                for (i, b) in (8 * words.len()..).zip(bytes) {
                    // SAFETY: as above.
                    unsafe { u8::store(p.wrapping_add(i), *b) };
                }
                // Host pages are aligned, so the host address has the offset.
                self.look_after_write(page, p.addr() as u32 & 0xfff, data.len() as u32);
            }
            Place::Bus(gpa) => self.physical_write(gpa, data),
        }
    }

    /// Reads a physical address that is not RAM: the local APIC or the bus, at most 8 bytes at a time.
    fn physical_read(&mut self, gpa: u64, data: &mut [u8]) {
        if let Some(l) = &mut self.lockstep {
            l.touched_device();
        }
        if self.apic.owns(gpa) {
            return self.apic_mmio_read(gpa, data);
        }
        for (i, chunk) in data.chunks_mut(8).enumerate() {
            self.bus().mmio_read(self.index, gpa + 8 * i as u64, chunk);
        }
    }

    fn physical_write(&mut self, gpa: u64, data: &[u8]) {
        if let Some(l) = &mut self.lockstep {
            l.touched_device();
        }
        if self.apic.owns(gpa) {
            return self.apic_mmio_write(gpa, data);
        }
        for (i, chunk) in data.chunks(8).enumerate() {
            self.bus().mmio_write(self.index, gpa + 8 * i as u64, chunk);
        }
    }

    /// After a write within one page, which is the one that was translated: not translated again, because another
    /// vCPU may have changed the tables meanwhile.
    #[inline(always)]
    pub fn look_after_write(&mut self, page: u32, offset: u32, len: u32) {
        if self.mmu.watch.attention(page) != 0 {
            self.wrote(page, offset, len);
        }
    }

    /// After a write to a page that has attention.
    #[cold]
    #[inline(never)]
    pub fn wrote(&mut self, page: u32, offset: u32, len: u32) {
        if let Some(l) = &mut self.lockstep {
            l.wrote(&self.mmu, page, offset, len);
        }
        let (shared, index) = (&self.shared, self.index);
        let tell = |granules| shared.code_changed(Some(index), page, granules);
        let written = shared.watch.after_write(page, offset, len, tell);
        if let Written::Code(granules) = written {
            self.code.invalidate(page, granules);
        }
        // Somebody else may have written here just before: then this vCPU's blocks are stale, and it may be about to run what it has
        // just written.
        if written != Written::Data {
            self.drop_stale_code();
        }
    }
}

fn view_of(cpl: u8) -> View {
    if cpl == 3 { View::User } else { View::Kernel }
}

/// How many of `len` bytes at `linear` are before the page end.
fn in_first_page(linear: u64, len: usize) -> usize {
    len.min(4096 - (linear & 0xfff) as usize)
}

fn load_sized(p: *const u8, size: u32) -> u64 {
    // SAFETY: the caller found `size` bytes at `p` in one mapped page.
    unsafe {
        match size {
            1 => u8::load(p).to_u64(),
            2 => u16::load(p).to_u64(),
            4 => u32::load(p).to_u64(),
            _ => u64::load(p),
        }
    }
}

fn store_sized(p: *mut u8, size: u32, v: u64) {
    // SAFETY: the caller found `size` bytes at `p` in one mapped, writable page.
    unsafe {
        match size {
            1 => u8::store(p, v as u8),
            2 => u16::store(p, v as u16),
            4 => u32::store(p, v as u32),
            _ => u64::store(p, v),
        }
    }
}
