//! TAP devices of Linux: a guest's adapter on the host's own network.
//!
//! Owns the device's file and the thread that reads it ([`Tap`]). Offloads pass through: frames go in and out with the header of
//! virtio-net, so the host's kernel cuts and sums only what the adapter, or what is behind the device, cannot take. It makes no
//! policy, keeps no frame longer than the adapter is full for, and changes nothing of the interface but its offloads.
//!
//! # Whom to trust
//! Frames of the adapter are the guest's: the kernel checks their headers once more. What the kernel says of frames is checked as
//! everybody's is ([`vireo_frame::Frame::new`]).
#![deny(unsafe_code)]
#![warn(missing_docs)]

mod interface;
#[expect(unsafe_code, reason = "ioctls, and system calls that take pieces of guest memory")]
mod sys;
mod tap;
mod thread;
pub mod trial;

pub use tap::{Lost, Tap};

/// A TAP device cannot be used; in one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The host has no TAP devices, or does not give this process one.
    #[error("cannot open /dev/net/tun: {0}")]
    NoTun(#[source] std::io::Error),
    /// A name that no interface can have.
    #[error("'{0}' cannot be the name of a network interface: it has 1 to 15 bytes, and no '/' or space")]
    Name(String),
    /// There is none of that name, and this process may not make one.
    #[error("cannot use the TAP device {name}: {source}{}", advice(name, source))]
    Refused {
        /// Of the interface.
        name: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The kernel cannot do what is needed, or the file is no TAP device's.
    #[error("not a TAP device that can be used: {what}: {source}")]
    Unfit {
        /// What was asked for.
        what: &'static str,
        /// The answer.
        #[source]
        source: std::io::Error,
    },
    /// No thread, or no file for it.
    #[error("the host refuses what a TAP device's thread needs: {0}")]
    Thread(#[source] std::io::Error),
}

/// What to do where a device cannot be used.
fn advice(name: &str, why: &std::io::Error) -> String {
    match why.kind() {
        std::io::ErrorKind::ResourceBusy => "; another process has it, perhaps another machine".into(),
        _ => format!("; `ip tuntap add {name} mode tap user NAME` makes one for a user"),
    }
}
