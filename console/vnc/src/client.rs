//! A client's thread.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use vireo_screen::Station;

use crate::security::Security;
use crate::session::Session;
use crate::transport::{Socket, Transport};

/// A handshake takes no longer, whatever the client's user does.
const HANDSHAKE: Duration = Duration::from_secs(60);
/// Least time between two updates.
const PACE: Duration = Duration::from_millis(16);
/// How often it is looked for changes, where the device tells of none.
const LOOK: Duration = Duration::from_millis(250);

/// What server and thread know of a client.
#[derive(Debug)]
pub struct Place {
    bell: OwnedFd,
    /// It has made its handshake.
    up: AtomicBool,
    /// Another one has its place.
    dismissed: AtomicBool,
}

impl Place {
    /// That of one who has just come.
    ///
    /// # Errors
    /// There is no file descriptor left.
    pub fn new() -> io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { bell, up: AtomicBool::new(false), dismissed: AtomicBool::new(false) })
    }

    /// Whether its handshake is over, with the password if there is one.
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    /// Whether it was told to go.
    pub fn is_dismissed(&self) -> bool {
        self.dismissed.load(Ordering::Relaxed)
    }

    /// Has it go.
    pub fn dismiss(&self) {
        self.dismissed.store(true, Ordering::Relaxed);
        self.ring();
    }

    fn ring(&self) {
        // Full means rung.
        _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }
}

/// Serves a client until it goes, breaks the protocol, or is dismissed, or `stop` can be read.
///
/// # Errors
/// Of the socket, or of TLS.
pub fn serve(
    socket: Socket,
    from: Option<IpAddr>,
    security: &Arc<Security>,
    station: &Station,
    place: &Arc<Place>,
    stop: &OwnedFd,
) -> io::Result<()> {
    let rung = Arc::clone(place);
    let wake = Box::new(move || rung.ring());
    let mut challenge = [0; 16];
    rustix::rand::getrandom(&mut challenge, rustix::rand::GetRandomFlags::empty())?;
    Client {
        transport: Transport::new(socket)?,
        session: Session::new(security, station, challenge, from, wake),
        security,
        securing: false,
        deadline: Instant::now() + HANDSHAKE,
        last: Instant::now(),
        sent: false,
    }
    .run(place, stop)
}

struct Client<'a> {
    transport: Transport,
    session: Session,
    security: &'a Security,
    /// TLS is making its own handshake.
    securing: bool,
    deadline: Instant,
    /// The last update.
    last: Instant,
    /// All that was to be sent is.
    sent: bool,
}

impl Client<'_> {
    fn run(&mut self, place: &Place, stop: &OwnedFd) -> io::Result<()> {
        let mut bytes = Vec::new();
        self.sent = self.transport.write(self.session.output())?;
        loop {
            let [read, woken, stopped] = self.wait(&place.bell, stop)?;
            if stopped || place.is_dismissed() || !self.session.is_up() && Instant::now() >= self.deadline {
                return Ok(());
            }
            if woken {
                _ = rustix::io::read(&place.bell, &mut [0; 8]);
            }
            if read {
                bytes.clear();
                let open = self.transport.read(&mut bytes)?;
                self.take(&bytes)?;
                place.up.store(self.session.is_up(), Ordering::Relaxed);
                if !open {
                    return Ok(());
                }
            }
            if self.sent && (self.session.has_rest() || self.last.elapsed() >= PACE) {
                if self.session.has_to_look() && self.last.elapsed() >= LOOK {
                    self.session.look();
                    self.last = Instant::now();
                }
                self.session.update();
                if !self.session.output().is_empty() {
                    self.last = Instant::now();
                }
            }
            self.sent = self.transport.write(self.session.output())?;
        }
    }

    /// Waits for something to do: bytes have come, the screen has changed, or it is the end. It may be none of them: time has
    /// passed, or there is room to send.
    fn wait(&self, bell: &OwnedFd, stop: &OwnedFd) -> io::Result<[bool; 3]> {
        let interest = if self.sent { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
        let mut fds = [
            PollFd::new(self.transport.socket(), interest),
            PollFd::from_borrowed_fd(bell.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
        ];
        let until_paced = PACE.saturating_sub(self.last.elapsed());
        let patience = if self.sent && self.session.has_rest() {
            Duration::ZERO
        } else if !until_paced.is_zero() {
            until_paced
        } else if self.session.has_to_look() {
            LOOK
        } else if self.session.is_up() {
            // Nothing is done before a bell rings.
            Duration::from_secs(3600)
        } else {
            self.deadline.saturating_duration_since(Instant::now())
        };
        let timeout = Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: patience.subsec_nanos().into() };
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let read = PollFlags::IN | PollFlags::HUP | PollFlags::ERR;
        Ok([0, 1, 2].map(|n: usize| fds[n].revents().intersects(read)))
    }

    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.securing && !self.transport.is_securing() {
            self.securing = false;
            self.session.tls_stands();
        }
        match self.session.receive(bytes) {
            Ok(false) => Ok(()),
            Ok(true) => {
                // What starts TLS is said before it.
                if !self.transport.write(self.session.output())? {
                    return Err(io::Error::other("the client does not read the handshake"));
                }
                let early = self.session.take_input();
                let config = self.security.tls().ok_or_else(|| io::Error::other("no TLS"))?;
                self.transport.start_tls(config, &early)?;
                self.securing = true;
                Ok(())
            }
            Err(e) => {
                // It may want to know why.
                _ = self.transport.write(self.session.output());
                Err(io::Error::other(e))
            }
        }
    }
}
