//! What a switch is to be, kept in a file that outlives its process.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display, Formatter};
use std::fs::File;
use std::io::Write;
use std::net::IpAddr;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use vireo_port::wire::is_name;

use crate::policy::{Change, Policy, PolicyError};

/// The version that this program writes, and the only one so far.
const VERSION: u32 = 1;
/// The smallest MTU, which any host of IPv4 has to do with (RFC 791).
const MTU_LEAST: u32 = 68;
/// The uplink's port, and the host's: no worker's.
pub const UPLINK: &str = "uplink";
/// Longest packet behind an Ethernet header that may be set.
pub const MTU_MAX: u32 = 65_521;

/// What a switch connects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SwitchKind {
    /// Machines with each other.
    #[default]
    Private,
    /// These, and the host.
    Internal,
    /// These, and a network.
    External,
}

impl Display for SwitchKind {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Private => "private",
            Self::Internal => "internal",
            Self::External => "external",
        })
    }
}

/// What is behind the uplink's port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Uplink {
    /// A TAP device of this name.
    Tap(String),
    /// Network address translation, by the host's own sockets: its network, as 10.0.2.0/24, or the usual one.
    Nat(Option<String>),
}

impl Display for Uplink {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tap(name) => write!(f, "tap={name}"),
            Self::Nat(None) => f.write_str("nat"),
            Self::Nat(Some(network)) => write!(f, "nat={network}"),
        }
    }
}

impl FromStr for Uplink {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Names of devices: 15 bytes at most (IFNAMSIZ).
        match text.split_once('=') {
            Some(("tap", name)) if is_name(name) && name.len() <= 15 => Ok(Self::Tap(name.into())),
            Some(("nat", network)) if network.parse::<vireo_nat::Network>().is_ok() => {
                Ok(Self::Nat(Some(network.into())))
            }
            None if text == "nat" => Ok(Self::Nat(None)),
            _ => Err(format!(
                "'{text}' is no uplink: it is tap=NAME (of 15 letters at most), nat, or nat=NETWORK as 10.0.2.0/24"
            )),
        }
    }
}

/// What a switch is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Config {
    version: u32,
    /// What it is called.
    pub name: String,
    /// What it connects.
    pub kind: SwitchKind,
    /// What is behind its uplink, of an internal or external switch.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "optional_text")]
    pub uplink: Option<Uplink>,
    /// Longest packet behind an Ethernet header, in bytes: what adapters are told.
    pub mtu: u32,
    /// Bits in a second that adapters say they do.
    pub speed: u64,
    /// Multicast goes only to who has asked for it.
    pub snooping: bool,
    /// The switch asks who wants which groups, where no router does.
    pub querier: bool,
    /// Ports may come of which there are no settings: they get `default`.
    pub strangers: bool,
    /// Settings of workers' ports that have none of their own.
    pub default: Policy,
    /// Settings of ports, by name.
    pub ports: BTreeMap<String, Policy>,
}

/// What is in a file makes no switch, or cannot be kept there.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No name.
    #[error("'{0}' is no name: up to 64 letters, digits, and any of . _ : - but not first")]
    Name(String),
    /// The file.
    #[error("{path}: {source}")]
    File {
        /// Where.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// What is in it.
    #[error("{path}: {why}")]
    Content {
        /// Where.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// A setting cannot be.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// Of that name.
    #[error("port {0} has no settings of its own")]
    NoPort(String),
    /// So many.
    #[error("a switch keeps settings of {} ports at most", vireo_switch::PORTS_MAX)]
    TooMany,
}

impl Config {
    /// A switch as it is at first.
    ///
    /// # Errors
    /// It cannot be called that.
    pub fn new(name: &str, kind: SwitchKind, uplink: Option<Uplink>) -> Result<Self, ConfigError> {
        if !is_name(name) {
            return Err(ConfigError::Name(name.into()));
        }
        Ok(Self {
            version: VERSION,
            name: name.into(),
            kind,
            uplink,
            mtu: 1500,
            speed: 10_000_000_000,
            snooping: false,
            querier: false,
            strangers: true,
            default: Policy::default(),
            ports: BTreeMap::new(),
        })
    }

    /// Reads one.
    ///
    /// # Errors
    /// It is not there, or is none.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let shown = || path.display().to_string();
        let text = std::fs::read(path).map_err(|source| ConfigError::File { path: shown(), source })?;
        Self::parse(&text).map_err(|why| ConfigError::Content { path: shown(), why })
    }

    fn parse(text: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        // The version first: what another one means is not for us to say.
        let Versioned { version } = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        if version != VERSION {
            return Err(format!("it is of version {version}, this program knows {VERSION}"));
        }
        let config: Self = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        if !is_name(&self.name) || !self.ports.keys().all(|name| is_name(name)) {
            return Err("a name in it is none".into());
        }
        if !self.mtus().contains(&self.mtu) {
            return Err(format!("its MTU is not from {} to {MTU_MAX}", self.mtus().start()));
        }
        if self.ports.len() > vireo_switch::PORTS_MAX {
            return Err(ConfigError::TooMany.to_string());
        }
        Ok(())
    }

    /// Writes it, whole or not at all.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn save(&self, path: &Path) -> Result<(), ConfigError> {
        let write = || {
            let folder = path.parent().unwrap_or(Path::new("."));
            let new = path.with_extension("new");
            let fill = || {
                let mut file = File::create(&new)?;
                serde_json::to_writer_pretty(&mut file, self)?;
                file.write_all(b"\n")?;
                file.sync_all()?;
                std::fs::rename(&new, path)
            };
            // A full disk is not to be left fuller.
            fill().inspect_err(|_| _ = std::fs::remove_file(&new))?;
            File::open(folder)?.sync_all()
        };
        write().map_err(|source| ConfigError::File { path: path.display().to_string(), source })
    }

    /// MTUs that it may have.
    fn mtus(&self) -> std::ops::RangeInclusive<u32> {
        let least = if matches!(self.uplink, Some(Uplink::Nat(_))) { vireo_nat::MTU_MIN } else { MTU_LEAST };
        least..=MTU_MAX
    }

    /// The settings of a port.
    pub fn policy(&self, port: &str) -> &Policy {
        self.ports.get(port).unwrap_or_else(|| self.default_of(port))
    }

    /// Those of a port that has none of its own. What is set for machines is not for the network that they are to reach: its DHCP
    /// server and routers are behind the uplink.
    fn default_of(&self, port: &str) -> &Policy {
        static PLAIN: Policy = Policy::PLAIN;
        if port == UPLINK { &PLAIN } else { &self.default }
    }

    /// Changes settings of a port; `None`: of all that have none of their own, or of the switch.
    ///
    /// # Errors
    /// They cannot be. Nothing is changed then.
    pub fn change(&mut self, port: Option<&str>, changes: &[Change]) -> Result<(), ConfigError> {
        let mut new = self.clone();
        match port {
            Some(name) if !is_name(name) => return Err(ConfigError::Name(name.into())),
            Some(name) => {
                let mut policy = new.policy(name).clone();
                policy.apply(changes)?;
                new.ports.insert(name.into(), policy);
            }
            None => {
                let (own, of_ports): (Vec<_>, Vec<_>) =
                    changes.iter().cloned().partition(|c| OWN.contains(&c.key.as_str()));
                own.iter().try_for_each(|change| new.change_own(change))?;
                new.default.apply(&of_ports)?;
            }
        }
        if new.ports.len() > vireo_switch::PORTS_MAX {
            return Err(ConfigError::TooMany);
        }
        *self = new;
        Ok(())
    }

    /// A port has no settings of its own any more.
    ///
    /// # Errors
    /// It had none.
    pub fn forget(&mut self, port: &str) -> Result<(), ConfigError> {
        match self.ports.remove(port) {
            Some(_) => Ok(()),
            None => Err(ConfigError::NoPort(port.into())),
        }
    }

    fn change_own(&mut self, change: &Change) -> Result<(), PolicyError> {
        match change.key.as_str() {
            "snooping" => self.snooping = change.switch()?,
            "querier" => self.querier = change.switch()?,
            "strangers" => self.strangers = change.switch()?,
            _ => {
                self.mtu = change.number()?;
                if !self.mtus().contains(&self.mtu) {
                    let (least, by) = (*self.mtus().start(), self.uplink.as_ref());
                    let by = by
                        .filter(|_| least > MTU_LEAST)
                        .map_or(String::new(), |by| format!(" with the uplink {by}"));
                    return Err(change.refuse(format!("it is from {least} to {MTU_MAX}{by}")));
                }
            }
        }
        Ok(())
    }
}

/// Settings of a switch itself.
const OWN: [&str; 4] = ["snooping", "querier", "strangers", "mtu"];

/// Addresses by which it is known who may be behind a port.
pub(crate) type Addresses = BTreeSet<IpAddr>;

/// What may be there, as text.
pub(crate) mod optional_text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<T: Display, S: Serializer>(what: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
        match what {
            Some(what) => serializer.collect_str(what),
            None => serializer.serialize_none(),
        }
    }

    pub fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<T>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|t| t.parse().map_err(serde::de::Error::custom)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(key: &str, value: &str) -> Change {
        Change { key: key.into(), value: value.into() }
    }

    /// What `golden/version-1.json` is of.
    fn sample() -> Config {
        let mut config = Config::new("lab", SwitchKind::External, Some(Uplink::Tap("tap0".into()))).unwrap();
        config.change(None, &[change("snooping", "on"), change("mtu", "9000")]).unwrap();
        config.change(None, &[change("dhcp-guard", "on")]).unwrap();
        let web = [
            ("mac", "00:15:5d:00:00:01"),
            ("vlan", "10"),
            ("addresses", "10.0.0.5,fe80::1"),
            ("acl", "allow out tcp remote-port=443 weight=10 answers=300"),
            ("acl", "deny out"),
            ("bandwidth", "100M"),
            ("storm", "1000"),
            ("weight", "5"),
            ("router-guard", "on"),
        ]
        .map(|(key, value)| change(key, value));
        config.change(Some("web"), &web).unwrap();
        config.change(Some("trunk"), &[change("vlan", "trunk:1:10-20"), change("spoofing", "on")]).unwrap();
        config
    }

    #[test]
    fn what_was_kept_by_version_1_is_understood() {
        let golden = include_bytes!("../golden/version-1.json");
        assert_eq!(Config::parse(golden), Ok(sample()));
        let path = std::env::temp_dir().join(format!("vireo-switch-{}.json", std::process::id()));
        sample().save(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), golden, "and is written so");
        assert_eq!(Config::load(&path).unwrap(), sample());
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn what_holds_for_all_ports_does_not_hold_for_the_uplink() {
        let mut config = sample();
        let changes = [change("vlan", "10"), change("acl", "deny in"), change("addresses", "10.0.0.1")];
        config.change(None, &changes).unwrap();
        assert!(config.policy("x").dhcp_guard && config.policy("x").vlan.is_some());
        assert_eq!(config.policy(UPLINK), &Policy::default());
        // Nor does it come with the first setting that is its own.
        config.change(Some(UPLINK), &[change("storm", "100")]).unwrap();
        assert_eq!(config.policy(UPLINK), &Policy { storm: Some(100), ..Policy::default() });
        config.change(Some("x"), &[change("weight", "2")]).unwrap();
        assert!(config.policy("x").dhcp_guard);
    }

    #[test]
    fn what_is_none_is_refused_and_changes_nothing() {
        let golden = include_str!("../golden/version-1.json");
        let refused = |from: &str, to: &str| {
            assert!(golden.contains(from), "{from}");
            Config::parse(golden.replace(from, to).as_bytes()).unwrap_err()
        };
        assert!(refused("\"version\": 1", "\"version\": 2").contains("version 2"));
        refused("\"snooping\"", "\"sniffing\"");
        refused("\"10\"", "\"4095\"");
        refused("\"web\"", "\"../web\"");
        refused("9000", "60");
        let mut config = sample();
        for (port, key, value) in [
            (Some("web"), "vlan", "x"),
            (Some(".."), "vlan", "1"),
            (Some("web"), "mtu", "1500"),
            (None, "mtu", "1"),
            (None, "snooping", "maybe"),
            (None, "colour", "red"),
        ] {
            let changes = [change("spoofing", "on"), change(key, value)];
            assert!(config.change(port, &changes).is_err(), "{key}={value}");
        }
        assert_eq!(config, sample());
        assert!(Config::new("-x", SwitchKind::Private, None).is_err());
        for text in ["tap=a-name-that-is-too-long", "tap", "nat=10.0.0.1/33", "bridge=x"] {
            assert!(text.parse::<Uplink>().is_err(), "{text}");
        }
        assert_eq!("nat=10.9.0.0/24".parse::<Uplink>().unwrap().to_string(), "nat=10.9.0.0/24");
    }
}
