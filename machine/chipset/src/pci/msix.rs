//! MSI-X: a table of messages in a BAR, and which of them wait because they are masked.
//!
//! Source: PCI Local Bus Specification 3.0 §6.8.2.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::{ConfigSpace, PciLayoutError};
use crate::lines::{MsiMessage, MsiSink};
use crate::state::{RestoreError, check, check_version};

const VERSION: u32 = 1;
const DEVICE: &str = "MSI-X";

/// Capability ID.
const CAPABILITY: u8 = 0x11;
/// Of the capability: ID, link, message control, table and PBA locations.
const CONTROL_OFFSET: u8 = 2;
const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_MASK_ALL: u16 = 1 << 14;

const ENTRY: usize = 16;
const ENTRY_CONTROL: usize = 12;
const ENTRY_MASKED: u8 = 1;
/// Bits of an entry that software can write: the address is on 4 bytes, of vector control there is the mask alone.
const ENTRY_WRITABLE: [u8; ENTRY] =
    [0xFC, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, ENTRY_MASKED, 0, 0, 0];

/// What messages to local APICs have in bits 63:20 of their address (Intel SDM vol. 3 §11.11.1).
const APIC_PREFIX: u64 = 0xFEE;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Registers {
    control: u16,
    table: Vec<u8>,
    /// One bit for each vector, in 64-bit words as the guest reads them.
    pending: Vec<u64>,
}

impl Registers {
    fn new(vectors: u16) -> Self {
        let mut table = vec![0; usize::from(vectors) * ENTRY];
        for entry in table.chunks_exact_mut(ENTRY) {
            entry[ENTRY_CONTROL] = ENTRY_MASKED;
        }
        Self { control: 0, table, pending: vec![0; usize::from(vectors).div_ceil(64)] }
    }

    fn vectors(&self) -> usize {
        self.table.len() / ENTRY
    }

    fn masked(&self, vector: usize) -> bool {
        self.control & CONTROL_MASK_ALL != 0 || self.table[vector * ENTRY + ENTRY_CONTROL] & ENTRY_MASKED != 0
    }

    /// The message of `vector`, if it is one to a local APIC; other addresses are memory that no guest means.
    fn message(&self, vector: usize) -> Option<MsiMessage> {
        let word = |at: usize| {
            let at = vector * ENTRY + at;
            u32::from_le_bytes([self.table[at], self.table[at + 1], self.table[at + 2], self.table[at + 3]])
        };
        let address = u64::from(word(0)) | u64::from(word(4)) << 32;
        (address >> 20 == APIC_PREFIX).then(|| MsiMessage { address, data: word(8) })
    }

    /// The messages that have waited and need not any longer.
    fn take_deliverable(&mut self) -> Vec<MsiMessage> {
        if self.control & CONTROL_ENABLE == 0 || self.pending.iter().all(|word| *word == 0) {
            return Vec::new();
        }
        let mut messages = Vec::new();
        for vector in 0..self.vectors() {
            let (word, bit) = (vector / 64, 1 << (vector % 64));
            if self.pending[word] & bit != 0 && !self.masked(vector) {
                self.pending[word] &= !bit;
                messages.extend(self.message(vector));
            }
        }
        messages
    }
}

/// Saved state of [`Msix`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixState {
    version: u32,
    registers: Registers,
}

/// A function's MSI-X. The function passes on accesses to table and pending bits, and the control register after each write
/// to its configuration space.
pub struct Msix {
    registers: Mutex<Registers>,
    sink: Arc<dyn MsiSink>,
    /// Of the capability in configuration space.
    capability: u8,
}

impl Msix {
    /// Adds MSI-X with `vectors` messages (1 to 2048) to `space`. The table is at `table` in BAR `bar`, the pending bits at
    /// `pending`; both offsets are multiples of 8.
    ///
    /// # Errors
    /// No room for the capability, or no such number of vectors.
    pub fn new(
        space: &mut ConfigSpace,
        vectors: u16,
        bar: u8,
        table: u32,
        pending: u32,
        sink: Arc<dyn MsiSink>,
    ) -> Result<Self, PciLayoutError> {
        if !(1..=2048).contains(&vectors) || !(table | pending).is_multiple_of(8) {
            return Err(PciLayoutError::Vectors(vectors));
        }
        let mut body = Vec::new();
        body.extend((vectors - 1).to_le_bytes());
        body.extend((table | u32::from(bar)).to_le_bytes());
        body.extend((pending | u32::from(bar)).to_le_bytes());
        let writable = (CONTROL_ENABLE | CONTROL_MASK_ALL).to_le_bytes();
        let capability = space.add_capability(CAPABILITY, &body, &writable)?;
        Ok(Self { registers: Mutex::new(Registers::new(vectors)), sink, capability })
    }

    /// Bytes of the table with `vectors` messages.
    pub const fn table_size(vectors: u16) -> u64 {
        vectors as u64 * ENTRY as u64
    }

    /// Bytes of the pending bits of `vectors` messages.
    pub const fn pending_size(vectors: u16) -> u64 {
        (vectors as u64).div_ceil(64) * 8
    }

    /// Configuration space was written, or restored: follows its control register.
    pub fn follow(&self, space: &ConfigSpace) {
        let mut control = [0; 2];
        space.read(self.capability + CONTROL_OFFSET, &mut control);
        let mut registers = self.lock();
        registers.control = u16::from_le_bytes(control) & (CONTROL_ENABLE | CONTROL_MASK_ALL);
        self.deliver_waiting(&mut registers);
    }

    /// Whether the guest uses it; the function must not use its INTx pin then.
    pub fn enabled(&self) -> bool {
        self.lock().control & CONTROL_ENABLE != 0
    }

    /// Interrupts by message `vector`, now or when it is no longer masked. Ignored when MSI-X is off, and for vectors that
    /// do not exist.
    pub fn raise(&self, vector: u16) {
        let vector = usize::from(vector);
        let mut registers = self.lock();
        if vector >= registers.vectors() || registers.control & CONTROL_ENABLE == 0 {
            return;
        }
        if registers.masked(vector) {
            registers.pending[vector / 64] |= 1 << (vector % 64);
        } else if let Some(message) = registers.message(vector) {
            // Under the lock: once the guest has masked a vector, no message of it is on its way.
            self.sink.deliver(message);
        }
    }

    /// Reads the table from `offset` on; beyond it are zeros.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        read_bytes(&self.lock().table, offset, data);
    }

    /// Writes the table from `offset` on, and sends what was held back by a mask that went.
    pub fn write_table(&self, offset: u64, data: &[u8]) {
        let mut registers = self.lock();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let table = registers.table.iter_mut().enumerate().skip(start);
        for ((at, byte), value) in table.zip(data) {
            let writable = ENTRY_WRITABLE[at % ENTRY];
            *byte = *byte & !writable | value & writable;
        }
        self.deliver_waiting(&mut registers);
    }

    /// Reads the pending bits from `offset` on; beyond them are zeros. They cannot be written.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        let bytes: Vec<u8> = self.lock().pending.iter().flat_map(|word| word.to_le_bytes()).collect();
        read_bytes(&bytes, offset, data);
    }

    /// As after power-on.
    pub fn reset(&self) {
        let mut registers = self.lock();
        let vectors = registers.vectors() as u16;
        *registers = Registers::new(vectors);
    }

    /// The state.
    pub fn save(&self) -> MsixState {
        MsixState { version: VERSION, registers: self.lock().clone() }
    }

    /// Takes over a saved state. Sends nothing.
    ///
    /// # Errors
    /// Another version, another number of vectors, or values that no register can hold.
    pub fn restore(&self, state: &MsixState) -> Result<(), RestoreError> {
        check_version(DEVICE, state.version, VERSION)?;
        let new = &state.registers;
        let mut registers = self.lock();
        let same_size =
            new.table.len() == registers.table.len() && new.pending.len() == registers.pending.len();
        check(DEVICE, same_size, "another number of vectors")?;
        let reserved = new.table.iter().zip(ENTRY_WRITABLE.iter().cycle()).any(|(byte, w)| byte & !w != 0);
        check(DEVICE, !reserved, "reserved bits of the table set")?;
        let unknown = new.control & !(CONTROL_ENABLE | CONTROL_MASK_ALL) != 0;
        check(DEVICE, !unknown, "reserved bits of the control register set")?;
        let used = registers.vectors() % 64;
        let beyond = used != 0 && new.pending.last().is_some_and(|word| word >> used != 0);
        check(DEVICE, !beyond, "vectors pending that do not exist")?;
        *registers = new.clone();
        Ok(())
    }

    fn deliver_waiting(&self, registers: &mut Registers) {
        for message in registers.take_deliverable() {
            self.sink.deliver(message);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read_bytes(from: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    for (to, from) in data.iter_mut().zip(from.iter().skip(start)) {
        *to = *from;
    }
}
