//! Frames to measure with.

use vireo_frame::{Checksum, Intent, Mac, SegmentKind, Segmentation};

/// Lengths: the shortest of Ethernet less its checksum, the longest of its usual ones, and super-frames.
pub const LENGTHS: [usize; 3] = [64, 1514, 65_226];

/// Station number `n`.
pub fn mac(n: u8) -> Mac {
    Mac([0, 0x15, 0x5d, 0, 0, n])
}

/// A TCP segment of this length, of station 1 to station 2; what is longer than the usual is to be cut.
pub fn segment(length: usize) -> (Vec<u8>, Intent) {
    let ip_length = ((length - 14) as u16).to_be_bytes();
    let mut bytes =
        [&mac(2).0[..], &mac(1).0, &[8, 0, 0x45, 0], &ip_length, &[0, 0, 0x40, 0, 64, 6, 0, 0]].concat();
    bytes.extend([10, 0, 0, 1, 10, 0, 0, 2]);
    let sum = vireo_frame::Sum::default().over(&bytes[14..34]).finish();
    bytes[24..26].copy_from_slice(&sum.to_be_bytes());
    bytes.extend([0x1f, 0x90, 0x1f, 0x91, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    bytes.resize(length, 0x5a);
    let mut intent = Intent { checksum: Checksum::Wanted { start: 34, offset: 16 }, ..Intent::default() };
    if length > 1514 {
        intent.segmentation = Some(Segmentation { kind: SegmentKind::Tcp4, size: 1448 });
    }
    (bytes, intent)
}
