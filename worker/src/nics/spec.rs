//! What network adapter a machine is to have.

use std::str::FromStr;

use vireo_frame::Mac;

/// What an adapter is plugged into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Network {
    /// A TAP device of the host, by its name.
    Tap(String),
}

/// What an adapter is for its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NicModel {
    /// A synthetic adapter on VMBus: comes and goes while the guest runs.
    Netvsc,
}

impl FromStr for NicModel {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "netvsc" => Ok(Self::Netvsc),
            _ => Err(format!("model={s}: it is netvsc")),
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
    /// `None`: what the guest has drivers for, by its enlightenments.
    pub model: Option<NicModel>,
}

/// What there is, for messages.
const NETWORKS: &str = "tap=NAME";
const OPTIONS: &str = "mac=ADDRESS, model=netvsc";

impl FromStr for NicSpec {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let mut parts = s.split(',');
        let network = parts.next().unwrap_or_default();
        let network = match network.split_once('=') {
            Some(("tap", name)) if !name.is_empty() => Network::Tap(name.into()),
            _ => return Err(format!("'{network}' is no network: it is {NETWORKS}")),
        };
        let mut spec = Self { network, address: None, model: None };
        for part in parts {
            match part.split_once('=') {
                Some(("mac", v)) => {
                    let mac: Mac = v.parse().map_err(|e: vireo_frame::NoMac| e.to_string())?;
                    if !mac.is_station() {
                        return Err(format!("mac={v}: it is a group's address, or zero"));
                    }
                    spec.address = Some(mac);
                }
                Some(("model", v)) => spec.model = Some(v.parse()?),
                _ => return Err(format!("{part}: the options of an adapter are {OPTIONS}")),
            }
        }
        Ok(spec)
    }
}
