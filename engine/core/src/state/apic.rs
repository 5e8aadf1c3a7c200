//! The local APIC as its register page (SDM vol. 3A, table 11-1), the form KVM uses too.

use serde::{Deserialize, Serialize};

use super::Element;

/// Register page, base MSR and timer deadline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ApicState {
    /// IA32_APIC_BASE: address, enable (bit 11), x2APIC (bit 10), BSP (bit 8).
    pub base: u64,
    /// The first 1 KiB of the register page: each register in the first 4 of 16 bytes. In x2APIC mode ICR is 64 bits
    /// at 0x300 and 0x310 holds its upper half; ID at 0x20 is then the 32-bit x2APIC id.
    pub page: Vec<u8>,
    /// IA32_TSC_DEADLINE: TSC value at which the timer fires, 0 when disarmed.
    pub tsc_deadline: u64,
}

impl ApicState {
    /// Bytes of the register page that have registers.
    pub const PAGE: usize = 1024;

    /// The 32-bit register at `offset`. Zero outside the page.
    pub fn register(&self, offset: usize) -> u32 {
        self.page.get(offset..offset + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }
    /// Sets the 32-bit register at `offset`, a multiple of 16 inside the page.
    pub fn set_register(&mut self, offset: usize, value: u32) {
        if let Some(b) = self.page.get_mut(offset..offset + 4) {
            b.copy_from_slice(&value.to_le_bytes());
        }
    }
}

impl Element for ApicState {
    fn at_reset(index: u32) -> Self {
        let bsp = if index == 0 { 1 << 8 } else { 0 };
        let mut s = Self { base: 0xfee0_0000 | 1 << 11 | bsp, page: vec![0; Self::PAGE], tsc_deadline: 0 };
        s.set_register(0x20, index << 24);
        // Version 0x14, 6 LVT entries (max entry 5).
        s.set_register(0x30, 0x0005_0014);
        s.set_register(0xe0, 0xffff_ffff);
        s.set_register(0xf0, 0xff);
        for lvt in [0x320, 0x330, 0x340, 0x350, 0x360, 0x370] {
            s.set_register(lvt, 1 << 16);
        }
        s
    }
}
