//! A vCPU's state in and out of its architectural form; RESET, INIT and start-up.

use std::cell::Cell;
use std::sync::Arc;

use vireo_core::state::{
    Activity, ControlRegisters, DebugRegisters, Element, Events, GeneralRegisters, Injection, Segment,
    SegmentRegisters, cr0, cr4, efer, msr, rflags,
};
use vireo_core::{EngineError, VcpuState};

use super::flags::Flags;
use super::mode::Mode;
use super::regs::Regs;
use super::{Cpu, Fault, Shadow, Source, seg};
use crate::apic::Apic;
use crate::code::CodeCache;
use crate::debug::Breakpoints;
use crate::host::FpuState;
use crate::mmu::Mmu;
use crate::partition::Shared;
use crate::system::MsrFile;

impl Cpu {
    /// A vCPU at RESET.
    pub fn new(shared: Arc<Shared>, index: u32) -> Self {
        let reset = VcpuState::at_reset(index);
        let mut cpu = Self {
            regs: Regs::new(),
            flags: Flags::from_rflags(0),
            eflags: 0,
            rip: 0,
            seg: [Segment::default(); 6],
            ldtr: Segment::default(),
            tr: Segment::default(),
            gdtr: Default::default(),
            idtr: Default::default(),
            cpl: 0,
            ctl: ControlRegisters::at_reset(index),
            debug: DebugRegisters::at_reset(index),
            breakpoints: Breakpoints::default(),
            msr: MsrFile::new(&shared.model),
            fpu: FpuState::new(),
            mode: Mode(0),
            code_base: 0,
            code_limit: u32::MAX,
            mmu: Mmu::new(shared.ram(), Arc::clone(&shared.watch)),
            code: CodeCache::new(shared.block_memory),
            gate: crate::translate::Context::new(),
            lockstep: crate::lockstep::Lockstep::wanted(&shared),
            apic: Apic::new(index),
            fault: Fault { vector: 0, error: None, source: Source::Exception },
            trap_rip: 0,
            shadow: Shadow::None,
            nmi_masked: false,
            activity: Activity::at_reset(index),
            interrupt_waits: false,
            nmi_pending: false,
            apic_deadline: None,
            tsc_adjust: 0,
            model: Arc::clone(&shared.model),
            instructions: 0,
            exits: Cell::new(0),
            index,
            shared,
            bus: None,
        };
        cpu.set_registers(&reset);
        cpu.apic_changed();
        cpu
    }

    fn set_registers(&mut self, s: &VcpuState) {
        self.regs.set_architectural(&s.general.gpr);
        self.rip = s.general.rip;
        self.seg = s.segments.data;
        (self.ldtr, self.tr) = (s.segments.ldtr, s.segments.tr);
        (self.gdtr, self.idtr) = (s.segments.gdtr, s.segments.idtr);
        self.cpl = s.segments.cpl;
        self.ctl = s.control.clone();
        self.debug = s.debug.clone();
        self.forget_breakpoints();
        self.breakpoints_changed();
        self.set_rflags(s.general.rflags);
        self.mmu.flush_all();
        self.load_pdptes_from_memory();
    }

    /// INIT (SDM vol. 3A, table 10-1): registers as after RESET, but MSRs, FPU, caches and time are kept.
    pub fn init(&mut self) {
        let mut s = VcpuState::at_reset(self.index);
        s.control.cr0 |= self.ctl.cr0 & (cr0::CD | cr0::NW);
        s.control.xcr0 = self.ctl.xcr0;
        self.set_registers(&s);
        self.apic.init();
        self.shadow = Shadow::None;
        (self.nmi_pending, self.nmi_masked) = (false, false);
        self.activity = s.activity;
    }

    /// A start-up IPI: real mode at `vector` * 4096.
    pub fn start_up(&mut self, vector: u8) {
        let base = u64::from(vector) << 12;
        let cs = Segment { selector: u16::from(vector) << 8, base, ..Segment::real(0, 0x9b) };
        self.rip = 0;
        self.set_segment(seg::CS, cs);
        self.activity = Activity::Running;
    }

    /// The architectural state.
    pub fn save(&mut self) -> Result<VcpuState, EngineError> {
        // What arrived since the last look is part of it.
        self.take_mail();
        let mut msrs = self.msr.to_list();
        msrs.set(msr::TSC_ADJUST, self.tsc_adjust);
        let mut control = self.ctl.clone();
        control.cr8 = self.apic.cr8();
        Ok(VcpuState {
            general: GeneralRegisters {
                gpr: self.regs.architectural(),
                rip: self.rip,
                rflags: self.rflags(),
            },
            segments: SegmentRegisters {
                data: self.seg,
                ldtr: self.ldtr,
                tr: self.tr,
                gdtr: self.gdtr,
                idtr: self.idtr,
                cpl: self.cpl,
            },
            control,
            debug: self.debug.clone(),
            xsave: self.fpu.save(),
            msrs,
            apic: self.apic.save(self.tsc()),
            events: Events {
                pending: None::<Injection>,
                shadow_sti: self.shadow == Shadow::Sti,
                shadow_mov_ss: self.shadow == Shadow::MovSs,
                nmi_pending: self.nmi_pending,
                nmi_masked: self.nmi_masked,
            },
            activity: self.activity,
        })
    }

    /// Replaces the state; refused whole if no processor of this model can be in it.
    pub fn load_state(&mut self, s: &VcpuState) -> Result<(), EngineError> {
        self.check_state(s)?;
        // Part of the state is still in memory: the page-directory-pointer entries.
        self.take_ram();
        // The last that can refuse.
        self.fpu.load(&s.xsave, self.model.xcr0_mask())?;
        // What is on its way was meant for the state that ends here.
        self.shared.vcpus[self.index as usize].mailbox.take();
        self.msr.load(&s.msrs);
        self.tsc_adjust = s.msrs.get(msr::TSC_ADJUST).unwrap_or(0);
        self.set_registers(s);
        // The RAM that comes with it was perhaps written without notice.
        self.code.clear();
        self.shared.code.clear();
        self.apic.load(&s.apic, self.tsc());
        self.apic.set_cr8(s.control.cr8);
        self.shadow = match (s.events.shadow_sti, s.events.shadow_mov_ss) {
            (_, true) => Shadow::MovSs,
            (true, _) => Shadow::Sti,
            _ => Shadow::None,
        };
        (self.nmi_pending, self.nmi_masked) = (s.events.nmi_pending, s.events.nmi_masked);
        self.activity = s.activity;
        self.apic_changed();
        // An event that was chosen but not delivered is chosen again: interrupts go back to the local APIC, and an
        // exception is raised anew by its instruction.
        if let Some(p) = s.events.pending.filter(|p| !p.exception) {
            self.apic.raise(p.vector, false);
            self.apic_changed();
        }
        Ok(())
    }

    fn check_state(&self, s: &VcpuState) -> Result<(), EngineError> {
        let bad = |what: &str| Err(EngineError::BadState(what.to_string()));
        let c = &s.control;
        let paging = c.cr0 & cr0::PG != 0;
        if paging && c.cr0 & cr0::PE == 0 {
            return bad("paging without protected mode");
        }
        let long = paging && c.efer & efer::LME != 0;
        if (c.efer & efer::LMA != 0) != long || long && c.cr4 & cr4::PAE == 0 {
            return bad("EFER.LMA does not follow from CR0.PG, EFER.LME and CR4.PAE");
        }
        // A model without XSAVE has no XCR0; states then say 0 or 1.
        let xcr0 = self.model.xcr0_mask() | 1;
        if c.xcr0 & !xcr0 != 0 || c.xcr0 & 1 == 0 && self.model.xcr0_mask() != 0 {
            return bad("XCR0 lacks x87, or has what the CPU model has not");
        }
        if s.segments.cpl > 3 {
            return bad("privilege level above 3");
        }
        if s.apic.page.len() < vireo_core::state::ApicState::PAGE {
            return bad("local APIC page too short");
        }
        if s.xsave.fx().is_none() {
            return bad("XSAVE image too short");
        }
        MsrFile::check(&self.model, &s.msrs)?;
        if s.general.rflags & rflags::ONE == 0 {
            return bad("bit 1 of RFLAGS is always set");
        }
        Ok(())
    }
}
