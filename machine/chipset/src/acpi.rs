//! ACPI fixed hardware: PM1a event and control blocks, PM timer, GPE0 block.
//!
//! Source: ACPI 6.5 §4.8. SMI_CMD is 0 in the FADT, so the machine is always in ACPI mode (§4.8.2.5): SCI_EN
//! reads as 1 and cannot be cleared.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use serde::{Deserialize, Serialize};

use crate::bus::PioDevice;
use crate::clock::{Clock, Timer, TimerService, cycles_to_ns, ns_to_cycles};
use crate::layout::{GPE0, GPE0_LEN, PM_BASE, PM_TIMER, PM_TIMER_HZ, PM1A_CNT, PM1A_EVT, SLP_TYP_S5};
use crate::lines::{IrqLine, SystemEvent, SystemEventSink};
use crate::state::{RestoreError, check, check_version};

const VERSION: u32 = 1;
const DEVICE: &str = "ACPI";

const TIMER_STATUS: u16 = 1 << 0;
const POWER_BUTTON: u16 = 1 << 8;
/// Timer carry, bus master, global lock, power button, sleep button, RTC, wake.
const PM1_STATUS_MASK: u16 = 0x8731;
/// Timer carry, global lock, power button, sleep button, RTC.
const PM1_ENABLE_MASK: u16 = 0x0721;
const SCI_ENABLED: u16 = 1 << 0;
const SLEEP_ENABLE: u16 = 1 << 13;
/// BM_RLD and SLP_TYP can be written; GBL_RLS and SLP_EN act once and read as 0.
const PM1_CONTROL_WRITABLE: u16 = 0x1C02;
/// Events of the GPE0 block: half of its bytes are status.
const GPES: u8 = GPE0_LEN * 4;

const STATUS_PORT: u16 = PM1A_EVT;
const ENABLE_PORT: u16 = PM1A_EVT + 2;
const GPE_STATUS_PORT: u16 = GPE0;
const GPE_ENABLE_PORT: u16 = GPE0 + 2;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Registers {
    status: u16,
    enable: u16,
    control: u16,
    gpe_status: u16,
    gpe_enable: u16,
    /// Up to which cycle the timer's carry has been seen.
    seen: u64,
}

impl Registers {
    fn new(now: u64) -> Self {
        Self { status: 0, enable: 0, control: SCI_ENABLED, gpe_status: 0, gpe_enable: 0, seen: now }
    }

    /// The carry status is set whenever the timer's top bit changes (§4.8.3.3).
    fn catch_up(&mut self, now: u64) {
        if now >> 31 != self.seen >> 31 {
            self.status |= TIMER_STATUS;
        }
        self.seen = now;
    }

    fn sci(&self) -> bool {
        self.status & self.enable & PM1_ENABLE_MASK != 0 || self.gpe_status & self.gpe_enable != 0
    }

    fn read_byte(&self, port: u16, now: u64) -> u8 {
        let byte = |value: u16, base: u16| value.to_le_bytes()[usize::from(port - base)];
        match port {
            STATUS_PORT..ENABLE_PORT => byte(self.status, STATUS_PORT),
            ENABLE_PORT..PM1A_CNT => byte(self.enable, ENABLE_PORT),
            _ if (PM1A_CNT..PM1A_CNT + 2).contains(&port) => byte(self.control, PM1A_CNT),
            _ if (PM_TIMER..PM_TIMER + 4).contains(&port) => {
                (now as u32).to_le_bytes()[usize::from(port - PM_TIMER)]
            }
            GPE_STATUS_PORT..GPE_ENABLE_PORT => byte(self.gpe_status, GPE_STATUS_PORT),
            _ if (GPE_ENABLE_PORT..GPE_ENABLE_PORT + 2).contains(&port) => {
                byte(self.gpe_enable, GPE_ENABLE_PORT)
            }
            _ => 0,
        }
    }

    /// Returns whether the guest asked to be switched off.
    fn write_byte(&mut self, port: u16, value: u8) -> bool {
        // The byte as a part of its 16-bit register, and the register's bits it does not cover.
        let shift = (port & 1) * 8;
        let (bits, rest) = (u16::from(value) << shift, !(0xFF << shift));
        match port {
            STATUS_PORT..ENABLE_PORT => self.status &= !bits,
            ENABLE_PORT..PM1A_CNT => self.enable = (self.enable & rest | bits) & PM1_ENABLE_MASK,
            _ if (PM1A_CNT..PM1A_CNT + 2).contains(&port) => {
                let control = self.control & rest | bits;
                self.control = control & PM1_CONTROL_WRITABLE | SCI_ENABLED;
                return control & SLEEP_ENABLE != 0 && control >> 10 & 7 == u16::from(SLP_TYP_S5);
            }
            GPE_STATUS_PORT..GPE_ENABLE_PORT => self.gpe_status &= !bits,
            _ if (GPE_ENABLE_PORT..GPE_ENABLE_PORT + 2).contains(&port) => {
                self.gpe_enable = self.gpe_enable & rest | bits;
            }
            _ => {}
        }
        false
    }
}

/// Saved state of the [`AcpiPm`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcpiPmState {
    version: u32,
    registers: Registers,
}

/// The ACPI fixed hardware.
pub struct AcpiPm {
    registers: Mutex<Registers>,
    clock: Arc<dyn Clock>,
    timer: Box<dyn Timer>,
    sci: Arc<dyn IrqLine>,
    events: Arc<dyn SystemEventSink>,
}

impl AcpiPm {
    /// As after power-on. `sci` is a level-triggered line; S5 goes to `events`.
    pub fn new(
        clock: Arc<dyn Clock>,
        timers: &dyn TimerService,
        sci: Arc<dyn IrqLine>,
        events: Arc<dyn SystemEventSink>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| {
            let this = this.clone();
            let timer = timers.create(Box::new(move || {
                if let Some(acpi) = this.upgrade() {
                    acpi.change(|_, _| ());
                }
            }));
            let now = ns_to_cycles(clock.now_ns(), PM_TIMER_HZ);
            Self { registers: Mutex::new(Registers::new(now)), clock, timer, sci, events }
        })
    }

    /// Presses and releases the power button: the guest is asked to shut down.
    pub fn press_power_button(&self) {
        self.change(|registers, _| registers.status |= POWER_BUTTON);
    }

    /// Raises general-purpose event `number` (0 to 15); others are ignored. The DSDT says what it means.
    pub fn raise_gpe(&self, number: u8) {
        if number < GPES {
            self.change(|registers, _| registers.gpe_status |= 1 << number);
        }
    }

    /// As after power-on. The PM timer runs on.
    pub fn reset(&self) {
        self.change(|registers, now| *registers = Registers::new(now));
    }

    /// The state. The PM timer follows guest time: the clock must be saved and restored with it.
    pub fn save(&self) -> AcpiPmState {
        AcpiPmState { version: VERSION, registers: self.lock().clone() }
    }

    /// Takes over a saved state, with the clock already restored. Leaves the SCI alone: its level is in the
    /// interrupt controllers' states.
    ///
    /// # Errors
    /// Another version, or values the hardware cannot hold.
    pub fn restore(&self, state: &AcpiPmState) -> Result<(), RestoreError> {
        check_version(DEVICE, state.version, VERSION)?;
        let registers = &state.registers;
        check(DEVICE, registers.status & !PM1_STATUS_MASK == 0, "reserved PM1 status bits set")?;
        check(DEVICE, registers.enable & !PM1_ENABLE_MASK == 0, "reserved PM1 enable bits set")?;
        let control = registers.control & !PM1_CONTROL_WRITABLE;
        check(DEVICE, control == SCI_ENABLED, "impossible PM1 control")?;
        check(DEVICE, registers.seen <= u64::MAX / 2, "PM timer out of range")?;
        let mut own = self.lock();
        *own = registers.clone();
        self.arm(&own);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<R>(&self, change: impl FnOnce(&mut Registers, u64) -> R) -> R {
        let mut registers = self.lock();
        let now = ns_to_cycles(self.clock.now_ns(), PM_TIMER_HZ);
        registers.catch_up(now);
        let result = change(&mut registers, now);
        self.sci.set(registers.sci());
        self.arm(&registers);
        result
    }

    fn arm(&self, registers: &Registers) {
        if registers.enable & !registers.status & TIMER_STATUS != 0 {
            let carry = ((registers.seen >> 31) + 1) << 31;
            self.timer.arm(cycles_to_ns(carry, PM_TIMER_HZ));
        } else {
            self.timer.cancel();
        }
    }

    fn timer_value(&self) -> u32 {
        ns_to_cycles(self.clock.now_ns(), PM_TIMER_HZ) as u32
    }
}

impl PioDevice for AcpiPm {
    fn read(&self, port: u16, data: &mut [u8]) {
        // The timer is read very often, as a clock source: no lock for it.
        if port == PM_TIMER && data.len() == 4 {
            data.copy_from_slice(&self.timer_value().to_le_bytes());
            return;
        }
        self.change(|registers, now| {
            for (port, byte) in (port..=u16::MAX).zip(data) {
                *byte = registers.read_byte(port, now);
            }
        });
    }

    fn write(&self, port: u16, data: &[u8]) {
        let power_off = self.change(|registers, _| {
            let mut power_off = false;
            for (port, byte) in (port..=u16::MAX).zip(data) {
                power_off |= registers.write_byte(port, *byte);
            }
            power_off
        });
        if power_off {
            self.events.raise(SystemEvent::PowerOff);
        }
    }
}

const _: () = assert!(PM_BASE.is_multiple_of(2) && GPE0.is_multiple_of(2), "registers are 16 bits wide");
