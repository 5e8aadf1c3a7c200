//! The thread that keeps a disk's images: all that may need the metadata is done here, one thing after the other.

use std::collections::VecDeque;
use std::error::Error;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use vireo_block::BlockError;
use vireo_chain::{Disk, DiskError};
use vireo_vdisk::{Extent, Place};

use crate::map::{Chart, Segment, Source, around};

/// What the keeper is asked for. `op`: whose answer it is.
#[derive(Debug)]
pub enum Job {
    /// Where a range is.
    Map {
        /// See above.
        op: usize,
        /// Its start, in bytes.
        at: u64,
        /// Its length, in bytes.
        len: u64,
    },
    /// Where a range is to be written.
    Place {
        /// See above.
        op: usize,
        /// Its start, in bytes.
        at: u64,
        /// Its length, in bytes.
        len: u64,
    },
    /// It was written there.
    Written {
        /// See above.
        op: usize,
        /// Its start, in bytes.
        at: u64,
        /// Its length, in bytes.
        len: u64,
    },
    /// It is to be zero. Nothing of it is read or written meanwhile.
    Clear {
        /// See above.
        op: usize,
        /// Its start, in bytes.
        at: u64,
        /// Its length, in bytes.
        len: u64,
        /// It is not needed any more: it may as well stay as it is.
        unmap: bool,
    },
    /// The disk is to be larger. Nothing of it is read or written meanwhile.
    Grow {
        /// See above.
        op: usize,
        /// In bytes.
        size: u64,
    },
    /// All that was written is to be durable.
    Flush {
        /// See above.
        op: usize,
        /// How many changes of the metadata were asked for before.
        changes: u64,
    },
    /// The disk is no longer used.
    Close,
}

/// What comes of a job.
#[derive(Debug)]
pub enum Answer {
    /// Of [`Job::Map`], [`Job::Written`], [`Job::Clear`]: where the range, and what is around it, is now.
    Chart(usize, Result<Chart, BlockError>),
    /// Of [`Job::Place`]: where to write, and where the range is now.
    Placed(usize, Result<(Vec<Segment>, Chart), BlockError>),
    /// Of [`Job::Grow`]: the disk's size in bytes. All may be elsewhere now.
    Grown(usize, Result<u64, DiskError>),
    /// Of [`Job::Flush`], with its `changes`.
    Flushed(usize, u64, Result<(), BlockError>),
}

/// The jobs of a keeper.
#[derive(Debug, Default)]
pub struct Jobs {
    queue: Mutex<VecDeque<Job>>,
    more: Condvar,
}

impl Jobs {
    fn queue(&self) -> MutexGuard<'_, VecDeque<Job>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds one.
    pub fn add(&self, job: Job) {
        self.queue().push_back(job);
        self.more.notify_one();
    }

    fn next(&self) -> Job {
        let mut queue = self.queue();
        loop {
            match queue.pop_front() {
                Some(job) => return job,
                None => queue = self.more.wait(queue).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// The flushes that are next.
    fn flushes(&self, found: &mut Vec<(usize, u64)>) {
        let mut queue = self.queue();
        while let Some(Job::Flush { op, changes }) = queue.front() {
            found.push((*op, *changes));
            queue.pop_front();
        }
    }
}

/// Does jobs until the last, by which it closes the disk.
pub fn keep(mut disk: Disk, jobs: &Arc<Jobs>, answer: impl Fn(Answer)) {
    loop {
        match jobs.next() {
            Job::Map { op, at, len } => answer(Answer::Chart(op, chart(&mut disk, at, len))),
            Job::Place { op, at, len } => answer(Answer::Placed(op, place(&mut disk, at, len))),
            Job::Written { op, at, len } => {
                let told = disk.written(at, len);
                answer(Answer::Chart(op, chart_after(&mut disk, told, at, len)));
            }
            Job::Clear { op, at, len, unmap } => {
                let cleared = if unmap { disk.unmap(at, len) } else { disk.zero(at, len) };
                answer(Answer::Chart(op, chart_after(&mut disk, cleared, at, len)));
            }
            Job::Grow { op, size } => {
                let grown = disk.grow(size).map(|()| disk.size());
                answer(Answer::Grown(op, grown));
            }
            Job::Flush { op, changes } => {
                // One is enough for all that were asked for before it begins.
                let mut flushes = vec![(op, changes)];
                jobs.flushes(&mut flushes);
                let result = disk.flush().map_err(block_error);
                for (op, changes) in flushes {
                    answer(Answer::Flushed(op, changes, result.as_ref().copied().map_err(same)));
                }
            }
            Job::Close => break,
        }
    }
    let path = disk.files().next().map(|f| f.path.to_path_buf()).unwrap_or_default();
    if let Err(e) = disk.close() {
        tracing::error!("{} was not closed: {e}", path.display());
    }
}

fn place(disk: &mut Disk, at: u64, len: u64) -> Result<(Vec<Segment>, Chart), BlockError> {
    let mut segments = Vec::new();
    for extent in disk.place(at, len).map_err(block_error)? {
        segment(0, extent).append_to(&mut segments);
    }
    Ok((segments, chart(disk, at, len)?))
}

fn chart_after(disk: &mut Disk, done: Result<(), DiskError>, at: u64, len: u64) -> Result<Chart, BlockError> {
    done.map_err(block_error).and_then(|()| chart(disk, at, len))
}

/// Where a range is, and as much around it as is remembered at once, unless that is damaged.
fn chart(disk: &mut Disk, at: u64, len: u64) -> Result<Chart, BlockError> {
    let (start, wide) = around(at, len, disk.size());
    exactly(disk, start, wide).or_else(|_| exactly(disk, at, len)).map_err(block_error)
}

fn exactly(disk: &mut Disk, at: u64, len: u64) -> Result<Chart, DiskError> {
    let mut segments = Vec::new();
    for (layer, extent) in disk.extents(at, len)? {
        segment(layer, extent).append_to(&mut segments);
    }
    Ok(Chart { at, segments })
}

fn segment(layer: usize, extent: Extent) -> Segment {
    let source = match extent.place {
        // A disk has at most 64 images.
        Place::Medium(at) => Source::File { layer: layer as u16, at },
        Place::Zero | Place::Parent => Source::Zero,
    };
    Segment { len: extent.len, source }
}

/// What a device model is told of an image's error: a full file system is seen through all formats.
fn block_error(e: DiskError) -> BlockError {
    let mut cause: Option<&(dyn Error + 'static)> = Some(&e);
    while let Some(this) = cause {
        if let Some(io) = this.downcast_ref::<io::Error>()
            && matches!(io.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        {
            return BlockError::NoSpace;
        }
        cause = this.source();
    }
    match e {
        DiskError::Io { source, .. } => source.into(),
        other => BlockError::Image(other.to_string()),
    }
}

/// The same once more.
fn same(e: &BlockError) -> BlockError {
    match e {
        BlockError::NoSpace => BlockError::NoSpace,
        other => BlockError::Image(other.to_string()),
    }
}
