//! Asks who listens to which groups, where no router does: what members then report is what snooping lives by.

use std::collections::BTreeSet;

use vireo_frame::{Mac, Sum, Tag, pseudo_header};

use crate::rate::Nanos;
use crate::vlan::{Vlan, VlanMode};
use crate::{Delivery, Kind, Switch};

/// Time between questions (RFC 3376, 8.2).
const INTERVAL: Nanos = 125_000_000_000;
/// Who asks: an address of no station's, and the link-local one that belongs to it (RFC 4291, appendix A). IGMP's question comes from
/// no address, as it is no router that asks (RFC 4541, 2.1.1); MLD's needs one.
const ASKER: Mac = Mac([0x02, 0x15, 0x5d, 0, 0, 0]);
const ASKER_V6: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0x15, 0x5d, 0xff, 0xfe, 0, 0, 0];

/// When it asks next.
#[derive(Debug, Default)]
pub(crate) struct Querier {
    pub(crate) is_on: bool,
    next: Nanos,
}

impl Switch {
    /// Whether the switch asks who listens to which groups, in VLANs where no router does.
    pub fn set_querier(&mut self, is_on: bool) {
        if is_on != self.querier.is_on {
            self.querier = Querier { is_on, next: 0 };
        }
    }

    /// Puts the questions that are due: frames, and to whom they go. To be called now and then.
    pub fn ask(&mut self, now: Nanos, mut put: impl FnMut(&[u8], Delivery)) {
        if !self.querier.is_on || now < self.querier.next {
            return;
        }
        self.querier.next = now.saturating_add(INTERVAL);
        let vlans: BTreeSet<Vlan> = self.ports().filter_map(|id| self.settings(id)).map(own_vlan).collect();
        let questions = [igmp(), mld()];
        for vlan in vlans.into_iter().filter(|vlan| !self.has_routers(*vlan, now)) {
            for id in self.ports() {
                // Not the network behind an uplink: its router might give way to us (RFC 3810, 7.6.2).
                let of_guest = self.settings(id).filter(|s| s.kind != Kind::Uplink);
                let tag = of_guest.and_then(|s| s.vlan.of_outgoing(vlan, Tag(0)));
                if let Some(tag) = tag {
                    questions.iter().for_each(|question| put(question, Delivery { port: id, tag }));
                }
            }
        }
    }
}

/// The VLAN of who is behind a port without tags.
fn own_vlan(settings: &crate::Settings) -> Vlan {
    match &settings.vlan {
        VlanMode::Access(vlan) | VlanMode::Trunk { native: vlan, .. } => *vlan,
        VlanMode::Private { primary, .. } => *primary,
    }
}

/// A general question of IGMPv3, which members of older versions understand (RFC 3376, 4.1): in 10 s at most, of all groups.
fn igmp() -> Vec<u8> {
    let mut bytes = [&[0x01, 0x00, 0x5e, 0, 0, 1][..], &ASKER.0, &[8, 0]].concat();
    // 24 bytes of header with a router alert (RFC 2113), 12 of message; TTL 1; from nobody to all hosts.
    bytes.extend([0x46, 0xc0, 0, 36, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 224, 0, 0, 1, 0x94, 4, 0, 0]);
    bytes.extend([0x11, 100, 0, 0, 0, 0, 0, 0, 2, 125, 0, 0]);
    let header = Sum::default().over(&bytes[14..38]).finish();
    let message = Sum::default().over(&bytes[38..]).finish();
    bytes[24..26].copy_from_slice(&header.to_be_bytes());
    bytes[40..42].copy_from_slice(&message.to_be_bytes());
    bytes.resize(60, 0);
    bytes
}

/// The same of MLDv2 (RFC 3810, 5.1).
fn mld() -> Vec<u8> {
    let all: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let mut message = [&[130, 0, 0, 0, 0x27, 0x10, 0, 0][..], &[0; 16], &[2, 125, 0, 0]].concat();
    let sum = pseudo_header(ASKER_V6.into(), all.into(), 58, message.len()).over(&message).finish();
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    // A hop-by-hop header with a router alert (RFC 2711) in front.
    let header = [&[0x60, 0, 0, 0, 0, 36, 0, 1][..], &ASKER_V6, &all, &[58, 0, 5, 2, 0, 0, 1, 0]].concat();
    [&[0x33, 0x33, 0, 0, 0, 1][..], &ASKER.0, &[0x86, 0xdd], &header, &message].concat()
}
