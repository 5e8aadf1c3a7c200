//! What devices say of themselves: IDENTIFY DEVICE and IDENTIFY PACKET DEVICE (ATA8-ACS, ATA/ATAPI-6).

use vireo_block::BlockInfo;

use crate::address::{Geometry, LIMIT_28, LIMIT_48, SECTOR};
use crate::disk::{DiskState, MAX_MULTIPLE};
use crate::settings::Settings;

/// 256 words, as bytes.
pub type Identity = [u8; 512];

struct Words([u16; 256]);

impl Words {
    /// Text, two characters to a word, the first in the higher byte; the rest is filled with spaces.
    fn text(&mut self, from: usize, words: usize, text: &str) {
        let mut characters = text.bytes().chain(std::iter::repeat(b' '));
        for word in &mut self.0[from..from + words] {
            *word = characters.by_ref().take(2).fold(0, |w, c| w << 8 | u16::from(c));
        }
    }

    /// A number of several words, the lowest first.
    fn number(&mut self, from: usize, words: usize, value: u64) {
        for (n, word) in self.0[from..from + words].iter_mut().enumerate() {
            *word = (value >> (16 * n)) as u16;
        }
    }

    fn bytes(&self) -> Identity {
        let mut bytes = [0; 512];
        for (to, word) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(self.0) {
            *to = word.to_le_bytes();
        }
        bytes
    }

    /// What disks and packet devices say alike.
    fn shared(&mut self, serial: &str, model: &str, settings: Settings) {
        self.text(10, 10, serial);
        self.text(23, 4, REVISION);
        self.text(27, 20, model);
        // IORDY, LBA, DMA.
        self.0[49] = 0x0B00;
        // Words 54 to 58, 64 to 70, and 88 count.
        self.0[53] = 7;
        self.0[63] = settings.multiword_word();
        // PIO 3 and 4, and cycle times of 120 ns.
        self.0[64] = 3;
        self.0[65..69].fill(120);
        self.0[88] = settings.ultra_word();
        // A cable of 80 wires; device 0 has passed its diagnostic (word 93, "hardware reset result").
        self.0[93] = 0x6001;
    }
}

const REVISION: &str = "1.0";

/// A serial number of at most 20 characters: the disk's own, or else, as for a drive, the place's name.
pub fn serial(info: Option<&BlockInfo>, place: &str) -> String {
    match info {
        Some(info) if info.id != [0; 16] => info.short_id().iter().map(|b| format!("{b:02X}")).collect(),
        _ => format!("VIREO-{place}"),
    }
}

/// Of a disk.
pub fn disk(info: &BlockInfo, serial: &str, state: &DiskState) -> Identity {
    let mut w = Words([0; 256]);
    let sectors = info.size / SECTOR;
    w.shared(serial, "Vireo Virtual Disk", state.settings);
    // A fixed disk.
    w.0[0] = 0x0040;
    (w.0[1], w.0[3], w.0[6]) = (Geometry::DEFAULT.cylinders(sectors), 16, 63);
    w.0[47] = 0x8000 | u16::from(MAX_MULTIPLE);
    // No trusted computing (before ATA8, bit 0 was double-word I/O: it is possible, and no driver asks).
    w.0[48] = 0x4000;
    w.0[50] = 0x4000;
    let current = state.geometry;
    let cylinders = current.cylinders(sectors);
    (w.0[54], w.0[55], w.0[56]) = (cylinders, current.heads.into(), current.sectors.into());
    w.number(57, 2, u64::from(cylinders) * u64::from(current.heads) * u64::from(current.sectors));
    if state.multiple > 0 {
        w.0[59] = 0x100 | u16::from(state.multiple);
    }
    w.number(60, 2, sectors.min(LIMIT_28 - 1));
    // ATA-4 to ATA8-ACS.
    w.0[80] = 0x01F0;
    // NOP, look-ahead, write cache, power management; then FLUSH CACHE and its EXT, 48-bit addresses; then FUA.
    w.0[82] = 0x4068;
    w.0[83] = 0x7400;
    w.0[84] = 0x4040;
    w.0[85] = 0x4048 | u16::from(state.settings.write_cache) << 5;
    w.0[86] = 0x3400;
    w.0[87] = 0x4040;
    w.number(100, 4, sectors.min(LIMIT_48 - 1));
    let per_physical = (info.physical_sector / info.sector.max(1)).max(1);
    if per_physical > 1 {
        w.0[106] = 0x6000 | per_physical.ilog2() as u16 & 0xF;
        w.0[209] = 0x4000;
    }
    if info.unmap && !info.read_only {
        // One block of ranges at a time; TRIM. What was trimmed may read as anything: no bit of word 69 promises more.
        w.0[105] = 1;
        w.0[169] = 1;
    }
    // Not rotating.
    w.0[217] = 1;
    w.bytes()
}

/// Of a CD drive. `place` names it.
pub fn packet_device(serial: &str, settings: Settings) -> Identity {
    let mut w = Words([0; 256]);
    w.shared(serial, "Vireo Virtual CD/DVD", settings);
    // A packet device of the CD kind, removable medium, ready for a packet within 50 us, packets of 12 bytes.
    w.0[0] = 0x85C0;
    // ATA-4 to ATA/ATAPI-6.
    w.0[80] = 0x0070;
    // NOP, DEVICE RESET, packets, power management.
    w.0[82] = 0x4218;
    w.0[83] = 0x4000;
    w.0[84] = 0x4000;
    w.0[85] = 0x4218;
    w.0[87] = 0x4000;
    w.bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(identity: &Identity, n: usize) -> u16 {
        u16::from_le_bytes([identity[2 * n], identity[2 * n + 1]])
    }

    const INFO: BlockInfo = BlockInfo {
        size: 3 << 40,
        sector: 512,
        physical_sector: 4096,
        read_only: false,
        unmap: true,
        id: [7; 16],
    };

    #[test]
    fn a_disk_says_its_size_in_each_way() {
        let mut info = INFO;
        let i = disk(&info, &serial(Some(&info), "x"), &DiskState::POWER_ON);
        assert_eq!((word(&i, 60), word(&i, 61)), (0xFFFF, 0x0FFF));
        assert_eq!((100..104).map(|n| word(&i, n)).collect::<Vec<_>>(), [0, 0x8000, 1, 0]);
        assert_eq!((word(&i, 1), word(&i, 106), word(&i, 169)), (16383, 0x6003, 1));
        assert_eq!(&i[54..64], b"iVer oiVtr");
        info.size = 100 << 20;
        info.unmap = false;
        let i = disk(&info, "s", &DiskState::POWER_ON);
        assert_eq!((word(&i, 1), word(&i, 60), word(&i, 61), word(&i, 169)), (203, 0x2000, 3, 0));
    }

    #[test]
    fn serial_numbers_fit_and_differ() {
        let mut info = BlockInfo { id: [0; 16], ..INFO };
        assert_eq!(serial(Some(&info), "0.1"), "VIREO-0.1");
        let mut all = std::collections::BTreeSet::new();
        for n in 0..16 {
            info.id = [1; 16];
            info.id[n] = 0xAB;
            let s = serial(Some(&info), "x");
            assert_eq!(s.len(), 20);
            all.insert(s);
        }
        assert_eq!(all.len(), 10, "each byte counts");
    }
}
