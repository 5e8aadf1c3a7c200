//! A board: one engine's partition, guest memory and the chipset, wired together, with its run state.
//!
//! Devices of others are put onto it by [`Attach`] and follow its run state as [`Attachment`]s.
//!
//! Owns the vCPU threads, the bus behind them, pause and resume of everything that has a notion of time, reset and the
//! order in which they happen. It never knows which engine it runs on, what boots, or where the console goes: those
//! come in through [`BoardSpec`] and [`Boot`].
//!
//! # Run state
//! A board is made paused. [`Board::resume`] starts guest time, timers and vCPUs; [`Board::pause`] stops them in the
//! opposite order; between the two nothing of the board touches guest memory. [`Board::reset`] puts devices and vCPUs to
//! their state after reset and boots again, also while paused.
#![forbid(unsafe_code)]

mod attachment;
mod board;
mod bus;
mod input;
mod window;

pub use attachment::{Attach, Attachment, Seat};
pub use board::{Board, BoardError, BoardEvent, BoardSpec, Boot};
pub use input::SerialInput;
pub use window::{Window, WindowError, Windows};
