//! The common configuration structure: what the driver reads and writes of device and queues.
//!
//! Source: virtio 1.2 §4.1.4.3.

use virtio_queue::QueueT;

use crate::core::Core;
use crate::queue::NO_VECTOR;

/// Bytes of the structure, the fields of features that are not offered included.
pub(super) const SIZE: u64 = 60;

const DEVICE_FEATURE_SELECT: u64 = 0;
const DEVICE_FEATURE: u64 = 4;
const DRIVER_FEATURE_SELECT: u64 = 8;
const DRIVER_FEATURE: u64 = 12;
const CONFIG_VECTOR: u64 = 16;
const STATUS: u64 = 20;
const QUEUE_SELECT: u64 = 22;
const QUEUE_SIZE: u64 = 24;
const QUEUE_VECTOR: u64 = 26;
const QUEUE_ENABLE: u64 = 28;
/// Descriptors, driver area and device area: 64 bits each.
const QUEUE_ADDRESSES: u64 = 32;
const QUEUE_ADDRESSES_END: u64 = 56;

/// Reads by any width: no field has an effect when read.
pub(super) fn read(core: &Core, offset: u64, data: &mut [u8]) {
    for (at, byte) in (offset..).zip(data) {
        *byte = dword(core, at & !3).to_le_bytes()[(at & 3) as usize];
    }
}

/// The 4 bytes at `offset`.
fn dword(core: &Core, offset: u64) -> u32 {
    let pair = |low: u16, high: u16| u32::from(low) | u32::from(high) << 16;
    let registers = core.registers();
    let half = |features: u64, select: u32| match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    };
    match offset {
        DEVICE_FEATURE_SELECT => registers.device_feature_select,
        DEVICE_FEATURE => half(core.offered(), registers.device_feature_select),
        DRIVER_FEATURE_SELECT => registers.driver_feature_select,
        DRIVER_FEATURE => half(registers.driver_features, registers.driver_feature_select),
        CONFIG_VECTOR => pair(registers.config_vector, core.queues() as u16),
        STATUS => pair(u16::from_le_bytes([registers.status, registers.generation]), registers.queue_select),
        QUEUE_SIZE..QUEUE_ADDRESSES_END => {
            let index = registers.queue_select;
            drop(registers);
            queue_dword(core, index, offset)
        }
        // Queue notification data and queue reset: features that are not offered.
        _ => 0,
    }
}

/// The same, of the selected queue; one that does not exist has size 0.
fn queue_dword(core: &Core, index: u16, offset: u64) -> u32 {
    if usize::from(index) >= core.queues() {
        return if offset == QUEUE_SIZE { u32::from(NO_VECTOR) << 16 } else { 0 };
    }
    let slot = core.slot(index.into());
    let queue = &slot.queue;
    let address = |at: u64| match (at - QUEUE_ADDRESSES) / 8 {
        0 => queue.desc_table(),
        1 => queue.avail_ring(),
        _ => queue.used_ring(),
    };
    match offset {
        QUEUE_SIZE => u32::from(queue.size()) | u32::from(slot.vector) << 16,
        // Each queue has a doorbell of its own, at its index.
        QUEUE_ENABLE => u32::from(queue.ready()) | u32::from(index) << 16,
        _ => (address(offset) >> (offset % 8 * 8)) as u32,
    }
}

/// Writes a field as a whole, 64-bit ones also by halves; other accesses are undefined, and ignored.
pub(super) fn write(core: &Core, offset: u64, data: &[u8]) {
    let mut bytes = [0; 8];
    for (to, from) in bytes.iter_mut().zip(data) {
        *to = *from;
    }
    let value = u64::from_le_bytes(bytes);
    match (offset, data.len()) {
        (STATUS, 1) => core.write_status(value as u8),
        (QUEUE_ADDRESSES..QUEUE_ADDRESSES_END, 8) if offset.is_multiple_of(8) => {
            write_field(core, offset, 4, value as u32);
            write_field(core, offset + 4, 4, (value >> 32) as u32);
        }
        _ => write_field(core, offset, data.len(), value as u32),
    }
}

fn write_field(core: &Core, offset: u64, len: usize, value: u32) {
    let vectors = core.queues() as u16 + 1;
    // A vector that there is not reads back as none: the driver learns of it by that (§4.1.5.1.2).
    let vector = if value < u32::from(vectors) { value as u16 } else { NO_VECTOR };
    let mut registers = core.registers();
    if registers.resetting {
        return;
    }
    match (offset, len) {
        (DEVICE_FEATURE_SELECT, 4) => registers.device_feature_select = value,
        (DRIVER_FEATURE_SELECT, 4) => registers.driver_feature_select = value,
        (DRIVER_FEATURE, 4) => registers.choose_features(value),
        (CONFIG_VECTOR, 2) => registers.config_vector = vector,
        (QUEUE_SELECT, 2) => registers.queue_select = value as u16,
        (QUEUE_SIZE..QUEUE_ADDRESSES_END, _) => {
            let index = usize::from(registers.queue_select);
            drop(registers);
            write_queue(core, index, offset, len, value, vector);
        }
        _ => {}
    }
}

fn write_queue(core: &Core, index: usize, offset: u64, len: usize, value: u32, vector: u16) {
    if index >= core.queues() {
        return;
    }
    let mut slot = core.slot(index);
    if offset == QUEUE_VECTOR && len == 2 {
        slot.vector = vector;
        return;
    }
    let queue = &mut slot.queue;
    // While a queue is used, it stays where it is.
    if queue.ready() {
        return;
    }
    // Values that cannot be (a size that is no power of two, a misaligned address) leave the field as it was.
    let (low, high) = if offset.is_multiple_of(8) { (Some(value), None) } else { (None, Some(value)) };
    match (offset, len) {
        (QUEUE_SIZE, 2) => queue.set_size(value as u16),
        (QUEUE_ENABLE, 2) => queue.set_ready(value == 1),
        (32 | 36, 4) => queue.set_desc_table_address(low, high),
        (40 | 44, 4) => queue.set_avail_ring_address(low, high),
        (48 | 52, 4) => queue.set_used_ring_address(low, high),
        _ => {}
    }
}
