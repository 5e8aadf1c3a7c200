//! What network adapter a machine is to have.

use std::fmt;
use std::str::FromStr;

use vireo_frame::{Mac, NoMac};
use vireo_nat::Forward;

/// What an adapter is plugged into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Network {
    /// A private network of its own, which reaches the host's networks by the host's sockets.
    Nat {
        /// Ports of the host that lead to the guest.
        forwards: Vec<Forward>,
        /// The longest packet, in bytes.
        mtu: u32,
        /// The router's address is the host's loopback.
        host: bool,
    },
    /// A TAP device of the host, by its name.
    Tap(String),
    /// A port of a switch.
    Switch {
        /// The switch's name.
        name: String,
        /// The port's; `None`: that of the adapter's address. The switch keeps its settings by it.
        port: Option<String>,
        /// The VLAN that it is to be in, if the switch has no settings for it.
        vlan: Option<u16>,
    },
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nat { forwards, .. } => {
                write!(f, "nat")?;
                forwards.iter().try_for_each(|forward| write!(f, " {forward}"))
            }
            Self::Tap(name) => write!(f, "tap {name}"),
            Self::Switch { name, port, .. } => {
                write!(f, "switch {name}")?;
                port.iter().try_for_each(|port| write!(f, " port {port}"))
            }
        }
    }
}

/// What an adapter is for its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NicModel {
    /// A synthetic adapter on VMBus: comes and goes while the guest runs.
    Netvsc,
    /// A virtio device.
    Virtio,
    /// A card of old, Intel's 82540EM.
    E1000,
}

impl NicModel {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Netvsc => "netvsc",
            Self::Virtio => "virtio",
            Self::E1000 => "e1000",
        }
    }
}

impl FromStr for NicModel {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "netvsc" => Ok(Self::Netvsc),
            "virtio" => Ok(Self::Virtio),
            "e1000" => Ok(Self::E1000),
            _ => Err(format!("model={s}: it is netvsc, virtio or e1000")),
        }
    }
}

/// An adapter, as `NETWORK[,option…]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NicSpec {
    /// What it is plugged into.
    pub network: Network,
    /// Its address; `None`: one is made up.
    pub address: Option<Mac>,
    /// `None`: what a guest with these enlightenments has drivers for.
    pub model: Option<NicModel>,
}

/// What there is, for messages.
const NETWORKS: &str = "nat, switch=NAME or tap=NAME";
const OPTIONS: &str = "mac=ADDRESS, model=netvsc|virtio|e1000, of nat forward=PROTOCOL:ADDRESS:PORT:PORT, host=on|off and mtu=N, of a switch port=NAME and vlan=N";

impl FromStr for NicSpec {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let mut parts = s.split(',');
        let network = parts.next().unwrap_or_default();
        let network = match network.split_once('=') {
            None if network == "nat" => Network::Nat { forwards: Vec::new(), mtu: 1500, host: true },
            Some(("tap", name)) if !name.is_empty() => Network::Tap(name.into()),
            Some(("switch", name)) if !name.is_empty() => {
                Network::Switch { name: name.into(), port: None, vlan: None }
            }
            _ => return Err(format!("'{network}' is no network: it is {NETWORKS}")),
        };
        let mut spec = Self { network, address: None, model: None };
        for part in parts {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            match (name, &mut spec.network) {
                ("mac", _) => spec.address = Some(station(value)?),
                ("model", _) => spec.model = Some(value.parse()?),
                ("forward", Network::Nat { forwards, .. }) => {
                    forwards.push(value.parse().map_err(|e: vireo_nat::NoForward| e.to_string())?);
                }
                ("host", Network::Nat { host, .. }) => *host = parse_switch("host", value)?,
                ("mtu", Network::Nat { mtu, .. }) => *mtu = parse_mtu(value)?,
                ("mtu", Network::Tap(name)) => {
                    return Err(format!(
                        "mtu={value}: a TAP device has its own: ip link set {name} mtu {value}"
                    ));
                }
                ("port", Network::Switch { port, .. }) if !value.is_empty() => *port = Some(value.into()),
                ("vlan", Network::Switch { vlan, .. }) => *vlan = Some(parse_vlan(value)?),
                _ => return Err(format!("{part}: the options of an adapter are {OPTIONS}")),
            }
        }
        Ok(spec)
    }
}

fn station(value: &str) -> Result<Mac, String> {
    let mac: Mac = value.parse().map_err(|e: NoMac| e.to_string())?;
    mac.is_station().then_some(mac).ok_or_else(|| format!("mac={value}: it is a group's address, or zero"))
}

fn parse_vlan(value: &str) -> Result<u16, String> {
    let vlan = value.parse().ok().filter(|n| *n < 4095);
    vlan.ok_or_else(|| format!("vlan={value}: it is a number from 1 to 4094, or 0 for none"))
}

fn parse_switch(name: &str, value: &str) -> Result<bool, String> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("{name}={value}: it is on or off")),
    }
}

fn parse_mtu(value: &str) -> Result<u32, String> {
    let range = vireo_nat::MTU_MIN..=vireo_nat::MTU_MAX;
    let mtu = value.parse().ok().filter(|n| range.contains(n));
    mtu.ok_or_else(|| format!("mtu={value}: it is a number from {} to {}", range.start(), range.end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters_are_described_by_network_and_options() {
        let spec: NicSpec =
            "nat,forward=tcp:127.0.0.1:8080:80,forward=udp:[::1]:53:53,mtu=9000,model=e1000,host=off"
                .parse()
                .unwrap();
        let forwards = ["tcp:127.0.0.1:8080:80", "udp:[::1]:53:53"].map(|f| f.parse().unwrap()).to_vec();
        assert_eq!(spec.network, Network::Nat { forwards, mtu: 9000, host: false });
        assert_eq!((spec.address, spec.model), (None, Some(NicModel::E1000)));
        assert_eq!(spec.network.to_string(), "nat tcp:127.0.0.1:8080:80 udp:[::1]:53:53");
        let spec: NicSpec = "tap=tap0,mac=00-15-5d-01-02-03".parse().unwrap();
        assert_eq!(spec.network, Network::Tap("tap0".into()));
        assert_eq!(spec.address, Some(Mac([0, 0x15, 0x5d, 1, 2, 3])));
        let spec: NicSpec = "switch=lan,port=web,vlan=7".parse().unwrap();
        let (name, port) = ("lan".into(), Some("web".into()));
        assert_eq!(spec.network, Network::Switch { name, port, vlan: Some(7) });
        for (text, word) in [
            ("", "is no network"),
            ("tap=", "is no network"),
            ("bridge=br0", "nat, switch=NAME or tap=NAME"),
            ("switch=a,vlan=4095", "from 1 to 4094"),
            ("tap=a,vlan=5", "options of an adapter are"),
            ("nat,mac=1", "no MAC address"),
            ("nat,mac=01:00:5e:00:00:01", "a group's address"),
            ("nat,mtu=99999", "1280 to 65521"),
            ("nat,host=no", "host=no: it is on or off"),
            ("tap=a,host=off", "options of an adapter are"),
            ("nat,forward=80", "cannot be forwarded"),
            ("nat,model=rtl8139", "netvsc, virtio or e1000"),
            ("nat,bridge=1", "options of an adapter are"),
            ("tap=a,forward=tcp:127.0.0.1:1:1", "options of an adapter are"),
            ("tap=a,mtu=9000", "ip link set a mtu 9000"),
        ] {
            let e = text.parse::<NicSpec>().unwrap_err();
            assert!(e.contains(word), "{text}: {e}");
        }
    }
}
