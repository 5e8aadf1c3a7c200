//! How far something is that takes long.

/// Told now and then; says whether to go on.
pub type Watcher<'a> = &'a mut dyn FnMut(Progress) -> bool;

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub what: &'static str,
    /// Bytes that are done.
    pub done: u64,
    /// All of them.
    pub all: u64,
}
