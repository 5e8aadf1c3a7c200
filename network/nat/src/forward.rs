//! Ports of the host that lead to guests.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;

/// What is forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

/// A port of the host that leads to a guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Forward {
    /// What is forwarded.
    pub protocol: Protocol,
    /// Where the host listens. Port 0: any that is free.
    pub host: SocketAddr,
    /// The guest; `None`: the network's first one.
    pub guest: Option<Ipv4Addr>,
    /// The guest's port.
    pub port: u16,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.protocol, self.host)?;
        if let Some(guest) = self.guest {
            write!(f, "{guest}:")?;
        }
        write!(f, "{}", self.port)
    }
}

/// A text names nothing that can be forwarded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' cannot be forwarded: tcp or udp, where the host listens, and the guest's port, as tcp:127.0.0.1:8080:80 or \
     udp:[::1]:5353:53"
)]
pub struct NoForward(String);

impl FromStr for Forward {
    type Err = NoForward;

    /// `PROTOCOL:ADDRESS:PORT:[GUEST:]PORT`; an IPv6 address is in brackets.
    fn from_str(text: &str) -> Result<Self, NoForward> {
        read(text).ok_or_else(|| NoForward(text.into()))
    }
}

fn read(text: &str) -> Option<Forward> {
    let (protocol, rest) = text.split_once(':')?;
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => return None,
    };
    // Behind the host's address, which has colons itself if it is in brackets.
    let close = rest.starts_with('[').then(|| rest.find("]:")).flatten().map_or(0, |at| at + 1);
    let colon = close + rest.get(close..)?.find(':')?;
    let end = colon + 1 + rest.get(colon + 1..)?.find(':')?;
    let host = rest.get(..end)?.parse().ok()?;
    let guest = rest.get(end + 1..)?;
    let (guest, port) = match guest.split_once(':') {
        Some((guest, port)) => (Some(guest.parse().ok()?), port),
        None => (None, guest),
    };
    let port = port.parse().ok().filter(|p| *p != 0)?;
    Some(Forward { protocol, host, guest, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_the_other_way() {
        for text in [
            "tcp:127.0.0.1:8080:80",
            "udp:[::1]:5353:53",
            "tcp:0.0.0.0:22:10.0.2.16:22",
            "tcp:[fd00::7]:0:10.0.2.15:1",
        ] {
            assert_eq!(text.parse::<Forward>().unwrap().to_string(), text);
        }
        let forward: Forward = "udp:[::1]:5353:53".parse().unwrap();
        assert_eq!((forward.protocol, forward.port, forward.guest), (Protocol::Udp, 53, None));
        assert_eq!(forward.host, "[::1]:5353".parse().unwrap());
    }

    #[test]
    fn what_is_no_forward_is_refused() {
        for text in [
            "",
            "tcp",
            "tcp:",
            "tcp:80",
            "tcp:8080:80",
            "sctp:127.0.0.1:1:2",
            "tcp:127.0.0.1:1:0",
            "tcp:127.0.0.1:1:65536",
            "tcp:127.0.0.1:70000:80",
            "tcp:::1:80:80",
            "tcp:[::1:80:80",
            "tcp:[::1]80:80",
            "tcp:localhost:80:80",
            "tcp:127.0.0.1:80:80:80",
            "tcp:127.0.0.1:80:80 ",
            "udp:[::1]:5:[::2]:6",
        ] {
            let error = text.parse::<Forward>().expect_err(text);
            assert!(error.to_string().contains("tcp:127.0.0.1:8080:80"));
        }
    }
}
