//! VLAN modes and rules as texts: what users write, files keep, and `show` prints.

use std::fmt::{self, Display, Formatter};
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use vireo_frame::Mac;
use vireo_frame::headers::protocol;

use crate::acl::{Action, Direction, Rule, Who};
use crate::vlan::{Private, Vlan, VlanMode, VlanSet};

/// A text is not what it is to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not understood: {why}")]
pub struct NotUnderstood {
    /// The text, or the part of it.
    pub text: String,
    /// What it is to be.
    pub why: &'static str,
}

fn refuse<T>(text: &str, why: &'static str) -> Result<T, NotUnderstood> {
    Err(NotUnderstood { text: text.into(), why })
}

const VLANS: &str = "a VLAN is a number of 1 to 4094, or none; else trunk:NATIVE:LIST, isolated:PRIMARY:SECONDARY, \
                     community:PRIMARY:SECONDARY or promiscuous:PRIMARY:LIST, where LIST is as 10,20-29 or all";

impl FromStr for VlanSet {
    type Err = NotUnderstood;

    fn from_str(text: &str) -> Result<Self, NotUnderstood> {
        if text == "all" {
            return Ok(Self::All);
        }
        let mut all = std::collections::BTreeSet::new();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            match range::<Vlan>(part) {
                Some(range) if *range.end() <= crate::vlan::LAST => all.extend(range),
                _ => return refuse(part, VLANS),
            }
        }
        Ok(Self::These(all))
    }
}

impl Display for VlanSet {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self::These(set) = self else { return f.write_str("all") };
        let mut rest = set.iter().copied().peekable();
        let mut comma = "";
        while let Some(first) = rest.next() {
            let mut last = first;
            while rest.next_if(|next| *next == last + 1).is_some() {
                last += 1;
            }
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
            comma = ",";
        }
        Ok(())
    }
}

impl FromStr for VlanMode {
    type Err = NotUnderstood;

    fn from_str(text: &str) -> Result<Self, NotUnderstood> {
        let number = |part: &str| match part {
            "none" => Ok(0),
            part => part.parse::<Vlan>().or_else(|_| refuse(text, VLANS)),
        };
        let mode = match text.split(':').collect::<Vec<_>>()[..] {
            [vlan] => Self::Access(number(vlan)?),
            ["trunk", native, allowed] => Self::Trunk { native: number(native)?, allowed: allowed.parse()? },
            [kind, primary, secondary] => {
                let primary = number(primary)?;
                let role = match kind {
                    "isolated" => Private::Isolated(number(secondary)?),
                    "community" => Private::Community(number(secondary)?),
                    "promiscuous" => Private::Promiscuous(secondary.parse()?),
                    _ => return refuse(text, VLANS),
                };
                Self::Private { primary, role }
            }
            _ => return refuse(text, VLANS),
        };
        mode.check().or_else(|_| refuse(text, VLANS))?;
        Ok(mode)
    }
}

impl Display for VlanMode {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let native = |v: Vlan| if v == 0 { "none".into() } else { v.to_string() };
        match self {
            Self::Access(vlan) => f.write_str(&native(*vlan)),
            Self::Trunk { native: vlan, allowed } => write!(f, "trunk:{}:{allowed}", native(*vlan)),
            Self::Private { primary, role } => match role {
                Private::Isolated(own) => write!(f, "isolated:{primary}:{own}"),
                Private::Community(own) => write!(f, "community:{primary}:{own}"),
                Private::Promiscuous(all) => write!(f, "promiscuous:{primary}:{all}"),
            },
        }
    }
}

/// A number, or two with a dash between them.
fn range<T: FromStr + Copy + PartialOrd>(text: &str) -> Option<RangeInclusive<T>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some(first..=last)
}

const RULE: &str = "a rule is: allow or deny, in or out, then any of tcp, udp, icmp, icmp6 or protocol=N, local=WHO, \
                    remote=WHO (a MAC address, or an IP address with /BITS if it is a network), local-port=N[-N], \
                    remote-port=N[-N], weight=N, answers=SECONDS";

impl FromStr for Who {
    type Err = NotUnderstood;

    fn from_str(text: &str) -> Result<Self, NotUnderstood> {
        if let Ok(mac) = text.parse::<Mac>() {
            return Ok(Self::Mac(mac));
        }
        let (address, bits) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
        let Ok(address) = address.parse::<std::net::IpAddr>() else { return refuse(text, RULE) };
        let most = if address.is_ipv4() { 32 } else { 128 };
        match bits.map_or(Ok(most), str::parse) {
            Ok(bits) if bits <= most => Ok(Self::Net(address, bits)),
            _ => refuse(text, RULE),
        }
    }
}

impl Display for Who {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Mac(mac) => mac.fmt(f),
            Self::Net(address, bits) => write!(f, "{address}/{bits}"),
        }
    }
}

/// Protocols that have a name.
const PROTOCOLS: [(&str, u8); 4] =
    [("tcp", protocol::TCP), ("udp", protocol::UDP), ("icmp", protocol::ICMP), ("icmp6", protocol::ICMP6)];

impl FromStr for Rule {
    type Err = NotUnderstood;

    fn from_str(text: &str) -> Result<Self, NotUnderstood> {
        let mut words = text.split_whitespace();
        let mut action = match words.next() {
            Some("allow") => Action::Allow,
            Some("deny") => Action::Deny,
            _ => return refuse(text, RULE),
        };
        let direction = match words.next() {
            Some("in") => Direction::In,
            Some("out") => Direction::Out,
            _ => return refuse(text, RULE),
        };
        let mut rule = Self {
            weight: 0,
            direction,
            local: Who::Any,
            remote: Who::Any,
            protocol: None,
            local_ports: None,
            remote_ports: None,
            action,
        };
        for word in words {
            let number = |value: &str| value.parse().or_else(|_| refuse(word, RULE));
            let ports = |value: &str| range(value).map_or_else(|| refuse(word, RULE), |r| Ok(Some(r)));
            match word.split_once('=') {
                Some(("local", who)) => rule.local = who.parse()?,
                Some(("remote", who)) => rule.remote = who.parse()?,
                Some(("local-port", value)) => rule.local_ports = ports(value)?,
                Some(("remote-port", value)) => rule.remote_ports = ports(value)?,
                Some(("weight", value)) => rule.weight = number(value)?,
                Some(("protocol", value)) => {
                    rule.protocol = Some(value.parse().or_else(|_| refuse(word, RULE))?);
                }
                Some(("answers", value)) if action != Action::Deny => {
                    action = Action::AllowAnswers(Duration::from_secs(number(value)?.into()));
                }
                _ => match PROTOCOLS.iter().find(|(name, _)| *name == word) {
                    Some((_, number)) => rule.protocol = Some(*number),
                    None => return refuse(word, RULE),
                },
            }
        }
        rule.action = action;
        Ok(rule)
    }
}

impl Display for Rule {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let action = if self.action == Action::Deny { "deny" } else { "allow" };
        write!(f, "{action} {}", if self.direction == Direction::In { "in" } else { "out" })?;
        if let Some(number) = self.protocol {
            match PROTOCOLS.iter().find(|(_, known)| *known == number) {
                Some((name, _)) => write!(f, " {name}")?,
                None => write!(f, " protocol={number}")?,
            }
        }
        for (name, who) in [("local", self.local), ("remote", self.remote)] {
            if who != Who::Any {
                write!(f, " {name}={who}")?;
            }
        }
        for (name, ports) in [("local-port", &self.local_ports), ("remote-port", &self.remote_ports)] {
            match ports {
                Some(ports) if ports.start() == ports.end() => write!(f, " {name}={}", ports.start())?,
                Some(ports) => write!(f, " {name}={}-{}", ports.start(), ports.end())?,
                None => {}
            }
        }
        if self.weight != 0 {
            write!(f, " weight={}", self.weight)?;
        }
        match self.action {
            Action::AllowAnswers(idle) => write!(f, " answers={}", idle.as_secs()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_back_as_they_were() {
        for text in [
            "none",
            "10",
            "trunk:none:all",
            "trunk:1:10,20-29,4094",
            "isolated:100:101",
            "community:100:102",
            "promiscuous:100:101-102",
        ] {
            assert_eq!(text.parse::<VlanMode>().unwrap().to_string(), text);
        }
        for text in [
            "deny in",
            "allow out tcp local=10.0.0.5/32 remote=00:15:5d:00:00:01 remote-port=80-90 weight=7 answers=300",
            "deny out udp remote=fd00::/8 local-port=53",
            "allow in protocol=47",
        ] {
            assert_eq!(text.parse::<Rule>().unwrap().to_string(), text);
        }
        let net = "10.0.0.5".parse::<Who>();
        assert_eq!(net.unwrap().to_string(), "10.0.0.5/32");
    }

    #[test]
    fn what_is_not_understood_says_which_part() {
        for text in
            ["4095", "x", "trunk:1", "trunk:1:5-3", "isolated:1:1", "promiscuous:1:all", "trunk:1:0-9999"]
        {
            assert!(text.parse::<VlanMode>().is_err(), "{text}");
        }
        for text in
            ["", "allow", "deny up", "deny in answers=5", "allow in remote=10.0.0.0/33", "allow in weight=x"]
        {
            assert!(text.parse::<Rule>().is_err(), "{text}");
        }
        let error = "allow in tcp port=5".parse::<Rule>().unwrap_err();
        assert_eq!(error.text, "port=5");
    }
}
