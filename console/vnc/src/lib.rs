//! A machine's screen, keyboard and pointer over VNC: a server of RFB 3.8 for several clients.
//!
//! Owns the protocol ([`Session`], which is pure: bytes in, bytes out), its security (none, VNC's password challenge, TLS by
//! VeNCrypt), encodings (raw and ZRLE), and the sockets ([`VncServer`]). What is shown and typed is `vireo-screen`'s.
//!
//! # Who waits for whom
//! Each client has a thread, and nobody waits for it. A client that does not read what it was sent gets nothing more; what
//! changes meanwhile is remembered as few rectangles. So it holds at most one part of an update ([`session::PART`] and a strip).
//!
//! # Whom to trust
//! Clients are strangers until they have given a password, if there is one: what they send is parsed in bounds, and a handshake
//! has a deadline. VNC's password has at most 8 characters and goes by DES: without TLS it keeps out the curious, no more.
//!
//! Source: RFC 6143; the community's rfbproto for VeNCrypt, ExtendedDesktopSize and QEMU's extended key event.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod auth;
mod client;
mod handshake;
pub mod message;
mod pixel;
mod security;
mod server;
pub mod session;
#[cfg(test)]
mod tests;
mod transport;
mod zrle;

pub use security::{Security, SecurityError};
pub use server::{Listener, VncServer};
pub use session::Session;
