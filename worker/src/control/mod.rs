//! How a running machine is changed from outside: one request and one answer, in a line of JSON each, over a Unix socket.

mod screen;
mod server;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::disks::DiskStatus;
use crate::nics::NicStatus;

pub use server::ControlServer;

/// Version of the protocol: both sides say theirs, and understand none but their own.
const VERSION: u32 = 1;
/// Longest line that is taken of those who ask.
const REQUEST_MAX: usize = 64 * 1024;
/// Longest answer: the largest screen, of noise.
const ANSWER_MAX: usize = 512 << 20;

/// What is wanted of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum Request {
    /// A further disk.
    DiskAdd {
        /// As on the command line, with an absolute path.
        disk: String,
    },
    /// A disk less.
    DiskRemove {
        /// Its name.
        name: String,
    },
    /// A larger disk.
    DiskGrow {
        /// Its name.
        name: String,
        /// In bytes; `None`: as large as its file has become.
        size: Option<u64>,
    },
    /// Which disks there are.
    DiskList,
    /// A further network adapter.
    NicAdd {
        /// As on the command line.
        nic: String,
    },
    /// A network adapter less.
    NicRemove {
        /// Its name.
        name: String,
    },
    /// Which network adapters there are.
    NicList,
    /// What is on the screen.
    Screenshot,
    /// Text to be typed on the keyboard.
    Type {
        /// At most [`TEXT_MAX`] characters.
        text: String,
    },
    /// Keys to be pressed one after the other, and let go in the opposite order.
    Keys {
        /// Their names.
        keys: Vec<String>,
    },
}

/// Most characters that are typed at a time: what can be typed while somebody waits.
pub const TEXT_MAX: usize = 1000;

/// What a machine says to that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum Answer {
    /// It is done.
    Done,
    /// These are disks: all, or the one that was changed.
    Disks {
        /// In order of their names.
        disks: Vec<DiskStatus>,
    },
    /// These are network adapters: all, or the one that was added.
    Nics {
        /// In order of their names.
        nics: Vec<NicStatus>,
    },
    /// The screen.
    Screen {
        /// A PNG, in base64.
        png: String,
    },
    /// It is not.
    Refused {
        /// Why, and what to do.
        why: String,
    },
}

/// A line of either side.
#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    version: u32,
    #[serde(flatten)]
    what: T,
}

/// A machine could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody is there.
    #[error("{}: {source}: is the machine running, with --control {}?", path.display(), path.display())]
    NotThere {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// It went, or said nothing that is understood.
    #[error("{}: the machine's answer is not understood: {why}", path.display())]
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

/// How long a machine may take: opening an image may replay its log.
const PATIENCE: Duration = Duration::from_secs(60);

/// Asks the machine behind a socket.
///
/// # Errors
/// It is not there, does not answer, or refuses.
pub fn ask(socket: &Path, request: &Request) -> Result<Answer, ControlError> {
    let not_there = |source| ControlError::NotThere { path: socket.into(), source };
    let no_answer = |why: String| ControlError::NoAnswer { path: socket.into(), why };
    let stream = UnixStream::connect(socket).map_err(not_there)?;
    send(&stream, request).map_err(|e| no_answer(e.to_string()))?;
    match receive(&stream, PATIENCE, ANSWER_MAX).map_err(no_answer)? {
        Answer::Refused { why } => Err(ControlError::Refused(why)),
        answer => Ok(answer),
    }
}

fn send<T: Serialize>(mut to: &UnixStream, what: &T) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(&Envelope { version: VERSION, what })?;
    line.push(b'\n');
    to.write_all(&line)
}

/// Reads a line, which has to be there within `patience`.
fn read_line(mut from: &UnixStream, patience: Duration, most: usize) -> std::io::Result<Vec<u8>> {
    let deadline = Instant::now() + patience;
    let mut line = Vec::new();
    let mut part = [0; 16 << 10];
    while line.last() != Some(&b'\n') && line.len() < most {
        let left = deadline.saturating_duration_since(Instant::now());
        from.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match from.read(&mut part)? {
            0 => break,
            n => line.extend(&part[..n]),
        }
        if Instant::now() >= deadline {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
    }
    Ok(line)
}

fn receive<T: for<'a> Deserialize<'a>>(
    from: &UnixStream,
    patience: Duration,
    most: usize,
) -> Result<T, String> {
    let line = read_line(from, patience, most).map_err(|e| e.to_string())?;
    // The version first: what another one means is not for us to say.
    let version: Envelope<serde_json::Value> = serde_json::from_slice(&line).map_err(|e| e.to_string())?;
    if version.version != VERSION {
        return Err(format!(
            "it is in version {} of the protocol, this program speaks {VERSION}",
            version.version
        ));
    }
    serde_json::from_value(version.what).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Golden: programs may speak this.
    #[test]
    fn requests_and_answers_look_like_this() {
        let line = |r: &Request| serde_json::to_string(&Envelope { version: VERSION, what: r }).unwrap();
        let grow = Request::DiskGrow { name: "scsi0:1".into(), size: Some(4096) };
        assert_eq!(line(&grow), r#"{"version":1,"command":"disk-grow","name":"scsi0:1","size":4096}"#);
        assert_eq!(line(&Request::DiskList), r#"{"version":1,"command":"disk-list"}"#);
        let refused = Answer::Refused { why: "no".into() };
        assert_eq!(serde_json::to_string(&refused).unwrap(), r#"{"answer":"refused","why":"no"}"#);
    }

    #[test]
    fn what_is_no_request_is_not_understood() {
        let (a, b) = UnixStream::pair().unwrap();
        let said = |text: &str| {
            (&a).write_all(text.as_bytes()).unwrap();
            receive::<Request>(&b, Duration::from_secs(5), REQUEST_MAX).unwrap_err()
        };
        assert!(said("{\"version\":2,\"command\":\"disk-list\"}\n").contains("version 2"));
        said("{\"version\":1,\"command\":\"disk-burn\"}\n");
        said("{\"command\":\"disk-list\"}\n");
        said("nonsense\n");
    }
}
