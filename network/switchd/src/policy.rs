//! Settings of a port, as users and files have them.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use vireo_frame::Mac;
use vireo_port::PortRequest;
use vireo_port::wire::text;
use vireo_switch::acl::{Acl, Rule};
use vireo_switch::vlan::VlanMode;
use vireo_switch::{Guards, Kind, Limit, Mirror, Settings};

use crate::config::{Addresses, optional_text};

/// Rules of a port, at most: each frame is held against them.
const RULES_MAX: usize = 256;
/// What a port may send at once, as time of its limit.
const BURST: Duration = Duration::from_millis(20);
/// And at least, in bytes: a longest frame, so that there are not always pauses between them.
const BURST_MIN: u64 = 64 << 10;

/// The settings of a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Policy {
    /// The address of the adapter; else what its worker says.
    #[serde(skip_serializing_if = "Option::is_none", with = "optional_text")]
    pub mac: Option<Mac>,
    /// Its part in VLANs; else what its worker says.
    #[serde(skip_serializing_if = "Option::is_none", with = "optional_text")]
    pub vlan: Option<VlanMode>,
    /// Its guest may send from any address.
    pub spoofing: bool,
    /// Its guest is no DHCP server.
    pub dhcp_guard: bool,
    /// Its guest is no router.
    pub router_guard: bool,
    /// The IP addresses that its guest may have; else any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub addresses: Option<Addresses>,
    /// Its access list.
    pub acl: Vec<RuleText>,
    /// Copies of what passes it: none, made of it (source), or given to it (destination).
    pub mirror: MirrorText,
    /// Bits in a second that its guest may send.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<u64>,
    /// Its share where there is not enough for all.
    pub weight: u16,
    /// Frames in a second to groups and unknown addresses that its guest may send.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storm: Option<u64>,
}

impl Default for Policy {
    fn default() -> Self {
        Self::PLAIN
    }
}

/// A rule, as text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RuleText(#[serde(with = "text")] pub Rule);

/// A mirror, as text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MirrorText {
    /// No copies.
    #[default]
    None,
    /// What passes the port is copied.
    Source,
    /// The port gets copies, and nothing else.
    Destination,
}

/// A setting that is to have another value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// Which.
    pub key: String,
    /// As users write it.
    pub value: String,
}

/// A setting cannot be like that.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} {value}: {why}")]
pub struct PolicyError {
    key: String,
    value: String,
    why: String,
}

impl Change {
    pub(crate) fn refuse(&self, why: impl ToString) -> PolicyError {
        PolicyError { key: self.key.clone(), value: self.value.clone(), why: why.to_string() }
    }

    pub(crate) fn switch(&self) -> Result<bool, PolicyError> {
        match self.value.as_str() {
            "on" => Ok(true),
            "off" => Ok(false),
            _ => Err(self.refuse("it is on or off")),
        }
    }

    pub(crate) fn number<T: std::str::FromStr>(&self) -> Result<T, PolicyError> {
        self.value.parse().map_err(|_| self.refuse("it is no number of that kind"))
    }

    fn parse<T: std::str::FromStr<Err: ToString>>(&self) -> Result<T, PolicyError> {
        self.value.parse().map_err(|e: T::Err| self.refuse(e))
    }

    /// What `word` says is none, or a value.
    fn unless<T>(
        &self,
        word: &str,
        parse: impl FnOnce() -> Result<T, PolicyError>,
    ) -> Result<Option<T>, PolicyError> {
        if self.value == word { Ok(None) } else { parse().map(Some) }
    }

    /// Bits in a second, with K, M or G for thousands of them.
    fn rate(&self) -> Result<u64, PolicyError> {
        let (digits, unit) = match self.value.strip_suffix(['K', 'M', 'G']) {
            Some(digits) => (digits, &self.value[digits.len()..]),
            None => (self.value.as_str(), ""),
        };
        let unit: u64 = match unit {
            "K" => 1_000,
            "M" => 1_000_000,
            "G" => 1_000_000_000,
            _ => 1,
        };
        let rate = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).filter(|n| *n >= 8);
        rate.ok_or_else(|| self.refuse("it is a number of bits in a second, as 100M; or none"))
    }
}

impl Policy {
    /// What holds where nothing was set.
    pub(crate) const PLAIN: Self = Self {
        mac: None,
        vlan: None,
        spoofing: false,
        dhcp_guard: false,
        router_guard: false,
        addresses: None,
        acl: Vec::new(),
        mirror: MirrorText::None,
        bandwidth: None,
        weight: 1,
        storm: None,
    };

    /// Changes settings. Several of `acl` are a list.
    ///
    /// # Errors
    /// One cannot be; what others did before it stays.
    pub fn apply(&mut self, changes: &[Change]) -> Result<(), PolicyError> {
        if changes.iter().any(|change| change.key == "acl") {
            self.acl.clear();
        }
        changes.iter().try_for_each(|change| self.apply_one(change))
    }

    fn apply_one(&mut self, change: &Change) -> Result<(), PolicyError> {
        match change.key.as_str() {
            "mac" => {
                let station = |mac: Mac| match mac.is_station() {
                    true => Ok(mac),
                    false => Err(change.refuse("it cannot be a station's address")),
                };
                self.mac = change.unless("any", || change.parse().and_then(station))?;
            }
            "vlan" => self.vlan = change.unless("any", || change.parse())?,
            "spoofing" => self.spoofing = change.switch()?,
            "dhcp-guard" => self.dhcp_guard = change.switch()?,
            "router-guard" => self.router_guard = change.switch()?,
            "addresses" => {
                let parse = |a: &str| a.parse().map_err(|_| change.refuse(format!("'{a}' is no IP address")));
                self.addresses = change.unless("any", || change.value.split(',').map(parse).collect())?;
            }
            "acl" => {
                if let Some(rule) = change.unless("none", || change.parse())? {
                    self.acl.push(RuleText(rule));
                }
                if self.acl.len() > RULES_MAX {
                    return Err(change.refuse(format!("there are more than {RULES_MAX} rules")));
                }
            }
            "mirror" => {
                self.mirror = match change.value.as_str() {
                    "none" => MirrorText::None,
                    "source" => MirrorText::Source,
                    "destination" => MirrorText::Destination,
                    _ => return Err(change.refuse("it is none, source or destination")),
                }
            }
            "bandwidth" => self.bandwidth = change.unless("none", || change.rate())?,
            "weight" => match change.number()? {
                weight @ 1..=100 => self.weight = weight,
                _ => return Err(change.refuse("it is from 1 to 100")),
            },
            "storm" => self.storm = change.unless("none", || change.number())?,
            _ => return Err(change.refuse("there is no such setting of a port")),
        }
        Ok(())
    }

    /// Whether a worker may have its port as it asks for it: what it says may not go against what is set.
    ///
    /// # Errors
    /// Why not.
    pub fn fits(&self, request: &PortRequest) -> Result<(), String> {
        if let Some(mac) = self.mac.filter(|mac| *mac != request.mac) {
            return Err(format!("its address is {mac} by the switch's settings, not {}", request.mac));
        }
        match (&self.vlan, request.vlan.map(VlanMode::Access)) {
            (Some(vlan), Some(asked)) if *vlan != asked => {
                Err(format!("its VLAN is {vlan} by the switch's settings, not {asked}"))
            }
            _ => Ok(()),
        }
    }

    /// What the switch is to hold frames against. `vlan` is what the worker says.
    pub fn settings(&self, kind: Kind, vlan: Option<VlanMode>) -> Settings {
        let v4 = |all: &Addresses| {
            all.iter().filter_map(|a| if let std::net::IpAddr::V4(a) = a { Some(*a) } else { None }).collect()
        };
        let v6 = |all: &Addresses| {
            all.iter().filter_map(|a| if let std::net::IpAddr::V6(a) = a { Some(*a) } else { None }).collect()
        };
        let bandwidth = self.bandwidth.map(|bits| {
            let rate = bits / 8;
            let burst = u128::from(rate) * BURST.as_millis() / 1000;
            Limit { rate, burst: u64::try_from(burst).unwrap_or(u64::MAX).max(BURST_MIN) }
        });
        Settings {
            spoofing: self.spoofing,
            vlan: self.vlan.clone().or(vlan).unwrap_or(VlanMode::Access(0)),
            guards: Guards {
                dhcp: self.dhcp_guard,
                router: self.router_guard,
                ipv4: self.addresses.as_ref().map(v4),
                ipv6: self.addresses.as_ref().map(v6),
            },
            acl: Acl::new(self.acl.iter().map(|r| r.0.clone()).collect()),
            mirror: match self.mirror {
                MirrorText::None => Mirror::None,
                MirrorText::Source => Mirror::Source,
                MirrorText::Destination => Mirror::Destination,
            },
            bandwidth,
            storm: self.storm.map(|rate| Limit { rate, burst: rate.max(1) }),
            weight: self.weight,
            ..Settings::new(kind)
        }
    }
}
