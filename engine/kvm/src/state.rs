//! vCPU state: between KVM's structures and the architectural form.

use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED,
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW, KVM_X86_SHADOW_INT_MOV_SS,
    KVM_X86_SHADOW_INT_STI, kvm_debugregs, kvm_dtable, kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_segment,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use vireo_core::model::CpuidContext;
use vireo_core::state::{
    Activity, ApicState, ControlRegisters, DebugRegisters, DescriptorTable, Events, GeneralRegisters,
    Injection, Segment, SegmentRegisters, VcpuState, XsaveState, msr, rflags,
};
use vireo_core::{CpuModel, EngineError};
use vireo_isa::Feature;

use crate::clock;
use crate::msrs::KnownMsrs;
use crate::sys::os;

const TASK_PRIORITY: usize = 0x80;

/// General registers in encoding order.
pub fn gpr_from_kvm(r: &kvm_regs) -> [u64; 16] {
    [
        r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13,
        r.r14, r.r15,
    ]
}

/// The reverse of [`gpr_from_kvm`]; RIP and RFLAGS stay.
pub fn gpr_to_kvm(gpr: &[u64; 16], r: &mut kvm_regs) {
    [
        r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13,
        r.r14, r.r15,
    ] = *gpr;
}

fn segment_from_kvm(s: &kvm_segment) -> Segment {
    if s.unusable != 0 {
        // What else KVM says about it differs between processors and means nothing.
        return Segment { selector: s.selector, base: s.base, limit: s.limit, attributes: Segment::UNUSABLE };
    }
    let bit = |value: u8, at: u32| u32::from(value & 1) << at;
    let attributes = u32::from(s.type_ & 15)
        | bit(s.s, 4)
        | u32::from(s.dpl & 3) << 5
        | bit(s.present, 7)
        | bit(s.avl, 12)
        | bit(s.l, 13)
        | bit(s.db, 14)
        | bit(s.g, 15);
    Segment { selector: s.selector, base: s.base, limit: s.limit, attributes }
}

fn segment_to_kvm(s: &Segment) -> kvm_segment {
    let bit = |at: u32| (s.attributes >> at & 1) as u8;
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: s.kind(),
        present: bit(7),
        dpl: s.dpl(),
        db: bit(14),
        s: bit(4),
        l: bit(13),
        g: bit(15),
        avl: bit(12),
        unusable: bit(16),
        padding: 0,
    }
}

/// Bytes of the XSAVE image for all components of the model: CPUID.(0DH,0).ECX (SDM vol. 1, 13.2).
fn xsave_len(model: &CpuModel) -> usize {
    let context = CpuidContext {
        apic_id: 0,
        vcpus: 1,
        osxsave: true,
        xcr0: 1,
        apic_enabled: true,
        tsc_hz: 1_000_000_000,
    };
    let all = if model.has(Feature::Xsave) { model.cpuid(0xd, 0, &context)[2] as usize } else { 0 };
    all.clamp(XsaveState::MIN, size_of::<kvm_xsave>())
}

/// Reads the whole state. The vCPU is not running and its last exit is complete.
pub fn save(vcpu: &VcpuFd, model: &CpuModel, msrs: &KnownMsrs) -> Result<VcpuState, EngineError> {
    // First: the call makes KVM act on an INIT or start-up IPI that is waiting, which changes registers.
    let mp = vcpu.get_mp_state().map_err(os("reading the activity of a vCPU"))?;
    let regs = vcpu.get_regs().map_err(os("reading general registers"))?;
    let sregs = vcpu.get_sregs().map_err(os("reading segment and control registers"))?;
    let (general, segments) = (save_general(&regs), save_segments(&sregs, regs.rflags));
    Ok(VcpuState {
        general,
        segments,
        control: ControlRegisters {
            cr0: sregs.cr0,
            cr2: sregs.cr2,
            cr3: sregs.cr3,
            cr4: sregs.cr4,
            cr8: sregs.cr8,
            efer: sregs.efer,
            xcr0: save_xcr0(vcpu)?,
        },
        debug: {
            let d = vcpu.get_debug_regs().map_err(os("reading debug registers"))?;
            DebugRegisters { address: d.db, dr6: d.dr6, dr7: d.dr7 }
        },
        xsave: save_xsave(vcpu, xsave_len(model))?,
        msrs: msrs.save(vcpu)?,
        apic: save_apic(vcpu, model, sregs.apic_base)?,
        events: save_events(&vcpu.get_vcpu_events().map_err(os("reading pending events"))?, regs.rflags),
        activity: match mp.mp_state {
            KVM_MP_STATE_RUNNABLE => Activity::Running,
            KVM_MP_STATE_HALTED => Activity::Halted,
            KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED => Activity::WaitForSipi,
            other => return Err(EngineError::Internal(format!("a vCPU is in KVM's MP state {other}"))),
        },
    })
}

fn save_general(r: &kvm_regs) -> GeneralRegisters {
    GeneralRegisters { gpr: gpr_from_kvm(r), rip: r.rip, rflags: r.rflags }
}

fn save_segments(s: &kvm_sregs, flags: u64) -> SegmentRegisters {
    let table = |t: &kvm_dtable| DescriptorTable { base: t.base, limit: t.limit };
    let cpl = match (s.cr0 & 1, flags & rflags::VM) {
        (0, _) => 0,
        (_, 0) => s.ss.dpl,
        _ => 3,
    };
    SegmentRegisters {
        data: [&s.es, &s.cs, &s.ss, &s.ds, &s.fs, &s.gs].map(segment_from_kvm),
        ldtr: segment_from_kvm(&s.ldt),
        tr: segment_from_kvm(&s.tr),
        gdtr: table(&s.gdt),
        idtr: table(&s.idt),
        cpl,
    }
}

fn save_xcr0(vcpu: &VcpuFd) -> Result<u64, EngineError> {
    let xcrs = vcpu.get_xcrs().map_err(os("reading XCR0"))?;
    let count = (xcrs.nr_xcrs as usize).min(xcrs.xcrs.len());
    Ok(xcrs.xcrs[..count].iter().find(|x| x.xcr == 0).map_or(1, |x| x.value))
}

fn save_xsave(vcpu: &VcpuFd, len: usize) -> Result<XsaveState, EngineError> {
    let area = vcpu.get_xsave().map_err(os("reading the XSAVE area"))?;
    let mut image: Vec<u8> = area.region.iter().flat_map(|w| w.to_le_bytes()).collect();
    image.truncate(len);
    // Bytes 464-511 are the host's to use, and KVM keeps the host's XSAVE layout there (fx_sw_reserved).
    image[464..512].fill(0);
    Ok(XsaveState { image })
}

fn save_apic(vcpu: &VcpuFd, model: &CpuModel, base: u64) -> Result<ApicState, EngineError> {
    let page = vcpu.get_lapic().map_err(os("reading a local APIC"))?;
    let has_deadline = model.has(Feature::TscDeadline);
    let tsc_deadline = if has_deadline { clock::read_msr(vcpu, msr::TSC_DEADLINE)? } else { 0 };
    Ok(ApicState { base, page: page.regs.iter().map(|&b| b as u8).collect(), tsc_deadline })
}

fn save_events(e: &kvm_vcpu_events, flags: u64) -> Events {
    let pending = if e.exception.injected != 0 {
        let error = (e.exception.has_error_code != 0).then_some(e.exception.error_code);
        Some(Injection { vector: e.exception.nr, error, exception: true })
    } else if e.interrupt.injected != 0 {
        Some(Injection { vector: e.interrupt.nr, error: None, exception: false })
    } else {
        None
    };
    // Processors of AMD have one bit for both shadows, and KVM reports both. STI leaves IF set.
    let (sti, mov_ss) = (KVM_X86_SHADOW_INT_STI, KVM_X86_SHADOW_INT_MOV_SS);
    let shadow = match u32::from(e.interrupt.shadow) {
        both if both == sti | mov_ss => {
            if flags & rflags::IF != 0 {
                sti
            } else {
                mov_ss
            }
        }
        one => one,
    };
    Events {
        pending,
        shadow_sti: shadow & sti != 0,
        shadow_mov_ss: shadow & mov_ss != 0,
        // An NMI that KVM has chosen but the processor has not taken is still pending, and not yet masked.
        nmi_pending: e.nmi.pending != 0 || e.nmi.injected != 0,
        nmi_masked: e.nmi.masked != 0 && e.nmi.injected == 0,
    }
}

/// Refuses what no processor can hold and KVM would take without a word, or with a word that says nothing.
pub fn validate(s: &VcpuState) -> Result<(), EngineError> {
    let bad = |what: String| Err(EngineError::BadState(what));
    if s.general.rflags & rflags::ONE == 0 || s.general.rflags & !rflags::ALL != 0 {
        return bad(format!("RFLAGS {:#x} has reserved bits in the wrong state", s.general.rflags));
    }
    if s.segments.cpl > 3 || s.control.cr8 > 15 {
        return bad(format!("CPL {} or CR8 {} is out of range", s.segments.cpl, s.control.cr8));
    }
    if s.control.xcr0 & 1 == 0 {
        return bad("XCR0 has bit 0 clear".into());
    }
    if s.debug.dr6 >> 32 != 0 || s.debug.dr7 >> 32 != 0 {
        return bad("the upper half of DR6 or DR7 is not zero".into());
    }
    if !(XsaveState::MIN..=size_of::<kvm_xsave>()).contains(&s.xsave.image.len()) {
        return bad(format!("an XSAVE image of {} bytes", s.xsave.image.len()));
    }
    if s.xsave.image[26..28] != [0, 0] {
        return bad("MXCSR has reserved bits set".into());
    }
    if s.apic.page.len() != ApicState::PAGE {
        return bad(format!("an APIC page of {} bytes", s.apic.page.len()));
    }
    if s.events.pending.is_some_and(|p| p.exception && p.vector > 31) {
        return bad("a pending exception with a vector above 31".into());
    }
    Ok(())
}

/// Writes the whole state, which has passed [`validate`]. Page tables in PAE mode are read from guest RAM here.
pub fn load(vcpu: &VcpuFd, msrs: &KnownMsrs, s: &VcpuState) -> Result<(), EngineError> {
    let refused = |what: &'static str| {
        move |e: kvm_ioctls::Error| EngineError::BadState(format!("KVM does not take the {what}: {e}"))
    };
    vcpu.set_sregs(&load_sregs(s)).map_err(refused("segment and control registers"))?;
    vcpu.set_xcrs(&load_xcrs(s.control.xcr0)).map_err(refused("XCR0"))?;
    load_xsave(vcpu, &s.xsave)?;
    msrs.load(vcpu, &s.msrs)?;
    vcpu.set_lapic(&load_apic(s)).map_err(refused("local APIC"))?;
    let debug =
        kvm_debugregs { db: s.debug.address, dr6: s.debug.dr6, dr7: s.debug.dr7, ..Default::default() };
    vcpu.set_debug_regs(&debug).map_err(refused("debug registers"))?;
    let mut regs = kvm_regs { rip: s.general.rip, rflags: s.general.rflags, ..Default::default() };
    gpr_to_kvm(&s.general.gpr, &mut regs);
    vcpu.set_regs(&regs).map_err(refused("general registers"))?;
    vcpu.set_vcpu_events(&load_events(&s.events)).map_err(refused("pending events"))?;
    let mp_state = match s.activity {
        Activity::Running | Activity::Shutdown => KVM_MP_STATE_RUNNABLE,
        Activity::Halted => KVM_MP_STATE_HALTED,
        // Not "uninitialized", in which KVM would wait for an INIT before the start-up IPI.
        Activity::WaitForSipi => KVM_MP_STATE_INIT_RECEIVED,
    };
    vcpu.set_mp_state(kvm_mp_state { mp_state }).map_err(refused("activity"))?;
    if s.apic.tsc_deadline != 0 {
        clock::write_msr(vcpu, msr::TSC_DEADLINE, s.apic.tsc_deadline)?;
    }
    Ok(())
}

fn load_sregs(s: &VcpuState) -> kvm_sregs {
    let table = |t: &DescriptorTable| kvm_dtable { base: t.base, limit: t.limit, padding: [0; 3] };
    let [es, cs, mut ss, ds, fs, gs] = s.segments.data.each_ref().map(segment_to_kvm);
    // KVM takes the CPL from here.
    if s.control.cr0 & 1 != 0 {
        ss.dpl = s.segments.cpl;
    }
    kvm_sregs {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr: segment_to_kvm(&s.segments.tr),
        ldt: segment_to_kvm(&s.segments.ldtr),
        gdt: table(&s.segments.gdtr),
        idt: table(&s.segments.idtr),
        cr0: s.control.cr0,
        cr2: s.control.cr2,
        cr3: s.control.cr3,
        cr4: s.control.cr4,
        cr8: s.control.cr8,
        efer: s.control.efer,
        apic_base: s.apic.base,
        interrupt_bitmap: [0; 4],
    }
}

fn load_xcrs(xcr0: u64) -> kvm_xcrs {
    let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
    xcrs.xcrs[0].value = xcr0;
    xcrs
}

fn load_xsave(vcpu: &VcpuFd, s: &XsaveState) -> Result<(), EngineError> {
    let mut area = kvm_xsave::default();
    for (word, bytes) in area.region.iter_mut().zip(s.image.chunks(4)) {
        let mut b = [0; 4];
        b[..bytes.len()].copy_from_slice(bytes);
        *word = u32::from_le_bytes(b);
    }
    // SAFETY: the area is 4096 bytes, which is what KVM reads: no CPU model has a component beyond (those need
    // a permission that this process never asks for).
    let set = unsafe { vcpu.set_xsave(&area) };
    set.map_err(|e| EngineError::BadState(format!("KVM does not take the XSAVE image: {e}")))
}

fn load_apic(s: &VcpuState) -> kvm_lapic_state {
    let mut page = kvm_lapic_state::default();
    for (to, from) in page.regs.iter_mut().zip(&s.apic.page) {
        *to = *from as _;
    }
    // CR8 is the upper half of the task priority's low byte: one register with two names.
    page.regs[TASK_PRIORITY] = (s.control.cr8 << 4 | u64::from(s.apic.page[TASK_PRIORITY] & 15)) as u8 as _;
    page
}

fn load_events(e: &Events) -> kvm_vcpu_events {
    let mut k = kvm_vcpu_events {
        flags: KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
        ..Default::default()
    };
    match e.pending {
        Some(p) if p.exception => {
            k.exception.injected = 1;
            k.exception.nr = p.vector;
            k.exception.has_error_code = u8::from(p.error.is_some());
            k.exception.error_code = p.error.unwrap_or(0);
        }
        Some(p) => {
            k.interrupt.injected = 1;
            k.interrupt.nr = p.vector;
        }
        None => {}
    }
    let sti = if e.shadow_sti { KVM_X86_SHADOW_INT_STI } else { 0 };
    let mov_ss = if e.shadow_mov_ss { KVM_X86_SHADOW_INT_MOV_SS } else { 0 };
    k.interrupt.shadow = (sti | mov_ss) as u8;
    k.nmi.pending = u8::from(e.nmi_pending);
    k.nmi.masked = u8::from(e.nmi_masked);
    k
}
