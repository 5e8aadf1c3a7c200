//! The device, and what adapters do with it.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use vireo_frame::{Ability, Adapter, End, Filter, Frame, Full, Link, Mac, NotAllowed, OFFLOAD_HEADER, fit};

use crate::interface::{Interface, checked};
use crate::{TapError, sys, thread};

/// Bytes of frames on their way behind the device (in a bridge, in a queue of an interface), beyond which it is full: a guest
/// does not fill the host's memory.
const SEND_BUFFER: i32 = 1 << 20;

/// Something for the thread to look at.
pub(crate) mod signal {
    /// The adapter has room.
    pub const ROOM: u32 = 1;
    /// There is another adapter.
    pub const PLUGGED: u32 = 2;
    /// It is over.
    pub const END: u32 = 4;
}

/// Frames that were lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Of the adapter's: the interface is down, or the kernel does not take them.
    pub written: u64,
    /// Of the network's: there is no adapter, or they are too long, or make no sense.
    pub read: u64,
}

/// What the device and its thread share.
pub(crate) struct Shared {
    pub(crate) file: OwnedFd,
    pub(crate) interface: Interface,
    /// Held while the adapter is called.
    adapter: Mutex<Option<Arc<dyn Adapter>>>,
    /// What the adapter takes, as bits: it is told while others hold locks that the adapter takes, too.
    adapter_ability: AtomicU8,
    bell: OwnedFd,
    signals: AtomicU32,
    /// A frame did not go out; who put it wants to know when one would.
    pub(crate) full: AtomicBool,
    pub(crate) lost_written: AtomicU64,
    pub(crate) lost_read: AtomicU64,
}

/// A TAP device as an adapter's network. Dropping it ends its thread; an interface that it has made is gone then.
pub struct Tap {
    shared: Arc<Shared>,
    ability: Ability,
    thread: Option<JoinHandle<()>>,
}

impl Tap {
    /// Opens the TAP device with this name in the network of the calling thread, or makes it where the process may.
    ///
    /// # Errors
    /// There are no TAP devices; the name cannot be; there is none, or somebody else has it open, or this process may not.
    pub fn open(name: &str) -> Result<Arc<Self>, TapError> {
        let fixed = checked(name)?;
        let open = || File::options().read(true).write(true).open("/dev/net/tun");
        let file = OwnedFd::from(open().map_err(TapError::NoTun)?);
        let flags = sys::TAP | sys::NO_PACKET_INFO | sys::OFFLOAD_HEADERS;
        let is_new = !Interface::new(fixed)?.is_there();
        let attach = |flags| sys::attach(file.as_fd(), &fixed, flags);
        // A device of several queues takes nobody who does not know of them (EINVAL).
        let attached = attach(flags).or_else(|e| match e.kind() {
            ErrorKind::InvalidInput => attach(flags | libc::IFF_MULTI_QUEUE),
            _ => Err(e),
        });
        attached.map_err(|source| TapError::Refused { name: name.into(), source })?;
        if is_new {
            tracing::warn!("there was no TAP device {name}: it is made, and is down (ip link set {name} up)");
        }
        Self::from_fd(file)
    }

    /// Of a file that somebody else has opened, and made a TAP device's: with headers of offloads (`IFF_VNET_HDR`), without packet
    /// information (`IFF_NO_PI`). Whether the interface is up, and its MTU, are looked for in the network of the calling thread;
    /// if it is not there, it is up, and has an MTU of 1500.
    ///
    /// # Errors
    /// It is no such file.
    pub fn from_fd(file: OwnedFd) -> Result<Arc<Self>, TapError> {
        let unfit = |what| move |source| TapError::Unfit { what, source };
        let (name, flags) = sys::attached(file.as_fd()).map_err(unfit("its name"))?;
        let wanted = sys::TAP | sys::NO_PACKET_INFO | sys::OFFLOAD_HEADERS;
        if flags & wanted != wanted {
            return Err(unfit("IFF_TAP, IFF_NO_PI and IFF_VNET_HDR")(ErrorKind::Unsupported.into()));
        }
        let size = OFFLOAD_HEADER as i32;
        sys::set_header_size(file.as_fd(), size).map_err(unfit("the size of headers"))?;
        sys::set_send_buffer(file.as_fd(), SEND_BUFFER).map_err(unfit("the send buffer"))?;
        let flags = fcntl_getfl(&file).map_err(|e| unfit("its mode")(e.into()))?;
        fcntl_setfl(&file, flags | OFlags::NONBLOCK).map_err(|e| unfit("its mode")(e.into()))?;
        // Kernels before 6.2 cannot cut UDP; they say so.
        let udp = sys::set_offload(file.as_fd(), sys::CHECKSUMS | sys::UDP4 | sys::UDP6).is_ok();
        sys::set_offload(file.as_fd(), 0).map_err(unfit("offloads"))?;
        let refused = |e: rustix::io::Errno| TapError::Thread(e.into());
        let shared = Arc::new(Shared {
            file,
            interface: Interface::new(name)?,
            adapter: Mutex::default(),
            adapter_ability: AtomicU8::new(0),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(refused)?,
            signals: AtomicU32::new(0),
            full: AtomicBool::new(false),
            lost_written: AtomicU64::new(0),
            lost_read: AtomicU64::new(0),
        });
        let thread = thread::start(&shared).map_err(TapError::Thread)?;
        let ability = Ability { udp, tag: false, ..Ability::ALL };
        Ok(Arc::new(Self { shared, ability, thread: Some(thread) }))
    }

    /// Name of its interface.
    pub fn name(&self) -> String {
        self.shared.interface.name()
    }

    /// What was lost so far.
    pub fn lost(&self) -> Lost {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Lost { written: count(&self.shared.lost_written), read: count(&self.shared.lost_read) }
    }
}

impl Shared {
    pub(crate) fn adapter(&self) -> MutexGuard<'_, Option<Arc<dyn Adapter>>> {
        self.adapter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn bell(&self) -> &OwnedFd {
        &self.bell
    }

    /// Has the thread look at something.
    fn signal(&self, what: u32) {
        self.signals.fetch_or(what, Ordering::AcqRel);
        self.ring();
    }

    fn ring(&self) {
        // It fails where it has rung so often that nobody can have missed it.
        _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    /// What there is to look at.
    pub(crate) fn take_signals(&self) -> u32 {
        let mut count = [0; 8];
        _ = rustix::io::read(&self.bell, &mut count);
        self.signals.swap(0, Ordering::AcqRel)
    }

    /// What frames for the adapter may want.
    pub(crate) fn adapter_ability(&self) -> Ability {
        let bits = self.adapter_ability.load(Ordering::Relaxed);
        let bit = |n: u8| bits & 1 << n != 0;
        Ability { checksum: bit(0), tcp4: bit(1), tcp6: bit(2), udp: bit(3), tag: bit(4) }
    }

    /// One frame, in a form that the device takes.
    fn write(&self, frame: &Frame<'_>) -> Result<(), Full> {
        let result = sys::write(self.file.as_fd(), &frame.offload_header(), frame);
        match result {
            Ok(_) => Ok(()),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                self.full.store(true, Ordering::Release);
                self.ring();
                Err(Full)
            }
            Err(e) => {
                self.lose_written(&e);
                Ok(())
            }
        }
    }

    fn lose_written(&self, why: &io::Error) {
        if self.lost_written.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::debug!(tap = self.interface.name(), "a frame of the guest was lost: {why}");
        }
    }
}

impl End for Tap {
    fn put(&self, frame: &Frame<'_>) -> Result<(), Full> {
        if self.ability.takes(&frame.intent()) {
            return self.shared.write(frame);
        }
        let (mut done, mut scratch) = (0, Vec::new());
        let put = fit(frame, &self.ability, &mut done, &mut scratch, &mut |f| self.shared.write(f));
        // Nobody remembers how much of a frame is gone: the rest is lost.
        if put.is_err() && done > 0 {
            self.shared.lose_written(&ErrorKind::WouldBlock.into());
            return Ok(());
        }
        put
    }

    /// Each frame went by itself.
    fn flush(&self) {}

    fn room(&self) {
        self.shared.signal(signal::ROOM);
    }
}

impl Link for Tap {
    fn plug(&self, adapter: Option<Arc<dyn Adapter>>) {
        // Dropped after the lock.
        let before = std::mem::replace(&mut *self.shared.adapter(), adapter);
        self.shared.signal(signal::PLUGGED);
        drop(before);
    }

    fn ability(&self) -> Ability {
        self.ability
    }

    fn set_adapter_ability(&self, ability: Ability) {
        let bits = [ability.checksum, ability.tcp4, ability.tcp6, ability.udp, ability.tag];
        let bits = bits.iter().enumerate().fold(0, |bits, (n, bit)| bits | u8::from(*bit) << n);
        self.shared.adapter_ability.store(bits, Ordering::Relaxed);
        let bit = |wanted: bool, bit: u32| if wanted && ability.checksum { bit } else { 0 };
        let offload = bit(true, sys::CHECKSUMS)
            | bit(ability.tcp4, sys::TCP4)
            | bit(ability.tcp6, sys::TCP6)
            | bit(ability.tcp4 || ability.tcp6, sys::TCP_ECN)
            | bit(ability.udp && self.ability.udp, sys::UDP4 | sys::UDP6);
        // Where it fails, what the kernel leaves to be done is done before the adapter gets it.
        if let Err(e) = sys::set_offload(self.shared.file.as_fd(), offload) {
            tracing::warn!(tap = self.name(), "offloads of a TAP device cannot be set: {e}");
        }
    }

    /// The kernel hands out what the interface gets; the adapter looks for itself.
    fn set_filter(&self, _filter: &Filter) {}

    /// Whatever the host's network does with it.
    fn set_address(&self, _address: Mac) -> Result<(), NotAllowed> {
        Ok(())
    }

    fn mtu(&self) -> u32 {
        self.shared.interface.mtu()
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.shared.signal(signal::END);
        // An adapter may have been the last to know of it, on its thread.
        if let Some(thread) = self.thread.take().filter(|t| t.thread().id() != std::thread::current().id()) {
            // One that panicked has said so itself.
            _ = thread.join();
        }
    }
}
