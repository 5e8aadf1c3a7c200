//! The machine's side.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::{Answer, Request, receive, send};
use crate::disks::{DiskSpec, Disks};
use crate::socket::Socket;

/// Who connects and says nothing is not waited for longer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The socket that a machine is changed by. Dropping it removes the socket; a request under way still ends.
pub struct ControlServer {
    _socket: Socket,
}

impl ControlServer {
    /// Makes the socket, for this user alone, and serves it: one request after the other. The error says what is in the way.
    pub fn start(path: &Path, disks: &Arc<Disks>) -> Result<Self, String> {
        let (socket, listener) = Socket::bind(path)?;
        let only_mine = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(path, only_mine).map_err(|e| format!("{}: {e}", path.display()))?;
        let disks = Arc::downgrade(disks);
        std::thread::Builder::new()
            .name("control".into())
            .spawn(move || {
                for stream in incoming(&listener) {
                    // The machine has ended.
                    let Some(disks) = disks.upgrade() else { return };
                    serve(&stream, &disks);
                }
            })
            .map_err(|e| format!("{}: the host refuses a thread: {e}", path.display()))?;
        Ok(Self { _socket: socket })
    }
}

fn incoming(listener: &UnixListener) -> impl Iterator<Item = UnixStream> + '_ {
    listener.incoming().filter_map(Result::ok)
}

fn serve(stream: &UnixStream, disks: &Disks) {
    _ = stream.set_read_timeout(Some(PATIENCE));
    _ = stream.set_write_timeout(Some(PATIENCE));
    let answer = match receive(stream) {
        Ok(request) => {
            tracing::debug!(?request, "control");
            answer(&request, disks)
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
