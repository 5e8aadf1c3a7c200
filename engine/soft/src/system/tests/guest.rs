//! A vCPU with 1 MiB of RAM, the usual tables, and a bus that records.

use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use iced_x86::code_asm::CodeAssembler;
use vireo_core::model::Vendor;
use vireo_core::state::{DescriptorTable, Element, Segment, SegmentRegisters, cr0, cr4, efer};
use vireo_core::{
    Bus, CpuModel, HostRam, HypercallRegs, MsrFault, PartitionSpec, RamRange, VcpuState, state::Activity,
};

use crate::cpu::{Cpu, Fault, Stop, seg};
use crate::partition::SoftPartition;

pub const RAM: usize = 1 << 20;
/// Where the tables are.
pub const GDT: u64 = 0x1000;
pub const IDT: u64 = 0x2000;
pub const TSS: u64 = 0x3000;
/// PML4 (or page directory) and the tables below it.
pub const PAGES: u64 = 0x7_0000;
pub const CODE: u64 = 0x1_0000;
pub const STACK: u64 = 0x2_0000;
/// Stack of ring 0 in the TSS, and interrupt stack 1.
pub const STACK0: u64 = 0x3_0000;
pub const IST1: u64 = 0x3_8000;
/// Where handlers are put.
pub const HANDLER: u64 = 0x1_8000;

/// Selectors of the GDT that [`Guest`] writes.
pub mod sel {
    pub const CODE64: u16 = 0x08;
    pub const DATA: u16 = 0x10;
    pub const USER_CODE32: u16 = 0x18 | 3;
    pub const USER_DATA: u16 = 0x20 | 3;
    pub const USER_CODE64: u16 = 0x28 | 3;
    pub const TSS: u16 = 0x30;
    pub const CODE32: u16 = 0x40;
    pub const FREE: u16 = 0x48;
    pub const TASK: u16 = 0x50;
}

struct Memory(NonNull<u8>);
// SAFETY: plain memory, freed only with the last owner.
unsafe impl Send for Memory {}
// SAFETY: all access is by raw pointer.
unsafe impl Sync for Memory {}
// SAFETY: `RAM` bytes, page-aligned, until drop; no reference covers them.
unsafe impl HostRam for Memory {
    fn as_ptr(&self) -> *mut u8 {
        self.0.as_ptr()
    }
    fn len(&self) -> usize {
        RAM
    }
}
fn layout() -> std::alloc::Layout {
    std::alloc::Layout::from_size_align(RAM, 4096).expect("a valid layout")
}
impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated with the same layout.
        unsafe { std::alloc::dealloc(self.0.as_ptr(), layout()) }
    }
}

/// The port that it panics at.
pub const PANICS: u16 = 0xdead;

/// Ports read their own number; writes are kept.
#[derive(Default)]
pub struct Recorder {
    pub writes: Mutex<Vec<(u16, Vec<u8>)>>,
}
impl Bus for Recorder {
    fn pio_read(&self, _: u32, port: u16, data: &mut [u8]) {
        data.iter_mut().zip(port.to_le_bytes().into_iter().cycle()).for_each(|(d, b)| *d = b);
    }
    fn pio_write(&self, _: u32, port: u16, data: &[u8]) {
        assert_ne!(port, PANICS, "as the test wants");
        self.writes.lock().expect("not poisoned").push((port, data.to_vec()));
    }
    fn mmio_read(&self, _: u32, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&self, _: u32, _: u64, _: &[u8]) {}
    fn msr_read(&self, _: u32, msr: u32) -> Result<u64, MsrFault> {
        if msr == 0x4000_0000 { Ok(0x1122_3344_5566_7788) } else { Err(MsrFault) }
    }
    fn msr_write(&self, _: u32, _: u32, _: u64) -> Result<(), MsrFault> {
        Err(MsrFault)
    }
    fn hypercall(&self, _: u32, regs: &HypercallRegs) -> Option<HypercallRegs> {
        let mut out = *regs;
        out.gpr[0] = regs.gpr[1].wrapping_add(1);
        (regs.gpr[1] != 0).then_some(out)
    }
    fn pic_acknowledge(&self) -> Option<u8> {
        None
    }
    fn ioapic_eoi(&self, _: u8) {}
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Halted,
    Shutdown,
    TooLong,
}

pub struct Guest {
    memory: Arc<Memory>,
    pub cpu: Box<Cpu>,
    pub bus: Box<Recorder>,
    _partition: SoftPartition,
}

/// An 8-byte descriptor.
pub fn descriptor(base: u64, limit: u64, attributes: u64) -> u64 {
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | (attributes & 0xff) << 40
        | (limit >> 16 & 15) << 48
        | (attributes >> 12 & 15) << 52
        | (base >> 24 & 0xff) << 56
}

/// The low half of a gate.
pub fn gate(selector: u16, offset: u64, attributes: u64) -> u64 {
    offset & 0xffff | u64::from(selector) << 16 | attributes << 40 | (offset >> 16 & 0xffff) << 48
}

impl Guest {
    /// At reset, with an empty RAM.
    pub fn at_reset(vendor: Vendor) -> Self {
        // SAFETY: the layout is not empty.
        let memory = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout()) }).expect("memory for a test");
        let memory = Arc::new(Memory(memory));
        let cpu_model = CpuModel::for_vendor("vireo-v2-pcid", vendor).expect("the model exists");
        // Little, so that tests see it used again.
        let spec =
            PartitionSpec { translation_memory: 16 << 20, ..PartitionSpec::new(1, cpu_model, RAM as u64) };
        let partition = SoftPartition::new(&spec).expect("a partition");
        let host: Arc<dyn HostRam> = Arc::clone(&memory) as _;
        let range = RamRange { gpa: 0, len: RAM as u64, host, offset: 0, writable: true };
        vireo_core::Partition::map_ram(&partition, range).expect("RAM");
        let mut cpu = Box::new(Cpu::new(Arc::clone(&partition.0), 0));
        let bus = Box::<Recorder>::default();
        cpu.bus = Some(NonNull::from(&*bus as &dyn Bus));
        Self { memory, cpu, bus, _partition: partition }
    }

    /// Real mode at CODE with a stack below STACK.
    pub fn real() -> Self {
        let mut g = Self::at_reset(Vendor::Intel);
        g.cpu.seg[seg::CS as usize] = Segment::real((CODE >> 4) as u16, 0x9b);
        g.cpu.seg[seg::SS as usize] = Segment::real((STACK >> 4) as u16, 0x93);
        g.cpu.rip = 0;
        g.cpu.regs.set(4, 0x1000);
        g.cpu.mode_changed();
        g
    }

    fn tables(&mut self, code: u64) {
        let entries = [
            0,
            descriptor(0, 0xf_ffff, 0xa09b),
            descriptor(0, 0xf_ffff, 0xc093),
            descriptor(0, 0xf_ffff, 0xc0fb),
            descriptor(0, 0xf_ffff, 0xc0f3),
            descriptor(0, 0xf_ffff, 0xa0fb),
            descriptor(TSS, 0x67, 0x8b),
            0,
            descriptor(0, 0xf_ffff, code),
        ];
        for (i, e) in (0u64..).zip(entries) {
            self.write(GDT + 8 * i, e);
        }
        // No I/O bitmap.
        self.write::<u16>(TSS + 0x66, 0x68);
    }

    fn state(&self) -> VcpuState {
        let mut s = VcpuState::at_reset(0);
        let flat = |selector, attributes| Segment { selector, base: 0, limit: u32::MAX, attributes };
        s.segments.data = [flat(sel::DATA, 0xc093); 6];
        s.segments.data[SegmentRegisters::CS] = flat(sel::CODE32, 0xc09b);
        s.segments.gdtr = DescriptorTable { base: GDT, limit: 0xff };
        s.segments.idtr = DescriptorTable { base: IDT, limit: 0xfff };
        s.segments.tr = Segment { selector: sel::TSS, base: TSS, limit: 0x67, attributes: 0x8b };
        s.control.cr0 = cr0::PE | cr0::ET | cr0::NE | cr0::WP;
        s.general.rip = CODE;
        s.general.gpr[4] = STACK;
        s
    }

    /// Flat 32-bit protected mode without paging, ring 0.
    pub fn protected() -> Self {
        let mut g = Self::at_reset(Vendor::Intel);
        g.tables(0xc09b);
        g.write::<u32>(TSS + 4, STACK0 as u32);
        g.write::<u32>(TSS + 8, u32::from(sel::DATA));
        let s = g.state();
        g.cpu.load_state(&s).expect("a valid state");
        g
    }

    /// 64-bit mode, ring 0, everything mapped one to one for both rings by one 2 MiB page.
    pub fn long(vendor: Vendor) -> Self {
        let mut g = Self::at_reset(vendor);
        g.tables(0xc09b);
        g.write::<u64>(TSS + 4, STACK0);
        g.write::<u64>(TSS + 36, IST1);
        g.write::<u64>(PAGES, (PAGES + 0x1000) | 7);
        g.write::<u64>(PAGES + 0x1000, (PAGES + 0x2000) | 7);
        g.write::<u64>(PAGES + 0x2000, 0x87);
        let mut s = g.state();
        s.segments.data[SegmentRegisters::CS].selector = sel::CODE64;
        s.segments.data[SegmentRegisters::CS].attributes = 0xa09b;
        s.control.cr0 |= cr0::PG;
        s.control.cr3 = PAGES;
        s.control.cr4 = cr4::PAE;
        s.control.efer = efer::LME | efer::LMA | efer::SCE | efer::NXE;
        g.cpu.load_state(&s).expect("a valid state");
        g
    }

    /// Goes on in ring 3 at the same address.
    pub fn drop_to_user(&mut self, code: u16, attributes: u32) {
        let flat = |selector, attributes| Segment { selector, base: 0, limit: u32::MAX, attributes };
        self.cpu.seg = [flat(sel::USER_DATA, 0xc0f3); 6];
        self.cpu.seg[seg::CS as usize] = flat(code, attributes);
        self.cpu.cpl = 3;
        self.cpu.mode_changed();
    }

    /// Writes guest memory.
    pub fn write<T: Copy>(&mut self, at: u64, v: T) {
        assert!(at as usize + size_of::<T>() <= RAM);
        // SAFETY: within the allocation.
        unsafe { self.memory.0.as_ptr().add(at as usize).cast::<T>().write_unaligned(v) }
    }

    /// Reads guest memory.
    pub fn read<T: Copy>(&self, at: u64) -> T {
        assert!(at as usize + size_of::<T>() <= RAM);
        // SAFETY: within the allocation; only integers are read.
        unsafe { self.memory.0.as_ptr().add(at as usize).cast::<T>().read_unaligned() }
    }

    /// Assembles guest code.
    pub fn code(
        &mut self,
        at: u64,
        bits: u32,
        body: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
    ) {
        let mut a = CodeAssembler::new(bits).expect("16, 32 or 64");
        body(&mut a).expect("valid instructions");
        for (i, b) in (at..).zip(a.assemble(at).expect("encodable")) {
            self.write(i, b);
        }
    }

    /// A gate of the IDT, 16 bytes in long mode.
    pub fn idt(&mut self, vector: u8, gate: u64) {
        let size = if self.cpu.long_mode() { 16 } else { 8 };
        self.write(IDT + size * u64::from(vector), gate);
    }

    /// Executes until HLT, delivering what comes up.
    pub fn run(&mut self) -> End {
        for _ in 0..10_000 {
            match self.cpu.run_block(true) {
                Err(Stop::Fault | Stop::Trap) => {
                    let fault = self.cpu.fault;
                    if crate::system::deliver(&mut self.cpu, fault).is_err() {
                        return End::Shutdown;
                    }
                }
                Err(Stop::Shutdown) => return End::Shutdown,
                _ => {}
            }
            if self.cpu.activity == Activity::Halted {
                return End::Halted;
            }
        }
        End::TooLong
    }

    /// Executes one instruction; what it raises is given, not delivered.
    pub fn step(&mut self) -> Result<(), Fault> {
        match self.cpu.run_block(true) {
            Err(Stop::Fault | Stop::Trap) => Err(self.cpu.fault),
            _ => Ok(()),
        }
    }
}
