//! What every disk of a running machine is.

use std::sync::Arc;

use crate::{Executor, Request};

/// What there is to know of a disk. Its size may grow while it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockInfo {
    /// In bytes.
    pub size: u64,
    /// Smallest unit of requests, in bytes: 512 or 4096.
    pub sector: u32,
    /// Smallest unit that is written without reading, in bytes: a multiple of `sector`.
    pub physical_sector: u32,
    /// Changes are refused.
    pub read_only: bool,
    /// Whether `Unmap` does anything.
    pub unmap: bool,
    /// Tells it from all others; the same wherever and whenever the disk is opened. Zero: it has none.
    pub id: [u8; 16],
}

impl BlockInfo {
    /// The id in ten bytes, for buses whose serial numbers have twenty characters. The rest is laid over the first, so each byte
    /// counts: those of raw files on one volume begin alike.
    pub fn short_id(&self) -> [u8; 10] {
        std::array::from_fn(|n| if n < 6 { self.id[n] ^ self.id[n + 10] } else { self.id[n] })
    }
}

/// A disk of a running machine. It is dropped when nobody uses it any more: requests in flight then still complete.
pub trait BlockDevice: Send + Sync {
    /// What it is, now.
    fn info(&self) -> BlockInfo;

    /// Takes all requests out of `batch` and starts them, in this order; some may complete within the call. It may block
    /// briefly, but never until a request is done: what takes time goes to threads of the disk's own. A request that
    /// cannot be done ([`Request::check`]) completes with its error.
    fn submit(&self, batch: &mut Vec<Request>);

    /// The thread that tells of ends, if it can be asked to serve those who use this disk: what they submit there needs no
    /// other thread to be woken.
    fn executor(&self) -> Option<Arc<dyn Executor>> {
        None
    }
}
