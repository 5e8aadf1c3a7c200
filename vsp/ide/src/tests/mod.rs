//! The controller, driven through its registers as a guest drives it.

mod bus_master;
mod disk;
mod packet;
mod rig;
mod saved;
mod traffic;
