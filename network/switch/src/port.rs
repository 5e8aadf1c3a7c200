//! What a port is allowed, and what came of it.

use crate::acl::Acl;
use crate::guard::Guards;
use crate::rate::Bucket;
use crate::vlan::{VlanError, VlanMode};
use vireo_frame::{Filter, Mac, Traffic};

use crate::SwitchError;

/// What is behind a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A network adapter of a virtual machine, whose address this is.
    Guest(Mac),
    /// The host itself (an internal switch has one), whose address this is.
    Host(Mac),
    /// A network, with stations that nobody knows (an external switch has one).
    Uplink,
}

impl Kind {
    /// The address that is known to be behind it.
    pub fn address(self) -> Option<Mac> {
        match self {
            Self::Guest(mac) | Self::Host(mac) => Some(mac),
            Self::Uplink => None,
        }
    }
}

/// What a port does with copies of others' frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mirror {
    /// Nothing.
    #[default]
    None,
    /// All that passes it is copied.
    Source,
    /// It gets all copies, and nothing else.
    Destination,
}

/// So many units in a second, and so many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// In a second.
    pub rate: u64,
    /// At once.
    pub burst: u64,
}

/// The settings of a port.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What is behind it.
    pub kind: Kind,
    /// A guest may send from any address, and gets what is for addresses that nobody knows. An uplink always may.
    pub spoofing: bool,
    /// Its part in VLANs.
    pub vlan: VlanMode,
    /// What a guest may claim to be.
    pub guards: Guards,
    /// What may pass.
    pub acl: Acl,
    /// Copies.
    pub mirror: Mirror,
    /// Bytes that its guest may send.
    pub bandwidth: Option<Limit>,
    /// Frames to groups, and to addresses that nobody knows, that its guest may send.
    pub storm: Option<Limit>,
    /// Stations that may be learned behind it.
    pub stations: usize,
    /// Its share, beside others', of what the switch can carry at a time: at least 1.
    pub weight: u16,
}

impl Settings {
    /// Those of a port at first: a guest that may be nobody but itself, in the network without tags.
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            spoofing: false,
            vlan: VlanMode::Access(0),
            guards: Guards::default(),
            acl: Acl::default(),
            mirror: Mirror::None,
            bandwidth: None,
            storm: None,
            stations: 4096,
            weight: 1,
        }
    }

    /// Whether what was learned of a port with other settings may not be so with these.
    pub(crate) fn is_elsewhere(&self, other: &Self) -> bool {
        let learned = |s: &Self| (s.kind, s.spoofing, s.guards.router, s.stations);
        learned(self) != learned(other) || self.vlan != other.vlan
    }

    pub(crate) fn check(&self) -> Result<(), SwitchError> {
        match self.kind.address() {
            Some(mac) if !mac.is_station() => Err(SwitchError::NoStation(mac)),
            _ => self.vlan.check().map_err(|e: VlanError| e.into()),
        }
    }
}

/// Why a frame was not taken from a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Reason {
    /// It is no frame.
    Malformed,
    /// Its tag is not the port's, or whoever sends it gets copies only.
    Vlan,
    /// It is from an address that the port may not send from.
    Spoofed,
    /// It is for the next switch alone (IEEE 802.1D, 7.12.6), and this is none.
    Reserved,
    /// It says that there is a DHCP server.
    Dhcp,
    /// It says that there is a router.
    Router,
    /// It is from an IP address that is not the guest's.
    Address,
    /// A rule forbids it.
    Acl,
    /// There are too many of them.
    Storm,
}

impl Reason {
    /// Its name, for people and programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Vlan => "vlan",
            Self::Spoofed => "spoofed",
            Self::Reserved => "reserved",
            Self::Dhcp => "dhcp",
            Self::Router => "router",
            Self::Address => "address",
            Self::Acl => "acl",
            Self::Storm => "storm",
        }
    }

    /// How many there are.
    pub const COUNT: usize = Self::Storm as usize + 1;
    /// All of them.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Malformed,
        Self::Vlan,
        Self::Spoofed,
        Self::Reserved,
        Self::Dhcp,
        Self::Router,
        Self::Address,
        Self::Acl,
        Self::Storm,
    ];
}

/// What passed a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// From who is behind it.
    pub sent: Traffic,
    /// To who is behind it.
    pub received: Traffic,
    /// Frames that were not taken from it, by [`Reason`].
    pub dropped: [u64; Reason::COUNT],
    /// Frames that its rules kept from it.
    pub refused: u64,
    /// Frames that it had no room for.
    pub lost: u64,
}

/// A port of a switch.
#[derive(Debug)]
pub(crate) struct Port {
    pub settings: Settings,
    /// The guest's own choice of its address, where it may choose one.
    pub address: Option<Mac>,
    pub filter: Filter,
    pub counters: Counters,
    bandwidth: Option<Bucket>,
    storm: Option<Bucket>,
}

impl Port {
    pub fn new(settings: Settings) -> Self {
        let mut port = Self {
            address: settings.kind.address(),
            settings,
            filter: Filter::default(),
            counters: Counters::default(),
            bandwidth: None,
            storm: None,
        };
        port.fill();
        port
    }

    /// Takes other settings. What the guest chose stays, if it still may have it; so do its flows, under the same rules.
    pub fn set(&mut self, mut settings: Settings) {
        if !settings.spoofing || settings.kind != self.settings.kind {
            self.address = settings.kind.address();
        }
        if !settings.is_elsewhere(&self.settings) && settings.acl.rules() == self.settings.acl.rules() {
            settings.acl = std::mem::take(&mut self.settings.acl);
        }
        self.settings = settings;
        self.fill();
    }

    fn fill(&mut self) {
        let bucket = |limit: Option<Limit>| limit.map(|l| Bucket::new(l.rate, l.burst));
        self.bandwidth = bucket(self.settings.bandwidth);
        self.storm = bucket(self.settings.storm);
    }

    /// Whether stations are learned behind it, and frames for unknown ones are flooded to it.
    pub fn learns(&self) -> bool {
        self.settings.spoofing || self.settings.kind == Kind::Uplink
    }

    pub fn bandwidth(&mut self) -> Option<&mut Bucket> {
        self.bandwidth.as_mut()
    }

    pub fn storm(&mut self) -> Option<&mut Bucket> {
        self.storm.as_mut()
    }
}
