//! virtio devices on PCI, for guests without VMBus: disks, network adapters, random numbers, consoles.
//!
//! Owns the device side of virtio 1.2: the modern PCI transport ([`VirtioPci`]), queues that survive any driver, the run state of
//! devices, and the device models. The virtqueue itself is rust-vmm's `virtio-queue`. Never opens a file, and knows no disk
//! format: a disk is a [`vireo_block::BlockDevice`], an adapter's network a [`vireo_frame::Link`], a console's ends are
//! traits. Never trusts a driver: descriptors are read
//! once and checked before anything is done with them, work and memory of a device are bounded by its queues, and a driver that
//! breaks the rules finds its device in need of a reset.
//!
//! # Run state
//! A device is made paused, and follows its board ([`vireo_board::Attachment`]). It has one thread, which takes requests from
//! the queues; they complete there or on threads of others. Threads of an adapter's network use its queues as well, as requests
//! in flight do. At rest (paused, or reset) nothing of it touches guest memory: a
//! pause waits for the requests in flight, and a driver's reset is done, as it reads in the status, when they are.
#![deny(unsafe_code)]

mod blk;
mod console;
mod core;
mod device;
mod interrupt;
#[expect(unsafe_code, reason = "vm-memory's slices are made of raw pointers")]
mod memory;
mod net;
mod pci;
mod queue;
mod rng;
mod run;

pub use blk::Blk;
pub use console::Console;
pub use device::{Device, DeviceState, Identity, Kicker, Turn};
pub use net::Net;
pub use pci::{TransportError, VirtioPci, VirtioState};
pub use queue::{Broken, Chain, ServedQueue};
pub use rng::Rng;
