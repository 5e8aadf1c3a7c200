//! The 8254 interval timer and port 61h, which gates its counter 2.
//!
//! Sources: Intel 8254 datasheet (231164); PIIX3 datasheet §2.5.3 for port 61h.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use serde::{Deserialize, Serialize};

use crate::bus::BytePorts;
use crate::clock::{Clock, Timer, TimerService, cycles_to_ns, ns_to_cycles};
use crate::counter::Counter;
use crate::layout::{PIT, PIT_HZ, PORT_B};
use crate::lines::IrqLine;
use crate::state::{RestoreError, check, check_version};

const VERSION: u32 = 1;
const DEVICE: &str = "PIT";

const PORT_B_GATE2: u8 = 1 << 0;
/// Gate, speaker and the two error enables can be written.
const PORT_B_WRITABLE: u8 = 0x0F;
const PORT_B_REFRESH: u8 = 1 << 4;
const PORT_B_OUT2: u8 = 1 << 5;
/// DRAM refresh toggles its bit every 15.085 µs: 18 cycles of the 8254.
const REFRESH_CYCLES: u64 = 18;
/// Ticks come no closer than this (10 kHz), or a guest could keep the host's timer thread busy for nothing.
const MIN_TICK_CYCLES: u64 = PIT_HZ / 10_000;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Registers {
    counters: [Counter; 3],
    port_b: u8,
    /// Up to which cycle counter 0's rising edges have been carried to the interrupt line.
    seen: u64,
    /// The cycle of the last edge carried on.
    last_tick: u64,
}

impl Registers {
    fn new(now: u64) -> Self {
        let counters = [Counter::new(true), Counter::new(true), Counter::new(false)];
        Self { counters, port_b: 0, seen: now, last_tick: now }
    }
}

/// Saved state of the [`Pit`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PitState {
    version: u32,
    registers: Registers,
}

/// The interval timer.
pub struct Pit {
    registers: Mutex<Registers>,
    clock: Arc<dyn Clock>,
    timer: Box<dyn Timer>,
    irq: Arc<dyn IrqLine>,
}

impl Pit {
    /// As after power-on. `irq` follows the output of counter 0.
    pub fn new(clock: Arc<dyn Clock>, timers: &dyn TimerService, irq: Arc<dyn IrqLine>) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| {
            let this = this.clone();
            let timer = timers.create(Box::new(move || {
                if let Some(pit) = this.upgrade() {
                    pit.change(|_, _| ());
                }
            }));
            let now = ns_to_cycles(clock.now_ns(), PIT_HZ);
            Self { registers: Mutex::new(Registers::new(now)), clock, timer, irq }
        })
    }

    /// As after power-on.
    pub fn reset(&self) {
        self.change(|registers, now| *registers = Registers::new(now));
    }

    /// The state. It refers to guest time: the clock must be saved and restored with it.
    pub fn save(&self) -> PitState {
        PitState { version: VERSION, registers: self.lock().clone() }
    }

    /// Takes over a saved state, with the clock already restored. Leaves the interrupt line alone: its level
    /// is in the interrupt controllers' states.
    ///
    /// # Errors
    /// Another version, or values no 8254 can hold.
    pub fn restore(&self, state: &PitState) -> Result<(), RestoreError> {
        check_version(DEVICE, state.version, VERSION)?;
        let registers = &state.registers;
        check(DEVICE, registers.counters.iter().all(Counter::is_valid), "impossible counter")?;
        check(DEVICE, registers.port_b & !PORT_B_WRITABLE == 0, "reserved port 61h bits set")?;
        let gates = [true, true, registers.port_b & PORT_B_GATE2 != 0];
        check(
            DEVICE,
            registers.counters.each_ref().map(Counter::gate) == gates,
            "gate differs from its port",
        )?;
        check(DEVICE, registers.last_tick <= registers.seen, "a tick in the future")?;
        let mut own = self.lock();
        *own = registers.clone();
        self.arm(&own);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings the registers up to the present cycle, changes them, and carries on what follows.
    fn change<R>(&self, change: impl FnOnce(&mut Registers, u64) -> R) -> R {
        let mut registers = self.lock();
        let now = ns_to_cycles(self.clock.now_ns(), PIT_HZ);
        self.catch_up(&mut registers, now);
        let result = change(&mut registers, now);
        self.irq.set(registers.counters[0].line(now));
        self.arm(&registers);
        result
    }

    /// Carries the rising edges since the last time to the interrupt line: any number of them is one edge,
    /// as a real interrupt controller would have kept no more.
    fn catch_up(&self, registers: &mut Registers, now: u64) {
        let seen = registers.seen;
        registers.seen = now;
        let rise = registers.counters[0].next_rise(seen);
        for counter in &mut registers.counters {
            counter.advance(now);
        }
        if rise.is_some_and(|rise| rise <= now) {
            registers.last_tick = now;
            self.irq.pulse();
        }
    }

    fn arm(&self, registers: &Registers) {
        match registers.counters[0].next_rise(registers.seen) {
            Some(cycle) => {
                let earliest = registers.last_tick.saturating_add(MIN_TICK_CYCLES);
                self.timer.arm(cycles_to_ns(cycle.max(earliest), PIT_HZ));
            }
            None => self.timer.cancel(),
        }
    }
}

/// The control word: which counter, or the read-back command (datasheet, "Read-back command").
fn write_control(counters: &mut [Counter; 3], value: u8, now: u64) {
    match (value >> 6, value >> 4 & 3) {
        (3, _) => {
            for (i, counter) in counters.iter_mut().enumerate() {
                if value & (2 << i) != 0 {
                    if value & 0x20 == 0 {
                        counter.latch_count(now);
                    }
                    if value & 0x10 == 0 {
                        counter.latch_status(now);
                    }
                }
            }
        }
        (i, 0) => counters[usize::from(i)].latch_count(now),
        (i, _) => counters[usize::from(i)].write_control(value),
    }
}

impl BytePorts for Pit {
    fn read(&self, port: u16) -> u8 {
        self.change(|registers, now| {
            if port == PORT_B.start {
                let refresh = if (now / REFRESH_CYCLES) & 1 != 0 { PORT_B_REFRESH } else { 0 };
                let out2 = if registers.counters[2].output(now) { PORT_B_OUT2 } else { 0 };
                return registers.port_b | refresh | out2;
            }
            // The control word cannot be read.
            registers.counters.get_mut(usize::from(port & 3)).map_or(0xFF, |counter| counter.read(now))
        })
    }

    fn write(&self, port: u16, value: u8) {
        self.change(|registers, now| {
            if port == PORT_B.start {
                registers.port_b = value & PORT_B_WRITABLE;
                registers.counters[2].set_gate(value & PORT_B_GATE2 != 0, now);
            } else if port == PIT.end - 1 {
                write_control(&mut registers.counters, value, now);
            } else {
                registers.counters[usize::from(port & 3)].write(value, now);
            }
        });
    }
}
