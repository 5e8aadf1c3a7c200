//! The middle of a device: registers, queues, run state and interrupts, for its transport, its thread and its requests in flight.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use vireo_memory::GuestMemory;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;

use crate::device::{Device, DeviceState, Turn};
use crate::interrupt::Interrupts;
use crate::memory::QueueMemory;
use crate::queue::{Broken, NO_VECTOR, ServedQueue, Slot};
use crate::run::{Rests, Run, Work};

const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;
const FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK as u8;
const NEEDS_RESET: u8 = VIRTIO_CONFIG_S_NEEDS_RESET as u8;
/// Bits of the status that the driver sets.
const DRIVER_BITS: u8 = (VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FAILED) as u8
    | DRIVER_OK
    | FEATURES_OK;

/// Features of every device: version 1 alone (no legacy), indirect descriptors, event indices.
const TRANSPORT_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;

/// The registers that belong to no queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Registers {
    pub(crate) device_feature_select: u32,
    pub(crate) driver_feature_select: u32,
    pub(crate) driver_features: u64,
    pub(crate) config_vector: u16,
    pub(crate) status: u8,
    /// Changes with the device-specific configuration.
    pub(crate) generation: u8,
    pub(crate) queue_select: u16,
    /// The configuration changed while the device was paused: its thread tells the driver when it goes on.
    #[serde(default)]
    pub(crate) news: bool,
    /// The driver asked for a reset, and requests are still in flight. Nothing else is taken from it meanwhile.
    #[serde(skip)]
    pub(crate) resetting: bool,
}

impl Registers {
    const fn new() -> Self {
        Self {
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            config_vector: NO_VECTOR,
            status: 0,
            generation: 0,
            queue_select: 0,
            news: false,
            resetting: false,
        }
    }

    /// The driver writes half of the features that it wants; not after it has said that these are all.
    pub(crate) fn choose_features(&mut self, half: u32) {
        let shift = match self.driver_feature_select {
            0 => 0,
            1 => 32,
            _ => return,
        };
        if self.status & FEATURES_OK == 0 {
            self.driver_features = self.driver_features & !(0xFFFF_FFFF << shift) | u64::from(half) << shift;
        }
    }

    /// Whether queues are served.
    pub(crate) fn running(&self) -> bool {
        self.status & DRIVER_OK != 0 && self.status & NEEDS_RESET == 0 && !self.resetting
    }

    /// Whether a driver can have made them so, given what it was `offered`.
    pub(crate) fn possible(&self, offered: u64) -> bool {
        self.status & !(DRIVER_BITS | NEEDS_RESET) == 0
            && (self.status & FEATURES_OK == 0 || acceptable(self.driver_features, offered))
            && (self.status & DRIVER_OK == 0 || self.status & FEATURES_OK != 0)
    }
}

/// Whether a device can work with these features.
const fn acceptable(features: u64, offered: u64) -> bool {
    features & !offered == 0 && features & 1 << VIRTIO_F_VERSION_1 != 0
}

/// The middle of a device.
///
/// Locks: registers, then a queue's; the interrupts' and the run state's are taken last, and alone.
pub(crate) struct Core {
    pub(crate) device: Arc<dyn Device>,
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) queue_memory: QueueMemory,
    pub(crate) interrupts: Interrupts,
    pub(crate) run: Run,
    registers: Mutex<Registers>,
    slots: Vec<Mutex<Slot>>,
}

impl Core {
    pub(crate) fn new(
        device: Arc<dyn Device>,
        memory: Arc<GuestMemory>,
        queue_memory: QueueMemory,
        interrupts: Interrupts,
        slots: Vec<Slot>,
    ) -> Self {
        Self {
            device,
            memory,
            queue_memory,
            interrupts,
            run: Run::paused(),
            registers: Mutex::new(Registers::new()),
            slots: slots.into_iter().map(Mutex::new).collect(),
        }
    }

    pub(crate) fn registers(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of queues.
    pub(crate) fn queues(&self) -> usize {
        self.slots.len()
    }

    /// Queue `index`, which exists.
    pub(crate) fn slot(&self, index: usize) -> MutexGuard<'_, Slot> {
        self.slots[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the driver may choose from.
    pub(crate) fn offered(&self) -> u64 {
        self.device.features() | TRANSPORT_FEATURES
    }

    /// What was agreed on.
    pub(crate) fn negotiated(&self) -> u64 {
        self.registers().driver_features
    }

    /// The driver writes the status (virtio 1.2 §2.1).
    pub(crate) fn write_status(&self, value: u8) {
        let mut registers = self.registers();
        if registers.resetting {
            return;
        }
        if value == 0 {
            registers.resetting = true;
            drop(registers);
            if self.run.ask_for_reset() {
                self.finish_reset();
            }
            return;
        }
        let old = registers.status;
        // Bits are only ever added; the device's own stays.
        let mut new = old | value & DRIVER_BITS;
        if new & !old & FEATURES_OK != 0 && !acceptable(registers.driver_features, self.offered()) {
            new &= !FEATURES_OK;
        }
        if new & FEATURES_OK == 0 {
            new &= !DRIVER_OK;
        }
        registers.status = new;
        let event_idx = registers.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let starts = new & !old & DRIVER_OK != 0 && registers.running();
        if starts {
            (0..self.queues()).for_each(|index| self.slot(index).queue.set_event_idx(event_idx));
            self.device.start(registers.driver_features);
            // Under the registers' lock: a reset by another vCPU comes before, or after.
            self.run.activate();
        }
        drop(registers);
        if starts {
            self.check_rings();
        }
    }

    /// Finds rings that are not in RAM before anything is done with them.
    fn check_rings(&self) {
        for index in 0..self.queues() {
            let slot = self.slot(index);
            let bad = slot.queue.ready() && !slot.queue.is_valid(&self.queue_memory);
            drop(slot);
            if bad {
                self.broken(&Broken::new(format!("the rings of queue {index} are not in RAM")));
            }
        }
    }

    /// Everything as after a reset; the device rests.
    fn finish_reset(&self) {
        // Held to the end: the next driver starts when all is done.
        let mut registers = self.registers();
        for index in 0..self.queues() {
            self.slot(index).reset();
        }
        self.device.stop();
        self.interrupts.forget();
        self.run.reset_done();
        *registers = Registers { generation: registers.generation, ..Registers::new() };
    }

    /// As after power-on, except for the PCI side; waits until the device rests.
    pub(crate) fn reset(&self) {
        self.run.pause(None);
        self.run.deactivate();
        self.finish_reset();
        self.run.resume();
    }

    /// Takes over registers and queues of a saved state; the device rests. The interrupts are restored by now.
    pub(crate) fn restore(&self, registers: Registers, slots: Vec<Slot>, device: Option<&DeviceState>) {
        self.run.deactivate();
        for (index, slot) in slots.into_iter().enumerate() {
            *self.slot(index) = slot;
        }
        let running = registers.running();
        let features = registers.driver_features;
        self.device.stop();
        *self.registers() = registers;
        if running {
            self.device.start(features);
            device.inspect(|state| self.device.restore(state));
            self.run.activate();
        }
    }

    /// The driver broke the rules: nothing is served until it resets the device, and it is told so.
    pub(crate) fn broken(&self, broken: &Broken) {
        self.run.deactivate();
        let mut registers = self.registers();
        if registers.status & (DRIVER_OK | NEEDS_RESET) != DRIVER_OK {
            return;
        }
        registers.status |= NEEDS_RESET;
        let vector = registers.config_vector;
        drop(registers);
        tracing::debug!(kind = self.device.identity().kind, "virtio device needs a reset: {broken}");
        self.interrupts.config(vector);
    }

    /// The device-specific configuration has changed.
    pub(crate) fn config_changed(&self) {
        let mut registers = self.registers();
        registers.generation = registers.generation.wrapping_add(1);
        if !registers.running() {
            return;
        }
        // With the registers' lock held: the thread looks for news after the pause, not between.
        let visit = self.run.visit();
        let vector = registers.config_vector;
        registers.news |= visit == Err(Rests::Paused);
        drop(registers);
        if visit.is_ok() {
            self.interrupts.config(vector);
            self.abandon();
        }
    }

    /// Tells the driver what it was not told while the device was paused.
    fn tell_news(&self) {
        let mut registers = self.registers();
        let told = std::mem::take(&mut registers.news) && registers.running();
        let vector = registers.config_vector;
        drop(registers);
        if told {
            self.interrupts.config(vector);
        }
    }

    /// Returns a chain to the driver.
    pub(crate) fn complete(&self, index: usize, head: u16, written: u32) {
        self.publish(index, &[(head, written)]);
        self.tell(index);
        self.abandon();
    }

    /// Returns chains to the driver, which is not told.
    pub(crate) fn publish(&self, index: usize, chains: &[(u16, u32)]) {
        let published = self.slot(index).publish(&self.queue_memory, chains);
        if let Err(broken) = published {
            self.broken(&broken);
        }
    }

    /// Tells the driver of chains that were returned, if it wants that.
    pub(crate) fn tell(&self, index: usize) {
        let told = self.slot(index).tell(&self.queue_memory);
        match told {
            Ok(Some(vector)) => self.interrupts.queue(vector),
            Ok(None) => {}
            Err(broken) => self.broken(&broken),
        }
    }

    /// A chain is in flight no more. Comes last: a device at rest must not interrupt.
    pub(crate) fn abandon(&self) {
        if self.run.request_ends() {
            self.finish_reset();
        }
    }

    /// The device's thread.
    pub(crate) fn serve_queues(self: &Arc<Self>) {
        while let Work::Serve(kicked) = self.run.wait() {
            self.tell_news();
            for index in (0..self.queues()).filter(|index| kicked & 1 << index != 0) {
                if let Err(broken) = self.serve(index) {
                    self.broken(&broken);
                    break;
                }
            }
            if self.run.served() {
                self.finish_reset();
            }
        }
    }

    fn serve(self: &Arc<Self>, index: usize) -> Result<(), Broken> {
        let mut slot = self.slot(index);
        if !slot.queue.ready() {
            return Ok(());
        }
        slot.queue.disable_notification(&self.queue_memory)?;
        drop(slot);
        let queue = ServedQueue::new(self, index);
        let turn = self.device.serve(&queue)?;
        match turn {
            Turn::Waits => {}
            Turn::At(at) => self.run.kick_at(index, at),
            Turn::Drained if queue.turn_is_over() => self.run.kick(index),
            Turn::Drained => {
                // What came while the driver did not tell.
                if self.slot(index).queue.enable_notification(&self.queue_memory)? {
                    self.run.kick(index);
                }
            }
        }
        Ok(())
    }
}
