//! The seams towards the board: interrupt lines, interrupt sinks and system events.
//!
//! Rule for every sink here: it is called while a device holds its own lock, so it must be short and must
//! never call back into the chipset.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// An interrupt input, seen from the device that drives it.
pub trait IrqLine: Send + Sync {
    /// Drives the line: `true` is asserted. Repeating a level has no effect.
    fn set(&self, asserted: bool);

    /// One rising edge. The line stays asserted afterwards, because an 8259A forgets a request whose line
    /// falls before it is acknowledged (8259A datasheet, "Edge and level triggered modes").
    fn pulse(&self) {
        self.set(false);
        self.set(true);
    }
}

/// An interrupt input that several devices drive: asserted while one of them asserts it, as PCI's open-drain pins are.
pub struct SharedLine {
    line: Arc<dyn IrqLine>,
    /// Drivers that assert it now.
    asserting: Mutex<usize>,
}

impl SharedLine {
    /// Shares `line`, which nobody else may drive.
    pub fn new(line: Arc<dyn IrqLine>) -> Arc<Self> {
        Arc::new(Self { line, asserting: Mutex::new(0) })
    }

    /// One more driver, which does not assert it yet.
    pub fn driver(self: &Arc<Self>) -> Arc<dyn IrqLine> {
        Arc::new(SharedDriver { shared: Arc::clone(self), asserts: AtomicBool::new(false) })
    }
}

struct SharedDriver {
    shared: Arc<SharedLine>,
    /// Changed under the lock of `shared` only.
    asserts: AtomicBool,
}

impl IrqLine for SharedDriver {
    fn set(&self, asserted: bool) {
        let mut asserting = self.shared.asserting.lock().unwrap_or_else(PoisonError::into_inner);
        if self.asserts.swap(asserted, Ordering::Relaxed) == asserted {
            return;
        }
        *asserting = if asserted { *asserting + 1 } else { asserting.saturating_sub(1) };
        // Under the lock, so that the levels arrive in the order in which they came about.
        self.shared.line.set(*asserting > 0);
    }
}

impl Drop for SharedDriver {
    fn drop(&mut self) {
        self.set(false);
    }
}

/// A message-signalled interrupt (Intel SDM vol. 3 §11.11).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MsiMessage {
    /// 0xFEE in bits 31:20, destination in 19:12, redirection hint in 3, destination mode in 2.
    pub address: u64,
    /// Vector in bits 7:0, delivery mode in 10:8, assert in 14, trigger mode in 15.
    pub data: u32,
}

impl MsiMessage {
    /// Whether the interrupt is level triggered: the I/O APIC must be told of its EOI.
    pub const fn is_level(self) -> bool {
        self.data & (1 << 15) != 0
    }
}

/// Takes the I/O APIC's messages to the local APICs.
pub trait MsiSink: Send + Sync {
    /// Delivers one interrupt message.
    fn deliver(&self, message: MsiMessage);

    /// The guest changed a redirection entry; `IoApic::routes` tells the present ones. A sink that keeps a
    /// copy (KVM's routing table decides which EOIs it reports) reads them again under a lock of its own.
    fn routes_changed(&self) {}
}

/// Takes the INTR output of the 8259A pair: LINT0 of the boot processor, in virtual wire mode.
pub trait ExtIntSink: Send + Sync {
    /// The output's level. `true` asks the processor to call `Pic::acknowledge` when it can be interrupted.
    fn set(&self, asserted: bool);
}

/// What the guest can ask of the whole machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SystemEvent {
    /// ACPI S5: switch the machine off.
    PowerOff,
    /// Reset the machine: all processors and devices.
    Reset,
}

/// Takes system events. The calling vCPU goes on until the sink's owner stops it.
pub trait SystemEventSink: Send + Sync {
    /// The guest asked for `event`.
    fn raise(&self, event: SystemEvent);
}

/// Takes the bytes that the guest writes to a serial port.
pub trait SerialSink: Send + Sync {
    /// Bytes in the order of transmission. While it blocks, so do the guest's next access to the port and
    /// `Uart::push_input`: that is the port's back-pressure.
    fn write(&self, bytes: &[u8]);
}
