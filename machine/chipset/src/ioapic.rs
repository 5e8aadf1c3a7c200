//! The I/O APIC.
//!
//! Sources: Intel 82093AA datasheet (290566); Intel 64 and IA-32 SDM vol. 3 §11.11 for the message format.
//! The version register says 0x20, which promises the EOI register at offset 0x40 (ICH datasheets, "I/O APIC").

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::bus::MmioDevice;
use crate::layout::{IOAPIC_PINS, LAPIC_BASE};
use crate::lines::{MsiMessage, MsiSink};
use crate::state::{RestoreError, check, check_version};

const VERSION: u32 = 1;
const DEVICE: &str = "IOAPIC";
const PINS: usize = IOAPIC_PINS as usize;

const IOREGSEL: u64 = 0x00;
const IOWIN: u64 = 0x10;
const EOI: u64 = 0x40;

const REG_ID: u8 = 0x00;
const REG_VERSION: u8 = 0x01;
const REG_ARBITRATION: u8 = 0x02;
const REG_REDIRECTION: u8 = 0x10;
const VERSION_VALUE: u32 = 0x20 | (IOAPIC_PINS as u32 - 1) << 16;
const ID_MASK: u32 = 0x0F00_0000;

const RTE_DESTINATION_LOGICAL: u64 = 1 << 11;
const RTE_DELIVERY_STATUS: u64 = 1 << 12;
const RTE_REMOTE_IRR: u64 = 1 << 14;
const RTE_LEVEL: u64 = 1 << 15;
const RTE_MASKED: u64 = 1 << 16;
/// Bits software can write: not delivery status, remote IRR and the reserved ones.
const RTE_WRITABLE: u64 = 0xFF00_0000_0001_FFFF & !(RTE_DELIVERY_STATUS | RTE_REMOTE_IRR);

/// A pin's MSI in the form the local APICs take.
fn message(entry: u64) -> MsiMessage {
    let destination = entry >> 56;
    let logical = u64::from(entry & RTE_DESTINATION_LOGICAL != 0);
    let assert = 1 << 14;
    // Vector, delivery mode and trigger mode have the same places in both forms.
    let data = (entry & 0x7FF) | assert | (entry & RTE_LEVEL);
    MsiMessage { address: LAPIC_BASE | destination << 12 | logical << 2, data: data as u32 }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Registers {
    id: u32,
    select: u8,
    redirection: [u64; PINS],
    /// Input levels, one bit for each pin.
    lines: u32,
}

impl Registers {
    fn new() -> Self {
        Self { id: 0, select: 0, redirection: [RTE_MASKED; PINS], lines: 0 }
    }

    /// Sends `pin`'s level interrupt if its line calls for it and the last one has been ended.
    fn service_level(&mut self, pin: usize, out: &mut Vec<MsiMessage>) {
        let entry = self.redirection[pin];
        if entry & RTE_LEVEL != 0
            && entry & (RTE_MASKED | RTE_REMOTE_IRR) == 0
            && self.lines & (1 << pin) != 0
        {
            out.push(message(entry));
            self.redirection[pin] |= RTE_REMOTE_IRR;
        }
    }

    fn set_line(&mut self, pin: usize, asserted: bool, out: &mut Vec<MsiMessage>) {
        let bit = 1 << pin;
        let rising = asserted && self.lines & bit == 0;
        if asserted {
            self.lines |= bit;
        } else {
            self.lines &= !bit;
        }
        let entry = self.redirection[pin];
        if entry & RTE_LEVEL != 0 {
            self.service_level(pin, out);
        } else if rising && entry & RTE_MASKED == 0 {
            // "Edge-sensitive interrupts signaled on a masked interrupt pin are ignored" (§3.2.4).
            out.push(message(entry));
        }
    }

    fn eoi(&mut self, vector: u8, out: &mut Vec<MsiMessage>) {
        for pin in 0..PINS {
            let entry = self.redirection[pin];
            if entry & RTE_LEVEL != 0 && entry & RTE_REMOTE_IRR != 0 && entry as u8 == vector {
                self.redirection[pin] &= !RTE_REMOTE_IRR;
                self.service_level(pin, out);
            }
        }
    }

    fn read(&self) -> u32 {
        match self.select {
            REG_ID | REG_ARBITRATION => self.id,
            REG_VERSION => VERSION_VALUE,
            _ => match self.selected_entry() {
                Some((pin, false)) => self.redirection[pin] as u32,
                Some((pin, true)) => (self.redirection[pin] >> 32) as u32,
                None => 0,
            },
        }
    }

    /// The redirection entry selected, and whether its upper half is.
    fn selected_entry(&self) -> Option<(usize, bool)> {
        let index = usize::from(self.select.checked_sub(REG_REDIRECTION)?);
        (index / 2 < PINS).then_some((index / 2, index % 2 != 0))
    }

    /// Returns whether a redirection entry changed.
    fn write(&mut self, value: u32, out: &mut Vec<MsiMessage>) -> bool {
        if self.select == REG_ID {
            self.id = value & ID_MASK;
        }
        let Some((pin, upper)) = self.selected_entry() else { return false };
        let old = self.redirection[pin];
        let wanted = if upper {
            old & 0xFFFF_FFFF | u64::from(value) << 32
        } else {
            old & !0xFFFF_FFFF | u64::from(value)
        };
        let mut new = wanted & RTE_WRITABLE;
        // An entry made edge triggered forgets its remote IRR; kernels use it to end a stuck interrupt.
        if new & RTE_LEVEL != 0 {
            new |= old & RTE_REMOTE_IRR;
        }
        self.redirection[pin] = new;
        self.service_level(pin, out);
        (old ^ new) & !RTE_REMOTE_IRR != 0
    }
}

/// Saved state of the [`IoApic`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoApicState {
    version: u32,
    registers: Registers,
}

/// The I/O APIC: 24 pins, messages out to an [`MsiSink`].
///
/// Polarity bits are stored and not interpreted: a line carries "asserted", whatever its voltage.
pub struct IoApic {
    registers: Mutex<Registers>,
    sink: Arc<dyn MsiSink>,
}

impl IoApic {
    /// All pins masked, as after power-on.
    pub fn new(sink: Arc<dyn MsiSink>) -> Self {
        Self { registers: Mutex::new(Registers::new()), sink }
    }

    /// Drives `pin`; numbers above 23 are ignored.
    pub fn set_line(&self, pin: u8, asserted: bool) {
        if pin < IOAPIC_PINS {
            self.change(|registers, out| {
                registers.set_line(pin.into(), asserted, out);
                false
            });
        }
    }

    /// A local APIC broadcast the end of level-triggered interrupt `vector`. Call it without any lock that
    /// the [`MsiSink`] takes: a line still asserted sends its next message at once.
    pub fn eoi(&self, vector: u8) {
        self.change(|registers, out| {
            registers.eoi(vector, out);
            false
        });
    }

    /// The message each pin would send, `None` where it is masked.
    pub fn routes(&self) -> [Option<MsiMessage>; PINS] {
        self.lock().redirection.map(|entry| (entry & RTE_MASKED == 0).then(|| message(entry)))
    }

    /// As after power-on, with the lines as they are.
    pub fn reset(&self) {
        let mut registers = self.lock();
        *registers = Registers { lines: registers.lines, ..Registers::new() };
        drop(registers);
        self.sink.routes_changed();
    }

    /// The state, with the levels of all lines.
    pub fn save(&self) -> IoApicState {
        IoApicState { version: VERSION, registers: self.lock().clone() }
    }

    /// Takes over a saved state. Sends nothing: what was sent before is in the local APICs' states.
    ///
    /// # Errors
    /// Another version, or values no I/O APIC can hold.
    pub fn restore(&self, state: &IoApicState) -> Result<(), RestoreError> {
        check_version(DEVICE, state.version, VERSION)?;
        let registers = &state.registers;
        check(DEVICE, registers.id & !ID_MASK == 0, "reserved ID bits set")?;
        check(DEVICE, registers.lines >> IOAPIC_PINS == 0, "lines beyond the last pin")?;
        for entry in registers.redirection {
            check(DEVICE, entry & !(RTE_WRITABLE | RTE_REMOTE_IRR) == 0, "reserved redirection bits set")?;
            let edge_with_irr = entry & RTE_LEVEL == 0 && entry & RTE_REMOTE_IRR != 0;
            check(DEVICE, !edge_with_irr, "remote IRR on an edge-triggered pin")?;
        }
        *self.lock() = registers.clone();
        self.sink.routes_changed();
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the registers, then sends what came out of it without holding the lock, so that a local APIC
    /// may report an EOI while another message is on its way. `change` says whether a route changed.
    fn change(&self, change: impl FnOnce(&mut Registers, &mut Vec<MsiMessage>) -> bool) {
        let mut out = Vec::new();
        let routes_changed = change(&mut self.lock(), &mut out);
        // First the routes: an engine must know that it has to report the EOI of what comes next.
        if routes_changed {
            self.sink.routes_changed();
        }
        for message in out {
            self.sink.deliver(message);
        }
    }
}

impl MmioDevice for IoApic {
    /// Registers are 32 bits wide; a narrower or wider access sees them at the start of its 16-byte slot.
    fn read(&self, offset: u64, data: &mut [u8]) {
        let registers = self.lock();
        let value = match offset & !0xF {
            IOREGSEL => registers.select.into(),
            IOWIN => registers.read(),
            _ => 0,
        };
        drop(registers);
        data.fill(0);
        let bytes = value.to_le_bytes();
        for (to, from) in data.iter_mut().zip(bytes.iter().skip((offset & 0xF) as usize)) {
            *to = *from;
        }
    }

    /// Only accesses that start at a register count.
    fn write(&self, offset: u64, data: &[u8]) {
        let mut bytes = [0; 4];
        for (to, from) in bytes.iter_mut().zip(data) {
            *to = *from;
        }
        match offset {
            IOREGSEL => self.lock().select = bytes[0],
            IOWIN if data.len() >= 4 => {
                self.change(|registers, out| registers.write(u32::from_le_bytes(bytes), out));
            }
            EOI => self.eoi(bytes[0]),
            _ => {}
        }
    }
}
