//! The PCI transport: a modern function (version 1 alone, no legacy ports), all of it in one memory BAR.
//!
//! Source: virtio 1.2 §4.1.

mod common;
mod layout;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use vireo_board::{Attachment, BoardError, Seat};
use vireo_chipset::RestoreError;
use vireo_chipset::pci::{BarWindow, ConfigSpace, ConfigSpaceState, MsixState, PciFunction, PciSlot};
use vireo_memory::MemoryError;

use crate::core::{Core, Registers};
use crate::device::{Device, DeviceState, Kicker};
use crate::interrupt::Interrupts;
use crate::memory::queue_memory;
use crate::queue::{Slot, SlotState};
use layout::{Part, part};

const VERSION: u32 = 1;
const DEVICE: &str = "virtio device";

/// Most queues of a device: one bit each, and one vector each besides that of the configuration.
const QUEUES_MAX: usize = 63;
const QUEUE_SIZE_MAX: u16 = 1024;

/// Why a device cannot be put on PCI.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// Queues that no device of this transport can have.
    #[error(
        "a virtio device has 1 to 63 queues, of sizes that are powers of two up to 1024; this one has {0:?}"
    )]
    Queues(Vec<u16>),
    /// Its registers have no room.
    #[error(transparent)]
    Layout(#[from] vireo_chipset::pci::PciLayoutError),
    /// The slot is taken.
    #[error(transparent)]
    Chipset(#[from] vireo_chipset::ChipsetError),
    /// There is no guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The host refused a thread.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] std::io::Error),
}

impl From<TransportError> for BoardError {
    fn from(e: TransportError) -> Self {
        Self::Device(e.to_string())
    }
}

/// Saved state of a [`VirtioPci`]: transport, queues, and what an adapter's driver has set. What a device keeps beyond it is not of the
/// guest: input that it has not taken, and the state of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioState {
    version: u32,
    kind: u16,
    space: ConfigSpaceState,
    msix: MsixState,
    isr: u8,
    registers: Registers,
    queues: Vec<SlotState>,
    /// What the device keeps for its driver, if it does.
    #[serde(default)]
    device: Option<DeviceState>,
}

/// A virtio device as a PCI function. Made paused; dropping it ends its thread.
pub struct VirtioPci {
    name: String,
    core: Arc<Core>,
    /// Where the window of accesses by configuration space is.
    cfg_access: u8,
    thread: Option<JoinHandle<()>>,
}

impl VirtioPci {
    /// Puts `device` into `slot`. `name` is for messages and its thread.
    ///
    /// # Errors
    /// The slot is taken, the device is impossible, or the host refuses a thread.
    pub fn attach(
        seat: &mut Seat,
        slot: PciSlot,
        name: &str,
        device: Arc<dyn Device>,
    ) -> Result<Arc<Self>, TransportError> {
        let sizes = device.queue_sizes();
        let possible = |size: &u16| *size <= QUEUE_SIZE_MAX;
        let impossible = || TransportError::Queues(sizes.clone());
        if sizes.is_empty() || sizes.len() > QUEUES_MAX || !sizes.iter().all(possible) {
            return Err(impossible());
        }
        let slots =
            sizes.iter().map(|size| Slot::new(*size)).collect::<Result<_, _>>().map_err(|_| impossible())?;
        let vectors = sizes.len() as u16 + 1;
        let (space, msix, cfg_access) =
            layout::configuration(device.identity(), vectors, seat.chipset.msi_sink().clone())?;
        // Every function has pin INTA.
        let pin = seat.chipset.pci_pin(slot, layout::INTERRUPT_PIN).ok_or_else(impossible)?;
        let memory = Arc::clone(seat.memory);
        let queue_memory = queue_memory(&memory)?;
        let interrupts = Interrupts::new(space, msix, pin);
        let core = Arc::new(Core::new(device, memory, queue_memory, interrupts, slots));
        core.device.connect(Kicker(Arc::downgrade(&core)));
        let served = Arc::clone(&core);
        let thread = std::thread::Builder::new()
            .name(name.into())
            .spawn(move || served.serve_queues())
            .map_err(TransportError::Thread)?;
        let function = Arc::new(Self { name: name.into(), core, cfg_access, thread: Some(thread) });
        seat.chipset.add_pci(slot, Arc::clone(&function) as _)?;
        Ok(function)
    }

    /// The state of transport and queues. Waits until the device rests: do it while the board is paused.
    pub fn save(&self) -> VirtioState {
        self.core.run.pause(None);
        let (core, interrupts) = (&self.core, &self.core.interrupts);
        let space = interrupts.pci().space.save();
        let state = VirtioState {
            version: VERSION,
            kind: core.device.identity().kind,
            space,
            msix: interrupts.msix.save(),
            isr: interrupts.status(),
            registers: core.registers().clone(),
            queues: (0..core.queues()).map(|index| core.slot(index).save()).collect(),
            device: core.device.save(),
        };
        core.run.resume();
        state
    }

    /// Takes over a saved state, of a device that offers the same. The chipset is restored after it.
    ///
    /// # Errors
    /// Another version, another device's, or values that no device can have. Nothing, or only the PCI side, was taken over then:
    /// discard the machine, or reset it.
    pub fn restore(&self, state: &VirtioState) -> Result<(), RestoreError> {
        if state.version != VERSION {
            let (found, supported) = (state.version, VERSION);
            return Err(RestoreError::Version { device: DEVICE, found, supported });
        }
        let core = &self.core;
        let check = |valid: bool, reason| {
            if valid { Ok(()) } else { Err(RestoreError::Invalid { device: DEVICE, reason }) }
        };
        check(state.kind == core.device.identity().kind, "another kind of device")?;
        check(state.registers.possible(core.offered()), "impossible status or features")?;
        check(state.queues.len() == core.queues(), "another number of queues")?;
        let slots: Option<Vec<Slot>> =
            (0..core.queues()).map(|index| core.slot(index).restored(&state.queues[index])).collect();
        check(slots.is_some(), "an impossible queue")?;
        core.run.pause(None);
        let result = self.restore_pci(state);
        if let (Ok(()), Some(slots)) = (&result, slots) {
            core.restore(state.registers.clone(), slots, state.device.as_ref());
        }
        core.run.resume();
        result
    }

    fn restore_pci(&self, state: &VirtioState) -> Result<(), RestoreError> {
        let interrupts = &self.core.interrupts;
        let mut pci = interrupts.pci();
        pci.space.restore(&state.space)?;
        interrupts.msix.restore(&state.msix)?;
        interrupts.follow(&mut pci);
        drop(pci);
        interrupts.restore_status(state.isr);
        Ok(())
    }

    /// Where an access by configuration space goes (§4.1.4.9): offset in the BAR and length.
    fn cfg_target(&self, space: &ConfigSpace) -> Option<(u64, usize)> {
        let dword = |at: u8| {
            let mut data = [0; 4];
            space.read(self.cfg_access + at, &mut data);
            u32::from_le_bytes(data)
        };
        let (bar, offset, len) = (dword(4) as u8, dword(8), dword(12));
        let possible = bar == layout::BAR && matches!(len, 1 | 2 | 4) && offset.is_multiple_of(len);
        let inside = u64::from(offset) + u64::from(len) <= layout::BAR_SIZE;
        (possible && inside).then_some((offset.into(), len as usize))
    }

    /// Which bytes of a configuration access of `len` bytes at `offset` are those of the window's data.
    fn cfg_data(&self, offset: u8, len: usize) -> bool {
        let data = usize::from(self.cfg_access) + 16;
        usize::from(offset) < data + 4 && data < usize::from(offset) + len
    }
}

impl PciFunction for VirtioPci {
    fn config_read(&self, offset: u8, data: &mut [u8]) {
        let mut pci = self.core.interrupts.pci();
        if self.cfg_data(offset, data.len())
            && let Some((at, len)) = self.cfg_target(&pci.space)
        {
            drop(pci);
            let mut value = [0; 4];
            self.bar_read(layout::BAR, at, &mut value[..len]);
            pci = self.core.interrupts.pci();
            pci.space.write(self.cfg_access + 16, &value[..len]);
        }
        pci.space.read(offset, data);
    }

    fn config_write(&self, offset: u8, data: &[u8]) {
        let mut pci = self.core.interrupts.pci();
        pci.space.write(offset, data);
        self.core.interrupts.follow(&mut pci);
        if self.cfg_data(offset, data.len())
            && let Some((at, len)) = self.cfg_target(&pci.space)
        {
            let mut value = [0; 4];
            pci.space.read(self.cfg_access + 16, &mut value);
            drop(pci);
            self.bar_write(layout::BAR, at, &value[..len]);
        }
    }

    fn windows(&self) -> Vec<BarWindow> {
        self.core.interrupts.pci().space.windows()
    }

    fn bar_read(&self, _bar: u8, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match part(offset, data.len()) {
            Some((Part::Common, at)) => common::read(&self.core, at, data),
            Some((Part::Isr, 0)) => data[0] = self.core.interrupts.take_status(),
            Some((Part::Device, at)) => self.core.device.read_config(at as usize, data),
            Some((Part::MsixTable, at)) => self.core.interrupts.msix.read_table(at, data),
            Some((Part::MsixPending, at)) => self.core.interrupts.msix.read_pending(at, data),
            Some((Part::Isr | Part::Notify, _)) | None => {}
        }
    }

    fn bar_write(&self, _bar: u8, offset: u64, data: &[u8]) {
        match part(offset, data.len()) {
            Some((Part::Common, at)) => common::write(&self.core, at, data),
            Some((Part::Notify, at)) => self.core.run.kick((at / layout::NOTIFY_STEP) as usize),
            Some((Part::MsixTable, at)) => self.core.interrupts.msix.write_table(at, data),
            // None of the devices has configuration that drivers write.
            Some((Part::Isr | Part::Device | Part::MsixPending, _)) | None => {}
        }
    }

    fn reset(&self) {
        self.core.reset();
        let interrupts = &self.core.interrupts;
        interrupts.msix.reset();
        let mut pci = interrupts.pci();
        pci.space.reset();
        interrupts.follow(&mut pci);
    }
}

impl Attachment for VirtioPci {
    fn name(&self) -> &str {
        &self.name
    }

    fn pause(&self, deadline: Instant) -> bool {
        self.core.run.pause(Some(deadline))
    }

    fn resume(&self) {
        self.core.run.resume();
    }
}

impl Drop for VirtioPci {
    fn drop(&mut self) {
        self.core.device.disconnect();
        self.core.run.end();
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so itself.
            _ = thread.join();
        }
    }
}
