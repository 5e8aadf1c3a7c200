//! Code that all translations share: the way in and out, and the ways to Rust and back.
//!
//! Registers in translated code: guest RAX to R10, R12 and R13 are in the host's registers of the same name, RSP is in R15;
//! R11, R14 and R15 are in memory ([`place::gpr`]). R14 and R11 of the host are scratch. RSP is the host's stack, which
//! holds return addresses of translated code above [`Context::base`](super::context::Context). Vector registers, MXCSR
//! and the x87 unit are the guest's.

use super::context::place::Tlb;
use super::context::{JUMPS, World, place};
use super::emit::{Alu, Emitter, Host, Label, Mem, cc};
use super::helpers;
use super::site::Site;
use crate::mmu::{Places, View};
use crate::partition::request;

/// Address in R14, or an argument of a helper.
pub const T0: Host = Host::R14;
/// The other scratch register.
pub const T1: Host = Host::R11;

/// Where a general register of the guest is in translated code. `None`: in memory.
pub fn host(gpr: u8) -> Option<Host> {
    match gpr {
        4 => Some(Host::R15),
        11 | 14 | 15 => None,
        n => Some(Host(n)),
    }
}

/// Registers that a System V callee preserves.
const SAVED: [Host; 6] = [Host::RBX, Host::RBP, Host::R12, Host::R13, Host::R14, Host::R15];

/// Entries of the shared code.
#[derive(Clone, Copy, Debug, Default)]
pub struct Thunks {
    /// `extern "sysv64" fn(entry)`: runs translated code.
    pub enter: usize,
    /// Run the instruction of a site (R14); flags in the host's register, or in memory.
    pub instruction: [usize; 2],
    /// Go on behind an exit (R14); flags as above.
    pub link: [usize; 2],
    /// Leave at an exit (R14), flags in memory.
    pub leave: usize,
    /// A store (site in R14; host address and attention byte in spare places 0 and 1, the latter in R11 too; a site without a
    /// size: it is in spare place 2) met attention; flags in memory. For views of the kernel and of the user.
    pub wrote: [usize; 2],
    /// Translate the operand of a site (R14) and try again; flags in memory.
    pub fill: usize,
    /// Called with the address of a stack access in R14, and the highest offset in a page that it may have in spare place 0:
    /// has the view know its page, or sets the carry flag. Overwrites R14 and R11; for views Kernel, User, KernelAc.
    pub stack_page: [usize; 3],
    /// A return to R14 that the stack did not foresee; for views Kernel and User. R11: the site.
    pub returned: [usize; 2],
    /// Leave for the code at R14, see [`super::single`]; flags in memory.
    pub arrived: usize,
}

/// Where the arithmetic flags are, as an index.
pub const IN_HOST: usize = 0;
/// See [`IN_HOST`].
pub const IN_MEMORY: usize = 1;

/// `lahf; seto al` to memory; RAX as it was.
pub fn save_flags(e: &mut Emitter) {
    e.store(place::gpr(0), Host::RAX);
    e.flags_to_ax();
    e.store16(place::flags(), Host::RAX);
    e.load(Host::RAX, place::gpr(0));
}

/// The flags from memory; RAX as it was.
pub fn restore_flags(e: &mut Emitter) {
    e.store(place::gpr(0), Host::RAX);
    e.load_u16(Host::RAX, place::flags());
    e.flags_from_ax();
    e.load(Host::RAX, place::gpr(0));
}

fn all_registers() -> impl Iterator<Item = (u8, Host)> {
    (1..16).filter_map(|n| host(n).map(|h| (n, h)))
}

/// Emits the shared code, for a guest with YMM registers if `avx`; what the labels say is for [`Labels::resolve`].
pub fn build(e: &mut Emitter, avx: bool) -> Labels {
    let (call, back) = (e.label(), e.label());
    let enter = e.here();
    SAVED.iter().for_each(|r| e.push(*r));
    // The six pushes and the return address: 8 more bytes make the base a multiple of 16.
    e.alu_imm(Alu::Sub, Host::RSP, 8);
    e.store(place::base(), Host::RSP);
    let bottom = e.label();
    push_bottom(e, bottom);
    e.load(T0, Host::RDI);
    e.jmp(back);

    // A return with nothing on the stack but this place: R14 is the guest's target, R11 the site.
    e.bind(bottom);
    e.store32(place::return_site(), T1);
    push_bottom(e, bottom);
    e.load32(T1, place::return_site());
    e.jmp_to(place::returned());

    let both = |e: &mut Emitter, f: usize| [helper(e, f, call, true), helper(e, f, call, false)];
    let instruction = both(e, helpers::instruction as *const () as usize);
    let link = both(e, helpers::link as *const () as usize);
    let leave = helper(e, helpers::leave as *const () as usize, call, false);
    let wrote_code = helper(e, helpers::wrote as *const () as usize, call, false);
    let wrote = [false, true].map(|user| wrote_beside_code(e, user, wrote_code));
    let fill = helper(e, helpers::fill as *const () as usize, call, false);
    let missed = helper(e, helpers::returned as *const () as usize, call, false);
    let returned = [View::Kernel, View::User].map(|view| {
        let label = e.here();
        e.store32(place::return_site(), T1);
        // A guest can loop through returns alone.
        e.alu32_imm(Alu::Sub, place::budget(), 1);
        e.jcc(cc::S, missed);
        look_up_jump(e, view, missed);
        label
    });
    call_helper(e, call, back, avx);
    let stack_page = [View::Kernel, View::User, View::KernelAc].map(|view| stack_page(e, view));
    Labels { enter, instruction, link, leave, wrote, fill, stack_page, returned, arrived: missed }
}

/// Labels of the entries, see [`Thunks`].
pub struct Labels {
    enter: Label,
    instruction: [Label; 2],
    link: [Label; 2],
    leave: Label,
    wrote: [Label; 2],
    fill: Label,
    stack_page: [Label; 3],
    returned: [Label; 2],
    arrived: Label,
}

impl Labels {
    /// The entries of code at `base` whose labels are at `places`.
    pub fn resolve(&self, base: usize, places: &[u32]) -> Thunks {
        let at = |l: Label| base + Emitter::place(places, l) as usize;
        Thunks {
            enter: at(self.enter),
            instruction: self.instruction.map(at),
            link: self.link.map(at),
            leave: at(self.leave),
            wrote: self.wrote.map(at),
            fill: at(self.fill),
            stack_page: self.stack_page.map(at),
            returned: self.returned.map(at),
            arrived: at(self.arrived),
        }
    }
}

/// Pushes the return address that ends the stack.
fn push_bottom(e: &mut Emitter, bottom: Label) {
    e.relative(&[0x4c, 0x8d, 0x1d], bottom); // lea r11, [rip + bottom]
    e.push(T1);
}

/// See [`Thunks::wrote`]: goes on by itself where nothing is asked for but code, the granules written have none, and
/// [`helpers::wrote`] would find nothing to do; otherwise goes to `wrote`, which is that.
fn wrote_beside_code(e: &mut Emitter, user: bool, wrote: Label) -> Label {
    /// Bits of an offset within a granule.
    const SHIFT: u8 = Places::GRANULE.trailing_zeros() as u8;
    let (at, site) = (place::spare(0), place::spare(4));
    let (label, slow) = (e.here(), e.label());
    // A site without a size has it where the site goes now.
    e.cmp16_imm(Mem::at(T0, Site::SIZE), 0);
    e.jcc(cc::E, wrote);
    e.store(place::gpr(0), Host::RAX);
    e.store(site, T0);
    e.load_u16(T0, Mem::at(T0, Site::SIZE));
    e.cmp8_imm(Mem::at(T1, 0), Places::ONLY_CODE);
    e.jcc(cc::NE, slow);
    e.bytes(&[0xf0, 0x83, 0x0c, 0x24, 0x00]); // lock or dword [rsp], 0: the store comes before all that follows
    // The page's first granule in the bitmap, and with it the last one written, then the first.
    e.alu(Alu::Sub, T1, place::watched_attention());
    e.shl(T1, 12 - SHIFT);
    e.load(Host::RAX, place::watched_granules());
    e.alu(Alu::Add, T0, at);
    e.alu_imm(Alu::Sub, T0, 1);
    for first in [false, true] {
        if first {
            e.load(T0, at);
        }
        e.and32_imm(T0, 0xfff);
        e.shift32(T0, SHIFT, false);
        e.alu(Alu::Or, T0, T1);
        e.bytes(&[0x4c, 0x0f, 0xa3, 0x30]); // bt [rax], r14
        e.jcc(cc::B, slow);
    }
    // Somebody else may have written here just before, and be about to tell of it, or have told.
    e.load(Host::RAX, place::watched_notices());
    e.alu32_imm(Alu::Cmp, Mem::at(Host::RAX, 0), 0);
    e.jcc(cc::NE, slow);
    e.load(Host::RAX, place::requests());
    e.test32_imm(Mem::at(Host::RAX, 0), request::CODE);
    e.jcc(cc::NE, slow);
    // Or this vCPU has heard of it, or done it, in the middle of something else, and has not looked since.
    e.load(Host::RAX, place::epoch());
    e.load(Host::RAX, Mem::at(Host::RAX, 0));
    e.shl(Host::RAX, World::BITS as u8);
    e.alu(Alu::Sub, Host::RAX, place::stamped_epoch(user));
    // What is left of the stamp is the world.
    e.alu_imm(Alu::Add, Host::RAX, (1 << World::BITS) - 1);
    e.shr(Host::RAX, World::BITS as u8);
    e.jcc(cc::NE, slow);
    e.load(Host::RAX, place::gpr(0));
    e.load(T0, site);
    e.load_u16(T1, Mem::at(T0, Site::RESUME));
    e.load(T0, Mem::at(T0, Site::ORIGIN));
    e.alu(Alu::Add, T1, Mem::at(T0, Site::START));
    e.jmp_to(T1);

    e.bind(slow);
    e.load(Host::RAX, place::gpr(0));
    e.load(T0, site);
    e.jmp(wrote);
    label
}

/// See [`Thunks::stack_page`].
fn stack_page(e: &mut Emitter, view: View) -> Label {
    // The page must be good for reads and writes, and for all of the access: or it would miss again, and again.
    let (label, missed) = (e.here(), e.label());
    e.store(place::spare(1), T0);
    tlb_offset(e, T0);
    e.alu(Alu::Add, T0, place::tlb(view, T1, Tlb::Read));
    e.alu(Alu::Cmp, T0, place::spare(0));
    e.jcc(cc::A, missed);
    e.load(T0, place::spare(1));
    e.alu(Alu::Add, T0, place::tlb(view, T1, Tlb::Write));
    e.alu(Alu::Cmp, T0, place::spare(0));
    e.jcc(cc::A, missed);
    for field in [Tlb::Write, Tlb::Host, Tlb::Attention] {
        e.load(T0, place::tlb(view, T1, field));
        e.store(place::stack_page(view, field), T0);
    }
    e.bytes(&[0xf8, 0xc3]); // clc; ret
    e.bind(missed);
    e.bytes(&[0xf9, 0xc3]); // stc; ret
    label
}

/// Puts the offset of the TLB entry of an address into T1. Overwrites the flags.
pub fn tlb_offset(e: &mut Emitter, address: Host) {
    if super::has_bmi2() {
        e.rorx(T1, address, 6);
    } else {
        e.load(T1, address);
        e.shr(T1, 6);
    }
    e.and32_imm(T1, (crate::mmu::ENTRIES as u32 - 1) << 6);
}

/// Entry of a helper, from code whose flags are in the host's register or in memory.
fn helper(e: &mut Emitter, function: usize, call: Label, flags_in_host: bool) -> Label {
    let label = e.here();
    e.store(place::gpr(0), Host::RAX);
    if flags_in_host {
        e.flags_to_ax();
        e.store16(place::flags(), Host::RAX);
    }
    e.constant(T1, function as u64);
    e.jmp(call);
    label
}

/// Jumps to the translation of the code at R14, flags in memory; to `missed` if the table does not know it.
pub fn look_up_jump(e: &mut Emitter, view: View, missed: Label) {
    let entry = find_jump(e, view, missed);
    e.jmp_to(entry);
}

/// As [`look_up_jump`], but gives the place of the address to go to, which is good until T1 changes.
pub fn find_jump(e: &mut Emitter, view: View, missed: Label) -> Mem {
    e.load32(T1, T0);
    e.shift32(T1, 12, false);
    e.xor32(T1, T0);
    e.and32_imm(T1, JUMPS as u32 - 1);
    e.shift32(T1, 4, true);
    e.alu(Alu::Cmp, T0, place::jump(view, T1, 0));
    e.jcc(cc::NE, missed);
    place::jump(view, T1, 8)
}

/// Calls the helper in R11 with the vCPU and R14, and goes where it says, or out. RAX and flags are saved already.
fn call_helper(e: &mut Emitter, call: Label, back: Label, avx: bool) {
    let exit = e.label();
    let vectors = |e: &mut Emitter, store: bool| {
        (0..16).for_each(|n| {
            if avx { e.vmovaps(place::vector(n), n, store) } else { e.movaps(place::vector(n), n, store) }
        });
    };
    e.bind(call);
    all_registers().for_each(|(n, h)| e.store(place::gpr(n), h));
    vectors(e, true);
    if avx {
        // Rust code is SSE code, which is slow where upper halves are in use.
        e.bytes(&[0xc5, 0xf8, 0x77]); // vzeroupper
    }
    e.mxcsr(place::mxcsr(), true);
    e.mxcsr(place::host_mxcsr(), false);
    e.store(place::stack(), Host::RSP);
    e.load(Host::RDI, place::cpu());
    e.load(Host::RSI, T0);
    e.alu_imm(Alu::And, Host::RSP, -16);
    e.call_to(T1);
    e.bytes(&[0x48, 0x85, 0xc0]); // test rax, rax
    e.jcc(cc::E, exit);
    e.load(Host::RSP, Host::RDX);
    e.load(T0, Host::RAX);
    e.bind(back);
    e.mxcsr(place::mxcsr(), false);
    vectors(e, false);
    all_registers().for_each(|(n, h)| e.load(h, place::gpr(n)));
    e.load_u16(Host::RAX, place::flags());
    e.flags_from_ax();
    e.load(Host::RAX, place::gpr(0));
    e.jmp_to(T0);

    e.bind(exit);
    e.load(Host::RSP, place::base());
    e.alu_imm(Alu::Add, Host::RSP, 8);
    SAVED.iter().rev().for_each(|r| e.pop(*r));
    e.ret();
}
