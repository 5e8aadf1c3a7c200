//! Where stations are, as their frames tell.

use ahash::AHashMap as HashMap;

use crate::rate::Nanos;
use crate::vlan::Vlan;
use vireo_frame::Mac;

use crate::PortId;

/// A station that is silent for so long is forgotten (IEEE 802.1D's default).
pub const AGE: Nanos = 300_000_000_000;

#[derive(Clone, Copy, Debug)]
struct Station {
    port: PortId,
    seen: Nanos,
}

/// Stations by where they are learned, and address. Guests choose addresses: so the hash has a key, and each port a limit.
#[derive(Debug, Default)]
pub struct Table {
    stations: HashMap<(Vlan, Mac), Station>,
    by_port: HashMap<PortId, usize>,
}

impl Table {
    /// A station was heard on a port that may have `most` of them. One more is not learned.
    pub fn learn(&mut self, place: Vlan, mac: Mac, port: PortId, most: usize, now: Nanos) {
        if let Some(station) = self.stations.get_mut(&(place, mac))
            && station.port == port
        {
            station.seen = now;
            return;
        }
        let count = self.by_port.entry(port).or_default();
        if *count >= most {
            return;
        }
        *count += 1;
        if let Some(last) = self.stations.insert((place, mac), Station { port, seen: now }) {
            self.left(last.port);
        }
    }

    fn left(&mut self, port: PortId) {
        if let Some(count) = self.by_port.get_mut(&port) {
            *count -= 1;
            if *count == 0 {
                self.by_port.remove(&port);
            }
        }
    }

    /// Where a station is, if that is known and not too long ago.
    pub fn find(&self, place: Vlan, mac: Mac, now: Nanos) -> Option<PortId> {
        let station = self.stations.get(&(place, mac))?;
        (now.saturating_sub(station.seen) < AGE).then_some(station.port)
    }

    /// Forgets all that `forgotten` says; it is given place, address, port and when it was seen.
    pub fn forget(&mut self, forgotten: impl Fn(Vlan, Mac, PortId, Nanos) -> bool) {
        let Self { stations, by_port } = self;
        stations.retain(|(place, mac), s| !forgotten(*place, *mac, s.port, s.seen));
        by_port.clear();
        for station in stations.values() {
            *by_port.entry(station.port).or_default() += 1;
        }
    }

    /// All of them, in no order: place, address, port, when seen.
    pub fn all(&self) -> impl Iterator<Item = (Vlan, Mac, PortId, Nanos)> {
        self.stations.iter().map(|((place, mac), s)| (*place, *mac, s.port, s.seen))
    }
}
