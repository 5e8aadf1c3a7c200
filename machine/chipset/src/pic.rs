//! The two cascaded 8259A interrupt controllers and their edge/level control registers.
//!
//! Sources: Intel 8259A datasheet (231468); PIIX3 datasheet §2.5.8 for the ELCR.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::bus::BytePorts;
use crate::layout::{ELCR, IRQ_CASCADE, ISA_IRQS, PIC_MASTER, PIC_SLAVE};
use crate::lines::ExtIntSink;
use crate::state::{RestoreError, check, check_version};

const VERSION: u32 = 1;
const DEVICE: &str = "PIC";
const CASCADE: u8 = 1 << IRQ_CASCADE;
/// IRQs 0, 1, 2 and 8, 13 are always edge triggered (PIIX3 §2.5.8).
const ELCR_WRITABLE: [u8; 2] = [0xF8, 0xDE];

/// What the command port's initialisation sequence waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Init {
    Ready,
    Icw2,
    Icw3,
    Icw4,
}

/// Saved state of one 8259A.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chip {
    /// Input levels.
    lines: u8,
    irr: u8,
    isr: u8,
    imr: u8,
    elcr: u8,
    /// The input with the highest priority.
    top: u8,
    vector_base: u8,
    init: Init,
    icw4_follows: bool,
    single: bool,
    level_mode: bool,
    icw3: u8,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_mask: bool,
    special_fully_nested: bool,
    read_isr: bool,
    poll: bool,
    slave: bool,
}

impl Chip {
    fn new(slave: bool) -> Self {
        Self {
            lines: 0,
            irr: 0,
            isr: 0,
            // As firmware leaves it: nothing gets through before the guest programs the chip.
            imr: 0xFF,
            elcr: 0,
            top: 0,
            vector_base: 0,
            init: Init::Ready,
            icw4_follows: false,
            single: false,
            level_mode: false,
            icw3: 0,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
            special_mask: false,
            special_fully_nested: false,
            read_isr: false,
            poll: false,
            slave,
        }
    }

    /// Inputs whose request follows the line. The cascade input does, whatever edges the slave makes.
    fn level_triggered(&self) -> u8 {
        let cascade = if self.slave { 0 } else { CASCADE };
        if self.level_mode { 0xFF } else { self.elcr | cascade }
    }

    fn set_line(&mut self, input: u8, asserted: bool) {
        let bit = 1 << input;
        if !asserted {
            self.lines &= !bit;
            self.irr &= !bit;
        } else {
            if self.level_triggered() & bit != 0 || self.lines & bit == 0 {
                self.irr |= bit;
            }
            self.lines |= bit;
        }
    }

    /// Inputs from the highest priority to the lowest.
    fn by_priority(&self) -> impl Iterator<Item = u8> + use<> {
        let top = self.top;
        (0..8).map(move |i| (top + i) & 7)
    }

    fn highest(&self, of: u8) -> Option<u8> {
        self.by_priority().find(|input| of & (1 << input) != 0)
    }

    /// The request that the chip would signal now.
    fn pending(&self) -> Option<u8> {
        if self.init != Init::Ready {
            return None;
        }
        // The special mask mode lets a masked in-service level no longer hold back lower ones.
        let holding = if self.special_mask { self.isr & !self.imr } else { self.isr };
        let requests = self.irr & !self.imr;
        for input in self.by_priority() {
            let bit = 1 << input;
            // Fully nested also on the slave's own inputs: the cascade input may interrupt itself.
            let reentrant = self.special_fully_nested && !self.slave && bit == CASCADE;
            if requests & bit != 0 && (holding & bit == 0 || reentrant) {
                return Some(input);
            }
            if holding & bit != 0 {
                return None;
            }
        }
        None
    }

    /// Takes `input` into service.
    fn begin(&mut self, input: u8) {
        let bit = 1 << input;
        if self.level_triggered() & bit == 0 {
            self.irr &= !bit;
        }
        if !self.auto_eoi {
            self.isr |= bit;
        } else if self.rotate_on_auto_eoi {
            self.top = (input + 1) & 7;
        }
    }

    fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            self.icw1(value);
        } else if value & 0x08 != 0 {
            self.ocw3(value);
        } else {
            self.ocw2(value);
        }
    }

    fn icw1(&mut self, value: u8) {
        let (lines, elcr) = (self.lines, self.elcr);
        *self = Self::new(self.slave);
        (self.lines, self.elcr, self.imr) = (lines, elcr, 0);
        self.init = Init::Icw2;
        self.icw4_follows = value & 0x01 != 0;
        self.single = value & 0x02 != 0;
        self.level_mode = value & 0x08 != 0;
        // The edge detectors are cleared, so an input needs a new edge; a level needs none.
        self.irr = self.lines & self.level_triggered();
    }

    fn ocw2(&mut self, value: u8) {
        let level = value & 7;
        match value >> 5 {
            0b000 => self.rotate_on_auto_eoi = false,
            0b100 => self.rotate_on_auto_eoi = true,
            0b001 => {
                self.end_of_interrupt();
            }
            0b101 => {
                if let Some(input) = self.end_of_interrupt() {
                    self.top = (input + 1) & 7;
                }
            }
            0b011 => self.isr &= !(1 << level),
            0b111 => {
                self.isr &= !(1 << level);
                self.top = (level + 1) & 7;
            }
            0b110 => self.top = (level + 1) & 7,
            _ => {}
        }
    }

    /// Non-specific EOI: ends the highest level in service. In special mask mode, masked ones are passed over.
    fn end_of_interrupt(&mut self) -> Option<u8> {
        let eligible = if self.special_mask { self.isr & !self.imr } else { self.isr };
        let input = self.highest(eligible)?;
        self.isr &= !(1 << input);
        Some(input)
    }

    fn ocw3(&mut self, value: u8) {
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
        if value & 0x04 != 0 {
            self.poll = true;
        } else if value & 0x02 != 0 {
            self.read_isr = value & 0x01 != 0;
        }
    }

    fn write_data(&mut self, value: u8) {
        match self.init {
            Init::Ready => self.imr = value,
            Init::Icw2 => {
                self.vector_base = value & 0xF8;
                self.init = match (self.single, self.icw4_follows) {
                    (false, _) => Init::Icw3,
                    (true, true) => Init::Icw4,
                    (true, false) => Init::Ready,
                };
            }
            Init::Icw3 => {
                self.icw3 = value;
                self.init = if self.icw4_follows { Init::Icw4 } else { Init::Ready };
            }
            Init::Icw4 => {
                self.auto_eoi = value & 0x02 != 0;
                self.special_fully_nested = value & 0x10 != 0;
                self.init = Init::Ready;
            }
        }
    }

    fn write_elcr(&mut self, value: u8) {
        self.elcr = value & ELCR_WRITABLE[usize::from(self.slave)];
        // An input that is now level triggered requests as long as its line is asserted.
        self.irr |= self.lines & self.elcr;
    }

    fn validate(&self, slave: bool) -> Result<(), RestoreError> {
        check(DEVICE, self.top < 8, "priority out of range")?;
        check(DEVICE, self.vector_base & 7 == 0, "vector base not a multiple of 8")?;
        check(DEVICE, self.elcr & !ELCR_WRITABLE[usize::from(slave)] == 0, "reserved ELCR bits set")?;
        check(DEVICE, self.irr & !self.lines == 0, "request without its line")?;
        check(DEVICE, self.slave == slave, "master and slave exchanged")
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Pair {
    master: Chip,
    slave: Chip,
    /// The level last given to the sink.
    intr: bool,
}

impl Pair {
    fn new() -> Self {
        Self { master: Chip::new(false), slave: Chip::new(true), intr: false }
    }

    fn update_cascade(&mut self) {
        let asserted = self.slave.pending().is_some();
        self.master.set_line(IRQ_CASCADE, asserted);
    }

    /// One INTA sequence. Without a request the chip answers with its input 7 and nothing in service.
    fn interrupt_acknowledge(&mut self) -> u8 {
        let Some(input) = self.master.pending() else { return self.master.vector_base | 7 };
        self.master.begin(input);
        if input != IRQ_CASCADE || self.master.single {
            return self.master.vector_base | input;
        }
        let Some(input) = self.slave.pending() else { return self.slave.vector_base | 7 };
        self.slave.begin(input);
        self.slave.vector_base | input
    }

    /// The poll command's answer: bit 7 says whether there is one, bits 2:0 which.
    fn poll(&mut self, slave: bool) -> u8 {
        let chip = if slave { &mut self.slave } else { &mut self.master };
        chip.poll = false;
        chip.pending().map_or(0, |input| {
            chip.begin(input);
            0x80 | input
        })
    }

    fn chip(&mut self, port: u16) -> &mut Chip {
        if PIC_SLAVE.contains(&port) || port == ELCR.start + 1 { &mut self.slave } else { &mut self.master }
    }
}

/// Saved state of the [`Pic`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PicState {
    version: u32,
    master: Chip,
    slave: Chip,
}

/// The interrupt controllers of ISA interrupts 0 to 15.
pub struct Pic {
    pair: Mutex<Pair>,
    output: Arc<dyn ExtIntSink>,
}

impl Pic {
    /// Both chips as after power-on; `output` takes the master's INTR.
    pub fn new(output: Arc<dyn ExtIntSink>) -> Self {
        Self { pair: Mutex::new(Pair::new()), output }
    }

    /// Drives input `irq` (0 to 15). Input 2 is the cascade; it and numbers above 15 are ignored.
    pub fn set_line(&self, irq: u8, asserted: bool) {
        if irq >= ISA_IRQS || irq == IRQ_CASCADE {
            return;
        }
        self.change(|pair| {
            let chip = if irq < 8 { &mut pair.master } else { &mut pair.slave };
            chip.set_line(irq & 7, asserted);
        });
    }

    /// The processor takes the interrupt: its vector, or `None` when INTR has gone away since the processor
    /// saw it (a real processor would then get a spurious vector 7; nobody misses it).
    pub fn acknowledge(&self) -> Option<u8> {
        self.change(|pair| pair.intr.then(|| pair.interrupt_acknowledge()))
    }

    /// Whether INTR is asserted.
    pub fn output(&self) -> bool {
        self.lock().intr
    }

    /// As after power-on, with the lines as they are.
    pub fn reset(&self) {
        self.change(|pair| {
            let lines = (pair.master.lines, pair.slave.lines);
            let intr = pair.intr;
            *pair = Pair { intr, ..Pair::new() };
            (pair.master.lines, pair.slave.lines) = lines;
        });
    }

    /// The state, with the levels of all lines.
    pub fn save(&self) -> PicState {
        let pair = self.lock();
        PicState { version: VERSION, master: pair.master.clone(), slave: pair.slave.clone() }
    }

    /// Takes over a saved state and drives INTR accordingly.
    ///
    /// # Errors
    /// Another version, or values no 8259A can hold.
    pub fn restore(&self, state: &PicState) -> Result<(), RestoreError> {
        check_version(DEVICE, state.version, VERSION)?;
        state.master.validate(false)?;
        state.slave.validate(true)?;
        let cascade = state.master.lines & CASCADE != 0;
        check(
            DEVICE,
            cascade == state.slave.pending().is_some(),
            "cascade line differs from the slave's output",
        )?;
        self.change(|pair| {
            pair.master = state.master.clone();
            pair.slave = state.slave.clone();
        });
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Pair> {
        self.pair.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the pair and carries the outputs on. The lock is held over the sink, so levels keep order.
    fn change<R>(&self, change: impl FnOnce(&mut Pair) -> R) -> R {
        let mut pair = self.lock();
        let result = change(&mut pair);
        pair.update_cascade();
        let intr = pair.master.pending().is_some();
        if intr != pair.intr {
            pair.intr = intr;
            self.output.set(intr);
        }
        result
    }
}

impl BytePorts for Pic {
    fn read(&self, port: u16) -> u8 {
        self.change(|pair| {
            let chip = pair.chip(port);
            if ELCR.contains(&port) {
                chip.elcr
            } else if chip.poll {
                let slave = chip.slave;
                pair.poll(slave)
            } else if port & 1 != 0 {
                chip.imr
            } else if chip.read_isr {
                chip.isr
            } else {
                chip.irr
            }
        })
    }

    fn write(&self, port: u16, value: u8) {
        self.change(|pair| {
            let chip = pair.chip(port);
            if ELCR.contains(&port) {
                chip.write_elcr(value);
            } else if port == PIC_MASTER.start || port == PIC_SLAVE.start {
                chip.write_command(value);
            } else {
                chip.write_data(value);
            }
        });
    }
}
