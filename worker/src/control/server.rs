//! The machine's side.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Weak;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use vireo_screen::Station;

use super::{Answer, REQUEST_MAX, Request, disks, receive, screen, send};
use crate::disks::Disks;
use crate::socket::Socket;

/// What of a machine can be asked for things. It does not keep the machine.
#[derive(Clone)]
pub struct Parts {
    /// Its disks, gone when it has ended.
    pub disks: Weak<Disks>,
    /// Its screen, keyboard and mouse, if it has them.
    pub station: Option<Station>,
}

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
    pub fn start(path: &Path, parts: Parts) -> Result<Self, String> {
        let (socket, listener) = Socket::bind_private(path)?;
        Builder::new()
            .name("control".into())
            .spawn(move || {
                let mut clients = Vec::new();
                for stream in listener.incoming() {
                    if parts.disks.strong_count() == 0 {
                        return;
                    }
                    match stream {
                        Ok(stream) => admit(stream, &parts, &mut clients),
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
fn admit(stream: UnixStream, parts: &Parts, clients: &mut Vec<JoinHandle<()>>) {
    clients.retain(|c| !c.is_finished());
    let busy = |stream: &UnixStream, why: String| {
        _ = stream.set_write_timeout(Some(PATIENCE));
        _ = send(stream, &Answer::Refused { why });
    };
    if clients.len() >= CLIENTS_MAX {
        return busy(&stream, format!("{CLIENTS_MAX} others are being served: try again later"));
    }
    let parts = parts.clone();
    let refused = stream.try_clone();
    match Builder::new().name("control-client".into()).spawn(move || serve(&stream, &parts)) {
        Ok(client) => clients.push(client),
        Err(e) => _ = refused.map(|stream| busy(&stream, format!("the host refuses a thread: {e}"))),
    }
}

/// Serves one client.
fn serve(stream: &UnixStream, parts: &Parts) {
    _ = stream.set_write_timeout(Some(PATIENCE));
    let request = receive(stream, PATIENCE, REQUEST_MAX);
    // The machine has ended.
    let Some(disks) = parts.disks.upgrade() else { return };
    let answer = match request {
        Ok(request) => {
            tracing::debug!(?request, "control");
            answer(&request, &disks, parts)
        }
        Err(why) => Answer::Refused { why: format!("the request is not understood: {why}") },
    };
    // Who does not want the answer goes without.
    _ = send(stream, &answer);
}

fn answer(request: &Request, disks: &Disks, parts: &Parts) -> Answer {
    let station = || parts.station.as_ref().ok_or_else(|| screen::NONE.to_owned());
    let done = match request {
        Request::DiskAdd { .. }
        | Request::DiskRemove { .. }
        | Request::DiskGrow { .. }
        | Request::DiskList => disks::answer(request, disks),
        Request::Screenshot => station().and_then(screen::shoot),
        Request::Type { text } => station().and_then(|s| screen::type_text(s, text)),
        Request::Keys { keys } => station().and_then(|s| screen::press(s, keys)),
    };
    done.unwrap_or_else(|why| Answer::Refused { why })
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
        let parts = Parts { disks: std::sync::Arc::downgrade(&disks), station: None };
        let _server = ControlServer::start(&path, parts).unwrap();
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
