//! A client's socket, plain or with TLS in it. Nothing here waits.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustls::{ServerConfig, ServerConnection};

/// A connected socket, which does not wait.
pub enum Socket {
    /// Of a Unix socket.
    Unix(UnixStream),
    /// Of a network.
    Tcp(TcpStream),
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(s) => s.as_fd(),
            Self::Tcp(s) => s.as_fd(),
        }
    }
}

impl Read for Socket {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(s) => s.read(to),
            Self::Tcp(s) => s.read(to),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(s) => s.write(from),
            Self::Tcp(s) => s.write(from),
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a socket is spoken through.
pub struct Transport {
    socket: Socket,
    tls: Option<Box<ServerConnection>>,
}

/// Has something been done, or would it have to wait?
fn unless_waiting<T>(done: io::Result<T>) -> io::Result<Option<T>> {
    match done {
        Ok(done) => Ok(Some(done)),
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
        Err(e) => Err(e),
    }
}

impl Transport {
    /// Plain.
    ///
    /// # Errors
    /// The host refuses to let it not wait.
    pub fn new(socket: Socket) -> io::Result<Self> {
        match &socket {
            Socket::Unix(s) => s.set_nonblocking(true)?,
            Socket::Tcp(s) => {
                s.set_nonblocking(true)?;
                // Keys and their echo are small, and waited for.
                s.set_nodelay(true)?;
            }
        }
        Ok(Self { socket, tls: None })
    }

    /// The socket, to be polled.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// TLS begins; `early` are bytes of it that were read already.
    ///
    /// # Errors
    /// They are none of TLS.
    pub fn start_tls(&mut self, config: &Arc<ServerConfig>, mut early: &[u8]) -> io::Result<()> {
        let mut tls = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
        while !early.is_empty() {
            tls.read_tls(&mut early)?;
            tls.process_new_packets().map_err(io::Error::other)?;
        }
        self.tls = Some(Box::new(tls));
        Ok(())
    }

    /// Whether there is TLS, and its own handshake is under way.
    pub fn is_securing(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_handshaking())
    }

    /// Appends what has come; `false`: the client has closed.
    ///
    /// # Errors
    /// Of the socket, or of TLS.
    pub fn read(&mut self, to: &mut Vec<u8>) -> io::Result<bool> {
        let mut part = [0; 16 << 10];
        let Some(tls) = &mut self.tls else {
            return Ok(match unless_waiting(self.socket.read(&mut part))? {
                Some(0) => false,
                Some(n) => {
                    to.extend_from_slice(&part[..n]);
                    true
                }
                None => true,
            });
        };
        match unless_waiting(tls.read_tls(&mut self.socket))? {
            Some(0) => return Ok(false),
            Some(_) => _ = tls.process_new_packets().map_err(io::Error::other)?,
            None => {}
        }
        loop {
            match unless_waiting(tls.reader().read(&mut part))? {
                Some(0) => return Ok(false),
                Some(n) => to.extend_from_slice(&part[..n]),
                None => return Ok(true),
            }
        }
    }

    /// Sends as much of it as the client takes, and takes that out; whether all is gone.
    ///
    /// # Errors
    /// Of the socket, or of TLS.
    pub fn write(&mut self, from: &mut Vec<u8>) -> io::Result<bool> {
        let mut sent = 0;
        let Some(tls) = &mut self.tls else {
            while sent < from.len() {
                match unless_waiting(self.socket.write(&from[sent..]))? {
                    Some(n) => sent += n,
                    None => break,
                }
            }
            from.drain(..sent);
            return Ok(from.is_empty());
        };
        loop {
            if !tls.is_handshaking() && sent < from.len() {
                // As much as TLS holds.
                sent += tls.writer().write(&from[sent..])?;
            }
            if !tls.wants_write() {
                break;
            }
            if unless_waiting(tls.write_tls(&mut self.socket))?.is_none() {
                break;
            }
        }
        from.drain(..sent);
        Ok(from.is_empty() && !tls.wants_write())
    }
}
