//! State: saved, loaded elsewhere, moved between engines.

use iced_x86::code_asm::*;
use vireo_core::EngineError;
use vireo_core::state::{Activity, Element, VcpuState};

use super::interrupts::{halting, message};
use super::{Case, case};
use crate::asm::Phrases;
use crate::guest::Guest;
use crate::machine::{Bench, Machine};
use crate::record::{Failure, Record};
use crate::tables::*;

pub const CASES: &[Case] = &[
    case("reset-state", reset_state),
    case("state-round-trip", round_trip),
    case("bad-state-is-refused", refused),
    case("save-and-continue-elsewhere", |bench| moved(bench, bench, Mode::Long)),
    case("save-and-continue-elsewhere-pae", |bench| moved(bench, bench, Mode::Pae)),
    case("save-and-continue-elsewhere-real", |bench| moved(bench, bench, Mode::Real)),
    case("save-halted-and-wake-elsewhere", |bench| moved_halted(bench, bench)),
];

/// Moves a guest from one engine to another.
pub type Transfer = fn(&Bench<'_>, &Bench<'_>) -> Result<Record, Failure>;

/// What can be moved from one engine to another and has to go on there.
pub fn transfers() -> [(&'static str, Transfer); 7] {
    [
        ("transfer-long", |from, to| moved(from, to, Mode::Long)),
        ("transfer-pae", |from, to| moved(from, to, Mode::Pae)),
        ("transfer-paging-32", |from, to| moved(from, to, Mode::Paging32)),
        ("transfer-protected-32", |from, to| moved(from, to, Mode::Protected32)),
        ("transfer-protected-16", |from, to| moved(from, to, Mode::Protected16)),
        ("transfer-real", |from, to| moved(from, to, Mode::Real)),
        ("transfer-halted", moved_halted),
    ]
}

fn reset_state(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut machine = Machine::new(bench, 2, 64)?;
    let mut r = Record::default();
    for (index, vcpu) in (0..).zip(&mut machine.vcpus) {
        let (seen, want) = (vcpu.save()?, VcpuState::at_reset(index));
        r.expect("RIP", seen.general.rip, want.general.rip)?;
        r.expect("RFLAGS", seen.general.rflags, want.general.rflags)?;
        r.expect("CS", seen.segments.data[1], want.segments.data[1])?;
        r.expect("GDTR", seen.segments.gdtr, want.segments.gdtr)?;
        r.expect("control registers", &seen.control, &want.control)?;
        r.expect("debug registers", &seen.debug, &want.debug)?;
        r.expect("APIC base", seen.apic.base, want.apic.base)?;
        r.expect("APIC id", seen.apic.register(0x20), want.apic.register(0x20))?;
        r.expect("APIC spurious vector", seen.apic.register(0xf0), want.apic.register(0xf0))?;
        r.expect("events", &seen.events, &want.events)?;
        r.expect("activity", seen.activity, want.activity)?;
        let fx = |s: &VcpuState| s.xsave.fx().map(|f| (f.0[..2].to_vec(), f.0[24..28].to_vec()));
        r.expect("FCW and MXCSR", fx(&seen), fx(&want))?;
    }
    Ok(r)
}

/// What is loaded is saved again.
fn round_trip(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut machine = Machine::new(bench, 1, 64)?;
    let mut s = state(Mode::Long);
    s.general.gpr = std::array::from_fn(|i| 0x1111_1111_1111_1111u64.wrapping_mul(i as u64 + 1));
    s.general.rflags |= 0xad5;
    s.control.cr2 = 0x1234_5000;
    s.control.cr8 = 5;
    s.debug.address = [0x1000, 0x2000, 0x3000, 0x4000];
    s.debug.dr7 = 0x0003_0402;
    s.msrs.set(vireo_core::state::msr::LSTAR, 0xffff_8000_1234_5678);
    s.msrs.set(vireo_core::state::msr::KERNEL_GS_BASE, 0x7fff_0000_1000);
    s.segments.data[4].base = 0x7000_0000_1234;
    s.apic.base |= 0xc00;
    s.apic.set_register(0x20, 0);
    s.apic.set_register(0xf0, 0x1ff);
    s.apic.set_register(0x320, 0x0001_0040);
    s.apic.set_register(0x370, 0x0001_00fe);
    s.apic.set_register(0x80, 0x50);
    for (i, b) in s.xsave.image[160..416].iter_mut().enumerate() {
        *b = i as u8;
    }
    s.events.shadow_sti = true;
    s.events.nmi_masked = true;
    machine.load(&s)?;
    let seen = machine.save()?;
    let mut r = Record::default();
    r.expect("general registers", &seen.general, &s.general)?;
    r.expect("segments", &seen.segments, &s.segments)?;
    r.expect("control registers", &seen.control, &s.control)?;
    r.expect("debug registers", &seen.debug, &s.debug)?;
    r.expect(
        "XMM registers",
        seen.xsave.fx().map(|f| f.0[160..416].to_vec()),
        Some(s.xsave.image[160..416].to_vec()),
    )?;
    // A model without an MSR keeps no zero for it.
    let kept =
        |i: u32, value: u64| seen.msrs.get(i) == Some(value) || seen.msrs.get(i).is_none() && value == 0;
    let lost: Vec<_> = s.msrs.0.iter().filter(|e| !kept(e.index, e.value)).collect();
    r.check("MSRs", lost.is_empty(), &lost)?;
    for at in [0x20, 0x80, 0xf0, 0x320, 0x370] {
        r.expect("APIC register", seen.apic.register(at), s.apic.register(at))?;
    }
    r.expect("events", &seen.events, &s.events)?;
    r.expect("activity", seen.activity, s.activity)?;
    Ok(r)
}

/// Each of these is refused whole: the state before stays.
fn refused(bench: &Bench<'_>) -> Result<Record, Failure> {
    type Spoil = fn(&mut VcpuState);
    let bad: [(&str, Spoil); 7] = [
        ("RFLAGS without its fixed bit", |s| s.general.rflags = 0),
        ("paging without protection", |s| s.control.cr0 = 1 << 31 | 0x10),
        ("long mode without PAE", |s| s.control.cr4 = 0),
        ("XCR0 without x87", |s| s.control.xcr0 = 2),
        ("MXCSR with reserved bits", |s| s.xsave.image[27] = 0x80),
        ("a short APIC page", |s| s.apic.page.truncate(100)),
        ("a short XSAVE image", |s| s.xsave.image.truncate(512)),
    ];
    let mut machine = Machine::new(bench, 1, 64)?;
    let good = state(Mode::Long);
    machine.load(&good)?;
    let mut r = Record::default();
    for (name, spoil) in bad {
        let mut s = state(Mode::Long);
        s.general.gpr[0] = 0xdead;
        spoil(&mut s);
        let outcome = machine.vcpus[0].load(&s);
        r.check(name, matches!(outcome, Err(EngineError::BadState(_))), &outcome)?;
        r.expect("and nothing changed", machine.save()?.general, good.general.clone())?;
    }
    Ok(r)
}

/// Counts in registers, XMM and memory, reporting now and then.
fn counter(a: &mut CodeAssembler, mode: Mode) -> Result<(), iced_x86::IcedError> {
    let mut round = a.create_label();
    a.xor(eax, eax)?;
    a.xor(ebx, ebx)?;
    a.set_label(&mut round)?;
    a.inc(eax)?;
    a.add(ebx, eax)?;
    match mode {
        Mode::Long => {
            a.movd(xmm3, ebx)?;
            a.movd(ebx, xmm3)?;
        }
        _ => a.mov(dword_ptr(DATA), ebx)?,
    }
    a.report()?;
    a.cmp(eax, ROUNDS as i32)?;
    a.jne(round)?;
    a.mov(eax, ebx)?;
    a.report()?;
    a.done()
}

const ROUNDS: u32 = 3000;

/// A guest is stopped mid-run, its state and RAM move to a new partition, and it goes on to the same end.
fn moved(from: &Bench<'_>, to: &Bench<'_>, mode: Mode) -> Result<Record, Failure> {
    let mut g = Guest::new(from, mode, |a| counter(a, mode))?;
    g.machine.bus.stop_at(100);
    g.run_part(|h| h.wait_for_reports(100))?;
    let before = g.reports().len() as u32;
    g.machine.partition.freeze_clock();
    let (state, clock) = (g.machine.save()?, g.machine.partition.clock());
    let ram = std::sync::Arc::clone(&g.machine.ram);
    drop(g);
    let mut target = Machine::with_ram(to, 1, ram)?;
    target.partition.set_clock(&clock)?;
    target.load(&state)?;
    target.run()?;
    let reports = target.bus.reports();
    let mut r = Record::default();
    r.check("stopped before its end", before < ROUNDS, before)?;
    r.expect("no report lost, none twice", before + reports.len() as u32, ROUNDS + 1)?;
    r.expect("sum", reports.last().copied(), Some(ROUNDS * (ROUNDS + 1) / 2))?;
    // How far it had come is not the same twice.
    r.0.retain(|(what, _)| what == "sum");
    Ok(r)
}

/// A halted guest moves and is woken there.
fn moved_halted(from: &Bench<'_>, to: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(from, Mode::Long, halting)?;
    g.end_interrupts();
    g.run_part(|h| {
        h.wait_for_reports(1)?;
        // Give it time to reach HLT; if it does not, it is moved running, which has to work too.
        std::thread::sleep(std::time::Duration::from_millis(20));
        Ok(())
    })?;
    let state = g.machine.save()?;
    let mut r = Record::default();
    r.expect("activity", state.activity, Activity::Halted)?;
    let ram = std::sync::Arc::clone(&g.machine.ram);
    let mut target = Machine::with_ram(to, 1, ram)?;
    target.load(&state)?;
    target.run_with(|h| {
        h.partition.deliver_msi(message(0, 0x51));
        Ok(())
    })?;
    r.expect("went on", target.bus.reports(), vec![2])?;
    r.expect("vectors", traps(&target.ram).iter().map(|t| t.vector).collect::<Vec<_>>(), vec![0x51])?;
    Ok(r)
}
