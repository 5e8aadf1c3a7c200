//! The 16550A serial port.
//!
//! Source: National Semiconductor PC16550D datasheet. The line is as fast as the host: what is written is
//! sent at once, whatever the divisor, so the transmitter is always empty when the guest looks.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::bus::BytePorts;
use crate::lines::{IrqLine, SerialSink};
use crate::state::{RestoreError, check, check_version};

const VERSION: u32 = 1;
const DEVICE: &str = "UART";
const FIFO_SIZE: usize = 16;

const IER_RECEIVED: u8 = 1 << 0;
const IER_TRANSMIT_EMPTY: u8 = 1 << 1;
const IER_LINE_STATUS: u8 = 1 << 2;
const IER_MODEM_STATUS: u8 = 1 << 3;
const IER_MASK: u8 = 0x0F;

const IIR_NONE: u8 = 0x01;
const IIR_MODEM_STATUS: u8 = 0x00;
const IIR_TRANSMIT_EMPTY: u8 = 0x02;
const IIR_RECEIVED: u8 = 0x04;
const IIR_LINE_STATUS: u8 = 0x06;
const IIR_TIMEOUT: u8 = 0x0C;
const IIR_FIFO: u8 = 0xC0;

const FCR_ENABLE: u8 = 1 << 0;
const FCR_CLEAR_RECEIVE: u8 = 1 << 1;
/// Enable, DMA mode and trigger level stay; the clear bits act once.
const FCR_STORED: u8 = 0xC9;

const LCR_BREAK: u8 = 1 << 6;
const LCR_DLAB: u8 = 1 << 7;

const MCR_OUT2: u8 = 1 << 3;
const MCR_LOOPBACK: u8 = 1 << 4;
const MCR_MASK: u8 = 0x1F;

const LSR_DATA: u8 = 1 << 0;
const LSR_OVERRUN: u8 = 1 << 1;
const LSR_BREAK: u8 = 1 << 4;
const LSR_TRANSMIT_EMPTY: u8 = 0x60;
const LSR_ERRORS: u8 = 0x1E;

/// CTS, DSR and DCD: somebody is connected.
const MSR_CONNECTED: u8 = 0xB0;
const MSR_DELTAS: u8 = 0x0F;
const MSR_RING: u8 = 1 << 6;
const MSR_RING_TRAILING: u8 = 1 << 2;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Registers {
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    scratch: u8,
    divisor: u16,
    /// Overrun and break; the other bits of the line status follow from the rest.
    line_errors: u8,
    /// The delta bits of the modem status.
    modem_deltas: u8,
    received: VecDeque<u8>,
    transmit_empty_pending: bool,
    /// `push_input` could not take everything.
    host_waits: bool,
}

impl Registers {
    fn new() -> Self {
        Self {
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: 0,
            scratch: 0,
            // 9600 baud, as firmware leaves it.
            divisor: 12,
            line_errors: 0,
            modem_deltas: 0,
            received: VecDeque::with_capacity(FIFO_SIZE),
            transmit_empty_pending: false,
            host_waits: false,
        }
    }

    fn fifo(&self) -> bool {
        self.fcr & FCR_ENABLE != 0
    }

    fn loopback(&self) -> bool {
        self.mcr & MCR_LOOPBACK != 0
    }

    fn capacity(&self) -> usize {
        if self.fifo() { FIFO_SIZE } else { 1 }
    }

    fn trigger(&self) -> usize {
        match (self.fifo(), self.fcr >> 6) {
            (false, _) | (true, 0) => 1,
            (true, 1) => 4,
            (true, 2) => 8,
            (true, _) => 14,
        }
    }

    fn line_status(&self) -> u8 {
        let data = if self.received.is_empty() { 0 } else { LSR_DATA };
        LSR_TRANSMIT_EMPTY | data | self.line_errors
    }

    /// The modem inputs, without deltas: in loopback the modem outputs (datasheet §8.6.8).
    fn modem_inputs(&self) -> u8 {
        if !self.loopback() {
            return MSR_CONNECTED;
        }
        let (dtr, rts, outs) = (self.mcr & 1, self.mcr >> 1 & 1, self.mcr >> 2 & 3);
        rts << 4 | dtr << 5 | outs << 6
    }

    /// The interrupt with the highest priority (datasheet, table IV).
    fn interrupt(&self) -> u8 {
        let enabled = |bit| self.ier & bit != 0;
        if enabled(IER_LINE_STATUS) && self.line_errors != 0 {
            IIR_LINE_STATUS
        } else if enabled(IER_RECEIVED) && self.received.len() >= self.trigger() {
            IIR_RECEIVED
        } else if enabled(IER_RECEIVED) && !self.received.is_empty() {
            // Below the trigger level the guest is told after four idle character times. The line is idle as
            // soon as the host has pushed what it has.
            IIR_TIMEOUT
        } else if enabled(IER_TRANSMIT_EMPTY) && self.transmit_empty_pending {
            IIR_TRANSMIT_EMPTY
        } else if enabled(IER_MODEM_STATUS) && self.modem_deltas != 0 {
            IIR_MODEM_STATUS
        } else {
            IIR_NONE
        }
    }

    /// OUT2 gates the interrupt on a PC; loopback disconnects it.
    fn irq(&self) -> bool {
        self.interrupt() != IIR_NONE && self.mcr & MCR_OUT2 != 0 && !self.loopback()
    }

    fn receive(&mut self, byte: u8) {
        if self.received.len() < self.capacity() {
            self.received.push_back(byte);
            return;
        }
        self.line_errors |= LSR_OVERRUN;
        if !self.fifo() {
            // Without FIFO the new byte replaces the unread one; with it, the new byte is lost.
            self.received.clear();
            self.received.push_back(byte);
        }
    }

    fn write_fcr(&mut self, value: u8) {
        let switched = (value ^ self.fcr) & FCR_ENABLE != 0;
        if switched || value & FCR_CLEAR_RECEIVE != 0 {
            self.received.clear();
        }
        // Without the enable bit the others are not programmed (datasheet §8.5).
        self.fcr = if value & FCR_ENABLE != 0 { value & FCR_STORED } else { 0 };
    }

    fn write_mcr(&mut self, value: u8) {
        let before = self.modem_inputs();
        self.mcr = value & MCR_MASK;
        let after = self.modem_inputs();
        let changed = before ^ after;
        self.modem_deltas |= (changed & !MSR_RING) >> 4;
        if before & MSR_RING != 0 && after & MSR_RING == 0 {
            self.modem_deltas |= MSR_RING_TRAILING;
        }
    }

    fn write_ier(&mut self, value: u8) {
        let newly = value & !self.ier;
        self.ier = value & IER_MASK;
        // Enabling the interrupt with the transmitter empty raises it.
        if newly & IER_TRANSMIT_EMPTY != 0 {
            self.transmit_empty_pending = true;
        }
    }

    fn read(&mut self, register: u16) -> u8 {
        let dlab = self.lcr & LCR_DLAB != 0;
        match register {
            0 if dlab => self.divisor as u8,
            0 => self.received.pop_front().unwrap_or(0),
            1 if dlab => (self.divisor >> 8) as u8,
            1 => self.ier,
            2 => {
                let interrupt = self.interrupt();
                if interrupt == IIR_TRANSMIT_EMPTY {
                    self.transmit_empty_pending = false;
                }
                interrupt | if self.fifo() { IIR_FIFO } else { 0 }
            }
            3 => self.lcr,
            4 => self.mcr,
            5 => {
                let status = self.line_status();
                self.line_errors = 0;
                status
            }
            6 => {
                let status = self.modem_inputs() | self.modem_deltas;
                self.modem_deltas = 0;
                status
            }
            _ => self.scratch,
        }
    }

    fn write_lcr(&mut self, value: u8) {
        // A break looped back arrives as a zero byte with the break bit.
        if self.loopback() && value & !self.lcr & LCR_BREAK != 0 {
            self.receive(0);
            self.line_errors |= LSR_BREAK;
        }
        self.lcr = value;
    }

    fn validate(&self) -> Result<(), RestoreError> {
        check(DEVICE, self.ier & !IER_MASK == 0, "reserved IER bits set")?;
        check(DEVICE, self.fcr & !FCR_STORED == 0, "reserved FCR bits set")?;
        check(DEVICE, self.mcr & !MCR_MASK == 0, "reserved MCR bits set")?;
        check(DEVICE, self.line_errors & !LSR_ERRORS == 0, "reserved LSR bits set")?;
        check(DEVICE, self.modem_deltas & !MSR_DELTAS == 0, "reserved MSR bits set")?;
        check(DEVICE, self.received.len() <= self.capacity(), "more received bytes than the FIFO holds")
    }
}

/// Saved state of a [`Uart`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UartState {
    version: u32,
    registers: Registers,
}

type SpaceCallback = Box<dyn Fn() + Send + Sync>;

/// A serial port.
pub struct Uart {
    registers: Mutex<Registers>,
    irq: Arc<dyn IrqLine>,
    output: Arc<dyn SerialSink>,
    on_space: Mutex<Option<Arc<SpaceCallback>>>,
}

impl Uart {
    /// As after power-on. What the guest sends goes to `output`.
    pub fn new(irq: Arc<dyn IrqLine>, output: Arc<dyn SerialSink>) -> Self {
        Self { registers: Mutex::new(Registers::new()), irq, output, on_space: Mutex::new(None) }
    }

    /// Gives the guest input; returns how many bytes the port took. When that is fewer than offered, the
    /// space callback comes as soon as there is room again. In loopback the port takes none.
    pub fn push_input(&self, bytes: &[u8]) -> usize {
        let mut registers = self.lock();
        let space = if registers.loopback() {
            0
        } else {
            registers.capacity().saturating_sub(registers.received.len())
        };
        let taken = space.min(bytes.len());
        registers.received.extend(&bytes[..taken]);
        registers.host_waits = taken < bytes.len();
        self.irq.set(registers.irq());
        taken
    }

    /// Sets what is called when the port has room after `push_input` had to refuse bytes. It runs on a vCPU
    /// thread without any lock of the port, and may call `push_input`.
    pub fn on_space(&self, callback: SpaceCallback) {
        *self.on_space.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(callback));
    }

    /// As after power-on.
    pub fn reset(&self) {
        self.change(|registers| {
            let host_waits = registers.host_waits;
            *registers = Registers { host_waits, ..Registers::new() };
        });
    }

    /// The state, with the received bytes the guest has not read.
    pub fn save(&self) -> UartState {
        UartState { version: VERSION, registers: self.lock().clone() }
    }

    /// Takes over a saved state. Leaves the interrupt line alone: its level is in the interrupt controllers'
    /// states.
    ///
    /// # Errors
    /// Another version, or values no 16550A can hold.
    pub fn restore(&self, state: &UartState) -> Result<(), RestoreError> {
        check_version(DEVICE, state.version, VERSION)?;
        state.registers.validate()?;
        *self.lock() = state.registers.clone();
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the registers, carries the interrupt on, and tells the host about room.
    fn change<R>(&self, change: impl FnOnce(&mut Registers) -> R) -> R {
        let mut registers = self.lock();
        let result = change(&mut registers);
        self.irq.set(registers.irq());
        let room = registers.received.len() < registers.capacity() && !registers.loopback();
        let tell_host = room && std::mem::take(&mut registers.host_waits);
        drop(registers);
        if tell_host {
            let callback = self.on_space.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some(callback) = callback {
                callback();
            }
        }
        result
    }

    fn transmit(&self, registers: &mut Registers, byte: u8) {
        // The line falls while the byte is under way, so an edge-triggered input sees the next request.
        registers.transmit_empty_pending = false;
        self.irq.set(registers.irq());
        if registers.loopback() {
            registers.receive(byte);
        } else {
            self.output.write(&[byte]);
        }
        registers.transmit_empty_pending = true;
    }
}

impl BytePorts for Uart {
    fn read(&self, port: u16) -> u8 {
        self.change(|registers| registers.read(port & 7))
    }

    fn write(&self, port: u16, value: u8) {
        self.change(|registers| {
            let dlab = registers.lcr & LCR_DLAB != 0;
            match port & 7 {
                0 if dlab => registers.divisor = registers.divisor & 0xFF00 | u16::from(value),
                0 => self.transmit(registers, value),
                1 if dlab => registers.divisor = registers.divisor & 0x00FF | u16::from(value) << 8,
                1 => registers.write_ier(value),
                2 => registers.write_fcr(value),
                3 => registers.write_lcr(value),
                4 => registers.write_mcr(value),
                // The status registers are read-only.
                5 | 6 => {}
                _ => registers.scratch = value,
            }
        });
    }
}
