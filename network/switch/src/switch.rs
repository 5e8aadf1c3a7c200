//! The way of a frame through the switch.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap as HashMap;

use crate::acl::Direction;
use crate::groups::{Groups, Interest};
use crate::guard::Refusal;
use crate::port::{Counters, Kind, Mirror, Port, Reason, Settings};
use crate::querier::Querier;
use crate::rate::Nanos;
use crate::table::{AGE, Table};
use crate::vlan::{Learning, Vlan, VlanError};
use vireo_frame::Filter;
use vireo_frame::Mac;
use vireo_frame::headers::{Headers, Tag};

/// Names a port of a switch; not given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId(u32);

impl PortId {
    /// The number that it is shown by: in the order in which ports came.
    pub fn number(self) -> u32 {
        self.0
    }
}

/// Ports of a switch, at most.
pub const PORTS_MAX: usize = 1024;
/// Bytes of a member's report that are heard, at most: a jumbo frame's.
pub const REPORT_MAX: usize = 9 * 1024;

/// A port cannot be like that.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SwitchError {
    /// There is none of that name.
    #[error("the switch has no such port")]
    NoPort,
    /// Another one has that name.
    #[error("port {0} is connected already")]
    Named(String),
    /// There are too many.
    #[error("the switch has {PORTS_MAX} ports already")]
    Full,
    /// A group's address, or none.
    #[error("{0} cannot be a station's address: it is a group's, or zero")]
    NoStation(Mac),
    /// Another port has it.
    #[error(
        "{0} is the address of another port: choose another one, or allow both to send from any address (spoofing)"
    )]
    InUse(Mac),
    /// Somebody behind an uplink has it.
    #[error(
        "{0} is the address of a station behind the uplink, heard in the last {secs} s: choose another one, or name it in the settings of \
         the port (vireo switch set)",
        secs = AGE / 1_000_000_000
    )]
    Heard(Mac),
    /// The port's guest may not choose its address.
    #[error("the port may not have another address than it was given: spoofing is not allowed")]
    Fixed,
    /// Its VLANs are none.
    #[error(transparent)]
    Vlan(#[from] VlanError),
}

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes to the ports of [`Switch::deliveries`], which may be none.
    Deliver,
    /// It is not to be sent by anybody.
    Drop(Reason),
    /// It may be offered again after so long: its port has sent all that it may.
    Wait(Duration),
}

/// A port that gets the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Which.
    pub port: PortId,
    /// With this tag in place of the one that it came with.
    pub tag: Option<Tag>,
}

/// A switch. Who moves frames asks it for each; it moves none itself.
#[derive(Debug, Default)]
pub struct Switch {
    ports: Vec<(PortId, Port)>,
    next: u32,
    learning: Learning,
    /// Ports by the address that is known to be behind them. Several have one in different VLANs, where it is not the same station,
    /// or where all may send from any (network load balancing gives all its hosts the same address): all get what is for it.
    owners: HashMap<Mac, Arc<[PortId]>>,
    table: Table,
    groups: Groups,
    /// Multicast goes only to who has asked for it.
    snooping: bool,
    pub(crate) querier: Querier,
    deliveries: Vec<Delivery>,
    /// The last frame is a member's report of which not all was seen: of where, whose, and when.
    unheard: Option<(Vlan, PortId, Headers, Nanos)>,
}

/// A frame on its way.
struct Frame<'a> {
    bytes: &'a [u8],
    headers: Headers,
    from: PortId,
    /// The VLAN in which it came, and its tag.
    came: Vlan,
    tag: Tag,
    /// It has further tags behind that.
    tagged_twice: bool,
    place: Vlan,
    to: To,
    now: Nanos,
}

/// Who has the address that a frame is for.
enum To {
    /// A group.
    Group,
    /// The port of which that is known, or behind which it was learned.
    One(PortId),
    /// Ports of which that is known.
    Owners(Arc<[PortId]>),
    /// Nobody knows.
    Unknown,
}

impl Switch {
    /// One without ports.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether multicast goes only to who has asked for it.
    pub fn set_snooping(&mut self, snooping: bool) {
        self.snooping = snooping;
    }

    /// Adds a port.
    ///
    /// # Errors
    /// Its settings cannot be, or clash with another's.
    pub fn add(&mut self, settings: Settings) -> Result<PortId, SwitchError> {
        if self.ports.len() >= PORTS_MAX {
            return Err(SwitchError::Full);
        }
        settings.check()?;
        self.check_address(None, settings.kind.address(), &settings)?;
        let id = PortId(self.next);
        self.next = self.next.checked_add(1).ok_or(SwitchError::Full)?;
        self.ports.push((id, Port::new(settings)));
        self.look_again();
        Ok(id)
    }

    /// Whether a guest may have its address for no better reason than that its worker says so.
    ///
    /// # Errors
    /// It is that of a station behind an uplink, in a VLAN of the port: a router's, perhaps, whose frames it would get.
    pub fn check_claim(&self, settings: &Settings, now: Nanos) -> Result<(), SwitchError> {
        let Kind::Guest(mac) = settings.kind else { return Ok(()) };
        let is_uplink = |id| self.port(id).is_some_and(|port| port.settings.kind == Kind::Uplink);
        let heard = self.table.all().any(|(place, station, port, seen)| {
            station == mac
                && now.saturating_sub(seen) < AGE
                && is_uplink(port)
                && self.learning.is_at(&settings.vlan, place)
        });
        if heard { Err(SwitchError::Heard(mac)) } else { Ok(()) }
    }

    /// Takes a port away, and forgets who was behind it.
    ///
    /// # Errors
    /// There is none.
    pub fn remove(&mut self, id: PortId, now: Nanos) -> Result<(), SwitchError> {
        let at = self.place_of(id).ok_or(SwitchError::NoPort)?;
        self.ports.remove(at);
        self.forget(id, now);
        self.look_again();
        Ok(())
    }

    /// Gives a port other settings. Its counters go on.
    ///
    /// # Errors
    /// As for [`Self::add`]; nothing is changed then.
    pub fn set(&mut self, id: PortId, settings: Settings, now: Nanos) -> Result<(), SwitchError> {
        settings.check()?;
        self.check_address(Some(id), settings.kind.address(), &settings)?;
        let was = &self.port(id).ok_or(SwitchError::NoPort)?.settings;
        let moved = settings.is_elsewhere(was);
        self.port_mut(id)?.set(settings);
        // Who is heard again only when it says something loses nothing by another limit or weight.
        if moved {
            self.forget(id, now);
        }
        self.look_again();
        Ok(())
    }

    /// The guest behind a port chooses another address.
    ///
    /// # Errors
    /// It may not; it is none; another port has it that may have no other.
    pub fn set_address(&mut self, id: PortId, mac: Mac) -> Result<(), SwitchError> {
        let port = self.port(id).ok_or(SwitchError::NoPort)?;
        if port.address == Some(mac) {
            return Ok(());
        }
        if !port.settings.spoofing && port.settings.kind.address() != Some(mac) {
            return Err(SwitchError::Fixed);
        }
        if !mac.is_station() {
            return Err(SwitchError::NoStation(mac));
        }
        self.check_address(Some(id), Some(mac), &port.settings)?;
        self.port_mut(id)?.address = Some(mac);
        self.look_again();
        Ok(())
    }

    /// Whoever is behind a port says what it wants to get.
    ///
    /// # Errors
    /// There is no such port.
    pub fn set_filter(&mut self, id: PortId, filter: Filter) -> Result<(), SwitchError> {
        self.port_mut(id)?.filter = filter;
        Ok(())
    }

    /// A frame that was to be delivered to a port was not: there was no room for it.
    pub fn lost(&mut self, id: PortId, length: usize) {
        if let Ok(port) = self.port_mut(id) {
            port.counters.received.take_back(length);
            port.counters.lost += 1;
        }
    }

    /// What came by a port was no frame, or what was said of it could not be.
    pub fn refuse(&mut self, id: PortId, reason: Reason) {
        if let Ok(port) = self.port_mut(id) {
            port.counters.dropped[reason as usize] += 1;
        }
    }

    /// The address that is known to be behind a port: its own, or its guest's choice.
    pub fn address(&self, id: PortId) -> Option<Mac> {
        self.port(id).and_then(|p| p.address)
    }

    /// What passed a port so far.
    pub fn counters(&self, id: PortId) -> Option<Counters> {
        self.port(id).map(|p| p.counters)
    }

    /// The settings of a port.
    pub fn settings(&self, id: PortId) -> Option<&Settings> {
        self.port(id).map(|p| &p.settings)
    }

    /// All ports, in the order in which they came.
    pub fn ports(&self) -> impl Iterator<Item = PortId> {
        self.ports.iter().map(|(id, _)| *id)
    }

    /// Where stations are known to be: by learning, VLAN, address, port, when it was heard.
    pub fn stations(&self) -> impl Iterator<Item = (Vlan, Mac, PortId, Nanos)> {
        self.table.all()
    }

    /// Members of multicast groups that were heard of, with the VLAN where they are.
    pub fn members(&self) -> impl Iterator<Item = (Vlan, IpAddr, PortId)> {
        self.groups.all()
    }

    /// Forgets stations and members that have been silent for too long. To be called now and then.
    pub fn age(&mut self, now: Nanos) {
        self.table.forget(|_, _, _, seen| now.saturating_sub(seen) >= AGE);
        self.groups.forget(None, now);
    }

    /// Where the last frame goes, if [`Self::forward`] said that it does.
    pub fn deliveries(&self) -> &[Delivery] {
        &self.deliveries
    }

    /// Whether the last frame is a member's report that is longer than what was given of it: all is to be given to
    /// [`Self::hear_whole`] then, up to [`REPORT_MAX`].
    pub fn wants_whole(&self) -> bool {
        self.unheard.is_some()
    }

    /// Hears what the last frame says of groups: who sent it tells of itself alone, so nothing else is decided by these bytes.
    pub fn hear_whole(&mut self, bytes: &[u8]) {
        if let Some((place, from, headers, now)) = self.unheard.take() {
            self.groups.hear(place, from, &bytes[..bytes.len().min(REPORT_MAX)], &headers, now);
        }
    }

    /// Decides about a frame that came by a port. `bytes` are its first ones, with all headers; `length` is how long it is, in bytes;
    /// `outer` is a tag that came beside the frame, not in it.
    pub fn forward(
        &mut self,
        now: Nanos,
        from: PortId,
        bytes: &[u8],
        length: usize,
        outer: Option<Tag>,
    ) -> Verdict {
        self.deliveries.clear();
        self.unheard = None;
        let Some(at) = self.place_of(from) else { return Verdict::Drop(Reason::Vlan) };
        let verdict = match self.admit(at, now, bytes, length, outer) {
            Ok(frame) => {
                self.choose(at, &frame, length);
                Verdict::Deliver
            }
            Err(verdict) => verdict,
        };
        let counters = &mut self.ports[at].1.counters;
        match verdict {
            Verdict::Deliver => counters.sent.add(length),
            Verdict::Drop(reason) => counters.dropped[reason as usize] += 1,
            Verdict::Wait(_) => {}
        }
        verdict
    }

    /// What the port that a frame comes by allows.
    fn admit<'a>(
        &mut self,
        at: usize,
        now: Nanos,
        bytes: &'a [u8],
        length: usize,
        outer: Option<Tag>,
    ) -> Result<Frame<'a>, Verdict> {
        let drop = |reason| Err(Verdict::Drop(reason));
        let Some(headers) = Headers::read(bytes) else { return drop(Reason::Malformed) };
        if !headers.source.is_station() {
            return drop(Reason::Malformed);
        }
        let port = &self.ports[at].1;
        let tag = outer.or(headers.tag);
        let came = port.settings.vlan.of_incoming(tag);
        let Some(came) = came.filter(|_| port.settings.mirror != Mirror::Destination) else {
            return drop(Reason::Vlan);
        };
        if is_reserved(headers.destination) {
            return drop(Reason::Reserved);
        }
        let own = port.address == Some(headers.source);
        let learns = port.learns();
        let place = self.learning.place(came);
        if !own && (!learns || self.owners_at(place, headers.source).next().is_some()) {
            return drop(Reason::Spoofed);
        }
        let port = &mut self.ports[at].1;
        if let Some(refusal) = port.settings.guards.refusal(bytes, &headers) {
            return drop(reason_of(refusal));
        }
        if !port.settings.acl.passes(&headers, Direction::Out, now) {
            return drop(Reason::Acl);
        }
        let to = self.find(place, headers.destination, now);
        let (from, port) = &mut self.ports[at];
        let floods = matches!(to, To::Group | To::Unknown);
        // First what has it offered again: it is to count once by the others.
        if let Some(Err(wait)) = port.bandwidth().map(|bucket| bucket.take(length as u64, now)) {
            return Err(Verdict::Wait(wait));
        }
        if floods && port.storm().is_some_and(|bucket| bucket.take(1, now).is_err()) {
            return drop(Reason::Storm);
        }
        if !own && learns {
            let most = port.settings.stations;
            self.table.learn(place, headers.source, *from, most, now);
        }
        let tagged_twice = headers.tagged_twice || (outer.is_some() && headers.tag.is_some());
        let tag = tag.unwrap_or_default();
        Ok(Frame { bytes, headers, from: *from, came, tag, tagged_twice, place, to, now })
    }

    /// Fills in who gets a frame.
    fn choose(&mut self, at: usize, frame: &Frame<'_>, length: usize) {
        let mut mirrored = self.ports[at].1.settings.mirror == Mirror::Source;
        match &frame.to {
            To::Group => mirrored |= self.deliver_to_group(frame, length),
            // In other VLANs than theirs it is for nobody.
            To::Owners(owners) => {
                owners.iter().for_each(|owner| mirrored |= self.deliver(*owner, frame, length));
            }
            To::One(port) => mirrored |= self.deliver(*port, frame, length),
            To::Unknown => {
                for n in 0..self.ports.len() {
                    if self.ports[n].1.learns() {
                        mirrored |= self.deliver(self.ports[n].0, frame, length);
                    }
                }
            }
        }
        if mirrored {
            self.copy(frame, length);
        }
    }

    fn deliver_to_group(&mut self, frame: &Frame<'_>, length: usize) -> bool {
        let Frame { place, now, .. } = *frame;
        let report = self.snooping && self.groups.hear(place, frame.from, frame.bytes, &frame.headers, now);
        if report && length > frame.bytes.len() {
            self.unheard = Some((place, frame.from, frame.headers, now));
        }
        let routers = report && self.groups.has_routers(place, now);
        let interest = match self.snooping {
            true => self.groups.interest(place, &frame.headers, now),
            false => Interest::All,
        };
        let mut mirrored = false;
        for n in 0..self.ports.len() {
            let (id, port) = &self.ports[n];
            let uplink = port.settings.kind == Kind::Uplink;
            let wanted = match interest {
                // Members must not hear each other's reports, or they do not report themselves. Behind an uplink may be a router that
                // has not asked yet: not as long as another one does.
                _ if routers => self.groups.has_router(place, *id, now) || uplink,
                Interest::Known(group) if !report => self.groups.wants(place, group, *id, now) || uplink,
                _ => true,
            };
            if wanted && port.filter.wants(frame.headers.destination) {
                mirrored |= self.deliver(*id, frame, length);
            }
        }
        mirrored
    }

    /// Delivers to a port, if it may have the frame. Whether that is mirrored.
    fn deliver(&mut self, id: PortId, frame: &Frame<'_>, length: usize) -> bool {
        let Some(at) = self.place_of(id).filter(|_| id != frame.from) else { return false };
        let port = &mut self.ports[at].1;
        let directed = frame.headers.destination.is_group() || port.filter.directed;
        let tag = port.settings.vlan.of_outgoing(frame.came, frame.tag);
        // Without its outermost tag, the next one would say that it is of that VLAN: of one that its sender may not be in.
        let tag = tag.filter(|leaves| leaves.is_some() || !frame.tagged_twice);
        let Some(tag) = tag.filter(|_| directed && port.settings.mirror != Mirror::Destination) else {
            return false;
        };
        if !port.settings.acl.passes(&frame.headers, Direction::In, frame.now) {
            port.counters.refused += 1;
            return false;
        }
        port.counters.received.add(length);
        self.deliveries.push(Delivery { port: id, tag });
        port.settings.mirror == Mirror::Source
    }

    /// Copies for those that look on, as the frame came.
    fn copy(&mut self, frame: &Frame<'_>, length: usize) {
        let tag = (frame.came != 0).then(|| frame.tag.with_vlan(frame.came));
        for (id, port) in &mut self.ports {
            if port.settings.mirror == Mirror::Destination {
                port.counters.received.add(length);
                self.deliveries.push(Delivery { port: *id, tag });
            }
        }
    }

    /// Whether a router is in a VLAN.
    pub(crate) fn has_routers(&self, vlan: Vlan, now: Nanos) -> bool {
        self.groups.has_routers(self.learning.place(vlan), now)
    }

    /// Who has the address of a frame that goes to somebody in a place.
    fn find(&self, place: Vlan, to: Mac, now: Nanos) -> To {
        if to.is_group() {
            return To::Group;
        }
        let mut owners = self.owners_at(place, to);
        match (owners.next(), owners.next()) {
            (None, _) => self.table.find(place, to, now).map_or(To::Unknown, To::One),
            (Some(owner), None) => To::One(owner),
            (Some(_), Some(_)) => self.owners.get(&to).map_or(To::Unknown, |all| To::Owners(Arc::clone(all))),
        }
    }

    /// Ports behind which an address is known to be, in a place.
    fn owners_at(&self, place: Vlan, mac: Mac) -> impl Iterator<Item = PortId> {
        let all = self.owners.get(&mac).map_or(&[][..], |owners| owners);
        let is_there =
            move |id: &PortId| self.port(*id).is_some_and(|p| self.learning.is_at(&p.settings.vlan, place));
        all.iter().copied().filter(is_there)
    }

    fn place_of(&self, id: PortId) -> Option<usize> {
        // They are in the order of their numbers.
        self.ports.binary_search_by_key(&id, |(id, _)| *id).ok()
    }

    fn port(&self, id: PortId) -> Option<&Port> {
        self.place_of(id).map(|at| &self.ports[at].1)
    }

    fn port_mut(&mut self, id: PortId) -> Result<&mut Port, SwitchError> {
        let at = self.place_of(id).ok_or(SwitchError::NoPort)?;
        Ok(&mut self.ports[at].1)
    }

    /// Whether a port may have an address.
    fn check_address(
        &self,
        id: Option<PortId>,
        mac: Option<Mac>,
        settings: &Settings,
    ) -> Result<(), SwitchError> {
        let Some(mac) = mac else { return Ok(()) };
        let others = || self.ports.iter().filter(|(other, _)| Some(*other) != id).map(|(_, port)| port);
        if !others().any(|port| port.address == Some(mac)) {
            return Ok(());
        }
        // As it is to be.
        let modes = others().map(|port| &port.settings.vlan).chain([&settings.vlan]);
        let learning = Learning::of(modes);
        let clashes = |port: &Port| {
            port.address == Some(mac)
                && !(settings.spoofing && port.settings.spoofing)
                && learning.meet(&port.settings.vlan, &settings.vlan)
        };
        if others().any(clashes) { Err(SwitchError::InUse(mac)) } else { Ok(()) }
    }

    fn forget(&mut self, id: PortId, now: Nanos) {
        self.table.forget(|_, _, port, _| port == id);
        self.groups.forget(Some(id), now);
    }

    /// Derives from the ports what is looked up for each frame.
    fn look_again(&mut self) {
        self.learning = Learning::of(self.ports.iter().map(|(_, port)| &port.settings.vlan));
        let mut owners: HashMap<Mac, Vec<PortId>> = HashMap::new();
        for (id, port) in &self.ports {
            if let Some(mac) = port.address {
                owners.entry(mac).or_default().push(*id);
            }
        }
        self.owners = owners.into_iter().map(|(mac, ports)| (mac, ports.into())).collect();
        let mut table = std::mem::take(&mut self.table);
        table.forget(|place, mac, _, _| self.owners_at(place, mac).next().is_some());
        self.table = table;
    }
}

fn reason_of(refusal: Refusal) -> Reason {
    match refusal {
        Refusal::Dhcp => Reason::Dhcp,
        Refusal::Router => Reason::Router,
        Refusal::Address => Reason::Address,
        Refusal::Malformed => Reason::Malformed,
    }
}

/// Bridges' own (IEEE 802.1D, table 7-10): 01-80-C2-00-00-00 to -0F.
fn is_reserved(to: Mac) -> bool {
    to.0[..5] == [0x01, 0x80, 0xc2, 0, 0] && to.0[5] < 0x10
}
