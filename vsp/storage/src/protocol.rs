//! Packets of the protocol (struct vstor_packet and struct vmscsi_request).

use vireo_scsi::Sense;

/// Operations (enum vstor_packet_operation).
pub mod operation {
    pub const COMPLETE_IO: u32 = 1;
    pub const EXECUTE_SRB: u32 = 3;
    pub const RESET_LUN: u32 = 4;
    pub const RESET_ADAPTER: u32 = 5;
    pub const RESET_BUS: u32 = 6;
    pub const BEGIN_INITIALIZATION: u32 = 7;
    pub const END_INITIALIZATION: u32 = 8;
    pub const QUERY_PROTOCOL_VERSION: u32 = 9;
    pub const QUERY_PROPERTIES: u32 = 10;
    pub const ENUMERATE_BUS: u32 = 11;
    pub const CREATE_SUBCHANNELS: u32 = 13;
}

/// Versions, newest last: 2.0 (2008), 4.2 (2008 R2), 5.1 (2012), 6.0 (2012 R2), 6.2 (2016).
pub const VERSIONS: [u16; 5] = [0x0200, 0x0402, 0x0501, 0x0600, 0x0602];

/// Most bytes of one request.
pub const TRANSFER_MAX: u32 = 1 << 20;

/// Status of a request that is none (STATUS_INVALID_PARAMETER, STATUS_REVISION_MISMATCH).
pub const INVALID_PARAMETER: u32 = 0xc000_000d;
pub const REVISION_MISMATCH: u32 = 0xc000_0059;
pub const INSUFFICIENT_RESOURCES: u32 = 0xc000_009a;

/// Status of a SCSI request block.
pub mod srb {
    pub const SUCCESS: u8 = 0x01;
    pub const ABORTED: u8 = 0x02;
    pub const ERROR: u8 = 0x04;
    pub const INVALID_LUN: u8 = 0x20;
    pub const SENSE_VALID: u8 = 0x80;
}

/// SCSI status: check condition.
const CHECK_CONDITION: u8 = 2;

/// Offsets in a packet.
mod at {
    pub const OPERATION: usize = 0;
    pub const STATUS: usize = 8;
    /// All below are of what follows the head.
    pub const BODY: usize = 12;
    pub const SRB_STATUS: usize = BODY + 2;
    pub const SCSI_STATUS: usize = BODY + 3;
    pub const PATH: usize = BODY + 5;
    pub const TARGET: usize = BODY + 6;
    pub const LUN: usize = BODY + 7;
    pub const CDB_LENGTH: usize = BODY + 8;
    pub const SENSE_LENGTH: usize = BODY + 9;
    pub const TRANSFER: usize = BODY + 12;
    pub const CDB: usize = BODY + 16;
}

/// Bytes of a packet before version 5.1, and since.
const SHORT: usize = 48;
const LONG: usize = 64;
/// Bytes for sense data.
const SENSE_ROOM: usize = 18;

/// A packet of the driver's, as it came and as it goes back.
#[derive(Clone, Copy, Debug)]
pub struct StorPacket {
    bytes: [u8; LONG],
    length: usize,
}

impl StorPacket {
    /// From a packet's data; `None` if it is too short to be one.
    pub fn parse(data: &[u8]) -> Option<Self> {
        let length = if data.len() >= LONG { LONG } else { SHORT };
        let data = data.get(..length)?;
        let mut bytes = [0; LONG];
        bytes[..length].copy_from_slice(data);
        Some(Self { bytes, length })
    }

    /// One of ours, with nothing but an operation.
    pub fn of(operation: u32) -> Self {
        let mut packet = Self { bytes: [0; LONG], length: LONG };
        packet.put(at::OPERATION, &operation.to_le_bytes());
        packet
    }

    fn put(&mut self, at: usize, value: &[u8]) {
        self.bytes[at..at + value.len()].copy_from_slice(value);
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes([self.bytes[at], self.bytes[at + 1], self.bytes[at + 2], self.bytes[at + 3]])
    }

    /// As it goes into a ring.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// What is asked for.
    pub fn operation(&self) -> u32 {
        self.u32(at::OPERATION)
    }

    /// The number that some operations have for a body: a version, a count of channels.
    pub fn number(&self) -> u16 {
        self.u32(at::BODY) as u16
    }

    /// The unit that a SCSI request is for: path, target, LUN.
    pub fn unit(&self) -> (u8, u8, u8) {
        (self.bytes[at::PATH], self.bytes[at::TARGET], self.bytes[at::LUN])
    }

    /// The command, filled up with zeros.
    pub fn cdb(&self) -> [u8; 16] {
        let length = usize::from(self.bytes[at::CDB_LENGTH]).min(16);
        let mut cdb = [0; 16];
        cdb[..length].copy_from_slice(&self.bytes[at::CDB..at::CDB + length]);
        cdb
    }

    /// Bytes that the driver wants moved.
    pub fn transfer(&self) -> u32 {
        self.u32(at::TRANSFER)
    }

    /// Answers the request with a status (0: done).
    pub fn answered(mut self, status: u32) -> Self {
        self.put(at::OPERATION, &operation::COMPLETE_IO.to_le_bytes());
        self.put(at::STATUS, &status.to_le_bytes());
        self
    }

    /// Answers QUERY_PROPERTIES: how many further channels, and how many bytes a request may move.
    pub fn with_properties(self, channels: u16, transfer: u32) -> Self {
        /// The driver may ask for further channels.
        const MULTI_CHANNEL: u32 = 1;
        let mut packet = self.answered(0);
        packet.put(at::BODY, &[0; 24]);
        packet.put(at::BODY + 4, &channels.to_le_bytes());
        packet.put(at::BODY + 8, &if channels > 0 { MULTI_CHANNEL } else { 0 }.to_le_bytes());
        packet.put(at::BODY + 12, &transfer.to_le_bytes());
        packet
    }

    /// Answers a SCSI request that went well.
    pub fn good(self, moved: u32) -> Self {
        self.ended(srb::SUCCESS, 0, moved, None)
    }

    /// Answers one for a unit that is not there.
    pub fn no_unit(self) -> Self {
        self.ended(srb::INVALID_LUN, 0, 0, None)
    }

    /// Answers one that failed, and why. Drivers look for a change of size only among aborted requests.
    pub fn failed(self, sense: Sense) -> Self {
        let status = if sense == Sense::CAPACITY_CHANGED { srb::ABORTED } else { srb::ERROR };
        self.ended(status | srb::SENSE_VALID, CHECK_CONDITION, 0, Some(sense))
    }

    fn ended(self, srb_status: u8, scsi_status: u8, moved: u32, sense: Option<Sense>) -> Self {
        let mut packet = self.answered(0);
        packet.put(at::SRB_STATUS, &[srb_status, scsi_status]);
        debug_assert_eq!(at::SCSI_STATUS, at::SRB_STATUS + 1);
        packet.put(at::TRANSFER, &moved.to_le_bytes());
        packet.put(at::SENSE_LENGTH, &[0]);
        if let Some(sense) = sense {
            packet.put(at::SENSE_LENGTH, &[SENSE_ROOM as u8]);
            packet.put(at::CDB, &sense.bytes());
        }
        packet
    }
}
