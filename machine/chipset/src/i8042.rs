//! The 8042 keyboard controller, with nothing plugged in, and port 92h.
//!
//! Source: IBM PS/2 Technical Reference, "Keyboard and Auxiliary Device Controller". A command to the missing
//! keyboard is answered at once with a time-out, so drivers give up without waiting.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::bus::BytePorts;
use crate::layout::{I8042_DATA, PORT_A};
use crate::lines::{IrqLine, SystemEvent, SystemEventSink};
use crate::state::{RestoreError, check, check_version};

const VERSION: u32 = 1;
const DEVICE: &str = "i8042";

const STATUS_OUTPUT_FULL: u8 = 1 << 0;
const STATUS_SYSTEM: u8 = 1 << 2;
const STATUS_LAST_WAS_COMMAND: u8 = 1 << 3;
const STATUS_NOT_LOCKED: u8 = 1 << 4;
const STATUS_AUX: u8 = 1 << 5;
const STATUS_TIMEOUT: u8 = 1 << 6;

const MODE_KEYBOARD_INTERRUPT: u8 = 1 << 0;
const MODE_SYSTEM: u8 = 1 << 2;
const MODE_KEYBOARD_DISABLED: u8 = 1 << 4;
const MODE_AUX_DISABLED: u8 = 1 << 5;

/// Output port bit 0: low holds the processor in reset.
const OUT_NOT_RESET: u8 = 1 << 0;
const OUT_A20: u8 = 1 << 1;

const SELF_TEST_PASSED: u8 = 0x55;
const INTERFACE_OK: u8 = 0x00;
const INTERFACE_CLOCK_STUCK_LOW: u8 = 0x01;
const RESEND: u8 = 0xFE;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Registers {
    /// The byte for the guest, and the status bits that go with it.
    output: Option<(u8, u8)>,
    mode: u8,
    /// The command that waits for its data byte.
    command: Option<u8>,
    last_was_command: bool,
    output_port: u8,
    memory: [u8; 32],
}

impl Registers {
    fn new() -> Self {
        Self {
            output: None,
            mode: MODE_SYSTEM | MODE_KEYBOARD_DISABLED | MODE_AUX_DISABLED,
            command: None,
            last_was_command: false,
            output_port: OUT_NOT_RESET | OUT_A20,
            memory: [0; 32],
        }
    }

    fn status(&self) -> u8 {
        let output = self.output.map_or(0, |(_, status)| STATUS_OUTPUT_FULL | status);
        let command = if self.last_was_command { STATUS_LAST_WAS_COMMAND } else { 0 };
        // The system flag is the mode byte's.
        output | command | STATUS_NOT_LOCKED | self.mode & STATUS_SYSTEM
    }

    fn answer(&mut self, byte: u8) {
        self.output = Some((byte, 0));
    }

    /// Returns whether the guest asked for a reset.
    fn write_command(&mut self, command: u8) -> bool {
        self.last_was_command = true;
        self.command = None;
        match command {
            0x20 => self.answer(self.mode),
            0x21..=0x3F => self.answer(self.memory[usize::from(command & 0x1F)]),
            // Those that take a data byte: write memory, output port, output buffers, auxiliary device.
            0x60..=0x7F | 0xD1..=0xD4 => self.command = Some(command),
            0xA7 => self.mode |= MODE_AUX_DISABLED,
            0xA8 => self.mode &= !MODE_AUX_DISABLED,
            // No auxiliary device is wired: its clock line does not rise.
            0xA9 => self.answer(INTERFACE_CLOCK_STUCK_LOW),
            0xAA => {
                self.mode |= MODE_SYSTEM;
                self.answer(SELF_TEST_PASSED);
            }
            0xAB => self.answer(INTERFACE_OK),
            0xAD => self.mode |= MODE_KEYBOARD_DISABLED,
            0xAE => self.mode &= !MODE_KEYBOARD_DISABLED,
            // Input port: keyboard not locked, manufacturing jumper not set.
            0xC0 => self.answer(0xA0),
            0xD0 => self.answer(self.output_port),
            0xDD => self.output_port &= !OUT_A20,
            0xDF => self.output_port |= OUT_A20,
            // Pulses the output lines whose bits are 0; line 0 is the reset.
            0xF0..=0xFF => return command & OUT_NOT_RESET == 0,
            _ => {}
        }
        false
    }

    /// Returns whether the guest asked for a reset.
    fn write_data(&mut self, value: u8) -> bool {
        self.last_was_command = false;
        match self.command.take() {
            Some(0x60) => self.mode = value,
            Some(command @ 0x61..=0x7F) => self.memory[usize::from(command & 0x1F)] = value,
            Some(0xD1) => {
                self.output_port = value | OUT_NOT_RESET;
                return value & OUT_NOT_RESET == 0;
            }
            Some(0xD2) => self.answer(value),
            // A loop-back to the auxiliary port, which is not there: it comes back on the keyboard's side,
            // which drivers take for "no auxiliary port".
            Some(0xD3) => self.answer(value),
            // To the auxiliary device or to the keyboard: nobody answers.
            Some(0xD4) => self.output = Some((RESEND, STATUS_TIMEOUT | STATUS_AUX)),
            _ => {
                self.mode &= !MODE_KEYBOARD_DISABLED;
                self.output = Some((RESEND, STATUS_TIMEOUT));
            }
        }
        false
    }

    fn irq(&self) -> bool {
        let from_keyboard = self.output.is_some_and(|(_, status)| status & STATUS_AUX == 0);
        from_keyboard && self.mode & MODE_KEYBOARD_INTERRUPT != 0
    }
}

/// Saved state of the [`I8042`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct I8042State {
    version: u32,
    registers: Registers,
}

/// The keyboard controller: self-test, reset, A20 and port tests, no keyboard.
///
/// The A20 line is kept and reported but gates nothing: memory above 1 MiB is always reachable.
pub struct I8042 {
    registers: Mutex<Registers>,
    irq: Arc<dyn IrqLine>,
    events: Arc<dyn SystemEventSink>,
}

impl I8042 {
    /// As after power-on with the self-test done.
    pub fn new(irq: Arc<dyn IrqLine>, events: Arc<dyn SystemEventSink>) -> Self {
        Self { registers: Mutex::new(Registers::new()), irq, events }
    }

    /// As after power-on.
    pub fn reset(&self) {
        let mut registers = self.lock();
        *registers = Registers::new();
        self.irq.set(false);
    }

    /// The state.
    pub fn save(&self) -> I8042State {
        I8042State { version: VERSION, registers: self.lock().clone() }
    }

    /// Takes over a saved state. Leaves the interrupt line alone: its level is in the interrupt controllers'
    /// states.
    ///
    /// # Errors
    /// Another version, or values no controller can hold.
    pub fn restore(&self, state: &I8042State) -> Result<(), RestoreError> {
        check_version(DEVICE, state.version, VERSION)?;
        let registers = &state.registers;
        let command = registers.command.is_none_or(|command| matches!(command, 0x60..=0x7F | 0xD1..=0xD4));
        check(DEVICE, command, "a command without data waits for data")?;
        let status = registers.output.is_none_or(|(_, status)| status & !(STATUS_TIMEOUT | STATUS_AUX) == 0);
        check(DEVICE, status, "impossible status of the output buffer")?;
        check(DEVICE, registers.output_port & OUT_NOT_RESET != 0, "reset line low")?;
        *self.lock() = registers.clone();
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_port_a(registers: &mut Registers, value: u8) -> bool {
        let a20 = value & OUT_A20;
        registers.output_port = registers.output_port & !OUT_A20 | a20;
        value & 1 != 0
    }
}

impl BytePorts for I8042 {
    fn read(&self, port: u16) -> u8 {
        let mut registers = self.lock();
        if port == PORT_A.start {
            // Bit 1 is A20; bit 0, fast reset, reads as 0 since a reset cleared it.
            return registers.output_port & OUT_A20;
        }
        if port != I8042_DATA.start {
            return registers.status();
        }
        let byte = registers.output.take().map_or(0, |(byte, _)| byte);
        self.irq.set(registers.irq());
        byte
    }

    fn write(&self, port: u16, value: u8) {
        let mut registers = self.lock();
        // An answer not yet read is replaced: its request ends and the new one makes an edge.
        self.irq.set(false);
        let reset = if port == PORT_A.start {
            Self::write_port_a(&mut registers, value)
        } else if port == I8042_DATA.start {
            registers.write_data(value)
        } else {
            registers.write_command(value)
        };
        self.irq.set(registers.irq());
        drop(registers);
        if reset {
            self.events.raise(SystemEvent::Reset);
        }
    }
}
