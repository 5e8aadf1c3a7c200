//! What vCPUs reach through the engine: the chipset's buses; and the chipset's way back to the engine.

use std::sync::{Arc, OnceLock};

use vireo_chipset::Chipset;
use vireo_chipset::lines::{ExtIntSink, MsiMessage, MsiSink};
use vireo_core::{Bus, HypercallRegs, MsrFault, Partition};
use vireo_hyperv::{Hyperv, msr};

/// Port, MMIO, MSR and hypercall accesses of the guest.
pub struct BoardBus {
    /// The devices.
    pub chipset: Arc<Chipset>,
    /// The interface for guests that know it.
    pub hyperv: Option<Arc<Hyperv>>,
}

impl BoardBus {
    /// The interface, for an MSR of its range.
    fn hyperv(&self, index: u32) -> Option<&Hyperv> {
        self.hyperv.as_deref().filter(|_| msr::RANGE.contains(&index))
    }
}

impl Bus for BoardBus {
    fn pio_read(&self, _vcpu: u32, port: u16, data: &mut [u8]) {
        self.chipset.pio.read(port, data);
    }
    fn pio_write(&self, _vcpu: u32, port: u16, data: &[u8]) {
        self.chipset.pio.write(port, data);
    }
    fn mmio_read(&self, _vcpu: u32, gpa: u64, data: &mut [u8]) {
        self.chipset.mmio.read(gpa, data);
    }
    fn mmio_write(&self, _vcpu: u32, gpa: u64, data: &[u8]) {
        self.chipset.mmio.write(gpa, data);
    }
    fn msr_read(&self, vcpu: u32, msr: u32) -> Result<u64, MsrFault> {
        if let Some(hyperv) = self.hyperv(msr) {
            return hyperv.msr_read(vcpu, msr);
        }
        tracing::debug!(vcpu, "read of unknown MSR {msr:#x}");
        Err(MsrFault)
    }
    fn msr_write(&self, vcpu: u32, msr: u32, value: u64) -> Result<(), MsrFault> {
        if let Some(hyperv) = self.hyperv(msr) {
            return hyperv.msr_write(vcpu, msr, value);
        }
        tracing::debug!(vcpu, "write of {value:#x} to unknown MSR {msr:#x}");
        Err(MsrFault)
    }
    fn hypercall(&self, vcpu: u32, regs: &HypercallRegs) -> Option<HypercallRegs> {
        self.hyperv.as_ref()?.hypercall(vcpu, regs)
    }
    fn pic_acknowledge(&self) -> Option<u8> {
        self.chipset.pic().acknowledge()
    }
    fn ioapic_eoi(&self, vector: u8) {
        self.chipset.ioapic().eoi(vector);
    }
}

/// The chipset's interrupt outputs, connected to the partition once both exist.
#[derive(Default)]
pub struct InterruptWires {
    partition: OnceLock<Arc<dyn Partition>>,
}

impl InterruptWires {
    /// Connects the partition; later calls change nothing.
    pub fn connect(&self, partition: Arc<dyn Partition>) {
        _ = self.partition.set(partition);
    }
}

impl MsiSink for InterruptWires {
    fn deliver(&self, message: MsiMessage) {
        if let Some(p) = self.partition.get() {
            p.deliver_msi(vireo_core::MsiMessage { address: message.address, data: message.data });
        }
    }
}

impl ExtIntSink for InterruptWires {
    fn set(&self, asserted: bool) {
        if let Some(p) = self.partition.get() {
            p.set_extint(asserted);
        }
    }
}
