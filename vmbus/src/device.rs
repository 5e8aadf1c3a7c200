//! What a device on the bus is.

use std::sync::Arc;
use std::time::Instant;

use uuid::Uuid;

use crate::Channel;
use crate::protocol::UserData;

/// What a guest is told of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Its kind: drivers go by it.
    pub interface: Uuid,
    /// This one; the same at each start, since guests name devices by it.
    pub instance: Uuid,
    /// Memory that the driver has to find an address for, in MiB; 0: none.
    pub memory: u16,
    /// For the driver.
    pub user_data: UserData,
}

/// A device refuses a channel; the guest is told no more than that.
#[derive(Debug, thiserror::Error)]
#[error("a channel cannot be opened: {0}")]
pub struct OpenError(pub String);

/// Further channels cannot be offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubchannelError {
    /// There are no more numbers, or the device may not have so many.
    #[error("there is no room for more channels")]
    Full,
    /// The device, or its first channel, is not open any more.
    #[error("the device's first channel is not open")]
    NotOpen,
}

/// A device. The bus calls one of these at a time, on vCPU threads or on the board's, and waits: none of them may wait for the
/// guest.
pub trait Device: Send + Sync {
    /// The guest opened a channel: 0 is the device's first, others are those that it offered further
    /// ([`crate::VmBus::offer_subchannels`]). Its memory is to be left alone while the device is paused.
    ///
    /// # Errors
    /// The device does not want it.
    fn open(&self, subchannel: u16, channel: Arc<Channel>) -> Result<(), OpenError>;

    /// The channel is closed: when this returns, no thread of the device touches its rings. Requests under way may still move
    /// data; a pause waits for them.
    fn close(&self, subchannel: u16);

    /// Comes to rest before `deadline`: nothing touches guest memory then, and no request is in flight. `false`: it could not,
    /// and goes on as if it had not been asked.
    fn pause(&self, deadline: Instant) -> bool;

    /// Goes on.
    fn resume(&self);

    /// The guest's kernel is another than before, or none: it made first contact, or has unloaded the bus. What drivers set for longer
    /// than they have a channel is not any more. Its channels have been closed.
    fn forget(&self) {}

    /// As after power-on. Its channels have been closed.
    fn reset(&self);
}
