//! What is said over a port's socket: messages of JSON, one a packet, and wake-ups, of one byte.
//!
//! The worker says [`Hello`]; the switch answers with [`Welcome`] and the memory file, or why not. Then either may wake the other, and
//! the worker tells of its adapter ([`Word`]).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use vireo_frame::{Filter, Mac};

/// Version of the protocol and of the rings: both sides say theirs, and understand none but their own.
pub const VERSION: u32 = 2;
/// Longest message, in bytes.
pub const MESSAGE_MAX: usize = 16 * 1024;
/// Groups that are named in a message; who wants more of them gets all.
const GROUPS_MAX: usize = 512;
/// Longest name of a port or a switch.
const NAME_MAX: usize = 64;
/// Files that come with a message, at most (the kernel's limit).
const FILES_MAX: usize = 253;
/// Connections that wait to be served.
const BACKLOG: i32 = 64;

/// What a worker wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortRequest {
    /// What the port is called: the switch keeps its settings by that name. One connection has it at a time.
    pub name: String,
    /// The address of the adapter. The switch may have another one for that name: then it refuses.
    #[serde(with = "text")]
    pub mac: Mac,
    /// The VLAN that it is to be in (1 to 4094; 0 is the network without tags), if the switch has no settings for that name, or the
    /// same VLAN in them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
}

/// The first thing that a worker says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// [`VERSION`].
    pub version: u32,
    /// What it wants.
    pub port: PortRequest,
}

/// What of a first message any version has.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

impl Hello {
    /// Reads it; what another version means is not for us to say.
    ///
    /// # Errors
    /// It is of another version, or none.
    pub fn read(message: &[u8]) -> Result<Self, String> {
        match parse::<Versioned>(message)?.version {
            VERSION => parse(message),
            version => Err(format!("it is of version {version}, the switch speaks {VERSION}")),
        }
    }
}

/// What it gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Welcome {
    /// A port, whose memory file is with the message.
    Port {
        /// [`VERSION`].
        version: u32,
        /// Bytes of each ring.
        ring: u32,
        /// The longest packet behind an Ethernet header, in bytes.
        mtu: u32,
        /// Bits in a second that adapters say they do.
        speed: u64,
    },
    /// Nothing.
    Refused {
        /// Why, and what to do.
        why: String,
    },
}

/// What a worker tells of its adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "tell", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Word {
    /// It wants another address: answered by [`Answer`].
    Address {
        /// Which.
        #[serde(with = "text")]
        mac: Mac,
    },
    /// What it wants to get.
    Filter {
        /// Frames to its address.
        directed: bool,
        /// Frames to all.
        broadcast: bool,
        /// Frames to these groups; none given: to any.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        groups: Option<Vec<String>>,
    },
}

/// Whether the adapter may have the address that it wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// That address: an answer may come when it is not waited for any more, and the next one is.
    #[serde(with = "text")]
    pub mac: Mac,
    /// It may.
    pub allowed: bool,
}

/// A name of a port or a switch: letters, digits, and some signs that mean nothing in paths and shells.
pub fn is_name(name: &str) -> bool {
    let sign = |c: char| c.is_ascii_alphanumeric() || "._:-".contains(c);
    (1..=NAME_MAX).contains(&name.len()) && name.chars().all(sign) && !name.starts_with(['.', '-'])
}

impl From<&Filter> for Word {
    fn from(filter: &Filter) -> Self {
        let groups = filter.groups.as_ref().filter(|groups| groups.len() <= GROUPS_MAX);
        let groups = groups.map(|groups| groups.iter().map(ToString::to_string).collect());
        Self::Filter { directed: filter.directed, broadcast: filter.broadcast, groups }
    }
}

impl Word {
    /// The filter that it tells of, if it does.
    pub fn filter(&self) -> Option<Filter> {
        let Self::Filter { directed, broadcast, groups } = self else { return None };
        let parse = |groups: &Vec<String>| groups.iter().filter_map(|g| g.parse().ok()).collect();
        Some(Filter { directed: *directed, broadcast: *broadcast, groups: groups.as_ref().map(parse) })
    }
}

/// What came by a socket.
#[derive(Debug)]
pub enum Heard<'a> {
    /// The other side wakes us.
    Bell,
    /// A message, with a file if one was with it.
    Message(&'a [u8], Option<OwnedFd>),
    /// Files that nobody wants. Closing one may take as long as its sender likes.
    Files(Vec<OwnedFd>),
    /// Nothing, now.
    Nothing,
    /// The other side has closed, or the socket is of no use any more.
    Gone,
}

fn socket(kind: SocketType) -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?)
}

/// Connects to a switch.
///
/// # Errors
/// Nobody is there.
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    let socket = socket(SocketType::SEQPACKET)?;
    set_patience(&socket, Duration::from_secs(5))?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Listens where workers connect, or others by streams; the socket is its owner's alone.
///
/// # Errors
/// The name is taken, or cannot be.
pub fn listen(path: &Path, kind: SocketType) -> io::Result<OwnedFd> {
    let socket = socket(kind)?;
    // The name gets the mode that the socket has when it is bound.
    rustix::fs::fchmod(&socket, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)?;
    refuse_files(&socket);
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Has the kernel refuse files that others would send to a socket, and to those that are accepted from it. Kernels before 6.16 cannot.
fn refuse_files(socket: &OwnedFd) {
    const SO_PASSRIGHTS: libc::c_int = 83;
    let off: libc::c_int = 0;
    // SAFETY: the option's value is an integer, which lives during the call.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PASSRIGHTS,
            std::ptr::from_ref(&off).cast(),
            size_of_val(&off) as libc::socklen_t,
        );
    }
}

/// How long receiving and sending wait.
///
/// # Errors
/// The host refuses.
pub fn set_patience(socket: impl AsFd, patience: Duration) -> io::Result<()> {
    use rustix::net::sockopt::{Timeout, set_socket_timeout};
    set_socket_timeout(&socket, Timeout::Recv, Some(patience))?;
    Ok(set_socket_timeout(&socket, Timeout::Send, Some(patience))?)
}

/// Wakes the other side. It does not wait: where the socket is full, the other side has much to wake up for already.
pub fn ring(socket: impl AsFd) {
    _ = rustix::net::send(socket, &[0], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
}

/// Sends a message, with a file if one is given; `wait`: as long as the socket's patience lasts, if there is no room.
///
/// # Errors
/// The other side is gone, or does not read; or the message is too long.
pub fn send<T: Serialize>(
    socket: impl AsFd,
    what: &T,
    file: Option<BorrowedFd<'_>>,
    wait: bool,
) -> io::Result<()> {
    let bytes = serde_json::to_vec(what)?;
    if bytes.len() > MESSAGE_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files = file.as_slice();
    if file.is_some() {
        control.push(SendAncillaryMessage::ScmRights(files));
    }
    let mut flags = SendFlags::NOSIGNAL;
    flags.set(SendFlags::DONTWAIT, !wait);
    rustix::net::sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, flags)?;
    Ok(())
}

/// Receives what there is; `wait`: until something comes, or the socket's patience ends. Messages go to `buffer`, of [`MESSAGE_MAX`] bytes.
/// No file is closed here.
pub fn receive<'a>(socket: impl AsFd, wait: bool, buffer: &'a mut [u8]) -> Heard<'a> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut flags = RecvFlags::CMSG_CLOEXEC;
    flags.set(RecvFlags::DONTWAIT, !wait);
    let got = match rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, flags) {
        Ok(got) => got.bytes,
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Heard::Nothing,
        Err(_) => return Heard::Gone,
    };
    let mut files = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(these) = message {
            files.extend(these);
        }
    }
    match (got, files.len()) {
        (0, 0) => Heard::Gone,
        (1, 0) => Heard::Bell,
        (2.., 0..=1) => Heard::Message(&buffer[..got.min(buffer.len())], files.pop()),
        _ => Heard::Files(files),
    }
}

/// A message, understood.
///
/// # Errors
/// It is none.
pub fn parse<T: DeserializeOwned>(message: &[u8]) -> Result<T, String> {
    serde_json::from_slice(message).map_err(|e| format!("not understood: {e}"))
}

/// What has a text, as that.
pub mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer};

    /// To be used by serde.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<T: Display, S: Serializer>(what: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(what)
    }

    /// To be used by serde.
    ///
    /// # Errors
    /// The text is none.
    pub fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
