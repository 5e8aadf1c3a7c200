//! Which sectors a command means: by cylinder, head and sector, by 28 bits, or by 48 (ATA/ATAPI-6, "sector
//! addressing").

use serde::{Deserialize, Serialize};

use crate::registers::{TaskFile, device};

/// Bytes of a sector. ATA could say others, but no BIOS and few guests would understand.
pub const SECTOR: u64 = 512;
/// Sectors that 28 bits can address.
pub const LIMIT_28: u64 = 1 << 28;
/// Sectors that 48 bits can address.
pub const LIMIT_48: u64 = 1 << 48;

/// How sectors are counted in cylinders and heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Geometry {
    /// 1 to 16.
    pub heads: u8,
    /// Sectors of a track, 1 to 255.
    pub sectors: u8,
}

impl Geometry {
    /// As a disk has it before the host says otherwise (ATA/ATAPI-4 annex on translation: what BIOSes expect).
    pub const DEFAULT: Self = Self { heads: 16, sectors: 63 };

    /// Cylinders of a disk of `total` sectors: never more than every BIOS can count (ATA/ATAPI-5, "IDENTIFY DEVICE",
    /// words 1 and 54).
    pub fn cylinders(self, total: u64) -> u16 {
        let cylinder = u64::from(self.heads.max(1)) * u64::from(self.sectors.max(1));
        (total / cylinder).min(16383) as u16
    }
}

/// The first sector and the number of sectors of a command with addresses of 28 bits. `None`: there is no such sector.
pub fn short(task: &TaskFile, device_register: u8, geometry: Geometry) -> Option<(u64, u32)> {
    let count = match task.count.now {
        0 => 256,
        n => u32::from(n),
    };
    let [low, mid, high] = task.lba.map(|r| u64::from(r.now));
    let top = u64::from(device_register & 0x0F);
    if device_register & device::LBA != 0 {
        return Some((top << 24 | high << 16 | mid << 8 | low, count));
    }
    let (heads, sectors) = (u64::from(geometry.heads), u64::from(geometry.sectors));
    let exists = top < heads && (1..=sectors).contains(&low);
    exists.then(|| (((high << 8 | mid) * heads + top) * sectors + low - 1, count))
}

/// As [`short`], for a command with addresses of 48 bits: these are always LBAs.
pub fn long(task: &TaskFile) -> (u64, u32) {
    let count = match task.count.both() {
        0 => 65536,
        n => u32::from(n),
    };
    let [low, mid, high] = task.lba;
    let bytes = [high.before, mid.before, low.before, high.now, mid.now, low.now];
    (bytes.iter().fold(0, |lba, b| lba << 8 | u64::from(*b)), count)
}

/// Puts a sector's address where an error is told (ATA/ATAPI-6, error outputs of each command: as the command gave it).
pub fn tell(task: &mut TaskFile, device_register: &mut u8, geometry: Geometry, ext: bool, lba: u64) {
    let byte = |shift: u32| (lba >> shift) as u8;
    if ext || *device_register & device::LBA != 0 {
        for (register, shift) in task.lba.iter_mut().zip([0, 8, 16]) {
            register.now = byte(shift);
            if ext {
                register.before = byte(shift + 24);
            }
        }
        if !ext {
            *device_register = *device_register & 0xF0 | byte(24) & 0x0F;
        }
        return;
    }
    let (heads, sectors) = (u64::from(geometry.heads.max(1)), u64::from(geometry.sectors.max(1)));
    let cylinder = lba / sectors / heads;
    task.lba[0].now = (lba % sectors + 1) as u8;
    task.lba[1].now = cylinder as u8;
    task.lba[2].now = (cylinder >> 8) as u8;
    *device_register = *device_register & 0xF0 | (lba / sectors % heads) as u8 & 0x0F;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registers::Deep;

    fn task(count: Deep, lba: [Deep; 3]) -> TaskFile {
        TaskFile { count, lba, ..TaskFile::default() }
    }

    fn now(now: u8) -> Deep {
        Deep { now, before: 0xEE }
    }

    #[test]
    fn the_three_ways_to_address_a_sector() {
        let g = Geometry::DEFAULT;
        let t = task(now(0), [now(0x56), now(0x34), now(0x12)]);
        assert_eq!(short(&t, 0xE9, g), Some((0x0912_3456, 256)));
        // Sector 0x56 is beyond 63; 1 is the first.
        assert_eq!(short(&t, 0xA9, g), None);
        let t = task(now(3), [now(1), now(2), now(1)]);
        assert_eq!(short(&t, 0xA5, g), Some(((0x102 * 16 + 5) * 63, 3)));
        assert_eq!(short(&task(now(1), [now(0), now(0), now(0)]), 0xA0, g), None);
        assert_eq!(short(&t, 0xA5, Geometry { heads: 5, sectors: 63 }), None);
        let deep = |before, now| Deep { now, before };
        let t = task(deep(0, 0), [deep(0x33, 0x66), deep(0x22, 0x55), deep(0x11, 0x44)]);
        assert_eq!(long(&t), (0x1122_3344_5566, 65536));
        let t = task(deep(1, 2), [deep(0, 0); 3]);
        assert_eq!(long(&t), (0, 0x102));
    }

    #[test]
    fn what_is_told_is_what_is_understood() {
        let g = Geometry { heads: 7, sectors: 13 };
        for (register, ext, lba) in
            [(0xE0, false, 0x0ABC_DEF1), (0xA0, false, 54321), (0xE0, true, 0xABCD_EF12_3456)]
        {
            let (mut t, mut register) = (task(now(1), [now(9); 3]), register);
            tell(&mut t, &mut register, g, ext, lba);
            let understood = if ext { Some(long(&t).0) } else { short(&t, register, g).map(|s| s.0) };
            assert_eq!(understood, Some(lba));
        }
    }
}
