//! x87, MMX and SSE registers of a vCPU.
//!
//! XMM registers and MXCSR are memory; stubs load what they use. The x87 unit's state (MMX included) is memory as well
//! until an instruction needs it; from then on it lives in the host's own x87 unit, across everything the
//! vCPU's thread does, because Rust code on x86-64 does not touch that unit. [`FpuState::leave`] brings it
//! back, and must be called before another thread, or a caller outside the engine, goes on.

use std::arch::asm;
use std::sync::LazyLock;

use vireo_core::EngineError;
use vireo_core::state::{FxImage, XsaveState};

use super::trap::HOST_MXCSR;

/// MXCSR bits that exist (all processors with DAZ have this MXCSR_MASK; SDM vol. 1, 11.6.6).
pub const MXCSR_MASK: u32 = 0xffff;

/// Bits of XCR0, XSTATE_BV and the requested-feature bitmap (SDM vol. 1, 13.1).
pub const X87: u64 = 1;
/// See [`X87`].
pub const SSE: u64 = 2;
/// See [`X87`].
pub const AVX: u64 = 4;

/// Exception summary bit of the x87 status word.
pub const ES: u16 = 1 << 7;

/// The x87 unit's last instruction and operand (SDM vol. 1, 8.1.8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pointers {
    /// Offset of the instruction.
    pub fip: u64,
    /// Selector of its code segment.
    pub fcs: u16,
    /// Offset of the memory operand.
    pub fdp: u64,
    /// Selector of the operand's segment.
    pub fds: u16,
    /// Low 3 bits of the first opcode byte, and the second: 11 bits.
    pub fop: u16,
}

/// When this host's x87 unit reports pointers: always, or only those of an instruction that caused an unmasked
/// exception. Processors differ (CPUID.7.EBX bits 6 and 13, AMD APM vol. 3 FXSAVE), so the host is asked.
#[derive(Clone, Copy, Debug)]
struct Rules {
    fip: bool,
    fdp: bool,
    fop: bool,
    selectors: bool,
}

static RULES: LazyLock<Rules> = LazyLock::new(|| {
    let (mut wide, mut narrow) = (FxImage([0; 512]), FxImage([0; 512]));
    let operand = 1f32;
    // SAFETY: initialises the x87 unit, which holds nothing outside a run, and leaves it initialised.
    unsafe {
        asm!("fninit", "fld1", "fld dword ptr [{x}]", "fxsave64 [{w}]", "fxsave [{n}]", "fninit",
            x = in(reg) &operand, w = in(reg) &mut wide, n = in(reg) &mut narrow, options(nostack));
    }
    let any = |image: &FxImage, at: std::ops::Range<usize>| image.0[at].iter().any(|b| *b != 0);
    Rules {
        fip: any(&wide, 8..16),
        fdp: any(&wide, 16..24),
        fop: any(&wide, 6..8),
        selectors: any(&narrow, 12..14),
    }
});

/// Floating-point registers of one vCPU.
#[repr(C, align(64))]
pub struct FpuState {
    /// YMM registers, lower halves (the XMM registers) first. The upper ones are zero unless the model has AVX.
    ymm: [[u128; 2]; 16],
    /// SSE control and status; reserved bits are zero.
    pub mxcsr: u32,
    /// What stubs give MXCSR back.
    host_mxcsr: u32,
    /// The host's x87 unit holds this vCPU's x87 state, and `x87` is stale.
    live: bool,
    /// Of the last x87 instruction, and of the last one that is known to have caused an unmasked exception.
    last: Pointers,
    caused: Pointers,
    /// x87 part in FXSAVE64 layout: bytes 0 to 23 and 32 to 159; the rest means nothing.
    x87: FxImage,
}

impl FpuState {
    /// After RESET.
    pub fn new() -> Self {
        LazyLock::force(&RULES);
        Self {
            ymm: [[0; 2]; 16],
            mxcsr: HOST_MXCSR,
            host_mxcsr: HOST_MXCSR,
            live: false,
            last: Pointers::default(),
            caused: Pointers::default(),
            x87: FxImage::RESET,
        }
    }

    /// Bytes from one vector register to the next.
    pub const STRIDE: usize = 32;

    /// Offsets within this structure that stubs use: YMM0 (and XMM0), MXCSR, MXCSR of the host.
    pub const OFFSETS: [usize; 3] = [
        std::mem::offset_of!(FpuState, ymm),
        std::mem::offset_of!(FpuState, mxcsr),
        std::mem::offset_of!(FpuState, host_mxcsr),
    ];

    /// XMM register `i` (masked to 0 to 15).
    #[inline(always)]
    pub fn xmm(&self, i: u8) -> u128 {
        self.ymm[(i & 15) as usize][0]
    }
    /// Sets XMM register `i` (masked to 0 to 15); the upper half of its YMM register stays.
    #[inline(always)]
    pub fn set_xmm(&mut self, i: u8, v: u128) {
        self.ymm[(i & 15) as usize][0] = v;
    }
    /// YMM register `i` (masked to 0 to 15), lower half first.
    pub fn ymm(&self, i: u8) -> [u128; 2] {
        self.ymm[(i & 15) as usize]
    }
    /// Sets YMM register `i` (masked to 0 to 15).
    pub fn set_ymm(&mut self, i: u8, v: [u128; 2]) {
        self.ymm[(i & 15) as usize] = v;
    }
    /// Upper halves of the YMM registers.
    pub fn high(&self) -> [u128; 16] {
        self.ymm.map(|r| r[1])
    }
    /// Sets the upper halves of the first YMM registers.
    pub fn set_high(&mut self, values: impl IntoIterator<Item = u128>) {
        self.ymm.iter_mut().zip(values).for_each(|(r, v)| r[1] = v);
    }

    /// A run begins on this thread.
    pub fn enter(&mut self) {
        debug_assert!(!self.live, "x87 state left in a host unit");
    }

    /// A run ends: the x87 state comes back to memory, and the host's unit is as other code expects it.
    pub fn leave(&mut self) {
        if self.live {
            self.store();
            self.live = false;
            // SAFETY: the unit's contents were just saved, and nobody else uses it on this thread.
            unsafe { asm!("fninit", options(nomem, nostack)) };
        }
    }

    /// Puts the x87 state into the host's unit, if it is not there.
    #[inline(always)]
    pub fn make_live(&mut self) {
        if !self.live {
            self.load_x87();
        }
    }

    #[cold]
    #[inline(never)]
    fn load_x87(&mut self) {
        self.x87.0[24..28].copy_from_slice(&HOST_MXCSR.to_le_bytes());
        // Reports come from `last` and `caused`.
        self.x87.0[8..24].fill(0);
        // SAFETY: the image is 512 aligned bytes, its MXCSR valid; XMM registers are declared as clobbered by the
        // ABI, and no Rust code on this thread has x87 state.
        unsafe {
            asm!("fxrstor64 [{p}]", p = in(reg) &raw const self.x87, clobber_abi("sysv64"),
                options(nostack, readonly));
        }
        self.live = true;
    }

    /// Copies the unit's state to memory; it stays live.
    fn store(&mut self) {
        // SAFETY: the image is 512 aligned bytes of our own.
        unsafe { asm!("fxsave64 [{p}]", p = in(reg) &raw mut self.x87, options(nostack)) };
        self.note_exception(u16::from_le_bytes([self.x87.0[2], self.x87.0[3]]));
    }

    /// The status word.
    fn status(&self) -> u16 {
        if !self.live {
            return u16::from_le_bytes([self.x87.0[2], self.x87.0[3]]);
        }
        let sw: u16;
        // SAFETY: only reads the status word.
        unsafe { asm!("fnstsw ax", out("ax") sw, options(nomem, nostack, preserves_flags)) };
        sw
    }

    /// An unmasked x87 exception waits for the next waiting instruction.
    pub fn pending(&self) -> bool {
        self.status() & ES != 0
    }

    /// To be called before instructions that can clear a pending exception, and where one is reported.
    pub fn latch(&mut self) {
        self.note_exception(self.status());
    }

    fn note_exception(&mut self, status: u16) {
        if status & ES != 0 {
            self.caused = self.last;
        }
    }

    /// Records a non-control x87 instruction; `operand`: selector and offset of its memory operand.
    #[inline(always)]
    pub fn executed(&mut self, fop: u16, (fcs, fip): (u16, u64), operand: Option<(u16, u64)>) {
        self.last.fop = fop;
        (self.last.fcs, self.last.fip) = (fcs, fip);
        if let Some(operand) = operand {
            (self.last.fds, self.last.fdp) = operand;
        }
    }

    /// The pointers that this host's processor would report for what the guest executed.
    pub fn pointers(&self) -> Pointers {
        let (last, caused, rules) = (&self.last, &self.caused, &*RULES);
        let pick = |always: bool| if always { last } else { caused };
        let selector = |s: u16| if rules.selectors { s } else { 0 };
        Pointers {
            fip: pick(rules.fip).fip,
            fcs: selector(pick(rules.fip).fcs),
            fdp: pick(rules.fdp).fdp,
            fds: selector(pick(rules.fdp).fds),
            fop: pick(rules.fop).fop,
        }
    }

    /// Sets the pointers, as loading an image or initialising the unit does.
    pub fn set_pointers(&mut self, p: Pointers) {
        (self.last, self.caused) = (p, p);
    }

    /// The x87 part of an FXSAVE image: bytes 0 to 23 and 32 to 159, pointers zero.
    pub fn x87_image(&mut self) -> FxImage {
        if self.live {
            self.store();
        }
        let mut image = self.x87;
        image.0[8..32].fill(0);
        image.0[6..8].fill(0);
        image
    }

    /// Loads the x87 part (bytes 0 to 5 and 32 to 159) of an FXSAVE image.
    pub fn set_x87_image(&mut self, image: &FxImage, pointers: Pointers) {
        self.x87 = as_loaded(image);
        // What the host's unit held is of no use any more; it is loaded anew, or initialised by `leave`.
        if self.live {
            self.load_x87();
        }
        self.set_pointers(pointers);
    }

    /// The architectural state; with pointers in the 64-bit form.
    pub fn save(&mut self) -> XsaveState {
        let mut fx = self.x87_image();
        let p = self.pointers();
        fx.0[6..8].copy_from_slice(&p.fop.to_le_bytes());
        fx.0[8..16].copy_from_slice(&p.fip.to_le_bytes());
        fx.0[16..24].copy_from_slice(&p.fdp.to_le_bytes());
        fx.0[24..28].copy_from_slice(&self.mxcsr.to_le_bytes());
        fx.0[28..32].copy_from_slice(&MXCSR_MASK.to_le_bytes());
        fx.0[160..416].copy_from_slice(self.ymm.map(|r| r[0].to_le_bytes()).as_flattened());
        fx.0[416..].fill(0);
        let mut state = XsaveState::from_fx(&fx);
        let high = self.high();
        if high != [0; 16] {
            state.set_high(&high);
        }
        state
    }

    /// A copy for [`FpuState::put_back`]; with `x87`, of the x87 unit too.
    pub fn copy(&mut self, x87: bool) -> FpuCopy {
        let x87 = x87.then(|| {
            let mut image = self.x87_image();
            image.0[160..].fill(0);
            (image, self.last, self.caused)
        });
        FpuCopy { ymm: self.ymm, mxcsr: self.mxcsr, x87 }
    }

    /// Restores what was copied.
    pub fn put_back(&mut self, copy: &FpuCopy) {
        (self.ymm, self.mxcsr) = (copy.ymm, copy.mxcsr);
        if let Some((image, last, caused)) = &copy.x87 {
            self.set_x87_image(image, *last);
            self.caused = *caused;
        }
    }

    /// Replaces the state. Refuses an image that no processor of a model with these XSAVE components can have; nothing has
    /// changed then.
    pub fn load(&mut self, state: &XsaveState, components: u64) -> Result<(), EngineError> {
        let bad = |what: &str| EngineError::BadState(what.to_string());
        let fx = state.fx().ok_or_else(|| bad("XSAVE image too short"))?.0;
        let mxcsr = u32::from_le_bytes([fx[24], fx[25], fx[26], fx[27]]);
        if mxcsr & !MXCSR_MASK != 0 {
            return Err(bad("reserved bits of MXCSR are set"));
        }
        let high = state.high().ok_or_else(|| bad("XSAVE image too short for its AVX state"))?;
        if high != [0; 16] && components & AVX == 0 {
            return Err(bad("AVX state in an XSAVE image, but not in the CPU model"));
        }
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| fx[at + i]));
        let fop = u16::from_le_bytes([fx[6], fx[7]]) & 0x7ff;
        let pointers = Pointers { fip: word(8), fdp: word(16), fop, ..Pointers::default() };
        self.mxcsr = mxcsr;
        self.set_x87_image(&FxImage(fx), pointers);
        for (r, b) in self.ymm.iter_mut().zip(fx[160..416].as_chunks().0) {
            r[0] = u128::from_le_bytes(*b);
        }
        self.set_high(high);
        Ok(())
    }
}

/// An image as a processor keeps it: reserved bits of the control word have fixed values, and the status word says by
/// itself whether an unmasked exception waits.
fn as_loaded(image: &FxImage) -> FxImage {
    const CONTROL: u16 = 0x1f3f;
    const CONTROL_SET: u16 = 0x40;
    const EXCEPTIONS: u16 = 0x3f;
    const BUSY: u16 = 1 << 15;
    let mut image = *image;
    let control = u16::from_le_bytes([image.0[0], image.0[1]]) & CONTROL | CONTROL_SET;
    let mut status = u16::from_le_bytes([image.0[2], image.0[3]]) & !(ES | BUSY);
    if status & !control & EXCEPTIONS != 0 {
        status |= ES | BUSY;
    }
    image.0[..2].copy_from_slice(&control.to_le_bytes());
    image.0[2..4].copy_from_slice(&status.to_le_bytes());
    image
}

/// Registers that [`FpuState::copy`] copied.
#[derive(Clone, Debug, PartialEq)]
pub struct FpuCopy {
    /// YMM registers, lower halves first.
    pub ymm: [[u128; 2]; 16],
    /// MXCSR.
    pub mxcsr: u32,
    /// The x87 unit as in an FXSAVE image, and its pointers.
    pub x87: Option<(FxImage, Pointers, Pointers)>,
}

impl Default for FpuState {
    fn default() -> Self {
        Self::new()
    }
}
