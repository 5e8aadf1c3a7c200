//! DHCP: guests are told who they are (RFC 2131, 2132).

use std::net::Ipv4Addr;

use ahash::AHashMap as HashMap;
use vireo_frame::Mac;

use crate::config::Network;
use crate::slots::{Nanos, SECOND};
use crate::wire::be32;

pub const SERVER: u16 = 67;
pub const CLIENT: u16 = 68;
/// Leases at a time: a client for each port of a switch.
const CLIENTS: usize = 1024;
/// Seconds of a lease.
const LEASE: u32 = 86_400;
/// For so long an address is kept for whom it was offered to.
const OFFERED: Nanos = 120 * SECOND;
/// Bytes of the fields before the options, the cookie included.
const FIXED: usize = 240;
const COOKIE: [u8; 4] = [99, 130, 83, 99];

mod option {
    pub const MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const DNS: u8 = 6;
    pub const HOST_NAME: u8 = 12;
    pub const MTU: u8 = 26;
    pub const BROADCAST: u8 = 28;
    pub const WANTED: u8 = 50;
    pub const LEASE: u8 = 51;
    pub const KIND: u8 = 53;
    pub const SERVER: u8 = 54;
    pub const RENEWAL: u8 = 58;
    pub const REBINDING: u8 = 59;
    pub const END: u8 = 255;
}

mod kind {
    pub const DISCOVER: u8 = 1;
    pub const OFFER: u8 = 2;
    pub const REQUEST: u8 = 3;
    pub const DECLINE: u8 = 4;
    pub const ACK: u8 = 5;
    pub const NAK: u8 = 6;
    pub const RELEASE: u8 = 7;
    pub const INFORM: u8 = 8;
}

/// What a client says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Message {
    kind: u8,
    transaction: u32,
    broadcast: bool,
    /// The address that it has.
    address: Ipv4Addr,
    client: Mac,
    wanted: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
}

impl Message {
    fn read(bytes: &[u8]) -> Option<Self> {
        let fixed = bytes.first_chunk::<FIXED>()?;
        // A request, by Ethernet, over no relay.
        if fixed[..3] != [1, 1, 6] || fixed[236..] != COOKIE || fixed[24..28] != [0; 4] {
            return None;
        }
        let mut message = Self {
            kind: 0,
            transaction: be32(fixed, 4)?,
            broadcast: fixed[10] & 0x80 != 0,
            address: Ipv4Addr::from(*fixed[12..].first_chunk::<4>()?),
            client: Mac::first_of(&fixed[28..])?,
            wanted: None,
            server: None,
        };
        let mut options = &bytes[FIXED..];
        loop {
            match *options {
                [] | [option::END, ..] => break,
                [0, ref rest @ ..] => options = rest,
                [code, length, ref rest @ ..] => {
                    let (body, rest) = rest.split_at_checked(length.into())?;
                    let address = body.first_chunk::<4>().map(|a| Ipv4Addr::from(*a));
                    match code {
                        option::KIND => message.kind = *body.first()?,
                        option::WANTED => message.wanted = address,
                        option::SERVER => message.server = address,
                        _ => {}
                    }
                    options = rest;
                }
                _ => return None,
            }
        }
        message.client.is_station().then_some(message)
    }
}

/// An answer, and to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub bytes: Vec<u8>,
    pub station: Mac,
    pub address: Ipv4Addr,
    /// It was offered this, and who has it already is to be asked (RFC 2131, 2.2): if somebody does, it is refused when the client takes
    /// the offer.
    pub probe: Option<Ipv4Addr>,
}

/// An address that a client has, or was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lease {
    client: Mac,
    address: Ipv4Addr,
    until: Nanos,
    /// The client has taken it.
    taken: bool,
}

/// What is known when a request comes.
#[derive(Debug, Default)]
pub struct Knowledge {
    /// The time.
    pub now: Nanos,
    /// Stations that were heard of late, by their addresses.
    pub heard: HashMap<Ipv4Addr, Mac>,
    /// Ports are forwarded to the first guest.
    pub forwarded: bool,
}

impl Knowledge {
    /// Whether another than `client` was heard with an address.
    fn others(&self, client: Mac, address: Ipv4Addr) -> bool {
        self.heard.get(&address).is_some_and(|station| *station != client)
    }
}

/// Who has which address.
#[derive(Debug)]
pub struct Server {
    network: Network,
    mtu: u16,
    name: Option<String>,
    leases: Vec<Lease>,
}

impl Server {
    pub fn new(network: Network, mtu: u32, name: Option<String>) -> Self {
        Self { network, mtu: mtu as u16, name, leases: Vec::new() }
    }

    /// Stations, and the addresses that they have or were offered.
    pub fn leases(&self) -> Vec<(Mac, Ipv4Addr)> {
        self.leases.iter().map(|lease| (lease.client, lease.address)).collect()
    }

    /// Forgets who has what.
    pub fn forget(&mut self) {
        self.leases.clear();
    }

    /// What a client is answered, if anything: by the station that has sent this, for itself alone.
    pub fn answer(&mut self, request: &[u8], from: Mac, know: &Knowledge) -> Option<Answer> {
        let message = Message::read(request).filter(|message| message.client == from)?;
        // It has chosen another server.
        if message.server.is_some_and(|s| s != self.network.gateway) {
            return None;
        }
        self.leases.retain(|lease| lease.until > know.now);
        match message.kind {
            kind::DISCOVER => {
                let lease = self.offer(message.client, message.wanted, know)?;
                let probe = Some(lease.address).filter(|_| !lease.taken);
                Some(Answer { probe, ..self.make(&message, kind::OFFER, lease.address) })
            }
            kind::REQUEST => Some(match self.take(&message, know) {
                Some(address) => self.make(&message, kind::ACK, address),
                None => self.make(&message, kind::NAK, Ipv4Addr::UNSPECIFIED),
            }),
            kind::INFORM => Some(self.make(&message, kind::ACK, Ipv4Addr::UNSPECIFIED)),
            kind::RELEASE | kind::DECLINE => {
                self.leases.retain(|lease| lease.client != message.client);
                None
            }
            _ => None,
        }
    }

    /// Gives a client what it asks for; `None`: it cannot be its.
    fn take(&mut self, message: &Message, know: &Knowledge) -> Option<Ipv4Addr> {
        let (client, asked) = (message.client, message.wanted.unwrap_or(message.address));
        let given = match self.lease_of(client) {
            // What is its already it keeps, whoever says that he has it.
            Some(lease) => lease.address == asked && (lease.taken || !know.others(client, asked)),
            // A server that has begun anew: who uses an address goes on. Who says that he once had it may mean another network.
            None => self.can_have(client, asked, know.forwarded && message.wanted.is_some(), know),
        };
        // What it was offered, and cannot have or does not want, is free again.
        self.leases.retain(|lease| lease.client != client || lease.taken && !given);
        if given {
            let until = know.now + u64::from(LEASE) * SECOND;
            self.leases.push(Lease { client, address: asked, until, taken: true });
        }
        given.then_some(asked)
    }

    fn lease_of(&self, client: Mac) -> Option<Lease> {
        self.leases.iter().find(|lease| lease.client == client).copied()
    }

    /// Whether an address can become a client's.
    fn is_free(&self, client: Mac, address: Ipv4Addr, know: &Knowledge) -> bool {
        self.leases.len() < CLIENTS
            && self.network.may_be_guest(address.into())
            && !know.others(client, address)
            && !self.leases.iter().any(|lease| lease.address == address)
    }

    /// Whether a client can have the address that it wants. `first`: the first guest's goes before, as that is the one that is forwarded
    /// to, whatever the client had in another network.
    fn can_have(&self, client: Mac, wanted: Ipv4Addr, first: bool, know: &Knowledge) -> bool {
        let goes_before = |guest| first && wanted != guest && self.is_free(client, guest, know);
        self.is_free(client, wanted, know) && !goes_before(self.network.guest)
    }

    /// The lease of a client: that which it has, or one of what it wants if nobody has it, or of the next address; where none is free, of
    /// that which somebody took, longest ago, who has not been heard of late.
    fn offer(&mut self, client: Mac, wanted: Option<Ipv4Addr>, know: &Knowledge) -> Option<Lease> {
        if let Some(lease) = self.lease_of(client) {
            return Some(lease);
        }
        let free = |a: &Ipv4Addr| self.is_free(client, *a, know);
        let first = Some(self.network.guest).filter(free);
        let from = self.network.guest.to_bits();
        let next = || (1..=2 * CLIENTS as u32).map(|n| Ipv4Addr::from_bits(from.wrapping_add(n))).find(free);
        let before =
            || (1..=2 * CLIENTS as u32).map(|n| Ipv4Addr::from_bits(from.wrapping_sub(n))).find(free);
        let address = wanted
            .filter(|wanted| self.can_have(client, *wanted, know.forwarded, know))
            .or(first)
            .or_else(next)
            .or_else(before)
            .or_else(|| self.reclaim(know))?;
        let lease = Lease { client, address, until: know.now + OFFERED, taken: false };
        self.leases.push(lease);
        Some(lease)
    }

    fn reclaim(&mut self, know: &Knowledge) -> Option<Ipv4Addr> {
        let silent = |lease: &Lease| lease.taken && !know.heard.contains_key(&lease.address);
        let found = self.leases.iter().enumerate().filter(|(_, lease)| silent(lease));
        let (at, _) = found.min_by_key(|(_, lease)| lease.until)?;
        Some(self.leases.swap_remove(at).address)
    }

    fn make(&self, message: &Message, kind: u8, address: Ipv4Addr) -> Answer {
        let mut bytes = vec![0; FIXED];
        bytes[..3].copy_from_slice(&[2, 1, 6]);
        bytes[4..8].copy_from_slice(&message.transaction.to_be_bytes());
        bytes[10] = if message.broadcast { 0x80 } else { 0 };
        let had = if kind == kind::NAK { Ipv4Addr::UNSPECIFIED } else { message.address };
        bytes[12..16].copy_from_slice(&had.octets());
        bytes[16..20].copy_from_slice(&address.octets());
        bytes[28..34].copy_from_slice(&message.client.0);
        bytes[236..].copy_from_slice(&COOKIE);
        let mut add = |code: u8, body: &[u8]| {
            bytes.extend_from_slice(&[code, body.len() as u8]);
            bytes.extend_from_slice(body);
        };
        let net = &self.network;
        add(option::KIND, &[kind]);
        add(option::SERVER, &net.gateway.octets());
        if kind != kind::NAK {
            if !address.is_unspecified() {
                add(option::LEASE, &LEASE.to_be_bytes());
                add(option::RENEWAL, &(LEASE / 2).to_be_bytes());
                add(option::REBINDING, &(LEASE / 8 * 7).to_be_bytes());
            }
            add(option::MASK, &net.mask().octets());
            add(option::BROADCAST, &net.broadcast().octets());
            add(option::ROUTER, &net.gateway.octets());
            add(option::DNS, &net.dns.octets());
            add(option::MTU, &self.mtu.to_be_bytes());
            if let Some(name) = self.name.as_ref().filter(|_| address == net.guest) {
                add(option::HOST_NAME, name.as_bytes());
            }
        }
        bytes.push(option::END);
        // Some clients take no less (RFC 1542, 2.1).
        bytes.resize(bytes.len().max(300), 0);
        // Who has an address hears at it. Others do by their station's, unless they say that they cannot.
        let to = if !had.is_unspecified() { had } else { address };
        let all = kind == kind::NAK || had.is_unspecified() && message.broadcast || to.is_unspecified();
        match all {
            true => Answer { bytes, station: Mac::BROADCAST, address: Ipv4Addr::BROADCAST, probe: None },
            false => Answer { bytes, station: message.client, address: to, probe: None },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CLIENT: Mac = Mac([0, 0x15, 0x5d, 0, 0, 1]);

    fn server() -> Server {
        Server::new(Network::default(), 9000, Some("guest".into()))
    }

    fn request(kind: u8, client: Mac, have: [u8; 4], options: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; FIXED];
        bytes[..8].copy_from_slice(&[1, 1, 6, 0, 1, 2, 3, 4]);
        bytes[12..16].copy_from_slice(&have);
        bytes[28..34].copy_from_slice(&client.0);
        bytes[236..].copy_from_slice(&COOKIE);
        bytes.extend([option::KIND, 1, kind]);
        bytes.extend(options);
        bytes.push(option::END);
        bytes
    }

    /// What a client is answered that says this itself, at the time 0.
    fn ask(server: &mut Server, kind: u8, client: Mac, have: [u8; 4], options: &[u8]) -> Option<Answer> {
        server.answer(&request(kind, client, have, options), client, &Knowledge::default())
    }

    /// What is known at a time when these have been heard.
    fn at(now: Nanos, heard: &[(Ipv4Addr, Mac)]) -> Knowledge {
        Knowledge { now, heard: heard.iter().copied().collect(), forwarded: true }
    }

    /// An address that is wanted.
    fn wish(address: Ipv4Addr) -> Vec<u8> {
        [&[option::WANTED, 4][..], &address.octets()].concat()
    }

    fn is(answer: &Answer, kind: u8) -> bool {
        option(answer, option::KIND) == Some(&[kind])
    }

    fn option(answer: &Answer, code: u8) -> Option<&[u8]> {
        let mut at = FIXED;
        while let [c, length, ..] = answer.bytes[at..] {
            let body = &answer.bytes[at + 2..at + 2 + usize::from(length)];
            match c {
                255 => return None,
                c if c == code => return Some(body),
                _ => at += 2 + usize::from(length),
            }
        }
        None
    }

    #[test]
    fn a_client_gets_an_address_and_all_that_goes_with_it() {
        let mut server = server();
        let offer = ask(&mut server, kind::DISCOVER, CLIENT, [0; 4], &[]).unwrap();
        assert_eq!(option(&offer, option::KIND), Some(&[kind::OFFER][..]));
        assert_eq!((offer.station, offer.address), (CLIENT, [10, 0, 2, 15].into()));
        let wish = [option::WANTED, 4, 10, 0, 2, 15, option::SERVER, 4, 10, 0, 2, 2];
        let ack = ask(&mut server, kind::REQUEST, CLIENT, [0; 4], &wish).unwrap();
        assert_eq!(ack.bytes[4..8], [1, 2, 3, 4]);
        assert_eq!(ack.bytes[16..20], [10, 0, 2, 15]);
        for (code, body) in [
            (option::KIND, &[kind::ACK][..]),
            (option::MASK, &[255, 255, 255, 0]),
            (option::ROUTER, &[10, 0, 2, 2]),
            (option::DNS, &[10, 0, 2, 3]),
            (option::MTU, &9000_u16.to_be_bytes()),
            (option::HOST_NAME, b"guest"),
            (option::SERVER, &[10, 0, 2, 2]),
        ] {
            assert_eq!(option(&ack, code), Some(body), "{code}");
        }
        // Renewal, to the address that it has.
        let ack = ask(&mut server, kind::REQUEST, CLIENT, [10, 0, 2, 15], &[]).unwrap();
        assert_eq!((ack.station, ack.address), (CLIENT, [10, 0, 2, 15].into()));
        assert_eq!(ack.bytes[12..16], [10, 0, 2, 15]);
    }

    #[test]
    fn addresses_of_others_are_refused_and_each_client_has_its_own() {
        let mut server = server();
        let mut seen = Vec::new();
        for n in 0..100 {
            let client = Mac([2, 0, 0, 0, 0, n]);
            let offer = ask(&mut server, kind::DISCOVER, client, [0; 4], &[]).unwrap();
            assert!(server.network.may_be_guest(offer.address.into()));
            let ack = ask(&mut server, kind::REQUEST, client, [0; 4], &wish(offer.address)).unwrap();
            assert!(is(&ack, kind::ACK));
            seen.push(offer.address);
        }
        let mut now: Vec<_> = server.leases().iter().map(|l| l.1).collect();
        now.sort();
        now.dedup();
        assert_eq!(now.len(), 100);
        let nak = ask(&mut server, kind::REQUEST, CLIENT, [0; 4], &wish(seen[99])).unwrap();
        assert!(is(&nak, kind::NAK));
        assert_eq!(nak.station, Mac::BROADCAST);
        // One outside of the network.
        let nak =
            ask(&mut server, kind::REQUEST, Mac([2; 6]), [0; 4], &wish([192, 168, 1, 7].into())).unwrap();
        assert!(is(&nak, kind::NAK));
        assert_eq!(server.leases().len(), 100, "who was refused has nothing");
    }

    #[test]
    fn where_all_addresses_are_taken_nobody_loses_his() {
        let network = Network::new([10, 1, 1, 0].into(), 27).unwrap();
        let mut server = Server::new(network, 1500, None);
        let client = |n| Mac([2, 0, 0, 0, 0, n]);
        let offers: Vec<_> =
            (0..40).map_while(|n| ask(&mut server, kind::DISCOVER, client(n), [0; 4], &[])).collect();
        // Of 32, not the first, not the last, not the router's and not that of DNS.
        assert_eq!(offers.len(), 28);
        for (n, offer) in (0..).zip(&offers[1..]) {
            let wish = wish(offer.address);
            assert!(is(&ask(&mut server, kind::REQUEST, client(n + 1), [0; 4], &wish).unwrap(), kind::ACK));
        }
        // What nobody took is another's a little later; then that of who has been silent for longest, while he is.
        let late = request(kind::DISCOVER, CLIENT, [0; 4], &[]);
        let all: Vec<_> = (0..).zip(&offers).map(|(n, offer)| (offer.address, client(n))).collect();
        assert_eq!(server.answer(&late, CLIENT, &at(OFFERED - 1, &all)), None);
        let offer = server.answer(&late, CLIENT, &at(OFFERED, &all[1..])).unwrap();
        assert_eq!(offer.address, offers[0].address);
        let other = request(kind::DISCOVER, Mac([2; 6]), [0; 4], &[]);
        assert_eq!(server.answer(&other, Mac([2; 6]), &at(OFFERED, &all)), None);
        let offer = server.answer(&other, Mac([2; 6]), &at(OFFERED, &all[..20])).unwrap();
        assert!(all[20..].iter().any(|(address, _)| *address == offer.address));
        assert_eq!(offer.probe, Some(offer.address), "he may be there all the same");
        let day = u64::from(LEASE) * SECOND;
        assert!(
            server
                .answer(&request(kind::DISCOVER, Mac([4; 6]), [0; 4], &[]), Mac([4; 6]), &at(day, &[]))
                .is_some()
        );
    }

    #[test]
    fn who_uses_an_address_keeps_it_when_the_server_begins_anew() {
        let (mut server, other) = (server(), Mac([2; 6]));
        let first = server.network.guest;
        let heard = [(first, CLIENT)];
        // It was heard: nobody else gets it, and a wish for it is refused.
        let discover = request(kind::DISCOVER, other, [0; 4], &[]);
        assert_ne!(server.answer(&discover, other, &at(0, &heard)).unwrap().address, first);
        // It was not heard: who was offered it is refused once it has answered for itself.
        server.forget();
        let offer = server.answer(&discover, other, &at(0, &[])).unwrap();
        assert_eq!((offer.address, offer.probe), (first, Some(first)));
        let taking = request(kind::REQUEST, other, [0; 4], &wish(first));
        assert!(is(&server.answer(&taking, other, &at(0, &heard)).unwrap(), kind::NAK));
        // It renews: so it goes on, also if it is not the first and the first is free; and then whoever claims it. So does who begins anew
        // himself, where nothing is forwarded to the first.
        let far = Ipv4Addr::new(10, 0, 2, 77);
        for (address, request, forwarded) in [
            (first, request(kind::REQUEST, CLIENT, first.octets(), &[]), true),
            (far, request(kind::REQUEST, CLIENT, far.octets(), &[]), true),
            (far, request(kind::REQUEST, CLIENT, [0; 4], &wish(far)), false),
        ] {
            server.forget();
            let know = Knowledge { forwarded, ..at(0, &heard) };
            assert!(is(&server.answer(&request, CLIENT, &know).unwrap(), kind::ACK));
            let know = Knowledge { forwarded, ..at(1, &[(address, other)]) };
            assert!(is(&server.answer(&request, CLIENT, &know).unwrap(), kind::ACK));
            assert_eq!(server.leases(), [(CLIENT, address)]);
        }
        server.forget();
        let again = request(kind::REQUEST, CLIENT, [0; 4], &wish(far));
        assert!(is(&server.answer(&again, CLIENT, &at(0, &[])).unwrap(), kind::NAK), "of another network");
    }

    #[test]
    fn a_lease_that_is_given_back_is_given_again_and_another_servers_clients_are_left_alone() {
        let mut server = server();
        ask(&mut server, kind::DISCOVER, CLIENT, [0; 4], &[]).unwrap();
        assert_eq!(ask(&mut server, kind::RELEASE, CLIENT, [10, 0, 2, 15], &[]), None);
        let other = ask(&mut server, kind::DISCOVER, Mac([2; 6]), [0; 4], &[]).unwrap();
        assert_eq!(other.address, server.network.guest);
        let wish = [option::WANTED, 4, 10, 0, 2, 15, option::SERVER, 4, 10, 0, 2, 9];
        assert_eq!(ask(&mut server, kind::REQUEST, CLIENT, [0; 4], &wish), None);
    }

    #[test]
    fn nobody_speaks_for_others() {
        let (mut server, other) = (server(), Mac([2; 6]));
        let leases = [(CLIENT, Network::default().guest)];
        ask(&mut server, kind::DISCOVER, CLIENT, [0; 4], &[]).unwrap();
        for kind in [kind::RELEASE, kind::DECLINE] {
            let request = request(kind, CLIENT, [10, 0, 2, 15], &[]);
            assert_eq!(server.answer(&request, other, &Knowledge::default()), None);
            assert_eq!(server.leases(), leases);
        }
        // A station has one lease, however many clients it makes up.
        for n in 0..=255 {
            let made_up = Mac([2, 0, 0, 0, 0, n]);
            let request = request(kind::DISCOVER, made_up, [0; 4], &[]);
            assert_eq!(server.answer(&request, other, &Knowledge::default()), None);
        }
        assert_eq!(server.leases(), leases);
    }

    proptest! {
        #[test]
        fn any_bytes_do_no_harm(options in proptest::collection::vec(any::<u8>(), 0..80), kind in 0_u8..10, cut in 0_usize..330) {
            let mut server = server();
            let mut bytes = request(kind, CLIENT, [0; 4], &options);
            bytes.truncate(cut.max(1));
            if let Some(answer) = server.answer(&bytes, CLIENT, &Knowledge::default()) {
                prop_assert!(answer.bytes.len() < 576);
            }
        }
    }
}
