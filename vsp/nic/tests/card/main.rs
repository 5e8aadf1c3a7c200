//! The card, driven through its registers as a guest drives it; rings are built in guest memory.

mod hostile;
mod receive;
mod registers;
mod rest;
mod rig;
mod transmit;
