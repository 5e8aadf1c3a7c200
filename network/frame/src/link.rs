//! Where a guest's adapter meets what it is plugged into.
//!
//! Both take frames, and either may be full for a while. Frames go the way [`End::put`] says, on the thread of whoever has them:
//! nobody blocks in it. Who was full calls [`End::room`] of the other when it is not any more.

use std::sync::Arc;

use crate::{Ability, Filter, Frame, Mac};

/// There is no room for a frame now. Whoever said so calls [`End::room`] of the one that it said it to, once there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no room for a frame")]
pub struct Full;

/// Who is at the other end may not have another address than it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the network does not allow another address")]
pub struct NotAllowed;

/// What takes frames. Any thread may call, several at a time; none of the calls waits for long.
pub trait End: Send + Sync {
    /// Takes a frame, or loses it (one that is too long, say); it is copied before this returns.
    ///
    /// # Errors
    /// There is no room: it may be put again after [`Self::room`] of the caller was called.
    fn put(&self, frame: &Frame<'_>) -> Result<(), Full>;

    /// No more frames come for a moment: those that were put are to go now.
    fn flush(&self);

    /// The other end, which said that it was full, has room again. Called on a thread of the other end: it does not put frames by itself
    /// while it is called, but has a thread of its own do so.
    fn room(&self);
}

/// What a network tells an adapter, and gives it.
pub trait Adapter: End {
    /// The network is there, or not, at so many bits a second.
    fn set_carrier(&self, up: bool, speed: u64);
}

/// What an adapter is plugged into: a port of a switch, a TAP device, a network address translation.
pub trait Link: End {
    /// Plugs an adapter in, which gets frames from now on, and unplugs the one before. `None`: nobody; when it returns, no thread
    /// calls the one before any more.
    fn plug(&self, adapter: Option<Arc<dyn Adapter>>);

    /// What may be left to be done to frames that are put. Frames that the adapter gets have what the link was told that it takes.
    fn ability(&self) -> Ability;

    /// What the adapter takes, instead of having it done before.
    fn set_adapter_ability(&self, ability: Ability);

    /// What the adapter wants to get. Links need not heed it: the adapter looks for itself.
    fn set_filter(&self, filter: &Filter);

    /// The guest gives its adapter another address.
    ///
    /// # Errors
    /// The network does not allow it: the adapter keeps its own.
    fn set_address(&self, address: Mac) -> Result<(), NotAllowed>;

    /// The longest packet behind an Ethernet header that it carries, in bytes.
    fn mtu(&self) -> u32;
}
