//! Unix sockets that a machine is reached by.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// A socket that we made. Dropping it removes its name, unless that is another's by now.
pub struct Socket {
    path: PathBuf,
    /// Device and inode: another one may take its name.
    identity: Option<(u64, u64)>,
}

impl Socket {
    /// Makes a socket. The error says what is in the way.
    pub fn bind(path: &Path) -> Result<(Self, UnixListener), String> {
        let listener = UnixListener::bind(path).map_err(|e| match e.kind() {
            io::ErrorKind::AddrInUse => format!(
                "{}: something is there already: another machine's, or what a killed one left; then remove it",
                path.display()
            ),
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
        assert!(Socket::bind(&path).err().unwrap().contains("something is there already"));
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "another's").unwrap();
        drop(made);
        assert!(path.exists());
        std::fs::remove_file(&path).unwrap();
        drop(Socket::bind(&path).unwrap());
        assert!(!path.exists());
    }
}
