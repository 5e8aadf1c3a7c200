//! What came of it.

use vireo_frame::Traffic;

/// What passed, what is there, what was lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// From guests.
    pub sent: Traffic,
    /// To guests.
    pub received: Traffic,
    /// Connections that there are.
    pub connections: usize,
    /// Connections that there were and are.
    pub connections_made: u64,
    /// Flows of datagrams, and echo requests, that there are.
    pub talks: usize,
    /// Frames from guests that are not understood.
    pub malformed: u64,
    /// Packets from guests to where none may go, or from addresses that are not theirs.
    pub forbidden: u64,
    /// Packets of flows that could not be, since there are too many.
    pub too_many: u64,
    /// Datagrams that were lost, since somebody was too slow.
    pub lost: u64,
    /// Segments that were sent to guests again.
    pub sent_again: u64,
}
