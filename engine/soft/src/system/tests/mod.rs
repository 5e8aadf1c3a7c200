//! The system half executes small pieces of guest code in every mode.

mod breakpoints;
mod fetch;
pub mod guest;
mod hostile;
mod legacy;
mod long;
mod pcid;
mod privilege;
mod vendor;
