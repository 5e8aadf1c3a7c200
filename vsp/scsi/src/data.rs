//! Data of commands that are not the disk's: answers and parameter lists.

use vireo_block::{BlockError, Buffer, Operation, Request};

use crate::{Command, Outcome, Sense};

/// Longest parameter list that is taken, in bytes.
const LIST_MAX: u64 = 64 * 1024;

/// Writes as much of `bytes` as there is memory for; how many those are.
pub fn fill(to: &[Buffer], bytes: &[u8]) -> usize {
    let mut rest = bytes;
    for buffer in to {
        let (part, more) = rest.split_at(rest.len().min(buffer.len()));
        buffer.write(0, part);
        rest = more;
    }
    bytes.len() - rest.len()
}

/// The first `len` bytes of the memory; `None` if it has fewer.
pub fn cut(mut data: Vec<Buffer>, len: u64) -> Option<Vec<Buffer>> {
    let mut left = usize::try_from(len).ok()?;
    let mut used = 0;
    for buffer in &mut data {
        if left == 0 {
            break;
        }
        if buffer.len() > left {
            *buffer = buffer.split_at(left).0;
        }
        left -= buffer.len();
        used += 1;
    }
    data.truncate(used);
    (left == 0).then_some(data)
}

/// A request that ends a command.
pub fn request(
    operation: Operation,
    at: u64,
    len: u64,
    buffers: Vec<Buffer>,
    done: Box<dyn FnOnce(Outcome) + Send>,
) -> Request {
    let ended = move |result: Result<(), BlockError>| {
        done(match result {
            Ok(()) => Outcome::good(len as u32),
            Err(e) => Outcome::failed(Sense::of(&e, operation)),
        });
    };
    Request { operation, at, len, buffers, done: Box::new(ended) }
}

impl Command {
    /// Ends it with an answer, cut to what the guest allows for.
    pub(crate) fn answer(self, bytes: &[u8], allowed: usize) {
        let moved = fill(&self.data, &bytes[..bytes.len().min(allowed)]);
        (self.done)(Outcome::good(moved as u32));
    }

    /// A copy of the first `len` bytes that came with it.
    pub(crate) fn list(&self, len: u64) -> Result<Vec<u8>, Sense> {
        if len > self.room() || len > LIST_MAX {
            return Err(Sense::PARAMETER_LENGTH);
        }
        let mut bytes = vec![0; len as usize];
        let mut rest = &mut bytes[..];
        for buffer in &self.data {
            let (part, more) = rest.split_at_mut(buffer.len().min(rest.len()));
            buffer.read(0, part);
            rest = more;
        }
        Ok(bytes)
    }
}
