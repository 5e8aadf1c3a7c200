//! Frames, made by hand, and where they go.

mod guards;
mod hostile;
mod multicast;
mod policy;
mod vlans;

use crate::{Kind, PortId, Settings, Switch, Verdict};
use vireo_frame::Mac;
use vireo_frame::Tag;

const SECOND: u64 = 1_000_000_000;

/// Station number `n`.
fn mac(n: u8) -> Mac {
    Mac([0, 0x15, 0x5d, 0, 0, n])
}

/// A frame with this body behind its type.
fn frame(to: Mac, from: Mac, ether_type: u16, body: &[u8]) -> Vec<u8> {
    [&to.0[..], &from.0, &ether_type.to_be_bytes(), body].concat()
}

/// One that means nothing.
fn plain(to: Mac, from: Mac) -> Vec<u8> {
    frame(to, from, 0x88b5, &[0; 46])
}

/// The same with a tag in it.
fn tagged(tag: u16, frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &[0x81, 0], &tag.to_be_bytes(), &frame[12..]].concat()
}

fn ipv4(to: [u8; 4], from: [u8; 4], protocol: u8, body: &[u8]) -> Vec<u8> {
    let length = (20 + body.len() as u16).to_be_bytes();
    let head = [0x45, 0, length[0], length[1], 0, 0, 0, 0, 64, protocol, 0, 0];
    [&head[..], &from, &to, body].concat()
}

fn udp(to: u16, from: u16) -> Vec<u8> {
    [&from.to_be_bytes()[..], &to.to_be_bytes(), &[0, 8, 0, 0]].concat()
}

fn ipv6(to: [u8; 16], from: [u8; 16], next: u8, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u16).to_be_bytes();
    [&[0x60, 0, 0, 0, length[0], length[1], next, 255][..], &from, &to, body].concat()
}

/// Offers a frame; who gets it, and with which tag. `Err`: why nobody.
fn offer(
    switch: &mut Switch,
    now: u64,
    from: PortId,
    frame: &[u8],
) -> Result<Vec<(PortId, Option<Tag>)>, Verdict> {
    match switch.forward(now, from, frame, frame.len(), None) {
        Verdict::Deliver => Ok(switch.deliveries().iter().map(|d| (d.port, d.tag)).collect()),
        other => Err(other),
    }
}

/// The ports alone.
fn reached(switch: &mut Switch, from: PortId, frame: &[u8]) -> Vec<PortId> {
    offer(switch, 0, from, frame).map_or(Vec::new(), |all| all.into_iter().map(|(p, _)| p).collect())
}

fn guest(n: u8) -> Settings {
    Settings::new(Kind::Guest(mac(n)))
}

fn uplink() -> Settings {
    Settings::new(Kind::Uplink)
}
