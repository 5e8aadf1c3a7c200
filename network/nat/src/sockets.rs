//! The host's sockets.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::net::{
    self as sys, AddressFamily, Protocol, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, ipproto,
    sockopt,
};
use vireo_frame::Frame;

use crate::dns;
use crate::host::{Datagrams, Host, Kind, Stream, Token};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;
/// How often it is looked whether others answer DNS now.
const LOOK: Duration = Duration::from_secs(1);
/// Pieces of guest memory that are given to the kernel at a time.
const PIECES: usize = 64;
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The host, by its sockets: they are told of by an epoll instance.
#[derive(Debug)]
pub struct Sockets {
    epoll: Arc<OwnedFd>,
    resolvers: Vec<IpAddr>,
    looked: Option<(Instant, Option<SystemTime>)>,
}

impl Sockets {
    pub fn new(epoll: Arc<OwnedFd>) -> Self {
        Self { epoll, resolvers: Vec::new(), looked: None }
    }

    fn socket(&self, of: SocketAddr, kind: SocketType, protocol: Option<Protocol>) -> io::Result<OwnedFd> {
        let family = if of.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        Ok(sys::socket_with(family, kind, flags, protocol)?)
    }

    /// Tells of each change once; sockets are left when they are closed.
    fn add(&self, socket: &OwnedFd, token: Token) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(&*self.epoll, socket, EventData::new_u64(token.0), flags)?)
    }
}

/// A connection.
#[derive(Debug)]
pub struct Connection(OwnedFd);

impl Connection {
    fn new(socket: OwnedFd) -> io::Result<Self> {
        // The guest's own TCP has waited already where that was wanted.
        sockopt::set_tcp_nodelay(&socket, true)?;
        Ok(Self(socket))
    }
}

impl Stream for Connection {
    fn connected(&mut self) -> io::Result<()> {
        sockopt::socket_error(&self.0)??;
        // An error that was read before is not told again.
        sys::getpeername(&self.0).map(|_| ()).map_err(Into::into)
    }

    fn receive(&mut self, to: &mut [u8]) -> io::Result<usize> {
        Ok(sys::recv(&self.0, to, RecvFlags::DONTWAIT)?.1)
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(sys::send(&self.0, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?)
    }

    fn send_frame(&mut self, frame: &Frame<'_>, part: Range<usize>) -> io::Result<usize> {
        let head = frame.head();
        if part.end <= head.len() {
            return self.send(&head[part]);
        }
        let mut pieces = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; PIECES];
        let mut count = 0;
        let mut add = |piece: libc::iovec, skip: usize, length: usize| {
            if length > 0 && count < PIECES {
                pieces[count] =
                    libc::iovec { iov_base: piece.iov_base.wrapping_byte_add(skip), iov_len: length };
                count += 1;
            }
        };
        if let Some(first) = head.get(part.start..) {
            add(
                libc::iovec { iov_base: first.as_ptr().cast_mut().cast(), iov_len: first.len() },
                0,
                first.len(),
            );
        }
        let mut before = head.len();
        for slice in frame.tail() {
            let skip = part.start.saturating_sub(before).min(slice.len());
            let end = part.end.saturating_sub(before).min(slice.len());
            add(slice.iovec(), skip, end.saturating_sub(skip));
            before += slice.len();
        }
        // SAFETY: `msghdr` is plain numbers and pointers, for which zero means nothing.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = pieces.as_mut_ptr();
        message.msg_iovlen = count as _;
        // SAFETY: the pieces lie inside of the frame's head and of its tail's slices, which live as long as `frame`; they are only
        // read. The descriptor is open.
        let sent =
            unsafe { libc::sendmsg(self.0.as_raw_fd(), &message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    fn finish(&mut self) {
        // It fails only where the other side has gone, which is told by receiving.
        _ = sys::shutdown(&self.0, Shutdown::Write);
    }

    fn abort(&mut self) {
        _ = sockopt::set_socket_linger(&self.0, Some(Duration::ZERO));
    }
}

/// A socket for datagrams.
#[derive(Debug)]
pub struct Messages(OwnedFd);

impl Datagrams for Messages {
    fn send(&mut self, bytes: &[u8], to: Option<SocketAddr>) -> io::Result<()> {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match to {
            Some(to) => sys::sendto(&self.0, bytes, flags, &to)?,
            None => sys::send(&self.0, bytes, flags)?,
        };
        Ok(())
    }

    fn receive(&mut self, to: &mut [u8]) -> io::Result<(usize, Option<SocketAddr>)> {
        let (_, length, from) = sys::recvfrom(&self.0, to, RecvFlags::DONTWAIT)?;
        Ok((length, from.and_then(|a| SocketAddr::try_from(a).ok())))
    }
}

/// `connect` has begun.
fn is_under_way(result: Result<(), rustix::io::Errno>) -> io::Result<()> {
    match result {
        Err(rustix::io::Errno::INPROGRESS) | Ok(()) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

fn name_of(socket: &OwnedFd) -> io::Result<SocketAddr> {
    SocketAddr::try_from(sys::getsockname(socket)?).map_err(io::Error::from)
}

impl Host for Sockets {
    type Stream = Connection;
    type Listener = OwnedFd;
    type Datagrams = Messages;

    fn connect(&mut self, to: SocketAddr, token: Token) -> io::Result<Connection> {
        let socket = self.socket(to, SocketType::STREAM, None)?;
        is_under_way(sys::connect(&socket, &to))?;
        self.add(&socket, token)?;
        Connection::new(socket)
    }

    fn listen(&mut self, at: SocketAddr, token: Token) -> io::Result<(OwnedFd, SocketAddr)> {
        let socket = self.socket(at, SocketType::STREAM, None)?;
        // Those of connections that have ended are no reason to refuse.
        sockopt::set_socket_reuseaddr(&socket, true)?;
        if at.is_ipv6() {
            sockopt::set_ipv6_v6only(&socket, true)?;
        }
        sys::bind(&socket, &at)?;
        sys::listen(&socket, BACKLOG)?;
        self.add(&socket, token)?;
        let at = name_of(&socket)?;
        Ok((socket, at))
    }

    fn accept(&mut self, listener: &OwnedFd) -> io::Result<(Connection, SocketAddr)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (socket, from) = sys::acceptfrom_with(listener, flags)?;
        let from = from.and_then(|a| SocketAddr::try_from(a).ok());
        Ok((Connection::new(socket)?, from.unwrap_or(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0))))
    }

    fn watch(&mut self, stream: &Connection, token: Token) -> io::Result<()> {
        self.add(&stream.0, token)
    }

    fn talk(&mut self, kind: Kind, to: SocketAddr, token: Token) -> io::Result<Messages> {
        let protocol = match kind {
            Kind::Udp => ipproto::UDP,
            Kind::Ping if to.is_ipv6() => ipproto::ICMPV6,
            Kind::Ping => ipproto::ICMP,
        };
        let socket = self.socket(to, SocketType::DGRAM, Some(protocol))?;
        sys::connect(&socket, &to)?;
        self.add(&socket, token)?;
        Ok(Messages(socket))
    }

    fn bind(&mut self, at: SocketAddr, token: Token) -> io::Result<(Messages, SocketAddr)> {
        let socket = self.socket(at, SocketType::DGRAM, None)?;
        if at.is_ipv6() {
            sockopt::set_ipv6_v6only(&socket, true)?;
        }
        sys::bind(&socket, &at)?;
        self.add(&socket, token)?;
        let at = name_of(&socket)?;
        Ok((Messages(socket), at))
    }

    fn resolvers(&mut self) -> Vec<IpAddr> {
        let now = Instant::now();
        if self.looked.is_none_or(|(when, _)| now.duration_since(when) >= LOOK) {
            let changed = std::fs::metadata(RESOLV_CONF).and_then(|m| m.modified()).ok();
            if self.looked.is_none_or(|(_, before)| before != changed) {
                self.resolvers = read_resolvers(Path::new(RESOLV_CONF));
            }
            self.looked = Some((now, changed));
        }
        self.resolvers.clone()
    }

    fn has_ipv6(&mut self) -> bool {
        // Nothing is sent: the kernel looks for a route.
        let somewhere = SocketAddr::new(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 1).into(), 9);
        let socket = self.socket(somewhere, SocketType::DGRAM, None);
        socket.is_ok_and(|socket| sys::connect(socket.as_fd(), &somewhere).is_ok())
    }
}

fn read_resolvers(file: &Path) -> Vec<IpAddr> {
    match std::fs::read_to_string(file) {
        Ok(text) => dns::resolvers(&text),
        Err(error) => {
            tracing::warn!(%error, "{} cannot be read: guests' DNS is not answered", file.display());
            Vec::new()
        }
    }
}
