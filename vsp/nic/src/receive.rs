//! Frames that come in.
//!
//! Source: the manual named in `registers.rs`, 3.2.

use vireo_frame::headers::{Headers, Network, Transport, ether_type};
use vireo_frame::{Checksum, Filter, Frame, Full, Mac, Sum};
use vireo_memory::GuestMemory;

use crate::registers::{Registers, cause, ctrl, rctl};

/// Bytes of the check sequence at a frame's end. No frame was on a wire: it is zero.
const CRC: usize = 4;
const SHORTEST: usize = 60;
/// Bytes of the longest frame, and of one where long ones are not wanted; with the check sequence, and a tag.
const LONGEST: usize = 16_384;
const ETHERNET: usize = 1522;

mod status {
    pub const DONE: u8 = 1;
    pub const END: u8 = 1 << 1;
    /// Nothing is said of checksums.
    pub const IGNORE: u8 = 1 << 2;
    pub const TAG: u8 = 1 << 3;
    pub const TRANSPORT: u8 = 1 << 5;
    pub const IP: u8 = 1 << 6;
}
const IP_ERROR: u8 = 1 << 6;

/// Which checksums are looked at.
const SUM_IP: u32 = 1 << 8;
const SUM_TRANSPORT: u32 = 1 << 9;

impl Registers {
    /// Bytes of each buffer.
    fn buffer(&self) -> usize {
        let code = self.rctl >> 16 & 3;
        match self.rctl & rctl::LARGER != 0 && code != 0 {
            true => 32_768 >> code,
            false => 2048 >> code,
        }
    }

    /// Whether the guest wants a frame to this address, with this tag.
    pub fn wants(&self, to: Mac, vlan: Option<u16>) -> bool {
        let bit = |table: &[u32], n: u16| table[usize::from(n / 32)] >> (n % 32) & 1 != 0;
        if self.rctl & rctl::VLAN_FILTER != 0 && vlan.is_some_and(|vlan| !bit(&self.vfta, vlan & 0xfff)) {
            return false;
        }
        if to == Mac::BROADCAST && self.rctl & rctl::BROADCAST != 0 {
            return true;
        }
        if (0..16).any(|n| self.station(n) == Some(to)) {
            return true;
        }
        if !to.is_group() {
            return self.rctl & rctl::ALL_STATIONS != 0;
        }
        // Twelve of the upper bits of the address, which ones the guest says (MO).
        let upper = u16::from_le_bytes([to.0[4], to.0[5]]);
        let hash = upper >> [4, 3, 2, 0][(self.rctl >> 12 & 3) as usize] & 0xfff;
        self.rctl & rctl::ALL_GROUPS != 0 || bit(&self.mta, hash)
    }

    /// The same for the network, which is to give too much rather than too little.
    pub fn filter(&self) -> Filter {
        let hashes = self.mta.iter().any(|word| *word != 0);
        let groups = (1..16).filter_map(|n| self.station(n)).filter(|m| m.is_group()).collect();
        let all = self.rctl & (rctl::ALL_GROUPS | rctl::ALL_STATIONS) != 0 || hashes;
        Filter { directed: true, broadcast: true, groups: if all { None } else { Some(groups) } }
    }

    /// Puts a frame into the guest's buffers. Lost is what it does not want, or has no way to take.
    ///
    /// # Errors
    /// There are too few buffers now.
    pub fn receive(
        &mut self,
        memory: &GuestMemory,
        frame: &Frame<'_>,
        scratch: &mut Vec<u8>,
    ) -> Result<(), Full> {
        if self.rctl & rctl::ENABLE == 0 || self.rctl & rctl::LOOPBACK != 0 {
            return Ok(());
        }
        let headers = Headers::read(frame.head());
        let tag = headers.as_ref().and_then(|h| h.tag);
        let to = Mac::first_of(frame.head()).unwrap_or_default();
        let outer = frame.head().get(12..).and_then(|b| b.first_chunk()).map(|b| u16::from_be_bytes(*b));
        let tag = tag.filter(|_| outer == Some(self.vlan_type()));
        if !self.wants(to, tag.map(|t| t.vlan())) {
            return Ok(());
        }
        scratch.clear();
        if frame.append_to(scratch).is_err() {
            return Ok(());
        }
        let strip = tag.filter(|_| self.ctrl & ctrl::VLAN != 0);
        let (mut done, errors) = self.sums(frame.intent().checksum, headers.as_ref(), scratch);
        if strip.is_some() {
            scratch.drain(12..16);
            done |= status::TAG;
        }
        scratch.resize(scratch.len().max(SHORTEST), 0);
        let length = scratch.len() + CRC;
        let most = if self.rctl & rctl::LONG != 0 { LONGEST } else { ETHERNET };
        if length > most {
            // ROC: too long.
            self.count(0x40ac, 1);
            return Ok(());
        }
        let crc = if self.rctl & rctl::NO_CRC == 0 { CRC } else { 0 };
        scratch.resize(scratch.len() + crc, 0);
        let needed = scratch.len().div_ceil(self.buffer()) as u32;
        if needed >= self.rx.count() {
            // A ring that never has room: MPC.
            self.count(0x4010, 1);
            return Ok(());
        }
        if needed > self.rx.filled() {
            return Err(Full);
        }
        self.fill(memory, scratch, done, errors, strip.map_or(0, |t| t.0));
        self.count_received(to, length);
        Ok(())
    }

    /// Writes the bytes into as many buffers as they take.
    fn fill(&mut self, memory: &GuestMemory, bytes: &[u8], done: u8, errors: u8, tag: u16) {
        let size = self.buffer();
        let last = bytes.len().div_ceil(size) - 1;
        for (n, part) in bytes.chunks(size).enumerate() {
            let at = self.rx.take();
            // What is no RAM is nowhere, as on a bus.
            let Ok(address) = memory.read_obj::<u64>(at) else { continue };
            _ = memory.write(address, part);
            let end = if n == last { status::END | done } else { 0 };
            let mut written = [0; 8];
            written[..2].copy_from_slice(&(part.len() as u16).to_le_bytes());
            written[5] = if n == last { errors } else { 0 };
            written[6..].copy_from_slice(&tag.to_le_bytes());
            _ = memory.write(at + 8, &written);
            // The guest looks at this first.
            _ = memory.write_obj(at + 12, status::DONE | end);
        }
        // Half, a quarter, an eighth of the ring.
        let low = self.rx.count() >> (1 + (self.rctl >> 8 & 3).min(2));
        if self.rx.filled() <= low {
            self.icr |= cause::RX_LOW;
        }
    }

    /// What is said of checksums.
    fn sums(&self, known: Checksum, headers: Option<&Headers>, bytes: &[u8]) -> (u8, u8) {
        let Some(Headers { network: Network::Ip(ip), ether_type: kind, .. }) = headers else {
            return (status::IGNORE, 0);
        };
        let wanted = self.receive_sums();
        let (mut done, mut errors) = (0, 0);
        if wanted & SUM_IP != 0 && *kind == ether_type::IPV4 {
            let start = if headers.is_some_and(|h| h.tag.is_some()) { 18 } else { 14 };
            let header = bytes.get(start..).unwrap_or_default();
            let length = header.first().map_or(0, |b| usize::from(b & 0xf) * 4);
            done |= status::IP;
            if header.get(..length).is_none_or(|h| Sum::default().over(h).finish() != 0) {
                errors |= IP_ERROR;
            }
        }
        let has_ports = matches!(ip.transport, Some(Transport::Ports { .. }));
        if wanted & SUM_TRANSPORT != 0 && known == Checksum::Good && has_ports {
            done |= status::TRANSPORT;
        }
        if done == 0 { (status::IGNORE, 0) } else { (done, errors) }
    }

    fn count_received(&mut self, to: Mac, length: usize) {
        // Good packets, all packets, good octets, all octets.
        for (register, by) in [(0x4074, 1), (0x40d0, 1), (0x4088, length as u64), (0x40c0, length as u64)] {
            self.count(register, by);
        }
        match to {
            Mac::BROADCAST => self.count(0x4078, 1),
            to if to.is_group() => self.count(0x407c, 1),
            _ => {}
        }
    }
}
