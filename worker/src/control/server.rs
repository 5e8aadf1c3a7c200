//! The machine's side.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use super::{Answer, Request, receive, send};
use crate::disks::{DiskSpec, Disks};
use crate::socket::Socket;

/// Who connects and says nothing is not waited for longer.
const PATIENCE: Duration = Duration::from_secs(5);

const RETRY: Duration = Duration::from_millis(100);
/// Clients that are served at a time: what one asks for may wait for a disk that does not answer.
const CLIENTS_MAX: usize = 16;

/// The socket that a machine is changed by. Dropping it removes the socket.
pub struct ControlServer {
    _socket: Socket,
}

impl ControlServer {
    /// Makes the socket, for this user alone, and serves it. The error says what is in the way.
    pub fn start(path: &Path, disks: &Arc<Disks>) -> Result<Self, String> {
        let (socket, listener) = Socket::bind_private(path)?;
        let disks = Arc::downgrade(disks);
        Builder::new()
            .name("control".into())
            .spawn(move || {
                let mut clients = Vec::new();
                for stream in listener.incoming() {
                    if disks.strong_count() == 0 {
                        return;
                    }
                    match stream {
                        Ok(stream) => admit(stream, &disks, &mut clients),
                        // The host has no file descriptor left, say: time for it to get some.
                        Err(_) => std::thread::sleep(RETRY),
                    }
                }
            })
            .map_err(|e| format!("{}: the host refuses a thread: {e}", path.display()))?;
        Ok(Self { _socket: socket })
    }
}

/// Has a client served by a thread of its own, if there are not too many.
fn admit(stream: UnixStream, disks: &Weak<Disks>, clients: &mut Vec<JoinHandle<()>>) {
    clients.retain(|c| !c.is_finished());
    let busy = |stream: &UnixStream, why: String| {
        _ = stream.set_write_timeout(Some(PATIENCE));
        _ = send(stream, &Answer::Refused { why });
    };
    if clients.len() >= CLIENTS_MAX {
        return busy(&stream, format!("{CLIENTS_MAX} others are being served: try again later"));
    }
    let disks = Weak::clone(disks);
    let refused = stream.try_clone();
    match Builder::new().name("control-client".into()).spawn(move || serve(&stream, &disks)) {
        Ok(client) => clients.push(client),
        Err(e) => _ = refused.map(|stream| busy(&stream, format!("the host refuses a thread: {e}"))),
    }
}

/// Serves one client.
fn serve(stream: &UnixStream, disks: &Weak<Disks>) {
    _ = stream.set_write_timeout(Some(PATIENCE));
    let request = receive(stream, PATIENCE);
    // The machine has ended.
    let Some(disks) = disks.upgrade() else { return };
    let answer = match request {
        Ok(request) => {
            tracing::debug!(?request, "control");
            answer(&request, &disks)
        }
        Err(why) => Answer::Refused { why: format!("the request is not understood: {why}") },
    };
    // Who does not want the answer goes without.
    _ = send(stream, &answer);
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

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read};

    use super::*;
    use crate::control::ask;

    #[test]
    fn who_says_nothing_holds_up_nobody() {
        let path = std::env::temp_dir().join(format!("vireo-control-{}", std::process::id()));
        let disks = Disks::open(&[], true).unwrap();
        let _server = ControlServer::start(&path, &disks).unwrap();
        let silent: Vec<_> = (0..CLIENTS_MAX - 1).map(|_| UnixStream::connect(&path).unwrap()).collect();
        let answer = ask(&path, &Request::DiskList).unwrap();
        assert!(matches!(answer, Answer::Disks { disks } if disks.is_empty()));
        for mut client in &silent {
            client.set_nonblocking(true).unwrap();
            let kind = client.read(&mut [0]).map_err(|e| e.kind());
            assert_eq!(kind, Err(ErrorKind::WouldBlock), "it is still listened to");
        }
    }
}
