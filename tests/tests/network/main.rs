//! Network adapters with Debian's unmodified drivers: from guest to guest over a switch, to the host and its network, and what a
//! switch refuses.

mod flows;
mod frames;
mod host;
mod policy;
mod rig;
