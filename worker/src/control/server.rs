//! The machine's side.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::{Answer, Request, receive, send};
use crate::disks::{DiskSpec, Disks};
use crate::socket::Socket;

/// Who connects and says nothing is not waited for longer.
const PATIENCE: Duration = Duration::from_secs(5);

const RETRY: Duration = Duration::from_millis(100);

/// The socket that a machine is changed by. Dropping it removes the socket.
pub struct ControlServer {
    _socket: Socket,
}

impl ControlServer {
    /// Makes the socket, for this user alone, and serves it: one request after the other. The error says what is in the way.
    pub fn start(path: &Path, disks: &Arc<Disks>) -> Result<Self, String> {
        let (socket, listener) = Socket::bind_private(path)?;
        let disks = Arc::downgrade(disks);
        std::thread::Builder::new()
            .name("control".into())
            .spawn(move || {
                for stream in listener.incoming() {
                    match stream {
                        Ok(stream) if !serve(&stream, &disks) => return,
                        Ok(_) => {}
                        // The host has no file descriptor left, say: time for it to get some.
                        Err(_) => std::thread::sleep(RETRY),
                    }
                }
            })
            .map_err(|e| format!("{}: the host refuses a thread: {e}", path.display()))?;
        Ok(Self { _socket: socket })
    }
}

/// Serves one client; whether the machine is still there.
fn serve(stream: &UnixStream, disks: &Weak<Disks>) -> bool {
    _ = stream.set_write_timeout(Some(PATIENCE));
    let request = receive(stream, PATIENCE);
    let Some(disks) = disks.upgrade() else { return false };
    let answer = match request {
        Ok(request) => {
            tracing::debug!(?request, "control");
            answer(&request, &disks)
        }
        Err(why) => Answer::Refused { why: format!("the request is not understood: {why}") },
    };
    // Who does not want the answer goes without.
    _ = send(stream, &answer);
    true
}

fn answer(request: &Request, disks: &Disks) -> Answer {
    let one = |status| Answer::Disks { disks: vec![status] };
    let done = match request {
        Request::DiskAdd { disk } => match disk.parse::<DiskSpec>() {
            Ok(spec) => disks.add(&spec).map(one),
            Err(why) => return Answer::Refused { why },
        },
        Request::DiskRemove { name } => disks.remove(name).map(|()| Answer::Done),
        Request::DiskGrow { name, size } => disks.grow(name, *size).map(one),
        Request::DiskList => Ok(Answer::Disks { disks: disks.list() }),
    };
    done.unwrap_or_else(|e| Answer::Refused { why: e.to_string() })
}
