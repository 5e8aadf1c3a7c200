//! Disks as a running machine uses them: raw files, block devices and images with their parents, read and written by io_uring
//! straight from and to the guest's memory.
//!
//! Owns [`LiveDisk`], the `vireo_block::BlockDevice` over an open `vireo_chain::Disk`: where the bytes go is the images'
//! business, moving them, and the order in which that is done and becomes durable, is this room's. It knows no format's bytes,
//! no bus and no device model.
//!
//! # Threads
//! A disk has two. *Its own* (`engine`) owns the ring: it takes requests from a queue, looks up where their bytes are in a map that
//! it has in memory, gives orders to the kernel, and tells of ends. It never waits for anything but the ring. *The keeper*
//! (`keeper`) owns the images, and does all that may have to read or write their metadata, one thing after the other: finding a
//! range that the map does not have, giving new blocks a place, flushing. So neither slow metadata nor another disk holds up a
//! request whose place is known.
//!
//! Callers put requests in the queue; they do not enter the ring themselves, though that would save a wake-up. For the kernel
//! finishes a request on the thread that submitted it: it would interrupt a device's thread, or a virtual processor, for each
//! of them, wake that if it sleeps, and cancel what is in flight when it ends. With one thread that submits and waits
//! (`IORING_SETUP_SINGLE_ISSUER`, `DEFER_TASKRUN`) nobody is interrupted. While that thread is busy, it needs no waking either; and
//! what a completion submits goes to the kernel by the same call that waits for more. Who wants that wake-up saved has itself served
//! by this thread (`vireo_block::Executor`), as the only disk of a SCSI controller does.
//!
//! # Order
//! * *A read* goes where the map says; what is in no file is zero, what a parent has comes from the parent's file.
//! * *A write* to what the image has in place already goes there, if the image has announced that it is being changed (which the
//!   first `Image::place` does). Any other goes by `Image::place`, payload, `Image::written`, and completes after that. The map
//!   learns of both before the request completes. Until then a read finds what was there, or zeros of a new block, or the new
//!   bytes: never another block's.
//! * *A flush* is an fdatasync by the ring if no metadata was changed since the last that succeeded; else `Image::flush`, which
//!   first makes the payload durable. The requests that it has to cover have completed, so all they asked of the keeper comes
//!   before the flush in its queue.
//! * *A durable write* (FUA) is written with `RWF_DSYNC`; if the way to its place may not be durable, `Image::flush` follows.
//!
//! # The page cache
//! Payload of the disk's own image goes past it (`O_DIRECT`) where the file system can; metadata goes through it. That is right
//! since the two never share a page: payload is direct only where its place in the file lies on its page as it does on the disk,
//! and then, blocks being whole pages, everything on its pages is that block's. A block that lies otherwise (other
//! programs' VHDs have such) is read and written through the cache, like the bitmap before it. A request that is too small
//! for direct transfers (sectors of 512 bytes on a file system that wants 4096) goes through the cache as well, and, if it is a
//! write, alone: no direct transfer is in flight for the same pages, so the kernel's rule holds that a direct transfer sees
//! what was cached before, and drops it. `fdatasync` covers both: it is the file's, not the descriptor's. Memory that is not
//! aligned as direct transfers need it is copied. Parents, and disks that are only read, go through the cache: many machines share
//! them.
//!
//! # Locks
//! The ring holds the files that `vireo_chain` locked. So when a process is killed, the lock stays until the last transfer that it
//! had in flight has ended, and whoever opens the image then sees nothing change under it.
//!
//! # Clearing
//! Raw disks are cleared by fallocate(2), in the best way that what is below knows; else zeros are written, and what is unmapped
//! stays. Of an image the keeper clears, and gives up whole blocks, whose places may be given to others: so nothing else is in
//! flight in such a range, and nothing at all while an image grows. Who has to wait for whom is found in `held`, at a cost that a
//! guest with many such requests cannot drive up.
#![warn(missing_docs)]

mod disk;
mod engine;
mod error;
mod files;
mod gather;
mod held;
mod inbox;
mod keeper;
mod map;
mod part;
mod ring;
mod slab;

pub use disk::{LiveDisk, OpenOptions};
pub use error::LiveError;

/// A result of this room.
pub type Result<T, E = LiveError> = std::result::Result<T, E>;
