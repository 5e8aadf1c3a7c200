//! NVSP: messages between driver and adapter beside RNDIS (drivers/net/hyperv/hyperv_net.h).

use crate::bytes::{le32, words};

/// Versions of the protocol, oldest first: 1, 2 (Windows Server 2008 R2), 4, 5, 6 and 6.1.
pub const VERSIONS: [u32; 6] = [0x2, 0x3_0002, 0x4_0000, 0x5_0000, 0x6_0000, 0x6_0001];
/// Since when there are further channels.
pub const VERSION_5: u32 = 0x5_0000;
/// Since when messages are longer, and guests take coalesced frames.
pub const VERSION_6_1: u32 = 0x6_0001;

/// Kinds of messages.
pub mod message {
    #![allow(missing_docs)]
    pub const INIT: u32 = 1;
    pub const INIT_COMPLETE: u32 = 2;
    pub const NDIS_VERSION: u32 = 100;
    pub const RECEIVE_BUFFER: u32 = 101;
    pub const RECEIVE_BUFFER_COMPLETE: u32 = 102;
    pub const REVOKE_RECEIVE_BUFFER: u32 = 103;
    pub const SEND_BUFFER: u32 = 104;
    pub const SEND_BUFFER_COMPLETE: u32 = 105;
    pub const REVOKE_SEND_BUFFER: u32 = 106;
    pub const RNDIS_PACKET: u32 = 107;
    pub const RNDIS_PACKET_COMPLETE: u32 = 108;
    pub const NDIS_CONFIG: u32 = 125;
    pub const SWITCH_DATA_PATH: u32 = 129;
    pub const OID_QUERY_EX: u32 = 131;
    pub const OID_QUERY_EX_COMPLETE: u32 = 132;
    pub const SUBCHANNEL: u32 = 133;
    pub const SEND_INDIRECTION_TABLE: u32 = 134;
}

/// Outcomes.
pub mod status {
    #![allow(missing_docs)]
    pub const SUCCESS: u32 = 1;
    pub const FAIL: u32 = 2;
    pub const INVALID_RNDIS_PACKET: u32 = 5;
    pub const UNSUPPORTED: u32 = 7;
}

/// No section of the send buffer: all is in the pages that a packet names.
pub const NO_SECTION: u32 = 0xffff_ffff;
/// Bytes of a section of the send buffer, as all hosts have it.
pub const SEND_SECTION: u32 = 6144;
/// Pieces of memory that a packet of the guest's may have; what Windows hosts say.
const CHAIN_MAX: u32 = 34;
/// Entries of the table by which guests choose a channel to send by.
pub const SEND_TABLE: usize = 16;
/// What messages of RNDIS are, by the channel that its specification has them on.
pub mod rndis_channel {
    #![allow(missing_docs)]
    pub const DATA: u32 = 0;
    pub const CONTROL: u32 = 1;
}

/// What a driver tells of itself (NDIS_CONFIG).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NdisConfig {
    /// Bytes of the longest frame that it sends or takes, without a tag.
    pub frame: u32,
    /// It takes coalesced frames.
    pub rsc: bool,
}

/// A message of the driver's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromDriver {
    /// It speaks these versions.
    Init { min: u32, max: u32 },
    /// It is of this version of NDIS.
    NdisVersion,
    /// It says more of itself.
    NdisConfig(NdisConfig),
    /// It gives a buffer for frames to it.
    ReceiveBuffer { gpadl: u32, id: u16 },
    /// It takes that back.
    RevokeReceiveBuffer,
    /// It gives a buffer for short frames from it.
    SendBuffer { gpadl: u32 },
    /// It takes that back.
    RevokeSendBuffer,
    /// Messages of RNDIS.
    Rndis { control: bool, section: Option<u32>, bytes: u32 },
    /// It wants further channels.
    Subchannels { count: u32 },
    /// It changes between us and another adapter, of which we have none.
    SwitchDataPath,
    /// Anything else.
    Other(u32),
}

impl FromDriver {
    /// Reads it; `None`: it is too short.
    pub fn parse(data: &[u8]) -> Option<Self> {
        let word = |n: usize| le32(data, n * 4);
        Some(match word(0)? {
            message::INIT => Self::Init { min: word(1)?, max: word(2)? },
            message::NDIS_VERSION => Self::NdisVersion,
            message::NDIS_CONFIG => {
                Self::NdisConfig(NdisConfig { frame: word(1)?, rsc: word(3)? & 1 << 7 != 0 })
            }
            message::RECEIVE_BUFFER => Self::ReceiveBuffer { gpadl: word(1)?, id: word(2)? as u16 },
            message::REVOKE_RECEIVE_BUFFER => Self::RevokeReceiveBuffer,
            message::SEND_BUFFER => Self::SendBuffer { gpadl: word(1)? },
            message::REVOKE_SEND_BUFFER => Self::RevokeSendBuffer,
            message::RNDIS_PACKET => Self::Rndis {
                control: word(1)? == rndis_channel::CONTROL,
                section: word(2).filter(|&n| n != NO_SECTION),
                bytes: word(3)?,
            },
            message::SUBCHANNEL if word(1)? == 1 => Self::Subchannels { count: word(2)? },
            message::SWITCH_DATA_PATH => Self::SwitchDataPath,
            other => Self::Other(other),
        })
    }
}

/// A message to the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToDriver {
    /// The version is agreed on, or not.
    InitComplete { status: u32 },
    /// The receive buffer is cut like that.
    ReceiveBufferComplete { status: u32, section: u32, count: u32 },
    /// The send buffer is.
    SendBufferComplete { status: u32 },
    /// What was sent is taken.
    RndisComplete { status: u32 },
    /// So many further channels are offered.
    Subchannels { status: u32, count: u32 },
    /// Messages of RNDIS are in the receive buffer.
    Rndis { channel: u32 },
    /// What was asked for by its number is not had.
    OidQueryFailed,
    /// Channels to send by.
    SendTable([u32; SEND_TABLE]),
}

/// Bytes of a message before version 6.1, and since.
const SHORT: usize = 0x1c;
const LONG: usize = 0x28;

impl ToDriver {
    /// Its bytes, as drivers of a version want them.
    pub fn bytes(&self, version: u32) -> Vec<u8> {
        let length = if version >= VERSION_6_1 { LONG } else { SHORT };
        let mut bytes = match *self {
            Self::InitComplete { status } => words(&[message::INIT_COMPLETE, u32::MAX, CHAIN_MAX, status]),
            Self::ReceiveBufferComplete { status, section, count } => {
                let end = section.wrapping_mul(count);
                words(&[message::RECEIVE_BUFFER_COMPLETE, status, 1, 0, section, count, end])
            }
            Self::SendBufferComplete { status } => {
                words(&[message::SEND_BUFFER_COMPLETE, status, SEND_SECTION])
            }
            Self::RndisComplete { status } => words(&[message::RNDIS_PACKET_COMPLETE, status]),
            Self::Subchannels { status, count } => words(&[message::SUBCHANNEL, status, count]),
            Self::Rndis { channel } => words(&[message::RNDIS_PACKET, channel, NO_SECTION, 0]),
            Self::OidQueryFailed => words(&[message::OID_QUERY_EX_COMPLETE, status::UNSUPPORTED]),
            Self::SendTable(_) => words(&[message::SEND_INDIRECTION_TABLE, SEND_TABLE as u32, length as u32]),
        };
        bytes.resize(length, 0);
        if let Self::SendTable(table) = self {
            bytes.extend(words(table));
        }
        bytes
    }
}
