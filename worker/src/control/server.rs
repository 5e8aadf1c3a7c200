//! The machine's side.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use vireo_screen::Station;

use super::{Answer, REQUEST_MAX, Request, receive, screen, send};
use crate::disks::{DiskSpec, Disks};
use crate::nics::{NicSpec, Nics};
use crate::socket::Socket;

/// Who connects and says nothing is not waited for longer.
const PATIENCE: Duration = Duration::from_secs(5);

const RETRY: Duration = Duration::from_millis(100);
/// Clients that are served at a time: what one asks for may wait for a disk that does not answer.
const CLIENTS_MAX: usize = 16;

/// What can be changed of a machine, while there is one.
#[derive(Clone)]
struct Machine {
    disks: Weak<Disks>,
    nics: Weak<Nics>,
    /// Its screen, keyboard and mouse, if it has them; they do not keep it.
    station: Option<Station>,
}

/// The socket that a machine is changed by. Dropping it removes the socket.
pub struct ControlServer {
    _socket: Socket,
}

impl ControlServer {
    /// Makes the socket, for this user alone, and serves it. The error says what is in the way.
    pub fn start(
        path: &Path,
        disks: &Arc<Disks>,
        nics: &Arc<Nics>,
        station: Option<Station>,
    ) -> Result<Self, String> {
        let (socket, listener) = Socket::bind_private(path)?;
        let machine = Machine { disks: Arc::downgrade(disks), nics: Arc::downgrade(nics), station };
        Builder::new()
            .name("control".into())
            .spawn(move || {
                let mut clients = Vec::new();
                for stream in listener.incoming() {
                    if machine.disks.strong_count() == 0 {
                        return;
                    }
                    match stream {
                        Ok(stream) => admit(stream, &machine, &mut clients),
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
fn admit(stream: UnixStream, machine: &Machine, clients: &mut Vec<JoinHandle<()>>) {
    clients.retain(|c| !c.is_finished());
    let busy = |stream: &UnixStream, why: String| {
        _ = stream.set_write_timeout(Some(PATIENCE));
        _ = send(stream, &Answer::Refused { why });
    };
    if clients.len() >= CLIENTS_MAX {
        return busy(&stream, format!("{CLIENTS_MAX} others are being served: try again later"));
    }
    let machine = machine.clone();
    let refused = stream.try_clone();
    match Builder::new().name("control-client".into()).spawn(move || serve(&stream, &machine)) {
        Ok(client) => clients.push(client),
        Err(e) => _ = refused.map(|stream| busy(&stream, format!("the host refuses a thread: {e}"))),
    }
}

/// Serves one client.
fn serve(stream: &UnixStream, machine: &Machine) {
    _ = stream.set_write_timeout(Some(PATIENCE));
    let request = receive(stream, PATIENCE, REQUEST_MAX);
    // The machine has ended.
    let (Some(disks), Some(nics)) = (machine.disks.upgrade(), machine.nics.upgrade()) else { return };
    let answer = match request {
        Ok(request) => {
            tracing::debug!(?request, "control");
            answer(&request, &disks, &nics, machine.station.as_ref())
        }
        Err(why) => Answer::Refused { why: format!("the request is not understood: {why}") },
    };
    // Who does not want the answer goes without.
    _ = send(stream, &answer);
}

fn answer(request: &Request, disks: &Disks, nics: &Nics, station: Option<&Station>) -> Answer {
    let done = match request {
        Request::DiskAdd { .. }
        | Request::DiskRemove { .. }
        | Request::DiskGrow { .. }
        | Request::DiskList => of_disks(request, disks),
        Request::NicAdd { .. } | Request::NicRemove { .. } | Request::NicList => of_nics(request, nics),
        Request::Screenshot | Request::Type { .. } | Request::Keys { .. } => screen::answer(request, station),
    };
    done.unwrap_or_else(|why| Answer::Refused { why })
}

fn of_disks(request: &Request, disks: &Disks) -> Result<Answer, String> {
    let one = |status| Answer::Disks { disks: vec![status] };
    match request {
        Request::DiskAdd { disk } => disks.add(&disk.parse::<DiskSpec>()?).map(one),
        Request::DiskRemove { name } => disks.remove(name).map(|()| Answer::Done),
        Request::DiskGrow { name, size } => disks.grow(name, *size).map(one),
        _ => Ok(Answer::Disks { disks: disks.list() }),
    }
    .map_err(|e| e.to_string())
}

fn of_nics(request: &Request, nics: &Nics) -> Result<Answer, String> {
    match request {
        Request::NicAdd { nic } => {
            nics.add(&nic.parse::<NicSpec>()?).map(|status| Answer::Nics { nics: vec![status] })
        }
        Request::NicRemove { name } => nics.remove(name).map(|()| Answer::Done),
        _ => Ok(Answer::Nics { nics: nics.list() }),
    }
    .map_err(|e| e.to_string())
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
        let nics = Nics::open(&[], &crate::vmbus::Bus::default(), true, 1).unwrap();
        let _server = ControlServer::start(&path, &disks, &nics, None).unwrap();
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
