//! VMBus: how synthetic devices and their drivers in the guest talk.
//!
//! Owns the rings in memory that both sides share ([`ring`]), the protocol by which a guest finds devices, opens channels to
//! them and gives memory away ([`Server`], which is pure: messages in, messages and effects out), and what joins both to a
//! board ([`VmBus`]). A device is a [`Device`]; it never sees an engine, and the bus knows no device's protocol.
//!
//! # Whom to trust
//! The guest writes the rings and all messages. A ring's indices are read once, checked and kept; packets are copied out before
//! anybody looks at them. What a guest can make the host remember has bounds (`server/gpadl.rs`).
//!
//! Sources: the VMBus headers of Linux (include/linux/hyperv.h, drivers/hv/hyperv_vmbus.h) for layouts, its drivers for what
//! guests do; OpenVMM for what Windows does.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod bus;
mod channel;
mod device;
pub mod driver;
mod fields;
mod pipe;
pub mod protocol;
pub mod ring;
mod server;

pub use bus::VmBus;
pub use channel::{Channel, Doorbell, Interrupt, Listener};
pub use device::{Device, Offer, OpenError, SubchannelError};
pub use fields::Fields;
pub use pipe::{Pipe, PipeServer, Receiver};
pub use server::{Effect, Server};
