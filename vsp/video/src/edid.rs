//! What a monitor says of itself, for drivers that want to know: VESA E-EDID 1.4, the base block alone.

use vireo_screen::Size;

/// The block of a monitor that likes this size best, at 60 Hz.
pub fn of(size: Size) -> [u8; 128] {
    let mut block = [0; 128];
    block[..8].copy_from_slice(&[0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0]);
    // Manufacturer "VIR" in letters of 5 bits, product 1; week 0 of 2026; version 1.4.
    block[8..12].copy_from_slice(&[0x59, 0x32, 1, 0]);
    block[16..20].copy_from_slice(&[0, 36, 1, 4]);
    // Digital, 8 bits a colour; 4:3, no size; gamma 2.2; the first timing is the native one, sRGB.
    block[20..25].copy_from_slice(&[0xa5, 0, 0, 120, 0x06]);
    // Chromaticity of sRGB.
    block[25..35].copy_from_slice(&[0xee, 0x91, 0xa3, 0x54, 0x4c, 0x99, 0x26, 0x0f, 0x50, 0x54]);
    // 640x480, 800x600 and 1024x768 at 60 Hz.
    block[35..38].copy_from_slice(&[0x21, 0x08, 0]);
    // No standard timings.
    block[38..54].fill(1);
    block[54..72].copy_from_slice(&timing(size));
    block[72..90].copy_from_slice(&text(0xfc, b"Vireo"));
    // Nothing more.
    block[93] = 0x10;
    block[111] = 0x10;
    let sum = block[..127].iter().fold(0_u8, |sum, b| sum.wrapping_add(*b));
    block[127] = sum.wrapping_neg();
    block
}

/// A detailed timing: pixels, and blanking as short as it may be.
fn timing(size: Size) -> [u8; 18] {
    const BLANK: (u32, u32) = (160, 40);
    // 12 bits each.
    let (w, h) = (size.width.min(4095), size.height.min(4095));
    let clock = u64::from(w + BLANK.0) * u64::from(h + BLANK.1) * 60 / 10_000;
    let clock = u16::try_from(clock).unwrap_or(u16::MAX).to_le_bytes();
    let low = |v: u32| v as u8;
    let high = |active: u32, blank: u32| (active >> 8 << 4) as u8 | (blank >> 8) as u8;
    [
        clock[0],
        clock[1],
        low(w),
        low(BLANK.0),
        high(w, BLANK.0),
        low(h),
        low(BLANK.1),
        high(h, BLANK.1),
        48,
        32,
        3 << 4 | 5,
        0,
        0,
        0,
        0,
        0,
        0,
        // Digital separate sync.
        0x1a,
    ]
}

/// A descriptor with text.
fn text(kind: u8, text: &[u8]) -> [u8; 18] {
    let mut block = [b' '; 18];
    block[..5].copy_from_slice(&[0, 0, 0, kind, 0]);
    block[5..5 + text.len()].copy_from_slice(text);
    block[5 + text.len()] = b'\n';
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_sums_up_to_nothing_and_names_its_size() {
        for (width, height) in [(640, 480), (1920, 1200), (8192, 8192)] {
            let block = of(Size { width, height });
            assert_eq!(block.iter().fold(0_u8, |sum, b| sum.wrapping_add(*b)), 0);
            let found = |low: usize, high: usize| u32::from(block[low]) | u32::from(block[high] >> 4) << 8;
            assert_eq!((found(56, 58), found(59, 61)), (width.min(4095), height.min(4095)));
        }
    }
}
