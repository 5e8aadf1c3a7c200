//! The system half executes small pieces of guest code in every mode.

mod breakpoints;
mod fetch;
mod guest;
mod hostile;
mod legacy;
mod long;
mod privilege;
