//! Threads that others may use.

use std::sync::Arc;

/// What a thread can be asked to do. It must not wait for anything that takes long.
pub trait Task: Send + Sync {
    /// Does it.
    fn run(&self);
}

/// A thread that does what it is asked to, one task after the other, besides work of its own. One that has ended, or ends, does
/// nothing: a task is then dropped.
pub trait Executor: Send + Sync {
    /// Has a task done soon. Does not wait for it; may be called on the thread itself.
    fn execute(&self, task: Arc<dyn Task>);
}
