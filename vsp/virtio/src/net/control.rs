//! Commands of the control queue.
//!
//! Source: virtio 1.2 §5.1.6.5.

use std::collections::BTreeSet;

use vireo_frame::Mac;
use virtio_bindings::virtio_net as spec;

use super::settings::{ADDRESSES_MAX, GUEST_OFFLOADS, Settings};
use super::steering::Rss;

/// Bytes of a command, at most: two tables of addresses, longer than any that is looked at.
pub(super) const COMMAND_MAX: usize = 8192;

/// What a command changes besides the settings.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// What the driver wants to get, or can.
    Wishes,
    /// Its address, if the network allows that.
    Address(Mac),
    /// Nothing of the network's.
    Nothing,
}

/// A command cannot be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused;

/// Does a command: class, command, data. The address is the caller's to change.
pub(super) fn command(settings: &mut Settings, pairs: u16, bytes: &[u8]) -> Result<Change, Refused> {
    let [class, command, data @ ..] = bytes else { return Err(Refused) };
    let (class, command) = (u32::from(*class), u32::from(*command));
    match class {
        spec::VIRTIO_NET_CTRL_RX if settings.has(spec::VIRTIO_NET_F_CTRL_RX) => {
            receive(settings, command, data)
        }
        spec::VIRTIO_NET_CTRL_MAC => addresses(settings, command, data),
        spec::VIRTIO_NET_CTRL_ANNOUNCE
            if command == spec::VIRTIO_NET_CTRL_ANNOUNCE_ACK
                && settings.has(spec::VIRTIO_NET_F_GUEST_ANNOUNCE) =>
        {
            settings.announce = false;
            Ok(Change::Nothing)
        }
        spec::VIRTIO_NET_CTRL_MQ => queues(settings, pairs, command, data),
        spec::VIRTIO_NET_CTRL_GUEST_OFFLOADS
            if command == spec::VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET
                && settings.has(spec::VIRTIO_NET_F_CTRL_GUEST_OFFLOADS) =>
        {
            let wanted = data.first_chunk().map(|b| u64::from_le_bytes(*b)).ok_or(Refused)?;
            if wanted & !(settings.features & GUEST_OFFLOADS) != 0 {
                return Err(Refused);
            }
            settings.offloads = wanted;
            Ok(Change::Wishes)
        }
        _ => Err(Refused),
    }
}

fn queues(settings: &mut Settings, pairs: u16, command: u32, data: &[u8]) -> Result<Change, Refused> {
    match command {
        spec::VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET if settings.has(spec::VIRTIO_NET_F_MQ) => {
            let wanted = data.first_chunk().map(|b| u16::from_le_bytes(*b)).ok_or(Refused)?;
            if !(1..=pairs).contains(&wanted) {
                return Err(Refused);
            }
            (settings.pairs, settings.rss) = (wanted, None);
        }
        spec::VIRTIO_NET_CTRL_MQ_RSS_CONFIG if settings.has(spec::VIRTIO_NET_F_RSS) => {
            let (rss, transmit) = Rss::read(data, pairs).ok_or(Refused)?;
            (settings.pairs, settings.rss) = (transmit, Some(rss));
        }
        _ => return Err(Refused),
    }
    Ok(Change::Nothing)
}

fn receive(settings: &mut Settings, command: u32, data: &[u8]) -> Result<Change, Refused> {
    let extra = settings.has(spec::VIRTIO_NET_F_CTRL_RX_EXTRA);
    let mode = match command {
        spec::VIRTIO_NET_CTRL_RX_PROMISC => &mut settings.promiscuous,
        spec::VIRTIO_NET_CTRL_RX_ALLMULTI => &mut settings.all_groups,
        spec::VIRTIO_NET_CTRL_RX_ALLUNI if extra => &mut settings.all_stations,
        spec::VIRTIO_NET_CTRL_RX_NOMULTI if extra => &mut settings.no_groups,
        spec::VIRTIO_NET_CTRL_RX_NOUNI if extra => &mut settings.no_stations,
        spec::VIRTIO_NET_CTRL_RX_NOBCAST if extra => &mut settings.no_broadcast,
        _ => return Err(Refused),
    };
    *mode = *data.first().ok_or(Refused)? != 0;
    Ok(Change::Wishes)
}

fn addresses(settings: &mut Settings, command: u32, data: &[u8]) -> Result<Change, Refused> {
    match command {
        spec::VIRTIO_NET_CTRL_MAC_ADDR_SET if settings.has(spec::VIRTIO_NET_F_CTRL_MAC_ADDR) => {
            Mac::first_of(data).filter(|m| m.is_station()).map(Change::Address).ok_or(Refused)
        }
        spec::VIRTIO_NET_CTRL_MAC_TABLE_SET if settings.has(spec::VIRTIO_NET_F_CTRL_RX) => {
            let (stations, rest) = table(data)?;
            let (groups, _) = table(rest)?;
            settings.all_stations |= stations.is_none();
            settings.all_groups |= groups.is_none();
            (settings.stations, settings.groups) = (stations.unwrap_or_default(), groups.unwrap_or_default());
            Ok(Change::Wishes)
        }
        _ => Err(Refused),
    }
}

/// A table of addresses, `None` if it is too long to be kept; and what follows it.
#[expect(clippy::type_complexity, reason = "it is named in the line above")]
fn table(data: &[u8]) -> Result<(Option<BTreeSet<[u8; 6]>>, &[u8]), Refused> {
    let (count, rest) = data.split_first_chunk().ok_or(Refused)?;
    let count = usize::try_from(u32::from_le_bytes(*count)).map_err(|_| Refused)?;
    let bytes = count.checked_mul(6).ok_or(Refused)?;
    let (entries, rest) = rest.split_at_checked(bytes).ok_or(Refused)?;
    let all = (count <= ADDRESSES_MAX).then(|| entries.as_chunks().0.iter().copied().collect());
    Ok((all, rest))
}
