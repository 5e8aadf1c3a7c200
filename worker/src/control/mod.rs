//! How a running machine is changed from outside: one request and one answer, in a line of JSON each, over a Unix socket.

mod disk;
mod guest;
mod info;
mod nic;
mod screen;
mod server;

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vireo_control::{Lines, Version};
use vireo_services::{CopyTo, MemoryStatus};

use crate::disks::DiskStatus;
use crate::nics::NicStatus;

pub use info::{GuestReport, MachineInfo};
pub use server::{ControlServer, Controlled, Running, Wish};

/// Version of the protocol: both sides say theirs, and understand none but their own.
const VERSION: Version = Version(1);
/// Longest line that is taken of those who ask.
const REQUEST_MAX: usize = 64 * 1024;
/// Longest answer: the largest screen, of noise.
const ANSWER_MAX: usize = 512 << 20;

/// What is wanted of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", rename_all_fields = "kebab-case", deny_unknown_fields)]
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
    /// What the machine is, and what its guest tells.
    Info,
    /// The guest ends, or starts anew, in good order.
    Shutdown {
        /// It starts anew.
        restart: bool,
    },
    /// The machine starts anew, whatever its guest is at.
    Reset,
    /// The guest is interrupted as nothing can keep out.
    Nmi,
    /// The guest's file systems are frozen.
    Freeze {
        /// For so long at most.
        seconds: u64,
    },
    /// They are thawed.
    Thaw,
    /// A file comes into the guest.
    Copy {
        /// On the host, with an absolute path.
        file: PathBuf,
        /// In the guest.
        to: CopyTo,
    },
    /// The value of a key.
    KvpGet {
        /// Where.
        pool: PairPool,
        /// Which.
        key: String,
    },
    /// Leaves a pair for the guest.
    KvpSet {
        /// Its name.
        key: String,
        /// What it holds.
        value: String,
    },
    /// Takes one away.
    KvpDelete {
        /// Its name.
        key: String,
    },
    /// Which pairs there are.
    KvpList {
        /// Where.
        pool: PairPool,
    },
    /// The guest's memory.
    Memory,
    /// It is to have other memory.
    MemorySet {
        /// In bytes; `None`: what it needs.
        target: Option<u64>,
    },
}

/// Where pairs are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PairPool {
    /// What the host left for the guest.
    Host,
    /// What the guest left for the host.
    Guest,
    /// What the guest finds out about itself.
    System,
}

/// A pair of a key and a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// Its name.
    pub key: String,
    /// What it holds.
    pub value: String,
}

/// What kind of refusal it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The guest has nothing that could do it.
    NoService,
    /// The guest does not answer.
    NoAnswer,
}

/// Most characters that are typed at a time: what can be typed while somebody waits.
pub const TEXT_MAX: usize = 1000;

/// What a machine says to that.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// The machine, and its guest.
    Info {
        /// All of it.
        info: Box<MachineInfo>,
    },
    /// These are pairs: all, or the one that was asked for.
    Pairs {
        /// As the guest tells them.
        pairs: Vec<Pair>,
    },
    /// This is the guest's memory.
    Memory {
        /// In bytes.
        memory: MemoryStatus,
    },
    /// It is under way; there is more to come.
    Progress {
        /// So much of it is done.
        done: u64,
        /// All.
        total: u64,
    },
    /// It is not.
    Refused {
        /// Why, and what to do.
        why: String,
        /// What a program may want to tell apart.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<Reason>,
    },
}

impl Answer {
    fn refused(why: impl std::fmt::Display) -> Self {
        Self::Refused { why: why.to_string(), reason: None }
    }
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
    #[error("{}: no answer of the machine's that is understood: {why}", path.display())]
    NoAnswer {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// It refuses.
    #[error("{why}")]
    Refused {
        /// Why, and what to do.
        why: String,
        /// What kind of refusal.
        reason: Option<Reason>,
    },
}

/// How long a machine may take for the next thing that it says: opening an image may replay its log, freezing writes what the guest
/// holds back.
const PATIENCE: Duration = Duration::from_secs(150);

/// Asks the machine behind a socket.
///
/// # Errors
/// It is not there, does not answer, or refuses.
pub fn ask(socket: &Path, request: &Request) -> Result<Answer, ControlError> {
    ask_with(socket, request, &mut |_, _| ())
}

/// The same; `progress` is told how much is done, and of how much.
///
/// # Errors
/// As of [`ask`].
pub fn ask_with(
    socket: &Path,
    request: &Request,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Answer, ControlError> {
    let not_there = |source| ControlError::NotThere { path: socket.into(), source };
    let no_answer = |why: String| ControlError::NoAnswer { path: socket.into(), why };
    let stream = UnixStream::connect(socket).map_err(not_there)?;
    VERSION.send(&stream, request).map_err(|e| no_answer(e.to_string()))?;
    let mut lines = Lines::new(&stream, VERSION, ANSWER_MAX);
    loop {
        match lines.receive(PATIENCE).map_err(no_answer)? {
            Answer::Refused { why, reason } => return Err(ControlError::Refused { why, reason }),
            Answer::Progress { done, total } => progress(done, total),
            answer => return Ok(answer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Golden: programs may speak this.
    #[test]
    fn requests_and_answers_look_like_this() {
        let line = |r: &Request| VERSION.line(r).unwrap();
        let grow = Request::DiskGrow { name: "scsi0:1".into(), size: Some(4096) };
        assert_eq!(line(&grow), r#"{"version":1,"command":"disk-grow","name":"scsi0:1","size":4096}"#);
        assert_eq!(line(&Request::DiskList), r#"{"version":1,"command":"disk-list"}"#);
        let to = CopyTo { path: "/a".into(), overwrite: true, create_path: false };
        assert_eq!(
            line(&Request::Copy { file: "/b".into(), to }),
            r#"{"version":1,"command":"copy","file":"/b","to":{"path":"/a","overwrite":true,"create-path":false}}"#
        );
        let get = Request::KvpGet { pool: PairPool::System, key: "OSName".into() };
        assert_eq!(line(&get), r#"{"version":1,"command":"kvp-get","pool":"system","key":"OSName"}"#);
        let refused = Answer::refused("no");
        assert_eq!(serde_json::to_string(&refused).unwrap(), r#"{"answer":"refused","why":"no"}"#);
        let absent = Answer::Refused { why: "no".into(), reason: Some(Reason::NoService) };
        let text = r#"{"answer":"refused","why":"no","reason":"no-service"}"#;
        assert_eq!(serde_json::to_string(&absent).unwrap(), text);
    }

    #[test]
    fn what_is_under_way_is_told_before_the_answer() {
        let path = std::env::temp_dir().join(format!("vireo-progress-{}", std::process::id()));
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let machine = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            // More than one line at a time.
            for done in [1, 2] {
                VERSION.send(&stream, &Answer::Progress { done, total: 2 }).unwrap();
            }
            VERSION.send(&stream, &Answer::Done).unwrap();
        });
        let mut told = Vec::new();
        let answer = ask_with(&path, &Request::Thaw, &mut |done, total| told.push((done, total)));
        assert!(matches!(answer, Ok(Answer::Done)));
        assert_eq!(told, [(1, 2), (2, 2)]);
        machine.join().unwrap();
        std::fs::remove_file(&path).unwrap();
    }
}
