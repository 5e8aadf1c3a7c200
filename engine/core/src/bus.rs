//! The callback from an engine to the board: port I/O, MMIO, MSRs, hypercalls, interrupt acknowledge.

/// A message-signalled interrupt (Intel SDM vol. 3A, 11.11): what IOAPIC and PCI devices send to local APICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiMessage {
    /// 0xFEE00000 plus destination and mode bits.
    pub address: u64,
    /// Vector, delivery mode, level and trigger mode.
    pub data: u32,
}

/// The guest touched an MSR that does not exist, or wrote a value that it refuses: #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsrFault;

/// Registers of a hypercall (VMCALL/VMMCALL, or the hypercall page), read and written by the board.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HypercallRegs {
    /// General registers in encoding order (RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8..R15).
    pub gpr: [u64; 16],
    /// XMM0 to XMM5, for XMM fast hypercalls.
    pub xmm: [u128; 6],
    /// The caller's privilege level.
    pub cpl: u8,
    /// Whether it ran in 64-bit mode.
    pub long_mode: bool,
}

/// What the board does for vCPUs. Called on vCPU threads, several at once; a call may block briefly, never wait for
/// another vCPU.
pub trait Bus: Send + Sync {
    /// Reads `data.len()` (1, 2, 4) bytes from an I/O port. Nothing there: all ones.
    fn pio_read(&self, vcpu: u32, port: u16, data: &mut [u8]);
    /// Writes 1, 2 or 4 bytes to an I/O port.
    fn pio_write(&self, vcpu: u32, port: u16, data: &[u8]);
    /// Reads 1 to 8 bytes of a physical address that is not RAM. Nothing there: all ones.
    fn mmio_read(&self, vcpu: u32, gpa: u64, data: &mut [u8]);
    /// Writes 1 to 8 bytes to a physical address that is not writable RAM.
    fn mmio_write(&self, vcpu: u32, gpa: u64, data: &[u8]);
    /// Reads an MSR that the engine does not own.
    fn msr_read(&self, vcpu: u32, msr: u32) -> Result<u64, MsrFault>;
    /// Writes an MSR that the engine does not own.
    fn msr_write(&self, vcpu: u32, msr: u32, value: u64) -> Result<(), MsrFault>;
    /// Serves a hypercall. `None`: there is no such interface and the instruction raises #UD.
    fn hypercall(&self, vcpu: u32, regs: &HypercallRegs) -> Option<HypercallRegs>;
    /// The interrupt-acknowledge cycle of the PIC pair (INTR line): the vector, or `None` when the line
    /// was withdrawn meanwhile.
    fn pic_acknowledge(&self) -> Option<u8>;
    /// A local APIC ended a level-triggered interrupt: the IOAPIC's EOI broadcast.
    fn ioapic_eoi(&self, vector: u8);
}
