//! The sockets.

use std::cmp::Reverse;
use std::io;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::net::sockopt;
use vireo_screen::Station;

use crate::client::{self, Place};
use crate::security::Security;
use crate::transport::Socket;

/// Clients that are served at a time.
pub const CLIENTS_MOST: usize = 16;
/// Threads of clients, those included that are about to go.
const THREADS_MOST: usize = 2 * CLIENTS_MOST;
/// A client of which nothing is heard is asked whether it is there after so long, then so often, so many times.
const SILENCE: Duration = Duration::from_secs(60);
const ASKED: Duration = Duration::from_secs(15);
const ASKS: u32 = 4;

/// Where clients connect.
pub enum Listener {
    /// A Unix socket.
    Unix(UnixListener),
    /// A network.
    Tcp(TcpListener),
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(l) => l.as_fd(),
            Self::Tcp(l) => l.as_fd(),
        }
    }
}

impl Listener {
    /// Who has connected, and from where.
    fn accept(&self) -> io::Result<(Socket, Option<IpAddr>)> {
        match self {
            Self::Unix(l) => Ok((Socket::Unix(l.accept()?.0), None)),
            Self::Tcp(l) => {
                let (socket, from) = l.accept()?;
                ask_whether_it_is_there(&socket)?;
                Ok((Socket::Tcp(socket), Some(from.ip())))
            }
        }
    }

    fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Unix(l) => l.set_nonblocking(true),
            Self::Tcp(l) => l.set_nonblocking(true),
        }
    }
}

/// A client that has vanished says nothing any more, and where the screen does not change there is nothing for it to acknowledge.
fn ask_whether_it_is_there(socket: &TcpStream) -> io::Result<()> {
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, SILENCE)?;
    sockopt::set_tcp_keepintvl(socket, ASKED)?;
    sockopt::set_tcp_keepcnt(socket, ASKS)?;
    // The same of what it was sent.
    let most = SILENCE + ASKED * ASKS;
    Ok(sockopt::set_tcp_user_timeout(socket, most.as_millis() as u32)?)
}

/// A server. Dropping it closes its clients.
pub struct VncServer {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl VncServer {
    /// Serves who connects.
    ///
    /// # Errors
    /// The host refuses a thread or a file descriptor.
    pub fn start(listener: Listener, security: Security, station: Station) -> io::Result<Self> {
        listener.set_nonblocking()?;
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let server =
            Server { security: Arc::new(security), station, stop: Arc::clone(&stop), clients: Vec::new() };
        let thread = Builder::new().name("vnc".into()).spawn(move || server.run(&listener))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for VncServer {
    fn drop(&mut self) {
        // Never read: all see it.
        _ = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so itself.
            _ = thread.join();
        }
    }
}

struct Server {
    security: Arc<Security>,
    station: Station,
    stop: Arc<OwnedFd>,
    /// The oldest first.
    clients: Vec<Served>,
}

struct Served {
    thread: JoinHandle<()>,
    place: Arc<Place>,
    from: Option<IpAddr>,
}

impl Server {
    fn run(mut self, listener: &Listener) {
        /// The host has no file descriptor left, say: time for it to get some.
        const RETRY: Duration = Duration::from_millis(100);
        loop {
            let mut fds = [
                PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(self.stop.as_fd(), PollFlags::IN),
            ];
            if poll(&mut fds, None).is_ok() && fds[1].revents().contains(PollFlags::IN) {
                break;
            }
            match listener.accept() {
                Ok((socket, from)) => self.admit(socket, from),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => std::thread::sleep(RETRY),
            }
        }
        // One that panicked has said so itself.
        self.clients.drain(..).for_each(|c| _ = c.thread.join());
    }

    /// Has a client served by a thread of its own, if there is a place for it: else it is closed.
    fn admit(&mut self, socket: Socket, from: Option<IpAddr>) {
        self.clients.retain(|c| !c.thread.is_finished());
        if !self.make_room() {
            tracing::debug!("a VNC client too many");
            return;
        }
        // Without a file descriptor or a thread, the client is closed.
        let Ok(place) = Place::new().map(Arc::new) else { return };
        let (security, station, stop) =
            (Arc::clone(&self.security), self.station.clone(), Arc::clone(&self.stop));
        let its = Arc::clone(&place);
        let thread = Builder::new().name("vnc-client".into()).spawn(move || {
            if let Err(e) = client::serve(socket, from, &security, &station, &its, &stop) {
                tracing::debug!("a VNC client has gone: {e}");
            }
        });
        self.clients.extend(thread.ok().map(|thread| Served { thread, place, from }));
    }

    /// Whether there is room for one more. Who has not made its handshake gives way, so that nobody is kept out by those who may not
    /// come in: of the address that has most such clients, the oldest.
    fn make_room(&self) -> bool {
        let stay = |c: &&Served| !c.place.is_dismissed();
        if self.clients.iter().filter(stay).count() < CLIENTS_MOST {
            return true;
        }
        let waiting: Vec<&Served> = self.clients.iter().filter(stay).filter(|c| !c.place.is_up()).collect();
        let of = |from: Option<IpAddr>| waiting.iter().filter(|c| c.from == from).count();
        let found = waiting.iter().enumerate().max_by_key(|(n, c)| (of(c.from), Reverse(*n)));
        match found {
            Some((_, client)) if self.clients.len() < THREADS_MOST => {
                client.place.dismiss();
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_that_vanish_are_noticed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, from) = Listener::Tcp(listener).accept().unwrap();
        assert!(from.is_some_and(|from| from.is_loopback()));
        assert!(sockopt::socket_keepalive(&socket).unwrap());
        let most = sockopt::tcp_keepidle(&socket).unwrap()
            + sockopt::tcp_keepintvl(&socket).unwrap() * sockopt::tcp_keepcnt(&socket).unwrap();
        assert_eq!(most, Duration::from_secs(120));
        assert_eq!(sockopt::tcp_user_timeout(&socket).unwrap(), 120_000);
    }
}
