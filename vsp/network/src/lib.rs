//! The network service provider: an Ethernet adapter on VMBus, whose driver (netvsc) guests have.
//!
//! Owns the protocol between driver and adapter (NVSP 1 to 6.1, and within it RNDIS), the buffers that the guest gives for frames,
//! its channels and their threads ([`Provider`]). Where frames go, and come from, is a `vireo_frame::Link`'s business.
//!
//! # A frame's way
//! *From the guest*: RNDIS messages are in a section of the send buffer, in pages that the packet names, or the one and then the
//! other. Each channel has a thread that reads them; heads of frames are copied, and the rest is left where it is for the link to
//! take. What is still to be done to a frame (checksum, segments, tag) goes with it. The guest gets its buffers back when the
//! link has taken the frame; a link that is full leaves packets in the ring, so that the guest waits.
//!
//! *To the guest*: on the link's thread, into sections of the receive buffer, as many frames with one packet as come together.
//! Where there are none left the link is told that the adapter is full, and that there is room again when the guest gives some
//! back. Frames that are still to be segmented go as they are to a guest that takes coalesced ones (RSC), in several sections; of all
//! others the sums are made here, as the guest can only be told that they are right.
//!
//! # Whom to trust
//! All that a guest writes is copied before it is looked at. What it can make the host remember has bounds: one message under way
//! for each channel, answers that it does not read, packets that it does not give back (it has no more sections then). Time has, too:
//! a packet's messages are few.
//!
//! Source: the driver of Linux (drivers/net/hyperv), of which only the layout of messages is taken; MS-RNDIS for messages.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod buffer;
mod bytes;
mod channel;
mod control;
mod offload;
mod protocol;
mod provider;
mod receive;
mod rndis;
mod steering;
#[cfg(test)]
mod tests;
mod transmit;

pub use provider::{Bus, Counters, Provider, Settings};
