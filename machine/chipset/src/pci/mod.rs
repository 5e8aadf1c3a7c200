//! PCI bus 0: configuration mechanism #1, the routing of BARs, and the functions every board has.
//!
//! What a function decodes moves with its BARs and its command register. After each write that may have moved it, the host asks
//! all functions and replaces the moving ranges of both buses; so accesses find their way without a lock.
//!
//! Sources: PCI Local Bus Specification 3.0 §3.2.2.3; Intel 82441FX and PIIX3 datasheets.

mod assign;
mod bar;
mod config_space;
mod msix;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use bar::BarRoutes;
pub use config_space::{Bar, BarWindow, ConfigSpace, ConfigSpaceState, PciIdentity, PciLayoutError};
pub use msix::{Msix, MsixState};

use crate::bus::{MmioDevice, MovingRanges, PioDevice};
use crate::layout::{PCI_CONFIG, RESET_CONTROL};
use crate::lines::{SystemEvent, SystemEventSink};
use crate::state::{RestoreError, check, check_version};

const VERSION: u32 = 1;
const DEVICE: &str = "PCI host bridge";
const SLOTS: usize = 256;

const ADDRESS_ENABLE: u32 = 1 << 31;
/// Enable, bus, device, function, register; the rest reads as 0.
const ADDRESS_WRITABLE: u32 = 0x80FF_FFFC;
const DATA_PORT: u16 = PCI_CONFIG.start + 4;

/// Reset control register: hard (rather than soft) reset, and the bit whose rise resets.
const RESET_WRITABLE: u8 = 0x06;
const RESET_CPU: u8 = 0x04;

/// A function on bus 0.
///
/// Configuration accesses are 1, 2 or 4 bytes and do not cross a 4-byte boundary. The host calls it without a lock of its own,
/// and it must not call the host.
pub trait PciFunction: Send + Sync {
    /// Reads configuration space.
    fn config_read(&self, offset: u8, data: &mut [u8]);
    /// Writes configuration space.
    fn config_write(&self, offset: u8, data: &[u8]);
    /// What its BARs decode now ([`ConfigSpace::windows`]); nothing, if it has none.
    fn windows(&self) -> Vec<BarWindow> {
        Vec::new()
    }
    /// Reads `data.len()` bytes from `offset` of BAR `bar` on, all of them inside it. Ports are read by 1, 2 or 4 bytes, memory
    /// by any number, at any alignment. `data` may hold anything before.
    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        let _ = (bar, offset);
        data.fill(0xFF);
    }
    /// Writes BAR `bar` from `offset` on; as for reads.
    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) {
        let _ = (bar, offset, data);
    }
    /// Bus reset: nothing is decoded afterwards, and the INTx pin not asserted. The host then assigns the BARs.
    fn reset(&self);
}

/// Device and function number on bus 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciSlot(u8);

impl PciSlot {
    /// 00:00.0.
    pub const HOST_BRIDGE: Self = Self(0);
    /// 00:01.0.
    pub const ISA_BRIDGE: Self = Self(1 << 3);
    /// 00:01.1.
    pub const IDE: Self = Self(1 << 3 | 1);

    /// `device` is 0 to 31, `function` 0 to 7.
    pub const fn new(device: u8, function: u8) -> Option<Self> {
        if device < 32 && function < 8 { Some(Self(device << 3 | function)) } else { None }
    }

    /// Device number: 0 to 31.
    pub const fn device(self) -> u8 {
        self.0 >> 3
    }

    /// Function number: 0 to 7.
    pub const fn function(self) -> u8 {
        self.0 & 7
    }
}

/// The slot is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("PCI slot 00:{:02x}.{} is taken; choose another", .0.device(), .0.function())]
pub struct SlotTaken(pub PciSlot);

/// A function that is nothing but its configuration space.
pub struct PassiveFunction(Mutex<ConfigSpace>);

impl PassiveFunction {
    /// A function with this configuration space.
    pub const fn new(space: ConfigSpace) -> Self {
        Self(Mutex::new(space))
    }

    /// The state.
    pub fn save(&self) -> ConfigSpaceState {
        self.lock().save()
    }

    /// Takes over a saved state.
    ///
    /// # Errors
    /// Another version, or another device's state.
    pub fn restore(&self, state: &ConfigSpaceState) -> Result<(), RestoreError> {
        self.lock().restore(state)
    }

    fn lock(&self) -> MutexGuard<'_, ConfigSpace> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PciFunction for PassiveFunction {
    fn config_read(&self, offset: u8, data: &mut [u8]) {
        self.lock().read(offset, data);
    }

    fn config_write(&self, offset: u8, data: &[u8]) {
        self.lock().write(offset, data);
    }

    fn reset(&self) {
        self.lock().reset();
    }
}

/// 00:00.0, the 82441FX host bridge.
pub fn host_bridge() -> PassiveFunction {
    let identity = PciIdentity {
        vendor: 0x8086,
        device: 0x1237,
        revision: 2,
        class: 0x06_00_00,
        subsystem_vendor: 0,
        subsystem: 0,
        multi_function: false,
        interrupt_pin: 0,
    };
    // PAM and SMRAM registers: firmware shadows ROMs with them, here all is RAM already.
    let space = (0x59..=0x5F).fold(ConfigSpace::new(identity), |space, at| space.with_register(at, 0, 0xFF));
    PassiveFunction::new(space.with_register(0x72, 0x02, 0x7F))
}

/// 00:01.0, the PIIX3 ISA bridge.
pub fn isa_bridge() -> PassiveFunction {
    let identity = PciIdentity {
        vendor: 0x8086,
        device: 0x7000,
        revision: 0,
        class: 0x06_01_00,
        subsystem_vendor: 0,
        subsystem: 0,
        // IDE, or nothing, is function 1.
        multi_function: true,
        interrupt_pin: 0,
    };
    // PIRQ route control A to D: 0x80 is "not routed" (PIIX3 §2.2.7).
    let space =
        (0x60..=0x63).fold(ConfigSpace::new(identity), |space, at| space.with_register(at, 0x80, 0x8F));
    // Deterministic latency control: kernels switch passive release on here.
    PassiveFunction::new(space.with_register(0x82, 0x00, 0x0F))
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Registers {
    address: u32,
    reset_control: u8,
}

/// Saved state of the [`PciHost`]; the functions save their own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciHostState {
    version: u32,
    registers: Registers,
}

/// Configuration mechanism #1 for bus 0, and the reset control register that lies in its ports.
pub struct PciHost {
    registers: Mutex<Registers>,
    functions: Vec<Option<Arc<dyn PciFunction>>>,
    routes: BarRoutes,
    events: Arc<dyn SystemEventSink>,
}

impl PciHost {
    /// An empty bus; what its functions decode becomes ranges of `ports` and `memory`.
    pub fn new(
        events: Arc<dyn SystemEventSink>,
        ports: Arc<MovingRanges<dyn PioDevice>>,
        memory: Arc<MovingRanges<dyn MmioDevice>>,
    ) -> Self {
        let routes = BarRoutes::new(ports, memory);
        Self { registers: Mutex::default(), functions: vec![None; SLOTS], routes, events }
    }

    /// Plugs in a function. Function 0 of a device with several must say so in its header type.
    ///
    /// # Errors
    /// The slot is taken.
    pub fn add(&mut self, slot: PciSlot, function: Arc<dyn PciFunction>) -> Result<(), SlotTaken> {
        match &mut self.functions[usize::from(slot.0)] {
            Some(_) => Err(SlotTaken(slot)),
            free => {
                *free = Some(function);
                Ok(())
            }
        }
    }

    /// Resets the bus and every function on it, and assigns their BARs. The vCPUs must stand still.
    pub fn reset(&self) {
        *self.lock() = Registers::default();
        for function in self.functions.iter().flatten() {
            function.reset();
        }
        self.assign_bars();
    }

    /// Gives the BARs of all functions, which decode nothing yet, the addresses that they have after reset.
    pub(crate) fn assign_bars(&self) {
        assign::assign(self.functions.iter().flatten().map(|function| &**function));
        self.follow_bars();
    }

    /// Sends accesses where the BARs are now. Whoever changes a function's BARs in another way than by configuration accesses
    /// (restores its state) calls it afterwards.
    pub fn follow_bars(&self) {
        self.routes.update(&self.functions);
    }

    /// The state of the host's own registers.
    pub fn save(&self) -> PciHostState {
        PciHostState { version: VERSION, registers: *self.lock() }
    }

    /// Takes over a saved state.
    ///
    /// # Errors
    /// Another version, or values the registers cannot hold.
    pub fn restore(&self, state: &PciHostState) -> Result<(), RestoreError> {
        check_version(DEVICE, state.version, VERSION)?;
        check(DEVICE, state.registers.address & !ADDRESS_WRITABLE == 0, "reserved address bits set")?;
        check(DEVICE, state.registers.reset_control & !RESET_WRITABLE == 0, "reserved reset bits set")?;
        *self.lock() = state.registers;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The function addressed and the register, for an access at data port `port`.
    fn target(&self, port: u16) -> Option<(&dyn PciFunction, u8)> {
        let address = self.lock().address;
        let bus = address >> 16 & 0xFF;
        if address & ADDRESS_ENABLE == 0 || bus != 0 {
            return None;
        }
        let function = self.functions[(address >> 8 & 0xFF) as usize].as_deref()?;
        Some((function, address as u8 | (port & 3) as u8))
    }

    fn write_reset_control(&self, value: u8) {
        let mut registers = self.lock();
        let rises = value & !registers.reset_control & RESET_CPU != 0;
        registers.reset_control = value & RESET_WRITABLE;
        drop(registers);
        if rises {
            self.events.raise(SystemEvent::Reset);
        }
    }
}

/// Whether an access stays inside one dword.
fn in_dword(port: u16, len: usize) -> bool {
    usize::from(port & 3) + len <= 4
}

impl PioDevice for PciHost {
    fn read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xFF);
        if port == PCI_CONFIG.start && data.len() == 4 {
            data.copy_from_slice(&self.lock().address.to_le_bytes());
        } else if port == RESET_CONTROL && data.len() == 1 {
            data[0] = self.lock().reset_control;
        } else if port >= DATA_PORT
            && in_dword(port, data.len())
            && let Some((function, offset)) = self.target(port)
        {
            function.config_read(offset, data);
        }
    }

    fn write(&self, port: u16, data: &[u8]) {
        if port == PCI_CONFIG.start && data.len() == 4 {
            let address = u32::from_le_bytes([data[0], data[1], data[2], data[3]]);
            self.lock().address = address & ADDRESS_WRITABLE;
        } else if port == RESET_CONTROL && data.len() == 1 {
            self.write_reset_control(data[0]);
        } else if port >= DATA_PORT
            && in_dword(port, data.len())
            && let Some((function, offset)) = self.target(port)
        {
            function.config_write(offset, data);
            if ConfigSpace::may_move_bars(offset, data.len()) {
                self.follow_bars();
            }
        }
    }
}
