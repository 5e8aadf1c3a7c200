//! A network card of old.
#![forbid(unsafe_code)]
#![warn(missing_docs)]
