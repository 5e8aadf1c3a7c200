//! Which vectors leave KVM at their EOI.
//!
//! With the split interrupt chip, KVM reports the end of an interrupt (KVM_EXIT_IOAPIC_EOI) only for vectors of
//! level-triggered messages in its GSI routing table, where it expects the redirection table of the IOAPIC. The
//! engine sees messages, not pins; so the table remembers the level-triggered messages delivered last.

use kvm_bindings::{KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry};
use kvm_ioctls::VmFd;
use vireo_core::{EngineError, MsiMessage};

use crate::sys;

/// Routes that KVM scans: the pins of an IOAPIC. No more level-triggered messages can be alive at a time.
pub const EOI_ROUTES: usize = 24;

/// Trigger mode bit of MSI data: 1 is level (SDM vol. 3A, figure 11-25).
const TRIGGER_LEVEL: u32 = 1 << 15;

/// The level-triggered messages with a route, the one used last in front.
#[derive(Default)]
pub struct EoiRoutes(Vec<MsiMessage>);

impl EoiRoutes {
    /// Makes sure that the end of this interrupt will be seen. Called before it is delivered.
    pub fn cover(&mut self, vm: &VmFd, message: MsiMessage) -> Result<(), EngineError> {
        if message.data & TRIGGER_LEVEL == 0 || !self.note(message) {
            return Ok(());
        }
        let entries: Vec<_> = (0..).zip(&self.0).map(|(gsi, m)| entry(gsi, m)).collect();
        let routing = KvmIrqRouting::from_entries(&entries)
            .map_err(|e| EngineError::Internal(format!("building the interrupt routes: {e:?}")))?;
        vm.set_gsi_routing(&routing).map_err(sys::os("setting the interrupt routes"))
    }

    /// Puts the message in front; whether it is new.
    fn note(&mut self, message: MsiMessage) -> bool {
        if let Some(at) = self.0.iter().position(|m| *m == message) {
            self.0[..=at].rotate_right(1);
            return false;
        }
        self.0.truncate(EOI_ROUTES - 1);
        self.0.insert(0, message);
        true
    }
}

fn entry(gsi: u32, m: &MsiMessage) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi.address_lo = m.address as u32;
    entry.u.msi.address_hi = (m.address >> 32) as u32;
    entry.u.msi.data = m.data;
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_messages_delivered_last_keep_their_routes() {
        let level = |v: u32| MsiMessage { address: 0xfee0_0000, data: TRIGGER_LEVEL | v };
        let mut routes = EoiRoutes::default();
        assert!(routes.note(level(0x30)));
        for v in 0x40..0x40 + EOI_ROUTES as u32 - 1 {
            assert!(routes.note(level(v)));
            assert!(!routes.note(level(0x30)), "used all the time, so never evicted");
        }
        assert!(routes.note(level(0x80)));
        assert_eq!(routes.0.len(), EOI_ROUTES);
        assert!(!routes.note(level(0x30)));
        assert!(routes.note(level(0x40)), "the oldest one made room");
    }
}
