//! The sockets.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use vireo_screen::Station;

use crate::client;
use crate::security::Security;
use crate::transport::Socket;

/// Clients that are served at a time.
const CLIENTS_MOST: usize = 16;

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
    fn accept(&self) -> io::Result<Socket> {
        Ok(match self {
            Self::Unix(l) => Socket::Unix(l.accept()?.0),
            Self::Tcp(l) => Socket::Tcp(l.accept()?.0),
        })
    }

    fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Unix(l) => l.set_nonblocking(true),
            Self::Tcp(l) => l.set_nonblocking(true),
        }
    }
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
    clients: Vec<JoinHandle<()>>,
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
                Ok(socket) => self.admit(socket),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => std::thread::sleep(RETRY),
            }
        }
        // One that panicked has said so itself.
        self.clients.drain(..).for_each(|c| _ = c.join());
    }

    /// Has a client served by a thread of its own, if there are not too many: one more is closed.
    fn admit(&mut self, socket: Socket) {
        self.clients.retain(|c| !c.is_finished());
        if self.clients.len() >= CLIENTS_MOST {
            tracing::debug!("a VNC client too many");
            return;
        }
        let (security, station, stop) =
            (Arc::clone(&self.security), self.station.clone(), Arc::clone(&self.stop));
        let client = Builder::new().name("vnc-client".into()).spawn(move || {
            if let Err(e) = client::serve(socket, &security, &station, &stop) {
                tracing::debug!("a VNC client has gone: {e}");
            }
        });
        // Without a thread, the client is closed.
        self.clients.extend(client.ok());
    }
}
