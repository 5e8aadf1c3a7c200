//! A channel's bus master: its registers, and the list of memory that it moves data to and from.
//!
//! Source: "Programming Interface for Bus Master IDE Controller", revision 1.0 (Intel, 1994); Intel 82371FB/SB (PIIX3)
//! datasheet, "PCI Bus Master IDE Registers".

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vireo_block::Buffer;
use vireo_memory::GuestMemory;

/// Ports of a channel's registers: command, status, and the address of the list.
pub const PORTS: usize = 8;
const COMMAND: usize = 0;
const STATUS: usize = 2;
const TABLE: usize = 4;

const START: u8 = 0x01;
/// From the device to memory. The device's command says it too, and is what counts.
const TO_MEMORY: u8 = 0x08;

const ACTIVE: u8 = 0x01;
const ERROR: u8 = 0x02;
const INTERRUPT: u8 = 0x04;
/// Whether device 0, 1 can do DMA: kept for the host.
const CAPABLE: u8 = 0x60;

/// The registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BusMaster {
    command: u8,
    status: u8,
    table: u32,
}

/// What a write of a register does beyond it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// It starts.
    Start,
    /// It stops: memory must be left alone.
    Stop,
}

impl BusMaster {
    /// Reads one port.
    pub fn read(&self, port: usize) -> u8 {
        match port {
            COMMAND => self.command,
            STATUS => self.status,
            TABLE..PORTS => self.table.to_le_bytes()[port - TABLE],
            _ => 0,
        }
    }

    /// Writes one port.
    pub fn write(&mut self, port: usize, value: u8) -> Effect {
        match port {
            COMMAND => {
                let changed = (value ^ self.command) & START != 0;
                self.command = value & (START | TO_MEMORY);
                match (changed, value & START != 0) {
                    (false, _) => return Effect::None,
                    (true, true) => self.status |= ACTIVE,
                    (true, false) => self.status &= !ACTIVE,
                }
                return if value & START != 0 { Effect::Start } else { Effect::Stop };
            }
            STATUS => {
                let cleared = value & (ERROR | INTERRUPT);
                self.status = self.status & !cleared & !CAPABLE | value & CAPABLE;
            }
            TABLE..PORTS => {
                let mut bytes = self.table.to_le_bytes();
                bytes[port - TABLE] = value;
                self.table = u32::from_le_bytes(bytes) & !3;
            }
            _ => {}
        }
        Effect::None
    }

    /// Whether it was started and has not ended.
    pub const fn active(&self) -> bool {
        self.status & ACTIVE != 0
    }

    /// The transfer has ended; `error`: memory could not be reached.
    pub const fn end(&mut self, error: bool) {
        self.status &= !ACTIVE;
        if error {
            self.status |= ERROR;
        }
    }

    /// The channel's interrupt line has risen.
    pub const fn interrupted(&mut self) {
        self.status |= INTERRUPT;
    }

    /// Whether these are values that the registers can have.
    pub const fn valid(&self) -> bool {
        let command = self.command & !(START | TO_MEMORY) == 0;
        command && self.status & !(ACTIVE | ERROR | INTERRUPT | CAPABLE) == 0 && self.table & 3 == 0
    }

    /// The memory of the next `len` bytes.
    ///
    /// # Errors
    /// See [`ListError`].
    pub fn memory(&self, memory: &Arc<GuestMemory>, len: u64) -> Result<Vec<Buffer>, ListError> {
        gather(memory, self.table, len)
    }
}

/// A list of physical regions that cannot be used. Nothing was moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListError {
    /// It has less memory than the device has data.
    Short,
    /// It, or a region of it, is not RAM, or it reaches over a 64 KiB boundary.
    Unreachable,
}

/// Bytes of an entry: address, length (0 is 64 KiB), and in the topmost bit whether it is the last.
const ENTRY: u64 = 8;
/// The list must not cross a multiple of this: so it has an end, whatever the guest writes there.
const LIST_BOUNDARY: u64 = 64 << 10;

/// Reads each entry once. Memory that follows on from an entry's to the next one's is one buffer.
fn gather(memory: &Arc<GuestMemory>, table: u32, len: u64) -> Result<Vec<Buffer>, ListError> {
    let unreachable = |_| ListError::Unreachable;
    let mut regions: Vec<(u64, u64)> = Vec::new();
    let (mut at, mut left) = (u64::from(table), len);
    let boundary = (at / LIST_BOUNDARY + 1) * LIST_BOUNDARY;
    while left > 0 {
        if at + ENTRY > boundary {
            return Err(ListError::Unreachable);
        }
        let mut entry = [0; ENTRY as usize];
        memory.read(at, &mut entry).map_err(unreachable)?;
        let word = |n: usize| u32::from_le_bytes([entry[n], entry[n + 1], entry[n + 2], entry[n + 3]]);
        let (address, flags) = (u64::from(word(0) & !1), word(4));
        let size = match flags & 0xFFFE {
            0 => 64 << 10,
            n => u64::from(n),
        };
        let used = size.min(left);
        match regions.last_mut() {
            Some((start, len)) if *start + *len == address => *len += used,
            _ => regions.push((address, used)),
        }
        left -= used;
        at += ENTRY;
        if flags >> 31 != 0 && left > 0 {
            return Err(ListError::Short);
        }
    }
    let slice = |(gpa, len)| memory.slice(gpa, len).map(Buffer::Guest);
    regions.into_iter().map(slice).collect::<Result<_, _>>().map_err(unreachable)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vireo_memory::{Holes, RamLayout};

    use super::*;

    fn memory() -> Arc<GuestMemory> {
        let holes = Holes { legacy: 0xA0000..0x10_0000, pci: 0xC000_0000..0x1_0000_0000 };
        GuestMemory::new(RamLayout::new(16 << 20, &holes).expect("a layout")).expect("memory")
    }

    fn list(memory: &GuestMemory, at: u64, entries: &[(u32, u32)]) {
        for (n, (address, flags)) in entries.iter().enumerate() {
            let at = at + 8 * n as u64;
            memory.write_obj(at, *address).expect("RAM");
            memory.write_obj(at + 4, *flags).expect("RAM");
        }
    }

    fn lengths(buffers: &[Buffer]) -> Vec<(u64, usize)> {
        let gpa = |b: &Buffer| match b {
            Buffer::Guest(slice) => (slice.gpa(), slice.len()),
            Buffer::Host(..) => panic!("guest memory is wanted"),
        };
        buffers.iter().map(gpa).collect()
    }

    #[test]
    fn regions_are_cut_to_the_data_and_joined() {
        let m = memory();
        list(&m, 0x1000, &[(0x20_0000, 0), (0x21_0000, 0x200), (0x30_0001, 0x8000_0FFF)]);
        let got = gather(&m, 0x1000, 0x10000 + 0x200 + 0x800).expect("enough memory");
        assert_eq!(lengths(&got), [(0x20_0000, 0x1_0200), (0x30_0000, 0x800)]);
        assert_eq!(gather(&m, 0x1000, 0x10000 + 0x200 + 0x1000).err(), Some(ListError::Short));
        assert_eq!(lengths(&gather(&m, 0x1000, 2).expect("enough memory")), [(0x20_0000, 2)]);
    }

    #[test]
    fn lists_and_regions_outside_of_memory_end() {
        let m = memory();
        for (address, flags) in
            [(0xA_0000, 0), (0x9_FFFE, 4), (0xFFFF_FFFE, 0), (0xC000_0000, 512), (0xFF_FFFE, 4)]
        {
            list(&m, 0x1000, &[(address, flags)]);
            assert_eq!(gather(&m, 0x1000, 512).err(), Some(ListError::Unreachable), "{address:#x}");
        }
        assert_eq!(gather(&m, 0xFFFF_FFFC, 512).err(), Some(ListError::Unreachable));
        // No end is ever said: the boundary ends it.
        list(&m, 0x2_0000, &[(0x20_0000, 2); 8192]);
        assert_eq!(gather(&m, 0x2_0000, 1 << 40).err(), Some(ListError::Unreachable));
        assert_eq!(gather(&m, 0x2_0000, 16384).expect("enough memory").len(), 8192);
    }

    #[test]
    fn registers_keep_what_they_have() {
        let mut b = BusMaster::default();
        for port in 0..PORTS {
            b.write(port, 0xFF);
        }
        assert_eq!(
            (0..PORTS).map(|p| b.read(p)).collect::<Vec<_>>(),
            [9, 0, 0x61, 0, 0xFC, 0xFF, 0xFF, 0xFF]
        );
        b.interrupted();
        b.end(true);
        assert_eq!((b.read(STATUS), b.active()), (0x66, false));
        b.write(STATUS, 0x24);
        assert_eq!(b.read(STATUS), 0x22);
        assert_eq!(b.write(COMMAND, 8), Effect::Stop);
        assert_eq!(b.write(COMMAND, 0), Effect::None);
        assert_eq!(b.write(COMMAND, 1), Effect::Start);
        assert!(b.active() && b.valid());
    }

    proptest! {
        #[test]
        fn any_list_gives_all_the_memory_or_an_error(
            table in any::<u32>().prop_map(|t| (t & 0xFF_FFFF) & !3),
            entries in prop::collection::vec((any::<u32>(), any::<u32>()), 1..40),
            len in 0_u64..(1 << 21),
        ) {
            let m = memory();
            let near: Vec<_> = entries.iter().map(|(a, f)| (a & 0x1FF_FFFF, *f)).collect();
            for (n, (address, flags)) in near.iter().enumerate() {
                let at = u64::from(table) + 8 * n as u64;
                _ = m.write(at, &[address.to_le_bytes(), flags.to_le_bytes()].concat());
            }
            if let Ok(got) = gather(&m, table, len) {
                prop_assert_eq!(got.iter().map(|b| b.len() as u64).sum::<u64>(), len);
            }
        }
    }
}
