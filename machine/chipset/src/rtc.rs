//! The MC146818A real-time clock and its CMOS memory.
//!
//! Source: Motorola MC146818A datasheet; the century byte at 0x32 is the IBM AT's convention, named to the
//! guest in FADT.CENTURY. The clock shows the wall clock plus an offset that changes when the guest sets it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use serde::{Deserialize, Serialize};

use crate::bus::BytePorts;
use crate::calendar::{DateTime, SECONDS_PER_DAY};
use crate::clock::{Clock, Timer, TimerService, cycles_to_ns, ns_to_cycles};
use crate::layout::RTC;
use crate::lines::IrqLine;
use crate::state::{RestoreError, check, check_version};

const VERSION: u32 = 1;
const DEVICE: &str = "RTC";

const SECONDS: usize = 0x00;
const SECONDS_ALARM: usize = 0x01;
const MINUTES: usize = 0x02;
const MINUTES_ALARM: usize = 0x03;
const HOURS: usize = 0x04;
const HOURS_ALARM: usize = 0x05;
const WEEKDAY: usize = 0x06;
const DAY: usize = 0x07;
const MONTH: usize = 0x08;
const YEAR: usize = 0x09;
const REG_A: usize = 0x0A;
const REG_B: usize = 0x0B;
const REG_C: usize = 0x0C;
const REG_D: usize = 0x0D;
/// CMOS index of the century.
pub const CENTURY: u8 = 0x32;
/// Registers that show the time.
const TIME: [usize; 8] = [SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY as usize];

const A_UIP: u8 = 0x80;
/// Both divider reset codes have these bits set.
const A_DIVIDER_RESET: u8 = 0x60;
const A_DEFAULT: u8 = 0x26;
const B_SET: u8 = 0x80;
const B_UPDATE_INTERRUPT: u8 = 0x10;
const B_ALARM_INTERRUPT: u8 = 0x20;
const B_BINARY: u8 = 0x04;
const B_24_HOURS: u8 = 0x02;
/// Periodic, alarm and update bits: the same places in the enables of B and the flags of C.
const INTERRUPTS: u8 = 0x70;
const C_REQUEST: u8 = 0x80;
const C_PERIODIC: u8 = 0x40;
const C_ALARM: u8 = 0x20;
const C_UPDATE: u8 = 0x10;
const D_VALID: u8 = 0x80;
const HOUR_PM: u8 = 0x80;
/// Alarm bytes from here on match every value.
const ALARM_ANY: u8 = 0xC0;

const NMI_DISABLED: u8 = 0x80;
const NS: i64 = 1_000_000_000;
const CRYSTAL_HZ: u64 = 32_768;
/// Update in progress is shown 244 µs before the update and through its 1984 µs (datasheet, table 5).
const UPDATE_NS: i64 = (244 + 1984) * 1000;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Registers {
    index: u8,
    nmi_disabled: bool,
    /// All 128 bytes but for the time while it runs, and register C's request bit.
    cmos: Vec<u8>,
    /// Shown time minus wall clock, in ns.
    offset_ns: i64,
    /// While SET or a divider reset holds the clock, its registers are plain memory.
    held: bool,
    /// Up to which second (since 1970, shown time) the update and alarm flags are made.
    seen_second: i64,
    /// Up to which crystal cycle of guest time the periodic flag is made.
    seen_cycle: u64,
}

impl Registers {
    fn binary(&self) -> bool {
        self.cmos[REG_B] & B_BINARY != 0
    }

    fn encode(&self, value: u8) -> u8 {
        if self.binary() { value } else { ((value / 10) << 4) | (value % 10) }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.binary() { value } else { (value >> 4).wrapping_mul(10).wrapping_add(value & 0xF) }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.cmos[REG_B] & B_24_HOURS != 0 {
            return self.encode(hour);
        }
        let twelve = if hour.is_multiple_of(12) { 12 } else { hour % 12 };
        self.encode(twelve) | if hour >= 12 { HOUR_PM } else { 0 }
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.cmos[REG_B] & B_24_HOURS != 0 {
            return self.decode(value);
        }
        let twelve = self.decode(value & !HOUR_PM) % 12;
        twelve + if value & HOUR_PM != 0 { 12 } else { 0 }
    }

    fn store_time(&mut self, second: i64) {
        let time = DateTime::from_unix(second);
        self.cmos[SECONDS] = self.encode(time.second);
        self.cmos[MINUTES] = self.encode(time.minute);
        self.cmos[HOURS] = self.encode_hour(time.hour);
        self.cmos[WEEKDAY] = time.weekday();
        self.cmos[DAY] = self.encode(time.day);
        self.cmos[MONTH] = self.encode(time.month);
        self.cmos[YEAR] = self.encode(time.year.rem_euclid(100) as u8);
        self.cmos[usize::from(CENTURY)] = self.encode(time.year.div_euclid(100).rem_euclid(100) as u8);
    }

    fn stored_time(&self) -> i64 {
        let century = i64::from(self.decode(self.cmos[usize::from(CENTURY)]));
        DateTime {
            year: century * 100 + i64::from(self.decode(self.cmos[YEAR])),
            month: self.decode(self.cmos[MONTH]),
            day: self.decode(self.cmos[DAY]),
            hour: self.decode_hour(self.cmos[HOURS]),
            minute: self.decode(self.cmos[MINUTES]),
            second: self.decode(self.cmos[SECONDS]),
        }
        .to_unix()
    }

    fn is_held(&self) -> bool {
        self.cmos[REG_B] & B_SET != 0 || self.divider_reset()
    }

    fn divider_reset(&self) -> bool {
        self.cmos[REG_A] & A_DIVIDER_RESET == A_DIVIDER_RESET
    }

    /// Crystal cycles between periodic interrupts.
    fn period(&self) -> Option<u64> {
        match self.cmos[REG_A] & 0xF {
            0 => None,
            _ if self.divider_reset() => None,
            rate @ 1..=2 => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
    }

    fn alarm_matches(&self, second: i64) -> bool {
        let of_day = second.rem_euclid(SECONDS_PER_DAY);
        let shown = [
            (SECONDS_ALARM, self.encode((of_day % 60) as u8)),
            (MINUTES_ALARM, self.encode((of_day / 60 % 60) as u8)),
            (HOURS_ALARM, self.encode_hour((of_day / 3600) as u8)),
        ];
        shown.into_iter().all(|(index, value)| self.cmos[index] >= ALARM_ANY || self.cmos[index] == value)
    }

    /// Makes the flags of register C for the time that has passed.
    fn catch_up(&mut self, now: Now) {
        if !self.held {
            let second = now.shown(self).div_euclid(NS);
            if second > self.seen_second {
                self.cmos[REG_C] |= C_UPDATE;
                // A day has every time there is.
                let first = (self.seen_second + 1).max(second.saturating_sub(SECONDS_PER_DAY - 1));
                if self.cmos[REG_C] & C_ALARM == 0
                    && (first..=second).any(|second| self.alarm_matches(second))
                {
                    self.cmos[REG_C] |= C_ALARM;
                }
            }
            self.seen_second = second;
        }
        if self.period().is_some_and(|period| now.cycle / period > self.seen_cycle / period) {
            self.cmos[REG_C] |= C_PERIODIC;
        }
        self.seen_cycle = now.cycle;
    }

    fn requested(&self) -> bool {
        self.cmos[REG_C] & self.cmos[REG_B] & INTERRUPTS != 0
    }

    fn read(&mut self, now: Now) -> u8 {
        let index = usize::from(self.index);
        match index {
            REG_A => {
                let into_second = now.shown(self).rem_euclid(NS);
                let updating = !self.held && into_second >= NS - UPDATE_NS;
                self.cmos[REG_A] | if updating { A_UIP } else { 0 }
            }
            REG_C => {
                let flags = self.cmos[REG_C] | if self.requested() { C_REQUEST } else { 0 };
                self.cmos[REG_C] = 0;
                flags
            }
            _ => {
                if !self.held && TIME.contains(&index) {
                    self.store_time(now.shown(self).div_euclid(NS));
                }
                self.cmos[index]
            }
        }
    }

    fn write(&mut self, value: u8, now: Now) {
        let index = usize::from(self.index);
        match index {
            REG_A => self.change_control(REG_A, value & !A_UIP, now),
            // SET also clears the update interrupt enable (datasheet, register B).
            REG_B if value & B_SET != 0 => self.change_control(REG_B, value & !B_UPDATE_INTERRUPT, now),
            REG_B => self.change_control(REG_B, value, now),
            REG_C | REG_D => {}
            _ if TIME.contains(&index) && !self.held => {
                let second = now.shown(self).div_euclid(NS);
                self.store_time(second);
                self.cmos[index] = value;
                // The weekday follows from the date.
                if index != WEEKDAY {
                    self.set_shown_second(now, now.shown(self).rem_euclid(NS));
                }
            }
            _ => self.cmos[index] = value,
        }
    }

    /// Writes register A or B, which may hold the clock or let it go.
    fn change_control(&mut self, register: usize, value: u8, now: Now) {
        let from_reset = self.divider_reset();
        if !self.held {
            // In the format before the change, so that only a held clock sees its bytes reinterpreted.
            self.store_time(now.shown(self).div_euclid(NS));
        }
        self.cmos[register] = value;
        let held = self.is_held();
        if self.held && !held {
            // After a divider reset the first update comes half a second later (datasheet, "Divider control").
            let into_second = if from_reset { NS / 2 } else { now.shown(self).rem_euclid(NS) };
            self.held = false;
            self.set_shown_second(now, into_second);
        }
        self.held = held;
    }

    /// Makes the clock show the stored time, `into_second` ns past its second.
    fn set_shown_second(&mut self, now: Now, into_second: i64) {
        let second = self.stored_time();
        self.offset_ns = second.saturating_mul(NS).saturating_add(into_second).saturating_sub(now.wall_ns);
        self.seen_second = second;
    }

    /// Guest time in ns of the next flag that has its interrupt enabled.
    fn next_event(&self, now: Now) -> Option<u64> {
        let enabled = self.cmos[REG_B] & !self.cmos[REG_C];
        let clock = (!self.held && enabled & (B_UPDATE_INTERRUPT | B_ALARM_INTERRUPT) != 0)
            .then(|| now.ns.saturating_add((NS - now.shown(self).rem_euclid(NS)) as u64));
        let periodic = self
            .period()
            .filter(|_| enabled & C_PERIODIC != 0)
            .map(|period| cycles_to_ns((now.cycle / period + 1).saturating_mul(period), CRYSTAL_HZ));
        clock.into_iter().chain(periodic).min()
    }
}

/// One look at the clocks.
#[derive(Clone, Copy)]
struct Now {
    ns: u64,
    cycle: u64,
    wall_ns: i64,
}

impl Now {
    fn of(clock: &dyn Clock) -> Self {
        let ns = clock.now_ns();
        let wall_ns = i64::try_from(clock.wall_clock().as_nanos()).unwrap_or(i64::MAX);
        Self { ns, cycle: ns_to_cycles(ns, CRYSTAL_HZ), wall_ns }
    }

    /// The time the RTC shows, in ns since 1970.
    fn shown(self, registers: &Registers) -> i64 {
        self.wall_ns.saturating_add(registers.offset_ns)
    }
}

/// Saved state of the [`Rtc`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcState {
    version: u32,
    registers: Registers,
}

/// The real-time clock with 128 bytes of CMOS memory.
pub struct Rtc {
    registers: Mutex<Registers>,
    clock: Arc<dyn Clock>,
    timer: Box<dyn Timer>,
    irq: Arc<dyn IrqLine>,
}

impl Rtc {
    /// Shows the wall clock in UTC; 24 hours, BCD; memory zeroed.
    pub fn new(clock: Arc<dyn Clock>, timers: &dyn TimerService, irq: Arc<dyn IrqLine>) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| {
            let this = this.clone();
            let timer = timers.create(Box::new(move || {
                if let Some(rtc) = this.upgrade() {
                    rtc.change(|_, _| ());
                }
            }));
            let now = Now::of(&*clock);
            let mut cmos = vec![0; 128];
            (cmos[REG_A], cmos[REG_B], cmos[REG_D]) = (A_DEFAULT, B_24_HOURS, D_VALID);
            let registers = Registers {
                index: 0,
                nmi_disabled: false,
                cmos,
                offset_ns: 0,
                held: false,
                seen_second: now.wall_ns.div_euclid(NS),
                seen_cycle: now.cycle,
            };
            Self { registers: Mutex::new(registers), clock, timer, irq }
        })
    }

    /// The reset pin: interrupts off, flags cleared. Time, memory and formats stay (datasheet, RESET pin).
    pub fn reset(&self) {
        self.change(|registers, _| {
            registers.index = 0;
            registers.nmi_disabled = false;
            registers.cmos[REG_B] &= !INTERRUPTS;
            registers.cmos[REG_C] = 0;
        });
    }

    /// Whether port 70h bit 7 lets NMIs through.
    pub fn nmi_enabled(&self) -> bool {
        !self.lock().nmi_disabled
    }

    /// Sets a byte of CMOS memory, as firmware would. Ignores what is not plain memory.
    pub fn set_cmos(&self, index: u8, value: u8) {
        let index = usize::from(index);
        if index > REG_D && !TIME.contains(&index) && index < 128 {
            self.lock().cmos[index] = value;
        }
    }

    /// The state. The time is saved as its distance from the wall clock, so a restored clock is right.
    pub fn save(&self) -> RtcState {
        RtcState { version: VERSION, registers: self.lock().clone() }
    }

    /// Takes over a saved state, with the clock already restored. Leaves the interrupt line alone: its level
    /// is in the interrupt controllers' states.
    ///
    /// # Errors
    /// Another version, or values no RTC can hold.
    pub fn restore(&self, state: &RtcState) -> Result<(), RestoreError> {
        check_version(DEVICE, state.version, VERSION)?;
        let registers = &state.registers;
        check(DEVICE, registers.cmos.len() == 128, "CMOS memory is not 128 bytes")?;
        check(DEVICE, registers.index < 128, "index beyond the CMOS memory")?;
        check(DEVICE, registers.held == registers.is_held(), "held clock differs from its control bits")?;
        check(DEVICE, registers.cmos[REG_A] & A_UIP == 0, "update in progress stored")?;
        check(DEVICE, registers.cmos[REG_C] & !INTERRUPTS == 0, "reserved flags set")?;
        check(DEVICE, registers.cmos[REG_D] == D_VALID, "register D is read-only")?;
        let range = i64::MIN / 4..i64::MAX / 4;
        check(DEVICE, range.contains(&registers.seen_second), "time out of range")?;
        let mut own = self.lock();
        *own = registers.clone();
        self.arm(&own, Now::of(&*self.clock));
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings the flags up to date, makes a change, and carries on what follows.
    fn change<R>(&self, change: impl FnOnce(&mut Registers, Now) -> R) -> R {
        let mut registers = self.lock();
        let now = Now::of(&*self.clock);
        registers.catch_up(now);
        let result = change(&mut registers, now);
        self.irq.set(registers.requested());
        self.arm(&registers, now);
        result
    }

    fn arm(&self, registers: &Registers, now: Now) {
        match registers.next_event(now) {
            Some(deadline) => self.timer.arm(deadline),
            None => self.timer.cancel(),
        }
    }
}

impl BytePorts for Rtc {
    fn read(&self, port: u16) -> u8 {
        // The index port is write-only.
        if port == RTC.start { 0xFF } else { self.change(Registers::read) }
    }

    fn write(&self, port: u16, value: u8) {
        if port == RTC.start {
            let mut registers = self.lock();
            registers.index = value & 0x7F;
            registers.nmi_disabled = value & NMI_DISABLED != 0;
        } else {
            self.change(|registers, now| registers.write(value, now));
        }
    }
}
