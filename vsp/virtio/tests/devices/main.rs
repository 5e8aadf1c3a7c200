//! The devices, driven through their function as a guest drives them; rings are built in guest memory.

mod blk;
mod disk;
mod hostile;
mod net;
mod rest;
mod rig;
mod simple;
mod transport;
