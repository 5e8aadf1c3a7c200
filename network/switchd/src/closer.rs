//! Closes what hostile workers have sent, or may have: a file's last close can take as long as who made the file likes (a TCP socket
//! that lingers, a file system in user space). So it is not the data plane's business.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Sender, channel};
use std::thread::Builder;

/// A thread that closes files. It ends when there are no more.
#[derive(Debug)]
pub(crate) struct Closer(Sender<OwnedFd>);

impl Closer {
    pub fn new() -> io::Result<Self> {
        let (files, given) = channel();
        Builder::new().name("closer".into()).spawn(move || given.into_iter().for_each(drop))?;
        Ok(Self(files))
    }

    /// Closes a file, some time.
    pub fn close(&self, file: OwnedFd) {
        // The thread ends after us.
        _ = self.0.send(file);
    }
}
