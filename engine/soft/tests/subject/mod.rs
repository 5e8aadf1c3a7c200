//! The software engine as a subject of the CPU oracle: each case in a tiny address space of its own.

use std::sync::Arc;

use vireo_core::state::{Element, FxImage, Segment, SegmentRegisters, XsaveState, cr0, cr4, efer};
use vireo_core::{Bus, CpuModel, HostRam, HypercallRegs, MsrFault, PartitionSpec, RamRange, VcpuState};
use vireo_oracle::windows::{BYTES, PAGE, WINDOWS, background};
use vireo_oracle::{Case, CpuImage, End, Mode, Outcome, Subject, changes};
use vireo_soft::{Step, Stepper};

/// Guest-physical addresses: page tables first, then the pages of all windows.
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
const TABLE: u64 = 0x4000;
const PAGES_AT: u64 = 0x10000;
const RAM: usize = 0x20000;

/// Page-table entry bits.
const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const USER: u64 = 4;
const ACCESSED_DIRTY: u64 = 0x60;
const NX: u64 = 1 << 63;

/// Page-aligned memory that no reference ever covers.
struct Ram(*mut u8);

// SAFETY: the allocation lives as long as the value, is page-aligned, and is only touched through the raw pointer.
unsafe impl HostRam for Ram {
    fn as_ptr(&self) -> *mut u8 {
        self.0
    }
    fn len(&self) -> usize {
        RAM
    }
}
// SAFETY: the pointer is only used under the subject's own `&mut`.
unsafe impl Send for Ram {}
// SAFETY: as above.
unsafe impl Sync for Ram {}

fn layout() -> std::alloc::Layout {
    std::alloc::Layout::from_size_align(RAM, 4096).expect("a valid layout")
}

impl Ram {
    fn new() -> Arc<Self> {
        // SAFETY: the layout is not empty.
        let p = unsafe { std::alloc::alloc_zeroed(layout()) };
        assert!(!p.is_null(), "out of memory");
        Arc::new(Self(p))
    }
    fn write(&self, gpa: u64, bytes: &[u8]) {
        assert!(gpa as usize + bytes.len() <= RAM);
        // SAFETY: in bounds, as just checked; nobody else runs.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.add(gpa as usize), bytes.len()) };
    }
    fn read(&self, gpa: u64, bytes: &mut [u8]) {
        assert!(gpa as usize + bytes.len() <= RAM);
        // SAFETY: in bounds, as just checked; nobody else runs.
        unsafe { std::ptr::copy_nonoverlapping(self.0.add(gpa as usize), bytes.as_mut_ptr(), bytes.len()) };
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: allocated with the same layout in `new`.
        unsafe { std::alloc::dealloc(self.0, layout()) };
    }
}

/// Nothing is on the bus.
struct NoBus;
impl Bus for NoBus {
    fn pio_read(&self, _: u32, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn pio_write(&self, _: u32, _: u16, _: &[u8]) {}
    fn mmio_read(&self, _: u32, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&self, _: u32, _: u64, _: &[u8]) {}
    fn msr_read(&self, _: u32, _: u32) -> Result<u64, MsrFault> {
        Err(MsrFault)
    }
    fn msr_write(&self, _: u32, _: u32, _: u64) -> Result<(), MsrFault> {
        Err(MsrFault)
    }
    fn hypercall(&self, _: u32, _: &HypercallRegs) -> Option<HypercallRegs> {
        None
    }
    fn pic_acknowledge(&self) -> Option<u8> {
        None
    }
    fn ioapic_eoi(&self, _: u8) {}
}

/// The richest model that this host can be asked about.
pub fn model() -> Arc<CpuModel> {
    let models = ["vireo-v3", "vireo-v2"].map(|name| CpuModel::named(name).expect("the model"));
    let [v3, v2] = models;
    if v3.missing_on_host().is_empty() { v3 } else { v2 }
}

/// The engine.
pub struct SoftSubject {
    stepper: Stepper,
    ram: Arc<Ram>,
    xcr0: u64,
    translates: bool,
}

impl SoftSubject {
    /// A vCPU of the given model.
    pub fn new(model: Arc<CpuModel>) -> Self {
        let xcr0 = model.xcr0_mask();
        let spec = PartitionSpec::new(1, model, RAM as u64);
        let mut stepper = Stepper::new(&spec).expect("a stepper");
        let ram = Ram::new();
        let host: Arc<dyn HostRam> = ram.clone();
        stepper.map_ram(RamRange { gpa: 0, len: RAM as u64, host, offset: 0, writable: true }).expect("RAM");
        Self { stepper, ram, xcr0, translates: false }
    }

    /// The same, executing translated code, whose operands the TLB knows already.
    pub fn translating(model: Arc<CpuModel>) -> Self {
        let mut subject = Self::new(model);
        subject.stepper.translate();
        subject.translates = true;
        subject
    }

    fn page_tables(&self) {
        let link = |to: u64| (to | PRESENT | WRITABLE | USER).to_le_bytes();
        self.ram.write(PML4, &link(PDPT));
        self.ram.write(PDPT, &link(DIRECTORY));
        let mut page = PAGES_AT;
        for w in WINDOWS {
            self.ram.write(DIRECTORY + (w.start >> 21 & 511) * 8, &link(TABLE));
            for n in 0..w.pages {
                let mut entry = page | PRESENT | USER | ACCESSED_DIRTY;
                entry |= if w.writable { WRITABLE } else { 0 };
                entry |= if w.executable { 0 } else { NX };
                let at = w.start + n * PAGE;
                self.ram.write(TABLE + (at >> 12 & 511) * 8, &entry.to_le_bytes());
                page += PAGE;
            }
        }
    }

    fn state(&self, case: &Case) -> VcpuState {
        let mut s = VcpuState::at_reset(0);
        s.general.gpr = case.cpu.gpr;
        s.general.rip = case.cpu.rip;
        s.general.rflags = case.cpu.rflags;
        let (base, limit) = match case.mode {
            Mode::Protected16 => (case.mode.base(), 0xffff),
            _ => (0, u32::MAX),
        };
        let size = match case.mode {
            Mode::Long => Segment::L | Segment::G,
            Mode::Protected => Segment::DB | Segment::G,
            Mode::Protected16 => 0,
        };
        let data_size = if case.mode == Mode::Protected16 { 0 } else { Segment::DB | Segment::G };
        let data = Segment { selector: 0x2b, base, limit, attributes: 0xf3 | data_size };
        s.segments.data = [data; 6];
        s.segments.data[SegmentRegisters::CS] =
            Segment { selector: 0x33, base, limit, attributes: 0xfb | size };
        for i in [SegmentRegisters::FS, SegmentRegisters::GS] {
            s.segments.data[i].base = 0;
        }
        s.segments.cpl = 3;
        // No I/O permission bitmap.
        s.segments.tr = Segment { selector: 0x40, base: 0, limit: 0, attributes: 0x8b };
        s.control.cr0 = cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::AM | cr0::PG;
        s.control.cr4 =
            cr4::PAE | cr4::PGE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE | cr4::FSGSBASE | cr4::UMIP;
        s.control.cr3 = PML4;
        s.control.efer = efer::SCE | efer::LME | efer::LMA | efer::NXE;
        s.control.xcr0 = self.xcr0;
        s.xsave = XsaveState::from_fx(&FxImage(case.cpu.fx.0));
        if self.xcr0 & 4 != 0 {
            s.xsave.set_high(&case.cpu.high);
        }
        s
    }
}

impl Subject for SoftSubject {
    fn run(&mut self, case: &Case, _: Mode) -> Outcome {
        let before = case.memory.materialize(case);
        self.page_tables();
        self.ram.write(PAGES_AT, &before);
        self.stepper.load(&self.state(case)).expect("a state that a processor can be in");
        if self.translates {
            WINDOWS
                .iter()
                .flat_map(|w| w.range().step_by(PAGE as usize))
                .for_each(|p| self.stepper.look_up(p));
        }
        let end = match self.stepper.step(&NoBus) {
            Step::Done => End::Done,
            Step::Fault { vector, error, address } => End::Fault { vector, error, address },
        };
        let after = self.stepper.save().expect("the state");
        let mut memory = vec![0; background().len().min(BYTES)];
        self.ram.read(PAGES_AT, &mut memory);
        let fx = after.xsave.fx().expect("a whole image");
        Outcome {
            end,
            cpu: CpuImage {
                gpr: after.general.gpr,
                rip: after.general.rip,
                rflags: after.general.rflags & !(1 << 16),
                fx: vireo_oracle::FxImage(fx.0),
                // Without AVX nothing changes them.
                high: if self.xcr0 & 4 != 0 {
                    after.xsave.high().expect("a whole image")
                } else {
                    case.cpu.high
                },
            },
            memory: changes(&before, &memory),
        }
    }
}
