//! What is told of a port.

use serde::{Deserialize, Serialize};
use vireo_frame::Mac;
use vireo_switch::{Counters, Reason, Settings};

use crate::member::Member;

/// A port, as it is seen from outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PortReport {
    /// Its number.
    pub number: u32,
    /// Its name.
    pub name: String,
    /// The address that is known to be behind it.
    pub mac: Option<String>,
    /// Its part in VLANs.
    pub vlan: String,
    /// Frames that came by it, and their bytes.
    pub sent: (u64, u64),
    /// Frames that went out by it.
    pub received: (u64, u64),
    /// Frames that it had no room for.
    pub lost: u64,
    /// Frames that its rules kept from it.
    pub refused: u64,
    /// Frames that were not taken from it, by reason; no reason that there was not.
    pub dropped: std::collections::BTreeMap<String, u64>,
}

pub(crate) fn report(
    member: &Member,
    mac: Option<Mac>,
    settings: &Settings,
    counters: &Counters,
) -> PortReport {
    let dropped = Reason::ALL.iter().map(|r| (r.name().to_string(), counters.dropped[*r as usize]));
    PortReport {
        number: member.id.number(),
        name: member.name.clone(),
        mac: mac.map(|mac| mac.to_string()),
        vlan: settings.vlan.to_string(),
        sent: (counters.sent.frames, counters.sent.bytes),
        received: (counters.received.frames, counters.received.bytes),
        lost: counters.lost,
        refused: counters.refused,
        dropped: dropped.filter(|(_, count)| *count > 0).collect(),
    }
}
