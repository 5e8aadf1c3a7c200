//! What an adapter wants to get.

use std::collections::BTreeSet;

use crate::Mac;

/// What an adapter wants to get (packet filters of NDIS, receive mode of virtio-net).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Frames to its address.
    pub directed: bool,
    /// Frames to all.
    pub broadcast: bool,
    /// Frames to these groups; `None`: to any.
    pub groups: Option<BTreeSet<Mac>>,
}

impl Default for Filter {
    /// All.
    fn default() -> Self {
        Self { directed: true, broadcast: true, groups: None }
    }
}

impl Filter {
    /// Whether a frame to an address is wanted.
    pub fn wants(&self, to: Mac) -> bool {
        match to {
            Mac::BROADCAST => self.broadcast,
            to if to.is_group() => self.groups.as_ref().is_none_or(|groups| groups.contains(&to)),
            _ => self.directed,
        }
    }
}
