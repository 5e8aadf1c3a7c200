//! Messages between guest and server: layouts of include/linux/hyperv.h, all little-endian and packed.

use uuid::Uuid;

use crate::fields::Fields;

/// SINT and connections of VMBus.
pub const SINT: usize = 2;
/// Connections that guests post to: the second for first contact from version 5.0 on.
pub const MESSAGE_CONNECTIONS: [u32; 2] = [1, 4];
/// The kind of all of VMBus' messages, for the SynIC.
pub const MESSAGE_KIND: u32 = 1;
/// Channel numbers are events of one SINT; 0 is none's.
pub const RELID_MAX: u32 = 2047;

/// A version of the protocol: major in the upper half, minor in the lower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32);

impl Version {
    /// Those that are spoken: 2.4 (Windows 8) to 5.3.
    pub const ALL: [Self; 8] = [
        Self(0x2_0004),
        Self(0x3_0000),
        Self(0x4_0000),
        Self(0x4_0001),
        Self(0x5_0000),
        Self(0x5_0001),
        Self(0x5_0002),
        Self(0x5_0003),
    ];

    /// First contact says which SINT is listened to, and the answer which connection to post to.
    pub fn names_connection(self) -> bool {
        self >= Self(0x5_0000)
    }

    /// A change of a channel's processor is answered.
    pub fn answers_modify(self) -> bool {
        self >= Self(0x5_0003)
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0 >> 16, self.0 & 0xffff)
    }
}

/// Numbers of messages.
mod number {
    pub const OFFER: u32 = 1;
    pub const RESCIND: u32 = 2;
    pub const REQUEST_OFFERS: u32 = 3;
    pub const ALL_OFFERS: u32 = 4;
    pub const OPEN: u32 = 5;
    pub const OPEN_RESULT: u32 = 6;
    pub const CLOSE: u32 = 7;
    pub const GPADL_HEADER: u32 = 8;
    pub const GPADL_BODY: u32 = 9;
    pub const GPADL_CREATED: u32 = 10;
    pub const GPADL_TEARDOWN: u32 = 11;
    pub const GPADL_TORN_DOWN: u32 = 12;
    pub const RELEASED: u32 = 13;
    pub const CONTACT: u32 = 14;
    pub const VERSION: u32 = 15;
    pub const UNLOAD: u32 = 16;
    pub const UNLOADED: u32 = 17;
    pub const CONNECT_SOCKET: u32 = 21;
    pub const MODIFY: u32 = 22;
    pub const SOCKET_RESULT: u32 = 23;
    pub const MODIFIED: u32 = 24;
}

/// Bytes that a guest or a device passes to the other side with an offer or an opening.
pub type UserData = [u8; 120];

/// What a guest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromGuest {
    /// Wants to speak a version; answers go to this vCPU.
    Contact {
        /// Which.
        version: Version,
        /// vCPU.
        vp: u32,
    },
    /// Wants to know of all channels.
    RequestOffers,
    /// Opens a channel.
    Open(Open),
    /// Closes it.
    Close {
        /// Channel.
        relid: u32,
    },
    /// Gives memory: the first part of the list of its pages.
    GpadlHeader {
        /// Channel.
        relid: u32,
        /// The guest's name for the memory.
        gpadl: u32,
        /// Bytes of the whole list of ranges.
        list: u16,
        /// Ranges.
        ranges: u16,
        /// As many of the list's bytes as are in this message.
        bytes: Vec<u8>,
    },
    /// A further part of that list.
    GpadlBody {
        /// Name of the memory.
        gpadl: u32,
        /// The list's bytes.
        bytes: Vec<u8>,
    },
    /// Takes memory back.
    GpadlTeardown {
        /// Channel.
        relid: u32,
        /// Name of the memory.
        gpadl: u32,
    },
    /// Is done with a channel that was taken away.
    Released {
        /// Channel.
        relid: u32,
    },
    /// Goes: all channels are closed.
    Unload,
    /// Wants a channel's interrupts on another vCPU.
    Modify {
        /// Channel.
        relid: u32,
        /// vCPU.
        vp: u32,
    },
    /// Wants a connection to a socket of the host's.
    ConnectSocket {
        /// Endpoint and service, as they are repeated in the answer.
        ids: [u8; 32],
    },
}

/// An opening.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// Channel.
    pub relid: u32,
    /// The guest's name for this opening.
    pub id: u32,
    /// Memory of both rings.
    pub gpadl: u32,
    /// Where interrupts go: vCPU.
    pub vp: u32,
    /// Pages of the ring that the guest writes, the first ones.
    pub split: u32,
    /// For the device.
    pub user_data: UserData,
}

impl FromGuest {
    /// What a message's payload says; `None`: nothing that is known.
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let mut f = Fields(payload);
        let kind = f.u32()?;
        f.u32()?;
        Some(match kind {
            number::CONTACT => Self::Contact { version: Version(f.u32()?), vp: f.u32()? },
            number::REQUEST_OFFERS => Self::RequestOffers,
            number::OPEN => Self::Open(Open {
                relid: f.u32()?,
                id: f.u32()?,
                gpadl: f.u32()?,
                vp: f.u32()?,
                split: f.u32()?,
                user_data: f.take()?,
            }),
            number::CLOSE => Self::Close { relid: f.u32()? },
            number::GPADL_HEADER => Self::GpadlHeader {
                relid: f.u32()?,
                gpadl: f.u32()?,
                list: f.u16()?,
                ranges: f.u16()?,
                bytes: f.rest(),
            },
            number::GPADL_BODY => {
                f.u32()?;
                Self::GpadlBody { gpadl: f.u32()?, bytes: f.rest() }
            }
            number::GPADL_TEARDOWN => Self::GpadlTeardown { relid: f.u32()?, gpadl: f.u32()? },
            number::RELEASED => Self::Released { relid: f.u32()? },
            number::UNLOAD => Self::Unload,
            number::MODIFY => Self::Modify { relid: f.u32()?, vp: f.u32()? },
            number::CONNECT_SOCKET => Self::ConnectSocket { ids: f.take()? },
            _ => return None,
        })
    }
}

/// What is offered to a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfferedChannel {
    /// Kind of device.
    pub interface: Uuid,
    /// This one.
    pub instance: Uuid,
    /// 0: the device's first; others are further queues of it.
    pub subchannel: u16,
    /// Its number: the event by which the guest is signalled.
    pub relid: u32,
    /// The connection by which the guest signals.
    pub connection: u32,
    /// Memory that the driver has to find an address for, in MiB.
    pub memory: u16,
    /// For the driver.
    pub user_data: UserData,
}

/// What the server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToGuest {
    /// There is a channel.
    Offer(Box<OfferedChannel>),
    /// There is no longer.
    Rescind {
        /// Channel.
        relid: u32,
    },
    /// That were all there are now.
    AllOffers,
    /// How an opening ended.
    OpenResult {
        /// Channel.
        relid: u32,
        /// The guest's name for the opening.
        id: u32,
        /// Whether it is open.
        open: bool,
    },
    /// Memory is known by its name.
    GpadlCreated {
        /// Channel.
        relid: u32,
        /// Name of the memory.
        gpadl: u32,
        /// Whether it is.
        created: bool,
    },
    /// It is forgotten.
    GpadlTornDown {
        /// Name of the memory.
        gpadl: u32,
    },
    /// Whether a version is spoken.
    Version {
        /// It is, and messages go to this connection; `None`: it is not.
        connection: Option<u32>,
    },
    /// All is forgotten.
    Unloaded,
    /// Interrupts go where they are wanted.
    Modified {
        /// Channel.
        relid: u32,
        /// Whether they do.
        done: bool,
    },
    /// There is no such socket.
    NoSocket {
        /// As the guest gave them.
        ids: [u8; 32],
    },
}

/// Status of what failed: STATUS_UNSUCCESSFUL of Windows.
const UNSUCCESSFUL: u32 = 0xc000_0001;
/// STATUS_CONNECTION_REFUSED.
const REFUSED: u32 = 0xc000_0236;

/// Offer flag: the driver may look for it by its interface.
const ENUMERATE_DEVICE_INTERFACE: u16 = 1;

const fn status(done: bool) -> u32 {
    if done { 0 } else { UNSUCCESSFUL }
}

impl ToGuest {
    /// The payload of its message.
    pub fn bytes(&self) -> Vec<u8> {
        let message = |number: u32, words: &[u32]| {
            [number, 0].iter().chain(words).flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>()
        };
        match self {
            Self::Offer(o) => offer(o, message(number::OFFER, &[])),
            Self::Rescind { relid } => message(number::RESCIND, &[*relid]),
            Self::AllOffers => message(number::ALL_OFFERS, &[]),
            Self::OpenResult { relid, id, open } => {
                message(number::OPEN_RESULT, &[*relid, *id, status(*open)])
            }
            Self::GpadlCreated { relid, gpadl, created } => {
                message(number::GPADL_CREATED, &[*relid, *gpadl, status(*created)])
            }
            Self::GpadlTornDown { gpadl } => message(number::GPADL_TORN_DOWN, &[*gpadl]),
            // Supported in 8 bits, state of the connection in 8: 0 is success. Of full length in any version: newer drivers
            // take no notice of a shorter one, and older ones do not mind.
            Self::Version { connection } => {
                message(number::VERSION, &[connection.is_some().into(), connection.unwrap_or_default()])
            }
            Self::Unloaded => message(number::UNLOADED, &[]),
            Self::Modified { relid, done } => message(number::MODIFIED, &[*relid, status(*done)]),
            Self::NoSocket { ids } => {
                let mut bytes = message(number::SOCKET_RESULT, &[]);
                bytes.extend(ids);
                bytes.extend(REFUSED.to_le_bytes());
                bytes
            }
        }
    }
}

fn offer(o: &OfferedChannel, mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.extend(o.interface.to_bytes_le());
    bytes.extend(o.instance.to_bytes_le());
    bytes.extend([0; 16]);
    bytes.extend(ENUMERATE_DEVICE_INTERFACE.to_le_bytes());
    bytes.extend(o.memory.to_le_bytes());
    bytes.extend(o.user_data);
    bytes.extend(o.subchannel.to_le_bytes());
    bytes.extend([0; 2]);
    bytes.extend(o.relid.to_le_bytes());
    // No monitor page: signals are hypercalls. The interrupt is the channel's own.
    bytes.extend([0, 0, 1, 0]);
    bytes.extend(o.connection.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offer_is_as_long_as_linux_wants_it() {
        let o = OfferedChannel {
            interface: Uuid::from_u128(0xba61_63d9_04a1_4d29_b605_72e2_ffb1_dc7f),
            instance: Uuid::from_u128(7),
            subchannel: 3,
            relid: 9,
            connection: 0x2009,
            memory: 0x102,
            user_data: [5; 120],
        };
        let bytes = ToGuest::Offer(Box::new(o)).bytes();
        assert_eq!(bytes.len(), 196);
        assert_eq!(bytes[8..16], [0xd9, 0x63, 0x61, 0xba, 0xa1, 0x04, 0x29, 0x4d]);
        assert_eq!(bytes[56..61], [1, 0, 2, 1, 5]);
        assert_eq!(bytes[180..196], [3, 0, 0, 0, 9, 0, 0, 0, 0, 0, 1, 0, 9, 0x20, 0, 0]);
    }

    #[test]
    fn whether_a_version_is_spoken_is_told_at_full_length() {
        let v = |connection| ToGuest::Version { connection }.bytes();
        assert_eq!(v(Some(4))[8..], [1, 0, 0, 0, 4, 0, 0, 0]);
        assert_eq!(v(None)[8..], [0; 8]);
        assert_eq!(Version(0x4_0001).to_string(), "4.1");
        assert!(Version::ALL.is_sorted());
    }
}
