//! What of a frame's making can be left to the adapter: structures of NDIS that say so.

use vireo_frame::Ability;

use crate::bytes::{le16, words};

/// A structure's first word: its type, revision and bytes.
fn object(kind: u8, revision: u8, bytes: u16) -> u32 {
    u32::from_le_bytes([kind, revision, bytes as u8, (bytes >> 8) as u8])
}

/// With 802.3 headers.
const ENCAPSULATION: u32 = 2;
/// All of IPv4 options, TCP options, TCP, UDP, IP.
const CHECKSUM_4: u32 = 0x155;
/// All of IPv6 extensions, TCP options, TCP, UDP.
const CHECKSUM_6: u32 = 0x055;
/// IPv6 extensions and TCP options.
const LARGE_SEND_6: u32 = 0x005;
/// Bytes of a frame to be segmented.
const LARGE_SEND_MAX: u32 = 65_535;

/// Bytes of NDIS_OFFLOAD in versions 6.0, 6.1 and 6.30.
const SIZES: [usize; 3] = [112, 144, 156];

/// What the adapter can (NDIS_OFFLOAD), in as many bytes as the driver's version has: revision 1, 2 or 3.
pub fn capabilities(asked: Option<u8>, rsc: bool) -> Vec<u8> {
    let revision = asked.unwrap_or(1).clamp(1, 3);
    let size = SIZES[usize::from(revision) - 1];
    let checksum = [
        ENCAPSULATION,
        CHECKSUM_4,
        ENCAPSULATION,
        CHECKSUM_4,
        ENCAPSULATION,
        CHECKSUM_6,
        ENCAPSULATION,
        CHECKSUM_6,
    ];
    // Neither the first large send nor IPsec, which came before the second.
    let none = [0; 4 + 7];
    let large_send = [ENCAPSULATION, LARGE_SEND_MAX, 2, ENCAPSULATION, LARGE_SEND_MAX, 2, LARGE_SEND_6];
    let mut bytes = words(&[object(0xa7, revision, size as u16)]);
    for group in [&checksum[..], &none, &large_send] {
        bytes.extend(words(group));
    }
    // Then flags, and the second IPsec.
    bytes.resize(SIZES[1], 0);
    bytes.extend([u8::from(rsc); 2]);
    bytes.resize(size, 0);
    bytes
}

/// What the driver has turned on (NDIS_OFFLOAD_PARAMETERS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offloads {
    /// It believes what is said of checksums of what it gets: TCP4, UDP4, TCP6, UDP6.
    checksums: [bool; 4],
    /// It takes coalesced frames, of IPv4, of IPv6.
    coalesced: [bool; 2],
}

impl Default for Offloads {
    /// Nothing is turned on before the driver does it.
    fn default() -> Self {
        Self { checksums: [false; 4], coalesced: [false; 2] }
    }
}

impl Offloads {
    /// Takes wishes in; `None`: they are none. A byte of zero means that nothing changes.
    pub fn set(&mut self, parameters: &[u8], rsc: bool) -> Option<()> {
        let size = usize::from(le16(parameters, 2)?);
        let wishes = parameters.get(4..size.min(parameters.len()))?;
        let wish = |n: usize| wishes.get(n).copied().unwrap_or(0);
        for (on, n) in self.checksums.iter_mut().zip(1..) {
            match wish(n) {
                0 => {}
                // Received ones are enabled.
                value => *on = matches!(value, 3 | 4),
            }
        }
        // Behind eleven of one byte, one that fills up, 32 bits of flags, two of IPsec.
        for (on, n) in self.coalesced.iter_mut().zip(18..) {
            match wish(n) {
                0 => {}
                value => *on = value == 2 && rsc,
            }
        }
        Some(())
    }

    /// What frames to the guest may leave to be done.
    pub fn ability(&self) -> Ability {
        let checksum = self.checksums.iter().all(|on| *on);
        let [tcp4, tcp6] = self.coalesced.map(|on| on && checksum);
        Ability { checksum, tcp4, tcp6, udp: false, tag: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_have_the_sizes_of_ndis_and_their_fields_in_place() {
        for (revision, size) in [(None, 112), (Some(1), 112), (Some(2), 144), (Some(3), 156), (Some(9), 156)]
        {
            let bytes = capabilities(revision, true);
            assert_eq!((bytes.len(), le16(&bytes, 2)), (size, Some(size as u16)));
            // Checksums are 32 bytes, the old large send 16, IPsec 28.
            assert_eq!(&bytes[4 + 32 + 16 + 28..][..4], [2, 0, 0, 0]);
        }
        assert_eq!(capabilities(Some(3), true)[144..146], [1, 1]);
        assert_eq!(capabilities(Some(3), false)[144..146], [0, 0]);
    }

    #[test]
    fn wishes_of_a_linux_driver_turn_on_what_it_takes() {
        let mut offloads = Offloads::default();
        assert_eq!(offloads.ability(), Ability { tag: true, ..Ability::default() });
        let mut wishes =
            [0x80, 3, 28, 0, 1, 4, 4, 4, 4, 0, 0, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0];
        offloads.set(&wishes, true).unwrap();
        assert_eq!(offloads.ability(), Ability { udp: false, ..Ability::ALL });
        wishes[22] = 1;
        wishes[5..9].fill(0);
        offloads.set(&wishes, true).unwrap();
        assert_eq!(offloads.ability(), Ability { udp: false, tcp4: false, ..Ability::ALL });
        // An old one has 22 bytes, without RSC.
        let old = [0x80, 3, 22, 0, 0, 1, 0, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        offloads.set(&old, true).unwrap();
        assert!(!offloads.ability().checksum && !offloads.ability().tcp6);
        assert!(offloads.set(&old[..3], true).is_none() && offloads.set(&[0x80, 1, 2, 0], true).is_none());
    }
}
