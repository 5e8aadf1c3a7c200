//! An adapter as its driver uses it, and as no driver would.

mod channels;
mod driving;
mod frames;
mod hostile;
mod rig;
