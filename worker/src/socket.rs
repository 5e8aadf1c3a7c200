//! Unix sockets that a machine is reached by.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Clients that wait to be served.
const BACKLOG: i32 = 16;

/// A socket that we made. Dropping it removes its name, unless that is another's by now.
pub struct Socket {
    path: PathBuf,
    /// Device and inode: another one may take its name.
    identity: Option<(u64, u64)>,
}

impl Socket {
    /// Makes a socket. The error says what is in the way.
    pub fn bind(path: &Path) -> Result<(Self, UnixListener), String> {
        Self::named(path, || UnixListener::bind(path))
    }

    /// As [`Socket::bind`], of one that this user alone can connect to.
    pub fn bind_private(path: &Path) -> Result<(Self, UnixListener), String> {
        Self::named(path, || {
            use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
            let flags = SocketFlags::CLOEXEC;
            let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            // The name gets the mode that the socket has when it is bound.
            rustix::fs::fchmod(&socket, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)?;
            rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
            rustix::net::listen(&socket, BACKLOG)?;
            Ok(socket.into())
        })
    }

    fn named(
        path: &Path,
        make: impl FnOnce() -> io::Result<UnixListener>,
    ) -> Result<(Self, UnixListener), String> {
        let listener = make().map_err(|e| match e.kind() {
            io::ErrorKind::AddrInUse => {
                let is_socket = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
                let what = match is_socket {
                    true => "a socket is there already: another machine's, or what a killed one left; then remove it",
                    false => "something else is there already",
                };
                format!("{}: {what}", path.display())
            }
            _ => format!("{}: {e}", path.display()),
        })?;
        Ok((Self { path: path.into(), identity: Self::identity(path) }, listener))
    }

    fn identity(path: &Path) -> Option<(u64, u64)> {
        std::fs::symlink_metadata(path).ok().map(|m| (m.dev(), m.ino()))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if Self::identity(&self.path) == self.identity {
            _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_socket_that_was_made_is_removed() {
        let path = std::env::temp_dir().join(format!("vireo-{}-socket", std::process::id()));
        let (made, _listener) = Socket::bind(&path).unwrap();
        assert!(Socket::bind(&path).err().unwrap().contains("a socket is there already"));
        assert!(Socket::bind_private(&path).err().unwrap().contains("a socket is there already"));
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "another's").unwrap();
        assert!(Socket::bind(&path).err().unwrap().contains("something else is there already"));
        drop(made);
        assert!(path.exists());
        std::fs::remove_file(&path).unwrap();
        let private = Socket::bind_private(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        drop(private);
        assert!(!path.exists());
    }
}
