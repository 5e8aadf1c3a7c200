//! The general registers, addressed as micro-operations name them.

/// Slot that always reads zero: the base or index of an address that has none.
pub const ZERO: u8 = 16;
/// Slot that holds the virtual address at which the running block starts: the base of RIP-relative addresses.
pub const BLOCK_RIP: u8 = 17;
/// Slot that always reads [`HALF`].
pub const HALF_SLOT: u8 = 18;
/// Half of the range of an address, for the displacements beyond 2^31 that RIP-relative addresses can have when they
/// are counted from the start of their block.
pub const HALF: u64 = 1 << 31;
/// Added to a register number 0 to 3: AH, CH, DH, BH.
pub const HIGH: u8 = 32;

#[allow(missing_docs)]
pub mod gpr {
    pub const RAX: u8 = 0;
    pub const RCX: u8 = 1;
    pub const RDX: u8 = 2;
    pub const RBX: u8 = 3;
    pub const RSP: u8 = 4;
    pub const RBP: u8 = 5;
    pub const RSI: u8 = 6;
    pub const RDI: u8 = 7;
}

/// 16 general registers in encoding order and a few internal slots. Numbers are masked to the file's size, so no index
/// needs a bounds check and none can miss.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct Regs([u64; 32]);

impl Regs {
    /// All zero.
    pub fn new() -> Self {
        let mut regs = [0; 32];
        regs[HALF_SLOT as usize] = HALF;
        Self(regs)
    }
    /// All 64 bits.
    #[inline(always)]
    pub fn get(&self, r: u8) -> u64 {
        self.0[(r & 31) as usize]
    }
    /// Sets all 64 bits.
    #[inline(always)]
    pub fn set(&mut self, r: u8, v: u64) {
        self.0[(r & 31) as usize] = v;
    }
    /// Low 8 bits, or bits 8 to 15 for a register number with [`HIGH`].
    #[inline(always)]
    pub fn get8(&self, r: u8) -> u8 {
        (self.get(r) >> (r >> 2 & 8)) as u8
    }
    /// Sets 8 bits, keeps the others.
    #[inline(always)]
    pub fn set8(&mut self, r: u8, v: u8) {
        let shift = r >> 2 & 8;
        self.set(r, self.get(r) & !(0xff << shift) | u64::from(v) << shift);
    }
    /// Sets the low 16 bits, keeps the others.
    #[inline(always)]
    pub fn set16(&mut self, r: u8, v: u16) {
        self.set(r, self.get(r) & !0xffff | u64::from(v));
    }
    /// Sets the low 32 bits and clears the others, as 32-bit operations do.
    #[inline(always)]
    pub fn set32(&mut self, r: u8, v: u32) {
        self.set(r, u64::from(v));
    }
    /// Start of the running block.
    #[inline(always)]
    pub fn block_rip(&self) -> u64 {
        self.get(BLOCK_RIP)
    }
    /// The 16 architectural registers.
    pub fn architectural(&self) -> [u64; 16] {
        std::array::from_fn(|i| self.0[i])
    }
    /// Sets the 16 architectural registers.
    pub fn set_architectural(&mut self, gpr: &[u64; 16]) {
        self.0[..16].copy_from_slice(gpr);
    }
}
