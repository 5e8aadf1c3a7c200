//! The switch as a service: one process for each switch, which serves many machines and outlives each of them.
//!
//! Owns the data plane ([`Plane`]: one thread that moves frames between the rings of ports, by what [`vireo_switch`] decides), the
//! sockets where workers and users come ([`Service`], [`control`]), the settings that survive the process ([`Config`]), uplinks
//! ([`join`]), and captures. What is allowed and where frames go, it does not decide: that is `vireo-switch`'s.
//!
//! # One kind of port
//! To the data plane every port is two rings and a socket. A TAP device or a network address translation is a [`vireo_frame::Link`] as a
//! worker's port is; so an uplink is two links, joined, on threads of their own: the data plane waits for no device and makes no
//! segments. What a receiver cannot take is done on its side of the ring.
//!
//! # Whom to trust
//! Workers are hostile: see [`vireo_port`]. Who may open the control socket owns the switch.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod capture;
mod closer;
mod complaints;
mod config;
pub mod control;
mod folders;
mod join;
mod member;
mod plane;
mod policy;
mod report;
mod service;
#[cfg(test)]
mod tests;

pub use config::{Config, ConfigError, SwitchKind, UPLINK, Uplink};
pub use folders::{Folders, Lock, Sockets};
pub use join::{Joined, join};
pub use plane::{Handle, Plane};
pub use policy::{Change, MirrorText, Policy, PolicyError, RuleText};
pub use report::PortReport;
pub use service::{ServeError, Service};
