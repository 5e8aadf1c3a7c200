//! The handshake (RFC 6143 §7.1 to 7.3): version, security, and what the screen is.

use std::net::IpAddr;

use crate::auth::CHALLENGE;
use crate::message::Input;
use crate::security::Security;

/// A handshake that leads to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// It does not begin as RFB does, or is of an unknown version.
    #[error("the client speaks no version of RFB that is known")]
    Version,
    /// A kind of security that was not offered.
    #[error("the client chose security {0}, which was not offered")]
    Security(u32),
    /// The client was told why.
    #[error("{0}")]
    Refused(&'static str),
}

/// Versions by their last digit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Version {
    V3,
    V7,
    V8,
}

/// Kinds of security.
mod security {
    pub const NONE: u8 = 1;
    pub const VNC: u8 = 2;
    pub const VENCRYPT: u8 = 19;
    /// Of VeNCrypt: TLS with a certificate, and no password or VNC's.
    pub const X509_NONE: u32 = 260;
    pub const X509_VNC: u32 = 261;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Version,
    /// The client chooses a kind.
    Security,
    VencryptVersion,
    VencryptKind,
    /// The client answers.
    Password([u8; CHALLENGE]),
    /// The client says whether it shares the screen.
    Init,
}

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// More bytes are needed.
    More,
    /// TLS begins: what comes after is in it. Bytes that the client sent before are TLS's already.
    StartTls,
    /// Messages begin.
    Done,
}

/// A handshake under way.
pub struct Handshake {
    state: State,
    version: Version,
    in_tls: bool,
    challenge: [u8; CHALLENGE],
    from: Option<IpAddr>,
}

/// What the server begins with.
pub const GREETING: &[u8] = b"RFB 003.008\n";

impl Handshake {
    /// One that has not begun, of a client at an address; `challenge` is random.
    pub fn new(challenge: [u8; CHALLENGE], from: Option<IpAddr>) -> Self {
        Self { state: State::Version, version: Version::V8, in_tls: false, challenge, from }
    }

    /// Goes on with what has come.
    ///
    /// # Errors
    /// It leads to nothing; what is in `output` says so to the client.
    pub fn step(
        &mut self,
        input: &mut Input,
        security: &Security,
        output: &mut Vec<u8>,
    ) -> Result<Step, HandshakeError> {
        loop {
            match self.state {
                State::Version => {
                    let Some(said) = input.take::<12>() else { return Ok(Step::More) };
                    self.version = parse_version(&said).ok_or(HandshakeError::Version)?;
                    self.offer(security, output)?;
                }
                State::Security => {
                    let Some([kind]) = input.take() else { return Ok(Step::More) };
                    self.choose(kind, security, output)?;
                }
                State::VencryptVersion => {
                    let Some(version) = input.take::<2>() else { return Ok(Step::More) };
                    if version != [0, 2] {
                        output.push(255);
                        return Err(HandshakeError::Version);
                    }
                    output.extend([0, 1]);
                    output.extend(vencrypt_kind(security).to_be_bytes());
                    self.state = State::VencryptKind;
                }
                State::VencryptKind => {
                    let Some(kind) = input.take().map(u32::from_be_bytes) else { return Ok(Step::More) };
                    if kind != vencrypt_kind(security) {
                        output.push(0);
                        return Err(HandshakeError::Security(kind));
                    }
                    output.push(1);
                    self.in_tls = true;
                    self.authenticate_later(security);
                    return Ok(Step::StartTls);
                }
                State::Password(challenge) => {
                    let Some(answer) = input.take() else { return Ok(Step::More) };
                    if let Err(why) = security.check(self.from, &challenge, &answer) {
                        self.fail(why, output);
                        return Err(HandshakeError::Refused(why));
                    }
                    output.extend(0_u32.to_be_bytes());
                    self.state = State::Init;
                }
                State::Init => {
                    return Ok(if input.take::<1>().is_some() { Step::Done } else { Step::More });
                }
            }
        }
    }

    /// For when TLS stands: what the server says first in it.
    pub fn tls_stands(&mut self, output: &mut Vec<u8>) {
        match self.state {
            State::Password(challenge) => output.extend(challenge),
            _ => self.say_accepted(output),
        }
    }

    /// Says which kinds there are; there is one.
    fn offer(&mut self, security: &Security, output: &mut Vec<u8>) -> Result<(), HandshakeError> {
        let kind = kind(security);
        if self.version > Version::V3 {
            output.extend([1, kind]);
            self.state = State::Security;
            return Ok(());
        }
        // The server chooses, in 32 bits; TLS is none of that version.
        if kind == security::VENCRYPT {
            const WHY: &str = "this server wants TLS, and RFB 3.7 or newer";
            output.extend(0_u32.to_be_bytes());
            put_reason(WHY, output);
            return Err(HandshakeError::Refused(WHY));
        }
        output.extend(u32::from(kind).to_be_bytes());
        self.choose(kind, security, output)
    }

    fn choose(
        &mut self,
        chosen: u8,
        security: &Security,
        output: &mut Vec<u8>,
    ) -> Result<(), HandshakeError> {
        if chosen != kind(security) {
            self.fail("this kind of security was not offered", output);
            return Err(HandshakeError::Security(chosen.into()));
        }
        match chosen {
            security::VENCRYPT => {
                output.extend([0, 2]);
                self.state = State::VencryptVersion;
            }
            _ => {
                self.authenticate_later(security);
                match self.state {
                    State::Password(challenge) => output.extend(challenge),
                    // Older versions hear of no result.
                    _ if self.version < Version::V8 => {}
                    _ => self.say_accepted(output),
                }
            }
        }
        Ok(())
    }

    fn authenticate_later(&mut self, security: &Security) {
        self.state = if security.wants_password() { State::Password(self.challenge) } else { State::Init };
    }

    fn say_accepted(&self, output: &mut Vec<u8>) {
        output.extend(0_u32.to_be_bytes());
    }

    fn fail(&self, why: &str, output: &mut Vec<u8>) {
        output.extend(1_u32.to_be_bytes());
        if self.version == Version::V8 {
            put_reason(why, output);
        }
    }
}

fn put_reason(why: &str, output: &mut Vec<u8>) {
    output.extend((why.len() as u32).to_be_bytes());
    output.extend(why.as_bytes());
}

fn kind(security: &Security) -> u8 {
    match (security.tls(), security.wants_password()) {
        (Some(_), _) => security::VENCRYPT,
        (None, true) => security::VNC,
        (None, false) => security::NONE,
    }
}

fn vencrypt_kind(security: &Security) -> u32 {
    if security.wants_password() { security::X509_VNC } else { security::X509_NONE }
}

fn parse_version(said: &[u8; 12]) -> Option<Version> {
    match said.strip_prefix(b"RFB 003.")?.strip_suffix(b"\n")? {
        // Some say 3.5, which is to be taken for 3.3; and Apple's say 3.889.
        b"003" | b"005" => Some(Version::V3),
        b"007" => Some(Version::V7),
        b"008" | b"889" => Some(Version::V8),
        _ => None,
    }
}
