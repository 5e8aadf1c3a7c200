//! The interface that a TAP device is to the host.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::TapError;
use crate::sys::{self, NAME_SIZE};

/// What an interface has whose MTU cannot be asked for.
const ETHERNET_MTU: u32 = 1500;

/// The interface, as far as this process sees its network.
pub(crate) struct Interface {
    name: [u8; NAME_SIZE],
    /// In the network in which the interface is looked for, whatever the thread that asks is in.
    socket: OwnedFd,
    news: Option<OwnedFd>,
}

/// A name as the kernel takes it.
pub(crate) fn checked(name: &str) -> Result<[u8; NAME_SIZE], TapError> {
    let bytes = name.as_bytes();
    let possible = |b: &u8| !b.is_ascii_whitespace() && *b != b'/' && *b != 0;
    // '%' has the kernel choose a number.
    let bad =
        bytes.is_empty() || bytes.len() >= NAME_SIZE || !bytes.iter().all(possible) || name.contains('%');
    if bad || name == "." || name == ".." {
        return Err(TapError::Name(name.into()));
    }
    let mut fixed = [0; NAME_SIZE];
    fixed[..bytes.len()].copy_from_slice(bytes);
    Ok(fixed)
}

impl Interface {
    pub(crate) fn new(name: [u8; NAME_SIZE]) -> Result<Self, TapError> {
        let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
            .map_err(|e| TapError::Thread(e.into()))?;
        let news = sys::interface_news().map_err(|e| tracing::debug!("no news of interfaces: {e}")).ok();
        Ok(Self { name, socket, news })
    }

    pub(crate) fn name(&self) -> String {
        let end = self.name.iter().position(|b| *b == 0).unwrap_or(NAME_SIZE);
        String::from_utf8_lossy(&self.name[..end]).into_owned()
    }

    /// What becomes readable when something of it may have changed.
    pub(crate) fn news(&self) -> Option<&OwnedFd> {
        self.news.as_ref()
    }

    /// Forgets the news that there are.
    pub(crate) fn read_news(&self) {
        let mut message = [0; 4096];
        // One that was too long or lost (ENOBUFS) is news as well.
        while let Some(news) = &self.news {
            match rustix::io::read(news, &mut message) {
                Ok(_) | Err(rustix::io::Errno::NOBUFS | rustix::io::Errno::INTR) => {}
                Err(_) => break,
            }
        }
    }

    /// Whether there is one in this network.
    pub(crate) fn is_there(&self) -> bool {
        sys::interface_flags(self.socket.as_fd(), &self.name).is_ok()
    }

    /// Whether it is up; where it cannot be seen, it is taken to be.
    pub(crate) fn is_up(&self) -> bool {
        let flags: io::Result<_> = sys::interface_flags(self.socket.as_fd(), &self.name);
        flags.map_or(true, |f| f & libc::IFF_UP != 0)
    }

    /// Its longest packet; where it cannot be seen, Ethernet's.
    pub(crate) fn mtu(&self) -> u32 {
        let mtu = sys::interface_mtu(self.socket.as_fd(), &self.name).ok();
        mtu.and_then(|mtu| u32::try_from(mtu).ok()).filter(|mtu| *mtu != 0).unwrap_or(ETHERNET_MTU)
    }
}
