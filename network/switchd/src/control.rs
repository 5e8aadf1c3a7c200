//! How a running switch is asked and changed: one request and one answer, in a line of JSON each, over a Unix socket. A capture's
//! answer is followed by the file.

use std::collections::BTreeMap;
use std::io::{self, Chain, Cursor, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};
use vireo_control::{Lines, Version};

use crate::config::SwitchKind;
use crate::policy::{Change, Policy};
use crate::report::PortReport;

/// Version of the protocol: both sides say theirs, and understand none but their own.
const VERSION: Version = Version(1);
/// Longest request, in bytes.
const REQUEST_MAX: usize = 256 << 10;
/// Longest answer: of a switch with as many ports and stations as it may have.
const ANSWER_MAX: usize = 1 << 30;
/// How long each side waits for the other's line.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// What is wanted of a switch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// All that can be told of it.
    Show,
    /// Other settings.
    Set {
        /// Of this port; else of the switch, and of ports without settings of their own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        port: Option<String>,
        /// Which.
        changes: Vec<Change>,
    },
    /// A port is to have no settings of its own any more.
    Forget {
        /// Which.
        port: String,
    },
    /// Copies of frames, in the format of pcapng, until the connection is closed.
    Capture {
        /// Only of frames that come or go by this port.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        port: Option<String>,
    },
    /// It is to end.
    End,
}

/// What a switch says to that.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// It is done; or, of a capture, begins.
    Done,
    /// This is the switch.
    Status(Box<Status>),
    /// It is not.
    Refused {
        /// Why, and what to do.
        why: String,
    },
}

/// A switch, as it is seen from outside.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Status {
    /// What it is called.
    pub name: String,
    /// What it connects.
    pub kind: SwitchKind,
    /// What is behind its uplink.
    pub uplink: Option<String>,
    /// Whether that is there, and up.
    pub carrier: Option<bool>,
    /// Longest packet, in bytes.
    pub mtu: u32,
    /// Multicast goes only to who has asked for it.
    pub snooping: bool,
    /// It asks who wants which groups.
    pub querier: bool,
    /// Ports may come of which there are no settings.
    pub strangers: bool,
    /// Ports that are connected.
    pub ports: Vec<PortStatus>,
    /// Ports that have settings, and are not connected.
    pub absent: BTreeMap<String, Policy>,
    /// Settings of all machines' ports that have none of their own.
    pub default: Policy,
    /// Where stations were heard.
    pub stations: Vec<Station>,
    /// Who has asked for which groups.
    pub members: Vec<Member>,
}

/// A port that is connected.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PortStatus {
    /// What passed it.
    #[serde(flatten)]
    pub report: PortReport,
    /// Its settings.
    pub settings: Policy,
}

/// A station that was learned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Station {
    /// In which VLAN.
    pub vlan: u16,
    /// Its address.
    pub mac: String,
    /// Behind which port.
    pub port: String,
    /// Seconds since it was heard last.
    pub age: u64,
}

/// A member of a multicast group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// In which VLAN.
    pub vlan: u16,
    /// The group.
    pub group: String,
    /// Behind which port.
    pub port: String,
}

/// A switch could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody is there.
    #[error("{}: {source}: the switch is not running (vireo switch start), or is another user's", path.display())]
    NotThere {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It went, or said nothing that is understood.
    #[error("{}: no answer of the switch's that is understood: {why}; `vireo switch show` tells what it has done", path.display())]
    NoAnswer {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// It refuses.
    #[error("{0}")]
    Refused(String),
}

/// Asks the switch behind a socket.
///
/// # Errors
/// It is not there, does not answer, or refuses.
pub fn ask(socket: &Path, request: &Request) -> Result<Answer, ControlError> {
    let stream = connect(socket)?;
    converse(socket, &stream, request).map(|(answer, _)| answer)
}

/// A capture, to be read as a file.
pub struct Capture(Chain<Cursor<Vec<u8>>, UnixStream>);

impl Capture {
    /// Asks the switch behind a socket for one: of all frames, or of those that come or go by a port.
    ///
    /// # Errors
    /// As for [`ask`].
    pub fn start(socket: &Path, port: Option<String>) -> Result<Self, ControlError> {
        let stream = connect(socket)?;
        let (_, rest) = converse(socket, &stream, &Request::Capture { port })?;
        stream.set_read_timeout(None).map_err(|e| no_answer(socket, e))?;
        Ok(Self(Cursor::new(rest).chain(stream)))
    }

    /// What ends it, from any thread: what was captured by then can be read still.
    ///
    /// # Errors
    /// The host has no file descriptor for it.
    pub fn ender(&self) -> io::Result<impl Fn() + Send + use<>> {
        let stream = self.0.get_ref().1.try_clone()?;
        Ok(move || _ = stream.shutdown(std::net::Shutdown::Write))
    }
}

impl Read for Capture {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        self.0.read(to)
    }
}

fn connect(socket: &Path) -> Result<UnixStream, ControlError> {
    UnixStream::connect(socket).map_err(|source| ControlError::NotThere { path: socket.into(), source })
}

fn no_answer(socket: &Path, why: impl ToString) -> ControlError {
    ControlError::NoAnswer { path: socket.into(), why: why.to_string() }
}

/// The answer, and what came after it.
fn converse(
    socket: &Path,
    stream: &UnixStream,
    request: &Request,
) -> Result<(Answer, Vec<u8>), ControlError> {
    send(stream, request).map_err(|e| no_answer(socket, e))?;
    let mut lines = Lines::new(stream, VERSION, ANSWER_MAX);
    match lines.receive(PATIENCE).map_err(|e| no_answer(socket, e))? {
        Answer::Refused { why } => Err(ControlError::Refused(why)),
        answer => Ok((answer, lines.into_rest())),
    }
}

/// What a client wants.
pub(crate) fn hear(stream: &UnixStream) -> Result<Request, String> {
    stream.set_write_timeout(Some(PATIENCE)).map_err(|e| e.to_string())?;
    Lines::new(stream, VERSION, REQUEST_MAX).receive(PATIENCE)
}

/// Whether somebody still waits for the answer.
pub(crate) fn is_there(stream: &UnixStream) -> bool {
    let mut socket = [PollFd::new(stream, PollFlags::empty())];
    // Who says no more may listen still: of that there is no word here.
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    !poll(&mut socket, Some(&now)).is_ok_and(|_| socket[0].revents().contains(PollFlags::HUP))
}

/// Says something, on a line.
pub(crate) fn send<T: Serialize>(to: &UnixStream, what: &T) -> io::Result<()> {
    VERSION.send(to, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Golden: programs may speak this.
    #[test]
    fn requests_look_like_this() {
        let line = |r: &Request| VERSION.line(r).unwrap();
        assert_eq!(line(&Request::Show), r#"{"version":1,"command":"show"}"#);
        let change = Change { key: "vlan".into(), value: "7".into() };
        assert_eq!(
            line(&Request::Set { port: Some("web".into()), changes: vec![change] }),
            r#"{"version":1,"command":"set","port":"web","changes":[{"key":"vlan","value":"7"}]}"#
        );
    }
}
