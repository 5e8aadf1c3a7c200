//! Messages of the framework that all services but dynamic memory share: a header of VMBus pipes, one of the framework, a body.
//!
//! The host asks, the guest answers with the same transaction. The first question of all is which versions it speaks.

use std::fmt;

/// Bytes of the header of a pipe: kind of packet, length of what follows.
const PIPE: usize = 8;
/// A packet of a pipe that is data.
const PIPE_DATA: u32 = 1;
/// Bytes of the framework's header.
const HEADER: usize = 20;
/// Longest body that a length can say.
const BODY_MAX: usize = u16::MAX as usize;

/// Kinds of messages.
pub mod kind {
    /// Which versions are spoken.
    pub const NEGOTIATE: u16 = 0;
    /// Whether the guest is alive.
    pub const HEARTBEAT: u16 = 1;
    /// Pairs of keys and values.
    pub const KVP: u16 = 2;
    /// Power-off and restart.
    pub const SHUTDOWN: u16 = 3;
    /// What time it is.
    pub const TIME: u16 = 4;
    /// Freezing of file systems.
    pub const VSS: u16 = 5;
    /// Files to the guest.
    pub const COPY: u16 = 7;
}

/// It is one that wants an answer.
const TRANSACTION: u8 = 1;
/// It asks.
const REQUEST: u8 = 2;
/// It answers.
const RESPONSE: u8 = 4;

/// A version of the framework, or of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u16, pub u16);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// A message; its body is what its service says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Version of the framework that both speak.
    pub framework: Version,
    /// Of the service.
    pub version: Version,
    /// One of [`kind`].
    pub kind: u16,
    /// 0, or what failed.
    pub status: u32,
    /// By which an answer is known to be one.
    pub transaction: u8,
    /// All after the header, as far as it counts.
    pub body: &'a [u8],
}

impl<'a> Message<'a> {
    /// The packet of a question.
    pub fn question(&self) -> Vec<u8> {
        self.packet(TRANSACTION | REQUEST)
    }

    /// The packet of an answer.
    pub fn answer(&self) -> Vec<u8> {
        self.packet(TRANSACTION | RESPONSE)
    }

    fn packet(&self, flags: u8) -> Vec<u8> {
        let body = &self.body[..self.body.len().min(BODY_MAX)];
        let mut bytes = Vec::with_capacity(PIPE + HEADER + body.len());
        bytes.extend(PIPE_DATA.to_le_bytes());
        bytes.extend(((HEADER + body.len()) as u32).to_le_bytes());
        let Self { framework, version, kind, .. } = self;
        for half in [framework.0, framework.1, *kind, version.0, version.1, body.len() as u16] {
            bytes.extend(half.to_le_bytes());
        }
        bytes.extend(self.status.to_le_bytes());
        bytes.extend([self.transaction, flags, 0, 0]);
        bytes.extend(body);
        bytes
    }

    /// What the guest sent, if it is an answer. A body that is shorter than its length says ends where it ends.
    pub fn parse_answer(packet: &'a [u8]) -> Option<Self> {
        let message = packet.get(PIPE..)?;
        let (header, rest) = message.split_at_checked(HEADER)?;
        let half = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        if header[17] & RESPONSE == 0 {
            return None;
        }
        Some(Self {
            framework: Version(half(0), half(2)),
            kind: half(4),
            version: Version(half(6), half(8)),
            status: u32::from_le_bytes(header[12..16].try_into().ok()?),
            transaction: header[16],
            body: &rest[..rest.len().min(half(10).into())],
        })
    }
}

/// The body of the question which versions the guest speaks: ours.
pub fn negotiation(frameworks: &[Version], versions: &[Version]) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend((frameworks.len() as u16).to_le_bytes());
    body.extend((versions.len() as u16).to_le_bytes());
    body.extend([0; 4]);
    for Version(major, minor) in frameworks.iter().chain(versions) {
        body.extend(major.to_le_bytes());
        body.extend(minor.to_le_bytes());
    }
    body
}

/// What the guest chose: versions of the framework and of the service. `None`: it speaks none, or says nothing sensible.
pub fn agreed(body: &[u8], frameworks: &[Version], versions: &[Version]) -> Option<(Version, Version)> {
    let half = |at: usize| body.get(at..at + 2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    if (half(0)?, half(2)?) != (1, 1) {
        return None;
    }
    let framework = Version(half(8)?, half(10)?);
    let version = Version(half(12)?, half(14)?);
    (frameworks.contains(&framework) && versions.contains(&version)).then_some((framework, version))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(body: &[u8]) -> Message<'_> {
        Message {
            framework: Version(3, 0),
            version: Version(3, 2),
            kind: kind::SHUTDOWN,
            status: 0x8000_4005,
            transaction: 7,
            body,
        }
    }

    /// Golden: drivers read it so (struct vmbuspipe_hdr, icmsg_hdr).
    #[test]
    fn a_message_looks_like_this() {
        #[rustfmt::skip]
        assert_eq!(message(b"body").question(), [
            1, 0, 0, 0, 24, 0, 0, 0,
            3, 0, 0, 0, 3, 0, 3, 0, 2, 0, 4, 0, 0x05, 0x40, 0x00, 0x80, 7, 3, 0, 0,
            b'b', b'o', b'd', b'y',
        ]);
        assert_eq!(message(b"body").answer()[25], 5);
    }

    #[test]
    fn only_answers_are_read_and_no_more_than_there_is() {
        let sent = message(b"body");
        assert_eq!(Message::parse_answer(&sent.question()), None, "a question");
        let mut packet = sent.answer();
        assert_eq!(Message::parse_answer(&packet), Some(sent.clone()));
        // Rings fill packets up to 8 bytes.
        packet.extend([0; 4]);
        assert_eq!(Message::parse_answer(&packet), Some(sent));
        packet[18] = 0xff;
        packet[19] = 0xff;
        assert_eq!(Message::parse_answer(&packet).unwrap().body, b"body\0\0\0\0");
        assert_eq!(Message::parse_answer(&packet[..27]), None);
    }

    #[test]
    fn a_guest_chooses_among_what_it_was_offered() {
        let (frameworks, versions) = ([Version(3, 0), Version(1, 0)], [Version(3, 2), Version(3, 0)]);
        let offered = negotiation(&frameworks, &versions);
        assert_eq!(offered.len(), 8 + 16);
        let answer = |counts: [u16; 2], chosen: [Version; 2]| {
            let mut body = negotiation(&chosen[..1], &chosen[1..]);
            body[..2].copy_from_slice(&counts[0].to_le_bytes());
            body[2..4].copy_from_slice(&counts[1].to_le_bytes());
            agreed(&body, &frameworks, &versions)
        };
        let fine = [Version(1, 0), Version(3, 0)];
        assert_eq!(answer([1, 1], fine), Some((fine[0], fine[1])));
        assert_eq!(answer([0, 0], fine), None, "it speaks none");
        assert_eq!(answer([1, 1], [Version(3, 0), Version(4, 0)]), None, "not offered");
        assert_eq!(answer([1, 1], [Version(2, 0), Version(3, 0)]), None, "not offered");
        assert_eq!(agreed(&offered, &frameworks, &versions), None, "our own question");
    }

    proptest! {
        #[test]
        fn no_packet_does_harm(packet in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Some(m) = Message::parse_answer(&packet) {
                prop_assert!(m.body.len() <= packet.len());
                let _ = agreed(m.body, &[Version(3, 0)], &[Version(3, 0)]);
            }
        }
    }
}
