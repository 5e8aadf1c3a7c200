//! Places in a medium that were given up.

use crate::Medium;

/// Places of one size that a table led to. One that was given up is used again only when it is durable that the table
/// no longer leads there: else a crash would show in one block what was written to another.
#[derive(Debug, Default)]
pub struct Space {
    /// Given up since the last flush.
    freed: Vec<u64>,
    /// Zero, and nothing leads there.
    free: Vec<u64>,
}

impl Space {
    /// Nothing is to lead to a place any more.
    pub fn give_up(&mut self, at: u64) {
        self.freed.push(at);
    }

    /// What is durable now leads to none of those that were given up. Makes them zero; their size in bytes is `len`.
    pub fn is_durable(&mut self, medium: &dyn Medium, len: u64) {
        for at in self.freed.drain(..) {
            // One that cannot be made zero stays unused.
            if medium.punch(at, len).is_ok() {
                self.free.push(at);
            }
        }
    }

    /// A place that is zero, if there is one.
    pub fn take(&mut self) -> Option<u64> {
        self.free.pop()
    }

    /// Forgets those that could be used again.
    pub fn forget(&mut self) {
        self.free.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crash::ForgetfulMedium;

    #[test]
    fn a_place_is_used_again_only_when_that_is_safe() {
        let medium = ForgetfulMedium::new(vec![1; 2048]);
        let mut space = Space::default();
        space.give_up(512);
        assert_eq!(space.take(), None);
        space.is_durable(&medium, 1024);
        assert_eq!(medium.contents()[511..1537], [&[1][..], &[0; 1024], &[1]].concat());
        assert_eq!([space.take(), space.take()], [Some(512), None]);
    }
}
