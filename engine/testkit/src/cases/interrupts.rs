//! Interrupts from outside: messages, the PIC, NMI.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use vireo_core::MsiMessage;

use super::apic::enable_x2apic;
use super::{Case, case};
use crate::asm::Phrases;
use crate::bus::Event;
use crate::guest::Guest;
use crate::machine::{Bench, Host, LIMIT};
use crate::record::{Failure, Record};
use crate::tables::*;

pub const CASES: &[Case] = &[
    case("msi-wakes-halt", msi_halt),
    case("msi-while-running", msi_running),
    case("msi-waits-for-sti", msi_masked),
    case("msi-priorities", priorities),
    case("level-interrupt-eoi", level_eoi),
    case("extint-wakes-halt", extint_halt),
    case("extint-while-running", extint_running),
    case("extint-withdrawn", extint_withdrawn),
    case("nmi", nmi),
];

/// An edge-triggered message with fixed delivery to one APIC id.
pub fn message(apic_id: u32, vector: u8) -> MsiMessage {
    MsiMessage { address: 0xfee0_0000 | u64::from(apic_id) << 12, data: vector.into() }
}

/// Waits until the host has written to DATA.
fn wait_for_host(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut round = a.create_label();
    a.set_label(&mut round)?;
    a.pause()?;
    a.cmp(dword_ptr(DATA), 0)?;
    a.je(round)
}

/// Waits until a handler has logged something.
fn wait_for_trap(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut round = a.create_label();
    a.set_label(&mut round)?;
    a.pause()?;
    a.cmp(dword_ptr(LOG_POINTER), LOG as i32)?;
    a.je(round)
}

/// Reports how many bytes the handlers have logged: 64 for each interrupt.
fn report_log(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(eax, dword_ptr(LOG_POINTER))?;
    a.sub(eax, LOG as i32)?;
    a.report()
}

/// Reports 1, halts with interrupts on, reports 2.
pub fn halting(a: &mut CodeAssembler) -> Result<(), IcedError> {
    enable_x2apic(a)?;
    a.report_value(1)?;
    a.sti()?;
    a.hlt()?;
    a.report_value(2)?;
    a.done()
}

/// Reports 1, then spins with interrupts on until a handler has logged something; reports 2.
fn spinning(a: &mut CodeAssembler) -> Result<(), IcedError> {
    enable_x2apic(a)?;
    a.report_value(1)?;
    a.sti()?;
    wait_for_trap(a)?;
    a.report_value(2)?;
    a.done()
}

/// Runs a guest to its end; the host acts once it has reported 1.
fn run_interrupted(g: &mut Guest, act: impl FnOnce(&Host<'_>)) -> Result<(), Failure> {
    g.run_with(|h| {
        h.wait_for_reports(1)?;
        act(h);
        Ok(())
    })
}

fn one_interrupt(g: &Guest, vector: u64) -> Result<Record, Failure> {
    let mut r = Record::default();
    r.expect("reports", g.reports(), vec![1, 2])?;
    r.expect("vectors", g.vectors(), vec![(vector, 0)])?;
    Ok(r)
}

fn msi_halt(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, halting)?;
    g.end_interrupts();
    run_interrupted(&mut g, |h| h.partition.deliver_msi(message(0, 0x55)))?;
    one_interrupt(&g, 0x55)
}

fn msi_running(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, spinning)?;
    g.end_interrupts();
    run_interrupted(&mut g, |h| h.partition.deliver_msi(message(0, 0x31)))?;
    one_interrupt(&g, 0x31)
}

/// Comes while IF is clear, stays pending, is delivered after STI.
fn msi_masked(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, |a| {
        enable_x2apic(a)?;
        a.report_value(1)?;
        wait_for_host(a)?;
        report_log(a)?;
        a.open_interrupt_window()?;
        report_log(a)?;
        a.done()
    })?;
    g.end_interrupts();
    run_interrupted(&mut g, |h| {
        h.partition.deliver_msi(message(0, 0x44));
        h.write(DATA, &[1]);
    })?;
    let mut r = Record::default();
    r.expect("log before and after STI", g.reports(), vec![1, 0, 64])?;
    r.expect("vectors", g.vectors(), vec![(0x44, 0)])?;
    Ok(r)
}

/// Two pending messages: the higher vector first.
fn priorities(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, |a| {
        enable_x2apic(a)?;
        a.report_value(1)?;
        wait_for_host(a)?;
        a.open_interrupt_window()?;
        a.done()
    })?;
    g.end_interrupts();
    run_interrupted(&mut g, |h| {
        h.partition.deliver_msi(message(0, 0x33));
        h.partition.deliver_msi(message(0, 0x52));
        h.write(DATA, &[1]);
    })?;
    let mut r = Record::default();
    r.expect("vectors", g.vectors(), vec![(0x52, 0), (0x33, 0)])?;
    Ok(r)
}

/// The end of a level-triggered interrupt reaches the IOAPIC.
fn level_eoi(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, halting)?;
    g.end_interrupts();
    g.run_with(|h| {
        h.wait_for_reports(1)?;
        let level = MsiMessage { data: 0x5a | 1 << 15 | 1 << 14, ..message(0, 0) };
        h.partition.deliver_msi(level);
        h.bus.wait_for_event(&Event::Eoi(0x5a), LIMIT).map_err(Failure::Stuck)
    })?;
    let mut r = one_interrupt(&g, 0x5a)?;
    r.expect("end of interrupt", g.events(), vec![Event::Eoi(0x5a)])?;
    Ok(r)
}

/// LINT0 as ExtINT, unmasked, as firmware leaves it; then as the guest given.
fn with_lint0(
    a: &mut CodeAssembler,
    rest: fn(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<(), IcedError> {
    enable_x2apic(a)?;
    a.write_msr(0x835, 0x700)?;
    rest(a)
}

fn extint_halt(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, |a| with_lint0(a, halting))?;
    run_interrupted(&mut g, |h| h.bus.raise_pic(0x28))?;
    one_interrupt(&g, 0x28)
}

fn extint_running(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, |a| with_lint0(a, spinning))?;
    run_interrupted(&mut g, |h| h.bus.raise_pic(0x29))?;
    one_interrupt(&g, 0x29)
}

/// The PIC takes its request back while IF is clear: nothing is delivered.
fn extint_withdrawn(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, |a| {
        with_lint0(a, |a| a.report_value(1))?;
        wait_for_host(a)?;
        a.open_interrupt_window()?;
        a.done()
    })?;
    run_interrupted(&mut g, |h| {
        h.partition.set_extint(true);
        std::thread::sleep(std::time::Duration::from_millis(5));
        h.partition.set_extint(false);
        h.write(DATA, &[1]);
    })?;
    let mut r = Record::default();
    r.expect("vectors", g.vectors(), vec![])?;
    Ok(r)
}

/// An NMI is not masked by IF.
fn nmi(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, |a| {
        a.report_value(1)?;
        wait_for_trap(a)?;
        a.report_value(2)?;
        a.done()
    })?;
    run_interrupted(&mut g, |h| h.partition.inject_nmi(0))?;
    one_interrupt(&g, 2)
}
