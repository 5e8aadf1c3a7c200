//! What is asked of the host: sockets, behind traits, so that all else runs in a simulation as well.
//!
//! Nothing here waits: what cannot be done at once is `WouldBlock`, and is tried again after [`Ready`] was told of the token that the
//! socket was made with.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use vireo_frame::Frame;

use crate::forward::Protocol;

/// Names a socket to who waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub u64);

/// What has become of a socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    /// There is something to be received: bytes, an end, an error.
    pub read: bool,
    /// There is room to send, or the connection is there, or has failed.
    pub write: bool,
}

/// What datagrams are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// UDP.
    Udp,
    /// Echo requests of ICMP or ICMPv6: from the type on.
    Ping,
}

/// A connection of the host.
pub trait Stream {
    /// Whether it is there; after the first [`Ready::write`].
    ///
    /// # Errors
    /// It has failed.
    fn connected(&mut self) -> io::Result<()>;
    /// Receives bytes; 0: there are no more.
    ///
    /// # Errors
    /// Nothing is there yet, or it was reset.
    fn receive(&mut self, to: &mut [u8]) -> io::Result<usize>;
    /// Sends bytes, and says how many.
    ///
    /// # Errors
    /// There is no room, or it was reset.
    fn send(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// Sends a part of a frame.
    ///
    /// # Errors
    /// As of [`Self::send`].
    fn send_frame(&mut self, frame: &Frame<'_>, part: Range<usize>) -> io::Result<usize>;
    /// No more is sent.
    fn finish(&mut self);
    /// Ends it so that the other side knows that something went wrong.
    fn abort(&mut self);
}

/// A socket of the host for datagrams.
pub trait Datagrams {
    /// Sends one.
    ///
    /// # Errors
    /// There is no room, or one that was sent before has not arrived.
    fn send(&mut self, bytes: &[u8], to: Option<SocketAddr>) -> io::Result<()>;
    /// Receives one; says from whom if it is from anybody.
    ///
    /// # Errors
    /// There is none, or one that was sent has not arrived.
    fn receive(&mut self, to: &mut [u8]) -> io::Result<(usize, Option<SocketAddr>)>;
}

/// The host.
pub trait Host {
    /// Its connections.
    type Stream: Stream;
    /// What it listens by.
    type Listener;
    /// Its sockets for datagrams.
    type Datagrams: Datagrams;

    /// Connects, and tells the token when that is done.
    ///
    /// # Errors
    /// It cannot even be tried.
    fn connect(&mut self, to: SocketAddr, token: Token) -> io::Result<Self::Stream>;
    /// Listens; says where if any port will do.
    ///
    /// # Errors
    /// It may not.
    fn listen(&mut self, at: SocketAddr, token: Token) -> io::Result<(Self::Listener, SocketAddr)>;
    /// A connection that somebody has made.
    ///
    /// # Errors
    /// There is none.
    fn accept(&mut self, listener: &Self::Listener) -> io::Result<(Self::Stream, SocketAddr)>;
    /// Tells the token of a connection that was accepted.
    ///
    /// # Errors
    /// It cannot.
    fn watch(&mut self, stream: &Self::Stream, token: Token) -> io::Result<()>;
    /// A socket for datagrams to and from one other.
    ///
    /// # Errors
    /// There can be none.
    fn talk(&mut self, kind: Kind, to: SocketAddr, token: Token) -> io::Result<Self::Datagrams>;
    /// A socket for datagrams to and from anybody.
    ///
    /// # Errors
    /// It may not be there.
    fn bind(&mut self, at: SocketAddr, token: Token) -> io::Result<(Self::Datagrams, SocketAddr)>;
    /// Who answers DNS for the host.
    fn resolvers(&mut self) -> Vec<IpAddr>;
    /// Whether it has a way out by IPv6.
    fn has_ipv6(&mut self) -> bool;
}

/// Listens for what a forward says.
#[derive(Debug)]
pub enum Listening<H: Host> {
    /// For connections.
    Tcp(H::Listener),
    /// For datagrams.
    Udp(H::Datagrams),
}

impl<H: Host> Listening<H> {
    /// Begins to; says where.
    ///
    /// # Errors
    /// The host does not allow it.
    pub fn start(
        host: &mut H,
        protocol: Protocol,
        at: SocketAddr,
        token: Token,
    ) -> io::Result<(Self, SocketAddr)> {
        Ok(match protocol {
            Protocol::Tcp => host.listen(at, token).map(|(l, at)| (Self::Tcp(l), at))?,
            Protocol::Udp => host.bind(at, token).map(|(d, at)| (Self::Udp(d), at))?,
        })
    }
}
