//! The board's hold on vCPUs: pause, resume, kick, throttle, clock.

use std::time::Duration;

use iced_x86::code_asm::*;
use vireo_core::partition::ClockState;
use vireo_core::{EngineError, PauseError};

use super::apic::enable_x2apic;
use super::{Case, case};
use crate::asm::Phrases;
use crate::guest::Guest;
use crate::machine::{Bench, Host, LIMIT};
use crate::record::{Failure, Record};
use crate::tables::*;

pub const CASES: &[Case] = &[
    case("pause-and-resume", pause),
    case("pauses-nest", nested_pauses),
    case("pause-halted", pause_halted),
    case("throttle", throttle),
    case("vcpus-are-taken-once", taken_once),
    case("vcpu-count", vcpu_count),
    case("clock-stands-still", frozen_clock),
    case("clock-import", clock_import),
    case("timer-stands-still", frozen_timer),
];

/// Counts in RAM for ever.
fn counting(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    let mut round = a.create_label();
    a.report_value(1)?;
    a.set_label(&mut round)?;
    a.inc(qword_ptr(DATA))?;
    a.jmp(round)
}

fn pause_now(h: &Host<'_>) -> Result<(), Failure> {
    h.gate.pause_all(LIMIT).map_err(|e| Failure::Stuck(e.to_string()))
}

/// Waits until the count moves.
fn moves(h: &Host<'_>) -> bool {
    let before = h.ram.u64(DATA);
    (0..2000).any(|_| {
        std::thread::sleep(Duration::from_millis(1));
        h.ram.u64(DATA) != before
    })
}

fn stands(h: &Host<'_>) -> bool {
    let before = h.ram.u64(DATA);
    std::thread::sleep(Duration::from_millis(10));
    h.ram.u64(DATA) == before
}

fn pause(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, counting)?;
    let mut r = Record::default();
    g.run_part(|h| {
        h.wait_for_reports(1)?;
        for _ in 0..20 {
            r.expect("runs", moves(h), true)?;
            pause_now(h)?;
            r.expect("stands", stands(h), true)?;
            h.gate.resume();
        }
        // Kicks without a pause do no harm.
        (0..100).for_each(|_| h.partition.kick(0));
        r.expect("runs after kicks", moves(h), true)
    })?;
    Ok(r)
}

fn nested_pauses(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, counting)?;
    let mut r = Record::default();
    g.run_part(|h| {
        h.wait_for_reports(1)?;
        pause_now(h)?;
        pause_now(h)?;
        h.gate.resume();
        r.expect("one is left", stands(h), true)?;
        h.gate.resume();
        r.expect("none is left", moves(h), true)?;
        h.gate.end();
        r.expect("not after the end", h.gate.pause_all(LIMIT), Err(PauseError::Ending))
    })?;
    Ok(r)
}

/// A halted vCPU and one that waits for its start-up IPI are paused as well.
fn pause_halted(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::with_vcpus(bench, 2, Mode::Long, |a| {
        a.report_value(1)?;
        a.cli()?;
        a.hlt()
    })?;
    let mut r = Record::default();
    g.run_part(|h| {
        h.wait_for_reports(1)?;
        for _ in 0..10 {
            r.expect("paused", h.gate.pause_all(LIMIT), Ok(()))?;
            h.gate.resume();
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    })?;
    Ok(r)
}

fn throttle(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, counting)?;
    let mut r = Record::default();
    g.run_part(|h| {
        h.wait_for_reports(1)?;
        h.gate.set_throttle(80);
        r.expect("still runs", moves(h), true)?;
        h.gate.set_throttle(0);
        r.expect("runs freely", moves(h), true)
    })?;
    Ok(r)
}

fn taken_once(bench: &Bench<'_>) -> Result<Record, Failure> {
    let g = Guest::new(bench, Mode::Long, |a| a.done())?;
    let mut r = Record::default();
    for (what, index) in [("taken", 0), ("does not exist", 1)] {
        let refused = std::sync::Arc::clone(&g.machine.partition).take_vcpu(index).err();
        r.check(what, matches!(refused, Some(EngineError::NoVcpu(_))), &refused)?;
    }
    Ok(r)
}

fn vcpu_count(bench: &Bench<'_>) -> Result<Record, Failure> {
    use vireo_core::PartitionSpec;
    let mut r = Record::default();
    for vcpus in [0, 100_000] {
        let cpu_model = std::sync::Arc::clone(&bench.model);
        let refused = bench.engine.new_partition(&PartitionSpec::new(vcpus, cpu_model, RAM)).err();
        r.check("refused", matches!(refused, Some(EngineError::VcpuCount { .. })), &refused)?;
    }
    Ok(r)
}

/// Reads the TSC into DATA and reports 1, for ever.
fn watching(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    let mut round = a.create_label();
    a.set_label(&mut round)?;
    a.read_tsc()?;
    a.mov(qword_ptr(DATA), rax)?;
    a.report()?;
    a.jmp(round)
}

/// Runs the guest until it has read the TSC once more.
fn look(g: &mut Guest) -> Result<u64, Failure> {
    let next = g.reports().len() + 1;
    g.machine.run_part(|h| h.wait_for_reports(next))?;
    Ok(g.machine.ram.u64(DATA))
}

fn frozen_clock(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, watching)?;
    let mut r = Record::default();
    g.machine.load(&g.start)?;
    let before = look(&mut g)?;
    let p = std::sync::Arc::clone(&g.machine.partition);
    p.freeze_clock();
    let frozen = p.clock();
    std::thread::sleep(Duration::from_millis(300));
    r.expect("stands still", p.clock(), frozen)?;
    r.check("behind what the guest saw", frozen.tsc >= before, (before, frozen))?;
    let thawing = std::time::Instant::now();
    p.thaw_clock();
    let after = p.clock();
    let most = (thawing.elapsed() + Duration::from_millis(20)).as_nanos() * u128::from(frozen.tsc_hz)
        / 1_000_000_000;
    let gone = u128::from(after.tsc.wrapping_sub(frozen.tsc));
    r.check("goes on from there", gone <= most, (frozen, after))?;
    let seen = look(&mut g)?;
    r.check("for the guest too", seen >= frozen.tsc && seen < p.clock().tsc, (frozen, seen))?;
    r.0.retain(|(what, _)| what != "stands still");
    Ok(r)
}

fn clock_import(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, watching)?;
    let mut r = Record::default();
    g.machine.load(&g.start)?;
    let p = std::sync::Arc::clone(&g.machine.partition);
    let fresh = p.clock();
    r.check("starts near zero", fresh.tsc < 10 * fresh.tsc_hz, fresh)?;
    let set = ClockState { tsc: 1 << 50, ..fresh };
    p.freeze_clock();
    p.set_clock(&set)?;
    r.check("set while frozen", p.clock() == set, p.clock())?;
    p.thaw_clock();
    let seen = look(&mut g)?;
    r.check("the guest sees it", seen >= set.tsc && seen < set.tsc + 20 * set.tsc_hz, (set, seen))?;
    let odd = p.set_clock(&ClockState { tsc_hz: fresh.tsc_hz / 2, ..set });
    r.check(
        "another rate is scaled or refused",
        matches!(odd, Ok(()) | Err(EngineError::Unsupported { .. })),
        &odd,
    )?;
    Ok(r)
}

/// A one-shot timer of 200 ms that is running when time is frozen waits for its 200 ms of guest time.
fn frozen_timer(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, |a| {
        enable_x2apic(a)?;
        a.read_tsc()?;
        a.mov(qword_ptr(DATA + 8), rax)?;
        for (index, value) in [(0x83e, 0xb), (0x832, 0x50), (0x838, 200_000_000)] {
            a.write_msr(index, value)?;
        }
        a.report_value(1)?;
        a.sti()?;
        a.hlt()?;
        a.read_tsc()?;
        a.mov(qword_ptr(DATA), rax)?;
        a.report_value(2)?;
        a.done()
    })?;
    g.end_interrupts();
    let mut r = Record::default();
    g.run_part(|h| h.wait_for_reports(1))?;
    let p = std::sync::Arc::clone(&g.machine.partition);
    p.freeze_clock();
    std::thread::sleep(Duration::from_millis(400));
    p.thaw_clock();
    g.machine.run()?;
    r.expect("reports", g.reports(), vec![1, 2])?;
    r.expect("vectors", g.vectors(), vec![(0x50, 0)])?;
    let (armed, fired) = (g.machine.ram.u64(DATA + 8), g.machine.ram.u64(DATA));
    // 200 000 000 cycles of the APIC's bus clock; 5 % for the two clocks' own rates.
    let whole = p.clock().tsc_hz / 5;
    r.check("not before its time", fired.wrapping_sub(armed) >= whole - whole / 20, (armed, fired, whole))?;
    Ok(r)
}
