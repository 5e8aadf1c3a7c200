//! Between the vCPU, its local APIC and those of the others.

use std::sync::atomic::Ordering::*;

use vireo_core::state::{Activity, msr};
use vireo_core::{MsiMessage, MsrFault};

use super::local::{Effect, Refused, msr_offset, reg};
use super::message::Message;
use super::route::route;
use crate::cpu::Cpu;
use crate::partition::{Shared, request};

impl Shared {
    /// Delivers a message; `source` is the vCPU that sent it, if one did.
    fn deliver(&self, message: &Message, source: Option<usize>) {
        let routing = self.vcpus.iter().map(|v| v.mailbox.routing());
        route(message, source, routing, |i| {
            self.vcpus[i].mailbox.post(message);
            self.vcpus[i].request(request::INTERRUPT);
        });
    }

    /// Delivers an MSI.
    pub fn deliver_msi(&self, message: MsiMessage) {
        if let Some(m) = Message::from_msi(&message) {
            self.deliver(&m, None);
        }
    }
}

impl Cpu {
    /// After anything about the local APIC, or the guest's TSC, changed.
    pub fn apic_changed(&mut self) {
        let own = &self.shared.vcpus[self.index as usize];
        own.mailbox.publish(self.apic.routing());
        self.interrupt_waits = self.apic.deliverable().is_some() || self.extint_waits();
        self.apic_deadline = self.apic.deadline();
    }

    fn extint_waits(&self) -> bool {
        self.shared.vcpus[self.index as usize].extint.load(Acquire) && self.apic.passes_extint()
    }

    /// Takes what others posted.
    pub fn take_mail(&mut self) {
        let mail = self.shared.vcpus[self.index as usize].mailbox.take();
        if mail.init {
            self.init();
        }
        for v in mail.vectors.iter() {
            self.apic.raise(v, mail.level.has(v));
        }
        self.nmi_pending |= mail.nmi;
        if let Some(v) = mail.startup.filter(|_| self.activity == Activity::WaitForSipi) {
            self.start_up(v);
        }
        self.apic_changed();
    }

    /// The vector to deliver now; the local APIC or the PIC considers it taken.
    pub fn take_interrupt(&mut self) -> Option<u8> {
        let vector = match self.apic.deliverable() {
            Some(v) => {
                self.apic.accept(v);
                Some(v)
            }
            None if self.extint_waits() => self.bus().pic_acknowledge(),
            None => None,
        };
        self.apic_changed();
        vector
    }

    /// Raises the local APIC timer's interrupt if it is due; whether it was.
    pub fn timer_due(&mut self) -> bool {
        let now = self.tsc();
        if self.apic_deadline.is_none_or(|d| now < d) {
            return false;
        }
        let fired = self.apic.serve_timer(now);
        self.apic_changed();
        fired
    }

    fn serve_effect(&mut self, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Eoi(v) => self.bus().ioapic_eoi(v),
            Effect::Send(m) => self.shared.deliver(&m, Some(self.index as usize)),
        }
        self.apic_changed();
    }

    /// Reads the register page: 32-bit registers at 16-byte steps; other bytes read as zero.
    pub fn apic_mmio_read(&mut self, gpa: u64, data: &mut [u8]) {
        let offset = (gpa & 0xfff) as u32;
        let v = self.apic.read(offset & !15, self.tsc()).unwrap_or(0).to_le_bytes();
        for (i, b) in data.iter_mut().enumerate() {
            *b = v.get((offset & 15) as usize + i).copied().unwrap_or(0);
        }
    }

    /// Writes the register page: aligned 32-bit writes only, as the SDM demands of software.
    pub fn apic_mmio_write(&mut self, gpa: u64, data: &[u8]) {
        let offset = (gpa & 0xfff) as u32;
        if let (0, Some(Ok(v))) = (offset & 15, data.get(..4).map(<[u8; 4]>::try_from)) {
            let now = self.tsc();
            let effect = self.apic.write(offset, u32::from_le_bytes(v), now).unwrap_or(Effect::None);
            self.serve_effect(effect);
        }
    }

    fn x2apic_read(&mut self, index: u32) -> Result<u64, Refused> {
        let offset = msr_offset(index).filter(|_| self.apic.x2apic()).ok_or(Refused)?;
        if offset == reg::ICR {
            return Ok(self.apic.icr());
        }
        self.apic.read(offset, self.tsc()).map(u64::from).ok_or(Refused)
    }

    fn x2apic_write(&mut self, index: u32, v: u64) -> Result<(), Refused> {
        let offset = msr_offset(index).filter(|_| self.apic.x2apic()).ok_or(Refused)?;
        let now = self.tsc();
        if offset == reg::ICR {
            let effect = self.apic.write_icr(v);
            self.serve_effect(effect);
            return Ok(());
        }
        let read_only = matches!(
            offset,
            reg::ID | reg::VERSION | reg::PPR | reg::LDR | reg::TIMER_CURRENT | reg::ISR..=0x270
        );
        if read_only || v >> 32 != 0 || matches!(offset, reg::EOI | reg::ESR) && v != 0 {
            return Err(Refused);
        }
        let effect = self.apic.write(offset, v as u32, now).ok_or(Refused)?;
        self.serve_effect(effect);
        Ok(())
    }

    /// Reads an MSR of the local APIC.
    pub fn apic_msr_read(&mut self, index: u32) -> Result<u64, MsrFault> {
        match index {
            msr::APIC_BASE => Ok(self.apic.base()),
            msr::TSC_DEADLINE => Ok(self.apic.tsc_deadline()),
            _ => self.x2apic_read(index).map_err(|Refused| MsrFault),
        }
    }

    /// Writes an MSR of the local APIC.
    pub fn apic_msr_write(&mut self, index: u32, v: u64) -> Result<(), MsrFault> {
        let done = match index {
            msr::APIC_BASE => {
                let moved = self.apic.set_base(v, self.shared.physical_bits);
                // The page moved, appeared or went: cached translations may hide it, or RAM behind it.
                self.mmu.flush_all();
                moved
            }
            msr::TSC_DEADLINE => {
                self.apic.set_tsc_deadline(v);
                Ok(())
            }
            _ => return self.x2apic_write(index, v).map_err(|Refused| MsrFault),
        };
        self.apic_changed();
        done.map_err(|Refused| MsrFault)
    }
}
