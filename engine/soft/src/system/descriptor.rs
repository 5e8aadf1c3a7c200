//! Selectors and descriptors: their layout, and reading them from the tables (SDM vol. 3A, 3.4 and 3.5).

use vireo_core::state::Segment;

use crate::cpu::{Cpu, Exec};

/// A segment selector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selector(pub u16);

impl Selector {
    /// Index 0 of the GDT, whatever the RPL.
    pub fn is_null(self) -> bool {
        self.0 & !3 == 0
    }
    /// Requested privilege level.
    pub fn rpl(self) -> u8 {
        (self.0 & 3) as u8
    }
    /// Refers to the LDT.
    pub fn is_local(self) -> bool {
        self.0 & 4 != 0
    }
    /// The same descriptor with another RPL.
    pub fn with_rpl(self, rpl: u8) -> Self {
        Self(self.0 & !3 | u16::from(rpl & 3))
    }
    /// The selector as an error code; EXT (bit 0) is the caller's.
    pub fn error(self) -> u32 {
        u32::from(self.0 & !3)
    }
}

/// System descriptor types (SDM vol. 3A, table 3-2).
#[allow(missing_docs)]
pub mod system_type {
    pub const TSS16: u8 = 1;
    pub const LDT: u8 = 2;
    pub const TSS16_BUSY: u8 = 3;
    pub const CALL16: u8 = 4;
    pub const TASK_GATE: u8 = 5;
    pub const INTERRUPT16: u8 = 6;
    pub const TRAP16: u8 = 7;
    pub const TSS32: u8 = 9;
    pub const TSS32_BUSY: u8 = 11;
    pub const CALL32: u8 = 12;
    pub const INTERRUPT32: u8 = 14;
    pub const TRAP32: u8 = 15;
    /// Bit that turns an available TSS into a busy one.
    pub const BUSY: u8 = 2;
}

/// A descriptor, and the 8 bytes after it where long mode gives system descriptors 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// The first 8 bytes.
    pub low: u64,
    /// The next 8; zero for an 8-byte descriptor.
    pub high: u64,
}

impl Descriptor {
    /// An 8-byte descriptor.
    pub fn new(low: u64) -> Self {
        Self { low, high: 0 }
    }
    /// Type field.
    pub fn kind(self) -> u8 {
        (self.low >> 40 & 15) as u8
    }
    /// Code or data, not a system descriptor.
    pub fn is_segment(self) -> bool {
        self.low >> 44 & 1 != 0
    }
    /// Privilege level.
    pub fn dpl(self) -> u8 {
        (self.low >> 45 & 3) as u8
    }
    /// Present.
    pub fn present(self) -> bool {
        self.low >> 47 & 1 != 0
    }
    /// A code segment.
    pub fn is_code(self) -> bool {
        self.is_segment() && self.kind() & 8 != 0
    }
    /// A conforming code segment.
    pub fn conforming(self) -> bool {
        self.is_code() && self.kind() & 4 != 0
    }
    /// A data segment, or a code segment that may be read.
    pub fn readable(self) -> bool {
        self.is_segment() && (self.kind() & 8 == 0 || self.kind() & 2 != 0)
    }
    /// A data segment that may be written.
    pub fn writable_data(self) -> bool {
        self.is_segment() && self.kind() & 0xa == 2
    }
    /// 64-bit code.
    pub fn long(self) -> bool {
        self.low >> 53 & 1 != 0
    }
    /// Default size bit D/B.
    pub fn big(self) -> bool {
        self.low >> 54 & 1 != 0
    }
    /// A system descriptor of this type.
    pub fn is_system(self, kind: u8) -> bool {
        !self.is_segment() && self.kind() == kind
    }
    /// Base address; 64 bits with the second half.
    pub fn base(self) -> u64 {
        self.low >> 16 & 0xff_ffff | self.low >> 56 << 24 | (self.high & 0xffff_ffff) << 32
    }
    /// Last valid offset, granularity applied.
    pub fn limit(self) -> u32 {
        let raw = (self.low & 0xffff | self.low >> 32 & 0xf_0000) as u32;
        if self.low >> 55 & 1 != 0 { raw << 12 | 0xfff } else { raw }
    }
    /// The segment register that loading it gives.
    pub fn segment(self, selector: Selector) -> Segment {
        Segment {
            selector: selector.0,
            base: self.base(),
            limit: self.limit(),
            attributes: (self.low >> 40 & 0xf0ff) as u32,
        }
    }

    /// Gates: selector of the target.
    pub fn gate_selector(self) -> Selector {
        Selector((self.low >> 16) as u16)
    }
    /// Gates: offset in the target; 16, 32 or (with the second half) 64 bits.
    pub fn gate_offset(self) -> u64 {
        let low = self.low & 0xffff;
        if self.kind() & 8 == 0 { low } else { low | self.low >> 48 << 16 | (self.high & 0xffff_ffff) << 32 }
    }
    /// Call gates: number of parameters to copy.
    pub fn gate_parameters(self) -> u64 {
        self.low >> 32 & 31
    }
    /// 64-bit interrupt gates: index of the interrupt stack, 0 = none.
    pub fn gate_ist(self) -> u64 {
        self.low >> 32 & 7
    }
}

/// Linear address of `size` bytes of the selector's descriptor, or `None` outside its table.
fn address(cpu: &Cpu, s: Selector, size: u32) -> Option<u64> {
    let (base, limit) = match s.is_local() {
        true if !cpu.ldtr.usable() => return None,
        true => (cpu.ldtr.base, cpu.ldtr.limit),
        false => (cpu.gdtr.base, u32::from(cpu.gdtr.limit)),
    };
    let offset = u32::from(s.0 & !7);
    (offset + (size - 1) <= limit).then(|| base.wrapping_add(u64::from(offset)))
}

/// Reads the 8 bytes of a descriptor; `None` outside its table.
pub fn find(cpu: &mut Cpu, s: Selector) -> Exec<Option<Descriptor>> {
    let Some(at) = address(cpu, s, 8) else { return Ok(None) };
    Ok(Some(Descriptor::new(cpu.load_sys::<u64>(at)?)))
}

/// Reads the second half that `d` has in long mode, being a system descriptor of 16 bytes; `None` outside its table.
pub fn find_second_half(cpu: &mut Cpu, s: Selector, d: Descriptor) -> Exec<Option<Descriptor>> {
    let Some(at) = address(cpu, s, 16) else { return Ok(None) };
    let high = cpu.load_sys::<u64>(at.wrapping_add(8))?;
    Ok(Some(Descriptor { high, ..d }))
}

/// Reads a descriptor; outside its table raises `vector` with the selector and `ext`.
pub fn read(cpu: &mut Cpu, s: Selector, vector: u8, ext: u32) -> Exec<Descriptor> {
    match find(cpu, s)? {
        Some(d) => Ok(d),
        None => Err(cpu.raise(vector, Some(s.error() | ext))),
    }
}

/// As [`read`], and in long mode the second half too; its type field must be zero.
pub fn read_system(cpu: &mut Cpu, s: Selector, vector: u8, ext: u32) -> Exec<Descriptor> {
    let d = read(cpu, s, vector, ext)?;
    if !cpu.long_mode() || d.is_segment() {
        return Ok(d);
    }
    match find_second_half(cpu, s, d)? {
        Some(d) if d.high >> 40 & 0x1f == 0 => Ok(d),
        _ => Err(cpu.raise(vector, Some(s.error() | ext))),
    }
}

/// Changes the type field in memory: `set` and `clear` are bits of it. Written only if it changes, because tables
/// may be in read-only pages.
fn change_type(cpu: &mut Cpu, s: Selector, set: u8, clear: u8) -> Exec {
    let Some(at) = address(cpu, s, 8) else { return Ok(()) };
    let at = at.wrapping_add(5);
    let old = cpu.load_sys::<u8>(at)?;
    let new = old & !clear | set;
    if new == old { Ok(()) } else { cpu.store_sys(at, new) }
}

/// Marks a code or data segment accessed, in memory and in the copy given back.
pub fn mark_accessed(cpu: &mut Cpu, s: Selector, d: Descriptor) -> Exec<Descriptor> {
    if d.kind() & 1 == 0 {
        change_type(cpu, s, 1, 0)?;
    }
    Ok(Descriptor { low: d.low | 1 << 40, ..d })
}

/// Marks a TSS busy or available.
pub fn mark_busy(cpu: &mut Cpu, s: Selector, busy: bool) -> Exec {
    match busy {
        true => change_type(cpu, s, system_type::BUSY, 0),
        false => change_type(cpu, s, 0, system_type::BUSY),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Descriptors of Linux's GDT, as its sources document them.
    const KERNEL_CODE64: u64 = 0x00af_9b00_0000_ffff;
    const USER_DATA: u64 = 0x00cf_f300_0000_ffff;

    #[test]
    fn a_64_bit_code_segment() {
        let d = Descriptor::new(KERNEL_CODE64);
        assert!(d.is_segment() && d.is_code() && d.readable() && d.present() && d.long());
        assert!(!d.big() && !d.conforming() && !d.writable_data());
        assert_eq!((d.base(), d.limit(), d.dpl()), (0, u32::MAX, 0));
        assert_eq!(d.segment(Selector(0x10)).attributes, 0xa09b);
    }

    #[test]
    fn a_user_data_segment() {
        let d = Descriptor::new(USER_DATA);
        assert!(d.writable_data() && d.readable() && !d.is_code() && d.big());
        assert_eq!(d.dpl(), 3);
        assert_eq!(d.segment(Selector(0x2b)).attributes, 0xc0f3);
    }

    #[test]
    fn a_byte_granular_segment_with_a_scattered_base() {
        // Base 0x12345678, limit 0xabcde, present, DPL 0, read/write data, 16 bits.
        let d = Descriptor::new(0x120a_9234_5678_bcde);
        assert_eq!((d.base(), d.limit()), (0x1234_5678, 0xabcde));
    }

    #[test]
    fn a_64_bit_interrupt_gate() {
        // Offset 0xffffffff81a00b40, selector 0x10, IST 3, present.
        let d = Descriptor { low: 0x81a0_8e03_0010_0b40, high: 0xffff_ffff };
        assert!(d.is_system(system_type::INTERRUPT32) && d.present());
        assert_eq!(d.gate_selector(), Selector(0x10));
        assert_eq!((d.gate_offset(), d.gate_ist()), (0xffff_ffff_81a0_0b40, 3));
    }

    #[test]
    fn a_16_bit_gate_has_a_16_bit_offset() {
        let d = Descriptor::new(0xdead_8403_0008_1234);
        assert!(d.is_system(system_type::CALL16));
        assert_eq!((d.gate_offset(), d.gate_parameters()), (0x1234, 3));
    }

    #[test]
    fn selectors() {
        assert!(Selector(3).is_null() && !Selector(4).is_null() && !Selector(8).is_null());
        assert_eq!((Selector(0x2b).rpl(), Selector(0x2b).error()), (3, 0x28));
        assert_eq!(Selector(0x2f).with_rpl(0), Selector(0x2c));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_some_descriptor(low: u64, high: u64) {
            let d = Descriptor { low, high };
            let s = d.segment(Selector(8));
            proptest::prop_assert_eq!(s.attributes & !0xf0ff, 0);
            proptest::prop_assert_eq!((s.kind(), s.dpl()), (d.kind(), d.dpl()));
            proptest::prop_assert!(d.limit() <= 0xf_ffff || d.limit() & 0xfff == 0xfff);
            proptest::prop_assert!(d.kind() & 8 != 0 || d.gate_offset() <= 0xffff);
        }
    }
}
