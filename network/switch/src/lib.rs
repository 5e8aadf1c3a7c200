//! The virtual switch: to which ports a frame goes, and which frames none gets.
//!
//! Owns the policy of ports (VLANs, addresses, guards, access lists, rates, mirrors), the tables (stations, members of groups) and
//! the way of a frame through them ([`Switch::forward`]). It is pure: it moves no bytes, has no thread, and is told the time, so
//! all of it can be tried with made-up frames. Ports, which move frames, are others' business.
//!
//! # A frame's way
//! By the port that it comes by: VLAN; its source address, which must be the port's own, unless spoofing is allowed; guards; the access list;
//! rates. Then to whom: ports that are known to have the destination's address, the port behind which it was learned, or else
//! those that may send from any address. By each port that it leaves by: its VLAN, what its guest wants to get, its access list.
//!
//! Model: the extensible switch of Hyper-V, with the port settings of Windows Server 2008 R2 and those that came later.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod acl;
mod flows;
pub mod groups;
mod guard;
mod port;
mod querier;
mod rate;
mod switch;
mod table;
#[cfg(test)]
mod tests;
mod text;
pub mod vlan;

pub use guard::Guards;
pub use port::{Counters, Kind, Limit, Mirror, Reason, Settings};
pub use rate::{Bucket, Nanos};
pub use switch::{Delivery, PORTS_MAX, PortId, REPORT_MAX, Switch, SwitchError, Verdict};
pub use text::NotUnderstood;
