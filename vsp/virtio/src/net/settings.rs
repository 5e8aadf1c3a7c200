//! What the driver has set: addresses, what it wants to get, offloads, queues.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use vireo_frame::{Ability, Filter, Mac};
use virtio_bindings::virtio_net as spec;

use super::steering::{self, Rss};

/// Addresses of each kind in the table of those that the driver wants frames to; where it has more, it gets all.
pub(super) const ADDRESSES_MAX: usize = 64;

/// Features of offloads that the driver may change while it runs (§5.1.6.5.6.1).
pub(super) const GUEST_OFFLOADS: u64 = 1 << spec::VIRTIO_NET_F_GUEST_CSUM
    | 1 << spec::VIRTIO_NET_F_GUEST_TSO4
    | 1 << spec::VIRTIO_NET_F_GUEST_TSO6
    | 1 << spec::VIRTIO_NET_F_GUEST_ECN
    | 1 << spec::VIRTIO_NET_F_GUEST_USO4
    | 1 << spec::VIRTIO_NET_F_GUEST_USO6;

/// What the driver has set; after a reset, as virtio has it before the driver says anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// What was agreed on; 0: there is no driver.
    pub(super) features: u64,
    pub(super) address: [u8; 6],
    pub(super) promiscuous: bool,
    pub(super) all_groups: bool,
    pub(super) all_stations: bool,
    pub(super) no_groups: bool,
    pub(super) no_stations: bool,
    pub(super) no_broadcast: bool,
    pub(super) stations: BTreeSet<[u8; 6]>,
    pub(super) groups: BTreeSet<[u8; 6]>,
    /// Offloads of frames that it gets, as bits of features.
    pub(super) offloads: u64,
    /// Pairs of queues that it uses.
    pub(super) pairs: u16,
    /// How it wants frames spread over them, if it says so.
    pub(super) rss: Option<Rss>,
    /// It has not said yet that it has announced itself.
    pub(super) announce: bool,
}

impl Settings {
    pub(super) fn new(address: Mac) -> Self {
        Self {
            features: 0,
            address: address.0,
            // A driver that never says what it wants gets all.
            promiscuous: true,
            all_groups: false,
            all_stations: false,
            no_groups: false,
            no_stations: false,
            no_broadcast: false,
            stations: BTreeSet::new(),
            groups: BTreeSet::new(),
            offloads: 0,
            pairs: 1,
            rss: None,
            announce: false,
        }
    }

    pub(super) fn has(&self, feature: u32) -> bool {
        self.features & 1 << feature != 0
    }

    /// Whether the driver wants a frame to this address.
    pub(super) fn wants(&self, to: Mac) -> bool {
        if self.promiscuous {
            return true;
        }
        match to {
            Mac::BROADCAST => !self.no_broadcast,
            to if to.is_group() => !self.no_groups && (self.all_groups || self.groups.contains(&to.0)),
            to => {
                let known = to.0 == self.address || self.stations.contains(&to.0);
                self.all_stations || known && !self.no_stations
            }
        }
    }

    /// The same, for the network.
    pub(super) fn filter(&self) -> Filter {
        if self.promiscuous {
            return Filter::default();
        }
        let groups = match (self.no_groups, self.all_groups) {
            (true, _) => Some(BTreeSet::new()),
            (false, true) => None,
            (false, false) => Some(self.groups.iter().map(|g| Mac(*g)).collect()),
        };
        Filter { directed: !self.no_stations || self.all_stations, broadcast: !self.no_broadcast, groups }
    }

    /// The pair of queues that a frame goes into.
    pub(super) fn pair(&self, head: &[u8]) -> u16 {
        match &self.rss {
            Some(rss) => rss.pair(head),
            None => steering::pair(head, self.pairs),
        }
    }

    /// What frames that it gets may want.
    pub(super) fn ability(&self) -> Ability {
        let has = |bit: u32| self.offloads & 1 << bit != 0;
        let checksum = has(spec::VIRTIO_NET_F_GUEST_CSUM);
        Ability {
            checksum,
            tcp4: checksum && has(spec::VIRTIO_NET_F_GUEST_TSO4),
            tcp6: checksum && has(spec::VIRTIO_NET_F_GUEST_TSO6),
            udp: checksum && has(spec::VIRTIO_NET_F_GUEST_USO4) && has(spec::VIRTIO_NET_F_GUEST_USO6),
            tag: false,
        }
    }
}
