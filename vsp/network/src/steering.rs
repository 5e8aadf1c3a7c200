//! Which channel a frame to the guest goes by: receive side scaling (RSS) of NDIS.

use vireo_frame::headers::{Headers, Network, protocol};
use vireo_frame::rss_hash;

/// Bytes of a key.
pub const KEY: usize = vireo_frame::RSS_KEY;

/// Entries of a table, at most.
pub const TABLE_MAX: usize = 128;

/// The guest's wishes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Steering {
    key: [u8; KEY],
    /// Channels by hash; empty: all go by the first.
    table: Vec<u16>,
}

impl Default for Steering {
    /// All by the first channel.
    fn default() -> Self {
        Self { key: [0; KEY], table: Vec::new() }
    }
}

impl Steering {
    /// By this key and this table, whose length is a power of two. Else: none.
    pub fn new(key: [u8; KEY], table: Vec<u16>) -> Self {
        let table =
            if table.len().is_power_of_two() && table.len() <= TABLE_MAX { table } else { Vec::new() };
        Self { key, table }
    }

    /// The channel of a frame, and its hash, if it has one.
    pub fn channel(&self, head: &[u8]) -> (u16, Option<u32>) {
        if self.table.is_empty() {
            return (0, None);
        }
        let hash = Headers::read(head).and_then(|h| self.hash(&h));
        let index = hash.unwrap_or(0) as usize & (self.table.len() - 1);
        (self.table[index], hash)
    }

    /// Addresses, and ports of TCP (MS-NDIS, "RSS Hashing Types").
    fn hash(&self, headers: &Headers) -> Option<u32> {
        let Network::Ip(ip) = headers.network else { return None };
        rss_hash(&self.key, &ip, ip.protocol == protocol::TCP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_that_are_none_steer_nothing() {
        for table in [vec![], vec![1, 2, 3], vec![1; 256]] {
            assert_eq!(Steering::new([7; KEY], table).channel(&[0; 60]), (0, None));
        }
        assert_eq!(Steering::new([7; KEY], vec![3, 2]).channel(&[0; 60]), (3, None), "no hash is hash 0");
    }
}
