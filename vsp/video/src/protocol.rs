//! The messages: a header of the pipe, one of the protocol, and what belongs to the kind. All little-endian, nothing aligned.

use vireo_screen::Size;
use vireo_vmbus::Fields;

use crate::edid;

/// Kinds of messages (enum synthvid_msg_type).
mod kind {
    pub const VERSION_REQUEST: u32 = 1;
    pub const VERSION_RESPONSE: u32 = 2;
    pub const VRAM_LOCATION: u32 = 3;
    pub const VRAM_LOCATION_ACK: u32 = 4;
    pub const SITUATION_UPDATE: u32 = 5;
    pub const SITUATION_UPDATE_ACK: u32 = 6;
    pub const POINTER_POSITION: u32 = 7;
    pub const POINTER_SHAPE: u32 = 8;
    pub const FEATURE_CHANGE: u32 = 9;
    pub const DIRT: u32 = 10;
    pub const RESOLUTION_REQUEST: u32 = 13;
    pub const RESOLUTION_RESPONSE: u32 = 14;
}

/// Kind of the pipe's header: data.
const PIPE_DATA: u32 = 1;
/// Most sizes that a driver can be told.
const SIZES_MOST: usize = 64;

/// A version: major in the low half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version(pub u32);

impl Version {
    /// Whether it is spoken: 3.2 (Windows 8) to 3.5 (Windows 10), all with 32 bits for a pixel.
    pub fn is_spoken(self) -> bool {
        self.0 & 0xffff == 3 && (2..=5).contains(&(self.0 >> 16))
    }
}

/// What the driver shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Output {
    /// Whether anything.
    pub active: bool,
    /// Where in the frame buffer.
    pub offset: u32,
    /// Bits of a pixel.
    pub depth: u8,
    /// Pixels in a line.
    pub width: u32,
    /// Lines.
    pub height: u32,
    /// Bytes from one line to the next.
    pub pitch: u32,
}

/// What a driver says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromGuest {
    /// Is this version spoken?
    Version(Version),
    /// The frame buffer is here.
    VramLocation {
        /// To be repeated in the answer.
        context: u64,
        /// Where; `None`: the driver does not say.
        gpa: Option<u64>,
    },
    /// This is shown.
    Situation {
        /// To be repeated in the answer.
        context: u64,
        /// The first output, if there is one.
        output: Option<Output>,
    },
    /// Where the pointer is, or how it looks: nothing that is used.
    Pointer,
    /// These have changed: corners that are in them, and corners that are not.
    Dirt(Vec<[(i32, i32); 2]>),
    /// Which sizes may it use?
    Resolutions {
        /// It has room for so many.
        most: u8,
    },
}

/// A point, as its two coordinates.
fn corner(f: &mut Fields<'_>) -> Option<(i32, i32)> {
    Some((f.i32()?, f.i32()?))
}

impl FromGuest {
    /// What a packet's data says; `None`: nothing that is known.
    pub fn parse(data: &[u8]) -> Option<Self> {
        let mut f = Fields(data);
        if f.u32()? != PIPE_DATA {
            return None;
        }
        // Both sizes say less than the packet's own length.
        f.u32()?;
        let kind = f.u32()?;
        f.u32()?;
        Some(match kind {
            kind::VERSION_REQUEST => Self::Version(Version(f.u32()?)),
            kind::VRAM_LOCATION => {
                let (context, specified, gpa) = (f.u64()?, f.u8()? != 0, f.u64()?);
                Self::VramLocation { context, gpa: specified.then_some(gpa) }
            }
            kind::SITUATION_UPDATE => {
                let (context, count) = (f.u64()?, f.u8()?);
                Self::Situation { context, output: if count > 0 { Some(output(&mut f)?) } else { None } }
            }
            kind::POINTER_POSITION | kind::POINTER_SHAPE => Self::Pointer,
            kind::DIRT => {
                let (_output, count) = (f.u8()?, f.u8()?);
                Self::Dirt((0..count).map_while(|_| Some([corner(&mut f)?, corner(&mut f)?])).collect())
            }
            // Some drivers leave the number out, or say 0: they have room for all.
            kind::RESOLUTION_REQUEST => match f.u8() {
                None | Some(0) => Self::Resolutions { most: SIZES_MOST as u8 },
                Some(most) => Self::Resolutions { most },
            },
            _ => return None,
        })
    }
}

fn output(f: &mut Fields) -> Option<Output> {
    Some(Output {
        active: f.u8()? != 0,
        offset: f.u32()?,
        depth: f.u8()?,
        width: f.u32()?,
        height: f.u32()?,
        pitch: f.u32()?,
    })
}

/// What the device says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToGuest {
    /// Whether a version is spoken.
    Version {
        /// Which.
        version: Version,
        /// Whether.
        accepted: bool,
    },
    /// The frame buffer is there.
    VramLocationAck {
        /// As the driver gave it; another one if it is not.
        context: u64,
    },
    /// It is known what is shown.
    SituationAck {
        /// As the driver gave it.
        context: u64,
    },
    /// What the driver is to tell: changes, and what it shows.
    FeatureChange,
    /// Sizes that it may use.
    Resolutions {
        /// All of them.
        sizes: Vec<Size>,
        /// Which is the one that it should.
        preferred: usize,
    },
}

impl ToGuest {
    /// Its packet's data.
    pub fn bytes(&self) -> Vec<u8> {
        let (kind, body) = match self {
            Self::Version { version, accepted } => {
                let mut body = version.0.to_le_bytes().to_vec();
                // One output.
                body.extend([u8::from(*accepted), 1]);
                (kind::VERSION_RESPONSE, body)
            }
            Self::VramLocationAck { context } => (kind::VRAM_LOCATION_ACK, context.to_le_bytes().to_vec()),
            Self::SituationAck { context } => (kind::SITUATION_UPDATE_ACK, context.to_le_bytes().to_vec()),
            // Dirt, pointer's position, its shape, situation.
            Self::FeatureChange => (kind::FEATURE_CHANGE, vec![1, 0, 0, 1]),
            Self::Resolutions { sizes, preferred } => {
                (kind::RESOLUTION_RESPONSE, resolutions(sizes, *preferred))
            }
        };
        let size = (body.len() + 8) as u32;
        let mut bytes: Vec<u8> = [PIPE_DATA, size, kind, size].iter().flat_map(|w| w.to_le_bytes()).collect();
        bytes.extend(body);
        bytes
    }
}

fn resolutions(sizes: &[Size], preferred: usize) -> Vec<u8> {
    let sizes = &sizes[..sizes.len().min(SIZES_MOST)];
    let mut body = sizes.get(preferred).map_or([0; 128], |s| edid::of(*s)).to_vec();
    // Not the standard ones alone.
    body.extend([sizes.len() as u8, preferred.min(SIZES_MOST) as u8, 0]);
    for n in 0..SIZES_MOST {
        let size = sizes.get(n).map_or((0, 0), |s| (s.width as u16, s.height as u16));
        body.extend(size.0.to_le_bytes());
        body.extend(size.1.to_le_bytes());
    }
    body
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_look_as_linux_has_them() {
        let version = ToGuest::Version { version: Version(0x5_0003), accepted: true }.bytes();
        assert_eq!(version, [1, 0, 0, 0, 14, 0, 0, 0, 2, 0, 0, 0, 14, 0, 0, 0, 3, 0, 5, 0, 1, 1]);
        let size = |w, h| Size { width: w, height: h };
        let r = ToGuest::Resolutions { sizes: vec![size(800, 600), size(1024, 768)], preferred: 1 }.bytes();
        assert_eq!(r.len(), 16 + 128 + 3 + 64 * 4);
        assert_eq!(r[144..155], [2, 1, 0, 0x20, 3, 0x58, 2, 0, 4, 0, 3]);
        assert_eq!(ToGuest::FeatureChange.bytes()[8..], [9, 0, 0, 0, 12, 0, 0, 0, 1, 0, 0, 1]);
    }

    #[test]
    fn drivers_are_understood() {
        let message = |kind: u32, body: &[u8]| {
            let mut m = [1, 0, kind, 0].iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
            m.extend(body);
            FromGuest::parse(&m)
        };
        let mut body = vec![9, 0, 0, 0, 0, 0, 0, 0, 1, 1];
        for word in [16_u32.to_le_bytes().to_vec(), vec![32], 640_u32.to_le_bytes().to_vec()] {
            body.extend(word);
        }
        body.extend(480_u32.to_le_bytes());
        let short = message(5, &body);
        body.extend(2560_u32.to_le_bytes());
        let output = Output { active: true, offset: 16, depth: 32, width: 640, height: 480, pitch: 2560 };
        assert_eq!(message(5, &body), Some(FromGuest::Situation { context: 9, output: Some(output) }));
        assert_eq!(short, None);
        // More rectangles than there are.
        let mut dirt = vec![0, 200];
        dirt.extend([1_i32, 2, -3, 4, 5].iter().flat_map(|w| w.to_le_bytes()));
        assert_eq!(message(10, &dirt), Some(FromGuest::Dirt(vec![[(1, 2), (-3, 4)]])));
        assert_eq!(message(13, &[]), Some(FromGuest::Resolutions { most: 64 }));
        assert_eq!(message(99, &[0; 99]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_none(kind in 0_u32..16, body in prop::collection::vec(any::<u8>(), 0..80)) {
            let mut m = [1, 0, kind, 0].iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
            m.extend(&body);
            _ = FromGuest::parse(&m);
            _ = FromGuest::parse(&body);
        }
    }
}
