//! Control of the adapter by its driver: requests of RNDIS and the objects (OIDs) that they are about. Pure: what it comes to is
//! read from [`Control`].

use std::collections::BTreeSet;

use vireo_frame::{Filter, Mac};

use crate::bytes::{le16, le32, part, words};
use crate::offload::{Offloads, capabilities};
use crate::rndis::{HEADER, message, status};
use crate::steering::{KEY, Steering, TABLE_MAX};
use crate::transmit::{BYTES_MAX, MESSAGES_MAX};

/// Objects (MS-RNDIS 2.2.3, NDIS).
mod oid {
    #![allow(missing_docs)]
    pub const SUPPORTED_LIST: u32 = 0x0001_0101;
    pub const HARDWARE_STATUS: u32 = 0x0001_0102;
    pub const MEDIA_SUPPORTED: u32 = 0x0001_0103;
    pub const MEDIA_IN_USE: u32 = 0x0001_0104;
    pub const MAXIMUM_FRAME_SIZE: u32 = 0x0001_0106;
    pub const LINK_SPEED: u32 = 0x0001_0107;
    pub const TRANSMIT_BLOCK_SIZE: u32 = 0x0001_010a;
    pub const RECEIVE_BLOCK_SIZE: u32 = 0x0001_010b;
    pub const VENDOR_ID: u32 = 0x0001_010c;
    pub const VENDOR_DESCRIPTION: u32 = 0x0001_010d;
    pub const CURRENT_PACKET_FILTER: u32 = 0x0001_010e;
    pub const CURRENT_LOOKAHEAD: u32 = 0x0001_010f;
    pub const MAXIMUM_TOTAL_SIZE: u32 = 0x0001_0111;
    pub const MAC_OPTIONS: u32 = 0x0001_0113;
    pub const MEDIA_CONNECT_STATUS: u32 = 0x0001_0114;
    pub const MAXIMUM_SEND_PACKETS: u32 = 0x0001_0115;
    pub const VENDOR_DRIVER_VERSION: u32 = 0x0001_0116;
    pub const RECEIVE_SCALE_CAPABILITIES: u32 = 0x0001_0203;
    pub const RECEIVE_SCALE_PARAMETERS: u32 = 0x0001_0204;
    pub const CONFIG_PARAMETER: u32 = 0x0001_021b;
    pub const XMIT_OK: u32 = 0x0002_0101;
    pub const RCV_OK: u32 = 0x0002_0102;
    pub const XMIT_ERROR: u32 = 0x0002_0103;
    pub const RCV_ERROR: u32 = 0x0002_0104;
    pub const RCV_NO_BUFFER: u32 = 0x0002_0105;
    pub const FRIENDLY_NAME: u32 = 0x0002_0216;
    pub const OFFLOAD_ENCAPSULATION: u32 = 0x0101_010a;
    pub const PERMANENT_ADDRESS: u32 = 0x0101_0101;
    pub const CURRENT_ADDRESS: u32 = 0x0101_0102;
    pub const MULTICAST_LIST: u32 = 0x0101_0103;
    pub const MAXIMUM_LIST_SIZE: u32 = 0x0101_0104;
    pub const RCV_ERROR_ALIGNMENT: u32 = 0x0102_0101;
    pub const XMIT_ONE_COLLISION: u32 = 0x0102_0102;
    pub const XMIT_MORE_COLLISIONS: u32 = 0x0102_0103;
    pub const OFFLOAD_CURRENT_CONFIG: u32 = 0xfc01_020b;
    pub const OFFLOAD_PARAMETERS: u32 = 0xfc01_020c;
    pub const OFFLOAD_CAPABILITIES: u32 = 0xfc01_020d;
    /// All that can be asked for or set.
    pub const ALL: [u32; 37] = [
        SUPPORTED_LIST,
        HARDWARE_STATUS,
        MEDIA_SUPPORTED,
        MEDIA_IN_USE,
        MAXIMUM_FRAME_SIZE,
        LINK_SPEED,
        TRANSMIT_BLOCK_SIZE,
        RECEIVE_BLOCK_SIZE,
        VENDOR_ID,
        VENDOR_DESCRIPTION,
        CURRENT_PACKET_FILTER,
        CURRENT_LOOKAHEAD,
        MAXIMUM_TOTAL_SIZE,
        MAC_OPTIONS,
        MEDIA_CONNECT_STATUS,
        MAXIMUM_SEND_PACKETS,
        VENDOR_DRIVER_VERSION,
        RECEIVE_SCALE_CAPABILITIES,
        RECEIVE_SCALE_PARAMETERS,
        CONFIG_PARAMETER,
        XMIT_OK,
        RCV_OK,
        XMIT_ERROR,
        RCV_ERROR,
        RCV_NO_BUFFER,
        FRIENDLY_NAME,
        OFFLOAD_ENCAPSULATION,
        PERMANENT_ADDRESS,
        CURRENT_ADDRESS,
        MULTICAST_LIST,
        MAXIMUM_LIST_SIZE,
        RCV_ERROR_ALIGNMENT,
        XMIT_ONE_COLLISION,
        XMIT_MORE_COLLISIONS,
        OFFLOAD_CURRENT_CONFIG,
        OFFLOAD_PARAMETERS,
        OFFLOAD_CAPABILITIES,
    ];
}

/// Groups that a driver may name; more are refused, as it is told by MAXIMUM_LIST_SIZE.
const GROUPS_MAX: usize = 64;
/// What data messages start at multiples of: 8 bytes.
const ALIGNMENT: u32 = 3;
/// Bits of a packet filter.
mod filter {
    pub const DIRECTED: u32 = 1;
    pub const MULTICAST: u32 = 2;
    pub const ALL_MULTICAST: u32 = 4;
    pub const BROADCAST: u32 = 8;
    pub const PROMISCUOUS: u32 = 0x20;
}

/// What a driver is told that is not its own doing.
pub trait Surroundings {
    /// The guest gives its adapter another address; whether it may.
    fn set_address(&self, address: Mac) -> bool;
    /// Whether the network is there, and its speed in bits a second.
    fn carrier(&self) -> (bool, u64);
    /// Bytes of the longest packet behind an Ethernet header.
    fn mtu(&self) -> u32;
    /// Further channels that the driver may have.
    fn subchannels(&self) -> u16;
    /// Frames sent, received, not sent, not received, not received for want of a buffer.
    fn counters(&self) -> [u64; 5];
}

/// What a driver has set, and is told again.
#[derive(Debug)]
pub struct Control {
    /// The address that it was given.
    permanent: Mac,
    /// The one that it has.
    pub address: Mac,
    /// Bits of its packet filter.
    bits: u32,
    groups: BTreeSet<Mac>,
    /// What it has turned on.
    pub offloads: Offloads,
    /// How frames are spread over channels.
    pub steering: Steering,
    /// It said that it takes coalesced frames.
    pub rsc: bool,
    initialized: bool,
}

impl Control {
    /// As after power-on, of an adapter that was given an address.
    pub fn new(permanent: Mac) -> Self {
        Self {
            permanent,
            address: permanent,
            bits: 0,
            groups: BTreeSet::new(),
            offloads: Offloads::default(),
            steering: Steering::default(),
            rsc: false,
            initialized: false,
        }
    }

    /// Whether it wants any frames.
    pub fn wants_frames(&self) -> bool {
        self.initialized && self.bits != 0
    }

    /// Frames of others, too.
    pub fn is_promiscuous(&self) -> bool {
        self.bits & filter::PROMISCUOUS != 0
    }

    /// What it wants to get.
    pub fn filter(&self) -> Filter {
        let any = |bits| self.bits & (bits | filter::PROMISCUOUS) != 0;
        let groups = match (any(filter::ALL_MULTICAST), any(filter::MULTICAST)) {
            (true, _) => None,
            (false, true) => Some(self.groups.clone()),
            (false, false) => Some(BTreeSet::new()),
        };
        Filter { directed: any(filter::DIRECTED), broadcast: any(filter::BROADCAST), groups }
    }

    /// Whether a request may change what the driver wants, and does not only ask.
    pub fn may_change(request: &[u8]) -> bool {
        !matches!(le32(request, 0), Some(message::QUERY | message::KEEP_ALIVE))
    }

    /// Serves a request; the answer, if there is one.
    pub fn serve(&mut self, request: &[u8], around: &dyn Surroundings) -> Option<Vec<u8>> {
        let (kind, id) = (le32(request, 0)?, le32(request, 8).unwrap_or(0));
        let request = &request[..request.len().min(le32(request, 4)? as usize)];
        let answer = |fields: &[u32], rest: &[u8]| {
            Some(crate::rndis::message(kind | message::COMPLETION, fields, rest))
        };
        match kind {
            message::INITIALIZE => {
                self.initialized = true;
                answer(&[id, status::SUCCESS, 1, 0, 1, 0, MESSAGES_MAX, BYTES_MAX, ALIGNMENT, 0, 0], &[])
            }
            message::HALT => {
                self.forget();
                None
            }
            message::RESET => {
                self.forget();
                self.initialized = true;
                answer(&[status::SUCCESS, 1], &[])
            }
            message::KEEP_ALIVE => answer(&[id, status::SUCCESS], &[]),
            message::QUERY => match self.query(request, around) {
                Ok(value) => answer(&[id, status::SUCCESS, value.len() as u32, 16], &value),
                Err(why) => answer(&[id, why, 0, 0], &[]),
            },
            message::SET => answer(&[id, self.set(request, around).err().unwrap_or(status::SUCCESS)], &[]),
            _ => None,
        }
    }

    /// The driver is gone, or begins anew: what it has set is not any more, but for its address.
    pub fn forget(&mut self) {
        let (permanent, address, rsc) = (self.permanent, self.address, self.rsc);
        *self = Self { address, rsc, ..Self::new(permanent) };
    }

    /// The object that a request is about, and what comes with it.
    fn object(request: &[u8]) -> Option<(u32, &[u8])> {
        let field = |n: usize| le32(request, HEADER as usize + n * 4);
        let (oid, length, offset) = (field(1)?, field(2)?, field(3)?);
        let value = if length == 0 { &[] } else { part(request, offset.checked_add(HEADER)?, length)? };
        Some((oid, value))
    }

    fn query(&self, request: &[u8], around: &dyn Surroundings) -> Result<Vec<u8>, u32> {
        let (oid, asked) = Self::object(request).ok_or(status::INVALID_DATA)?;
        let mtu = around.mtu();
        let (up, speed) = around.carrier();
        let count = |n: usize| (around.counters()[n] as u32).to_le_bytes().to_vec();
        Ok(match oid {
            oid::SUPPORTED_LIST => words(&oid::ALL),
            // Ready; Ethernet; a copy of all of a frame is looked at.
            oid::HARDWARE_STATUS | oid::MEDIA_SUPPORTED | oid::MEDIA_IN_USE => words(&[0]),
            oid::RCV_ERROR_ALIGNMENT | oid::XMIT_ONE_COLLISION | oid::XMIT_MORE_COLLISIONS => words(&[0]),
            oid::MAXIMUM_FRAME_SIZE => words(&[mtu]),
            oid::CURRENT_LOOKAHEAD | oid::TRANSMIT_BLOCK_SIZE | oid::RECEIVE_BLOCK_SIZE => words(&[mtu + 14]),
            oid::MAXIMUM_TOTAL_SIZE => words(&[mtu + 14]),
            // In units of 100 bits.
            oid::LINK_SPEED => words(&[u32::try_from(speed / 100).unwrap_or(u32::MAX)]),
            oid::VENDOR_ID => words(&[0x005d_1500]),
            oid::VENDOR_DESCRIPTION => b"Vireo network adapter\0".to_vec(),
            oid::VENDOR_DRIVER_VERSION => words(&[0x1_0000]),
            oid::CURRENT_PACKET_FILTER => words(&[self.bits]),
            // No copies of its own frames; priorities.
            oid::MAC_OPTIONS => words(&[0x48]),
            oid::MEDIA_CONNECT_STATUS => words(&[u32::from(!up)]),
            oid::MAXIMUM_SEND_PACKETS => words(&[MESSAGES_MAX]),
            oid::XMIT_OK => count(0),
            oid::RCV_OK => count(1),
            oid::XMIT_ERROR => count(2),
            oid::RCV_ERROR => count(3),
            oid::RCV_NO_BUFFER => count(4),
            // In UTF-16; this one is what drivers take for none.
            oid::FRIENDLY_NAME => "Network Adapter\0".encode_utf16().flat_map(u16::to_le_bytes).collect(),
            oid::PERMANENT_ADDRESS => self.permanent.0.to_vec(),
            oid::CURRENT_ADDRESS => self.address.0.to_vec(),
            oid::MULTICAST_LIST => self.groups.iter().flat_map(|g| g.0).collect(),
            oid::MAXIMUM_LIST_SIZE => words(&[GROUPS_MAX as u32]),
            oid::OFFLOAD_CAPABILITIES | oid::OFFLOAD_CURRENT_CONFIG => {
                capabilities(asked.get(1).copied(), self.rsc)
            }
            oid::RECEIVE_SCALE_CAPABILITIES => receive_scale(around.subchannels()),
            _ => return Err(status::NOT_SUPPORTED),
        })
    }

    fn set(&mut self, request: &[u8], around: &dyn Surroundings) -> Result<(), u32> {
        let (oid, value) = Self::object(request).ok_or(status::INVALID_DATA)?;
        match oid {
            oid::CURRENT_PACKET_FILTER => self.bits = le32(value, 0).ok_or(status::INVALID_DATA)?,
            oid::MULTICAST_LIST => {
                let (groups, _) = value.as_chunks::<6>();
                if groups.len() > GROUPS_MAX {
                    return Err(status::INVALID_DATA);
                }
                self.groups = groups.iter().map(|g| Mac(*g)).collect();
            }
            oid::OFFLOAD_PARAMETERS => {
                self.offloads.set(value, self.rsc).ok_or(status::INVALID_DATA)?;
            }
            oid::RECEIVE_SCALE_PARAMETERS => self.set_steering(value).ok_or(status::INVALID_DATA)?,
            oid::CONFIG_PARAMETER => self.configure(value, around)?,
            oid::OFFLOAD_ENCAPSULATION | oid::CURRENT_LOOKAHEAD => {}
            _ => return Err(status::NOT_SUPPORTED),
        }
        Ok(())
    }

    /// Receive side scaling (NDIS_RECEIVE_SCALE_PARAMETERS).
    fn set_steering(&mut self, value: &[u8]) -> Option<()> {
        const DISABLED: u16 = 0x10;
        if le16(value, 4)? & DISABLED != 0 {
            self.steering = Steering::default();
            return Some(());
        }
        // Fields follow one another as a compiler of C lays them out.
        let (table_bytes, table_at) = (u32::from(le16(value, 12)?), le32(value, 16)?);
        let (key_bytes, key_at) = (u32::from(le16(value, 20)?), le32(value, 24)?);
        let (entries, _) = part(value, table_at, table_bytes)?.as_chunks::<4>();
        let given = part(value, key_at, key_bytes.min(KEY as u32))?;
        let mut key = [0; KEY];
        key[..given.len()].copy_from_slice(given);
        let table = entries.iter().take(TABLE_MAX + 1).map(|e| u16::from_le_bytes([e[0], e[1]])).collect();
        self.steering = Steering::new(key, table);
        Some(())
    }

    /// A parameter by its name, in UTF-16; there is one: its address, as twelve digits.
    fn configure(&mut self, value: &[u8], around: &dyn Surroundings) -> Result<(), u32> {
        let text = |offset: usize| {
            let bytes = part(value, le32(value, offset)?, le32(value, offset + 4)?)?;
            let units: Vec<u16> = bytes.as_chunks::<2>().0.iter().map(|u| u16::from_le_bytes(*u)).collect();
            String::from_utf16(&units).ok()
        };
        let name = text(0).ok_or(status::INVALID_DATA)?;
        if name.trim_end_matches('\0') != "NetworkAddress" {
            return Err(status::NOT_SUPPORTED);
        }
        let address = text(12).ok_or(status::INVALID_DATA)?;
        let address: Mac = address.trim_end_matches('\0').parse().map_err(|_| status::INVALID_DATA)?;
        if !address.is_station() {
            return Err(status::INVALID_DATA);
        }
        if !around.set_address(address) {
            return Err(status::FAILURE);
        }
        self.address = address;
        Ok(())
    }
}

/// NDIS_RECEIVE_SCALE_CAPABILITIES, revision 2.
fn receive_scale(subchannels: u16) -> Vec<u8> {
    // Message-signalled interrupts; hashes of TCP over IPv4 and IPv6.
    const FLAGS: u32 = 0x0100_0000 | 0x300 | 1;
    let queues = u32::from(subchannels) + 1;
    let mut bytes = words(&[u32::from_le_bytes([0x88, 2, 18, 0]), FLAGS, queues, queues]);
    bytes.extend((TABLE_MAX as u16).to_le_bytes());
    bytes
}
