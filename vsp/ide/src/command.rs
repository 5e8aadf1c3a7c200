//! Codes of commands (ATA/ATAPI-6, "command descriptions"; DATA SET MANAGEMENT, ATA8-ACS). Where a name ends in `_OLD`,
//! the command is known under a second code, from ATA-1 or before.
#![allow(missing_docs, reason = "the names are the standard's")]

pub const DATA_SET_MANAGEMENT: u8 = 0x06;
pub const DEVICE_RESET: u8 = 0x08;
/// The lower half may be anything.
pub const RECALIBRATE: u8 = 0x10;
pub const RECALIBRATE_LAST: u8 = 0x1F;
pub const READ_SECTORS: u8 = 0x20;
pub const READ_SECTORS_OLD: u8 = 0x21;
pub const READ_SECTORS_EXT: u8 = 0x24;
pub const READ_DMA_EXT: u8 = 0x25;
pub const READ_MULTIPLE_EXT: u8 = 0x29;
pub const WRITE_SECTORS: u8 = 0x30;
pub const WRITE_SECTORS_OLD: u8 = 0x31;
pub const WRITE_SECTORS_EXT: u8 = 0x34;
pub const WRITE_DMA_EXT: u8 = 0x35;
pub const WRITE_MULTIPLE_EXT: u8 = 0x39;
pub const WRITE_DMA_FUA_EXT: u8 = 0x3D;
pub const READ_VERIFY: u8 = 0x40;
pub const READ_VERIFY_OLD: u8 = 0x41;
pub const READ_VERIFY_EXT: u8 = 0x42;
pub const SEEK: u8 = 0x70;
pub const EXECUTE_DEVICE_DIAGNOSTIC: u8 = 0x90;
pub const INITIALIZE_DEVICE_PARAMETERS: u8 = 0x91;
pub const STANDBY_IMMEDIATE_OLD: u8 = 0x94;
pub const IDLE_IMMEDIATE_OLD: u8 = 0x95;
pub const STANDBY_OLD: u8 = 0x96;
pub const IDLE_OLD: u8 = 0x97;
pub const CHECK_POWER_MODE_OLD: u8 = 0x98;
pub const SLEEP_OLD: u8 = 0x99;
pub const PACKET: u8 = 0xA0;
pub const IDENTIFY_PACKET_DEVICE: u8 = 0xA1;
pub const READ_MULTIPLE: u8 = 0xC4;
pub const WRITE_MULTIPLE: u8 = 0xC5;
pub const SET_MULTIPLE_MODE: u8 = 0xC6;
pub const READ_DMA: u8 = 0xC8;
pub const READ_DMA_OLD: u8 = 0xC9;
pub const WRITE_DMA: u8 = 0xCA;
pub const WRITE_DMA_OLD: u8 = 0xCB;
pub const WRITE_MULTIPLE_FUA_EXT: u8 = 0xCE;
pub const STANDBY_IMMEDIATE: u8 = 0xE0;
pub const IDLE_IMMEDIATE: u8 = 0xE1;
pub const STANDBY: u8 = 0xE2;
pub const IDLE: u8 = 0xE3;
pub const CHECK_POWER_MODE: u8 = 0xE5;
pub const SLEEP: u8 = 0xE6;
pub const FLUSH_CACHE: u8 = 0xE7;
pub const FLUSH_CACHE_EXT: u8 = 0xEA;
pub const IDENTIFY_DEVICE: u8 = 0xEC;
pub const SET_FEATURES: u8 = 0xEF;

/// Subcommands of SET FEATURES, in the features register.
pub mod feature {
    pub const WRITE_CACHE_ON: u8 = 0x02;
    pub const TRANSFER_MODE: u8 = 0x03;
    pub const LOOK_AHEAD_OFF: u8 = 0x55;
    /// Settings are kept over a software reset. They are, whatever the host says.
    pub const KEEP_SETTINGS: u8 = 0x66;
    pub const WRITE_CACHE_OFF: u8 = 0x82;
    pub const LOOK_AHEAD_ON: u8 = 0xAA;
    /// Settings are not kept.
    pub const REVERT_SETTINGS: u8 = 0xCC;
}
