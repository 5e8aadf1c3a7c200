//! What is still to be done to a frame, as virtio-net and Linux's TAP devices say it in front of the frame's bytes.
//!
//! Source: virtio 1.2 §5.1.6 (`struct virtio_net_hdr`); of UDP, 1.3 of the same section.

use crate::frame::{Checksum, Frame, Intent, SegmentKind, Segmentation};

/// Bytes of the header. (virtio 1 has two more behind it: how many buffers the frame is in.)
pub const OFFLOAD_HEADER: usize = 10;

const NEEDS_CHECKSUM: u8 = 1;
const CHECKSUM_IS_GOOD: u8 = 2;

const TCP4: u8 = 1;
const TCP6: u8 = 4;
const UDP: u8 = 5;
/// Beside the kind: the first segment alone has CWR, as [`crate::fit`] cuts anyway.
const ECN: u8 = 0x80;

/// A header asks for what nobody offers: UDP that is to be cut into fragments, say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame is to be cut in a way that is not known ({0})")]
pub struct UnknownSegments(u8);

impl Intent {
    /// Of a header. Whether the frame can be like that [`Frame::new`] tells.
    ///
    /// # Errors
    /// It is to be cut in another way than those of [`SegmentKind`].
    pub fn from_offload_header(header: &[u8; OFFLOAD_HEADER]) -> Result<Self, UnknownSegments> {
        let [flags, kind, _, _, size @ ..] = *header;
        let word = |at: usize| u16::from_le_bytes([size[at], size[at + 1]]);
        let checksum = match flags {
            flags if flags & NEEDS_CHECKSUM != 0 => Checksum::Wanted { start: word(2), offset: word(4) },
            flags if flags & CHECKSUM_IS_GOOD != 0 => Checksum::Good,
            _ => Checksum::Unknown,
        };
        let kind = match kind & !ECN {
            0 => None,
            TCP4 => Some(SegmentKind::Tcp4),
            TCP6 => Some(SegmentKind::Tcp6),
            UDP => Some(SegmentKind::Udp),
            other => return Err(UnknownSegments(other)),
        };
        let segmentation = kind.map(|kind| Segmentation { kind, size: word(0) });
        Ok(Self { checksum, segmentation, tag: None })
    }
}

impl Frame<'_> {
    /// The header of this frame. A tag beside its bytes is not in it.
    pub fn offload_header(&self) -> [u8; OFFLOAD_HEADER] {
        let mut header = [0; OFFLOAD_HEADER];
        let intent = self.intent();
        let mut put = |at: usize, word: u16| header[at..at + 2].copy_from_slice(&word.to_le_bytes());
        match intent.checksum {
            Checksum::Unknown => {}
            Checksum::Good => put(0, CHECKSUM_IS_GOOD.into()),
            Checksum::Wanted { start, offset } => {
                put(0, NEEDS_CHECKSUM.into());
                put(6, start);
                put(8, offset);
                if let Some(segmentation) = intent.segmentation {
                    // Headers are in the head.
                    put(2, self.headers() as u16);
                    put(4, segmentation.size);
                    header[1] = match segmentation.kind {
                        SegmentKind::Tcp4 => TCP4 | self.congestion(start),
                        SegmentKind::Tcp6 => TCP6 | self.congestion(start),
                        SegmentKind::Udp => UDP,
                    };
                }
            }
        }
        header
    }

    /// Whether the TCP header at `start` has CWR.
    fn congestion(&self, start: u16) -> u8 {
        let flags = self.head().get(usize::from(start) + 13).copied().unwrap_or(0);
        if flags & 0x80 != 0 { ECN } else { 0 }
    }
}
