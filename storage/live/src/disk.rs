//! A disk of a running machine.

use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vireo_block::{BlockDevice, BlockInfo, Executor, Request, Task};
use vireo_chain::{Disk, Format};

use crate::engine::{Engine, Mail};
use crate::files::{Files, is_raw};
use crate::inbox::Inbox;
use crate::keeper::{Jobs, keep};
use crate::ring::Ring;
use crate::{LiveError, Result};

/// A disk that has not done what it was asked to in this time may never do it.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a disk is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// Its format; `None`: by content and name (see `vireo_chain::Format`).
    pub format: Option<Format>,
    /// Nothing is changed, and others may read it as well.
    pub read_only: bool,
    /// Past the host's page cache. `None`: if the file system can, unless it is read-only.
    pub direct: Option<bool>,
}

/// What a disk's threads and its users share.
pub struct Shared {
    /// What comes to the disk's thread.
    pub inbox: Inbox<Mail>,
    /// The disk's files.
    pub files: Files,
    info: Mutex<BlockInfo>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, BlockInfo> {
        self.info.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The disk has another size, in bytes.
    pub fn set_size(&self, size: u64) {
        let mut info = self.lock();
        info.size = size - size % u64::from(info.sector);
    }

    /// What the disk is, now.
    pub fn info(&self) -> BlockInfo {
        *self.lock()
    }
}

/// A disk: see the [crate](crate). When it is dropped, what was submitted is done before the image is closed; that is waited
/// for, unless it is dropped by a completion of its own.
pub struct LiveDisk {
    shared: Arc<Shared>,
    raw: bool,
    thread: Option<JoinHandle<()>>,
}

impl LiveDisk {
    /// Opens a disk.
    ///
    /// # Errors
    /// Those of [`Disk::open`]; a file system that cannot do direct transfers, if they were asked for; no ring.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Arc<Self>> {
        let mut disk = Disk::open(path, options.format, !options.read_only)?;
        let raw = is_raw(&disk);
        let files = Files::of(&disk, options.read_only, options.direct)?;
        let info = describe(&mut disk, &files, raw, options.read_only)?;
        let inbox = Inbox::new().map_err(LiveError::io("make a queue for", path))?;
        let shared = Arc::new(Shared { inbox, files, info: Mutex::new(info) });
        let thread = spawn(path, disk, raw, &shared)?;
        Ok(Arc::new(Self { shared, raw, thread: Some(thread) }))
    }

    /// Whether its transfers go past the host's page cache.
    pub fn is_direct(&self) -> bool {
        self.shared.files.alignment().is_some()
    }

    /// Makes the disk larger, to `size` bytes: what is in flight is waited for if it is an image. Not to be called by a completion.
    /// Where that takes too long, the disk is still made larger once it is done.
    ///
    /// # Errors
    /// A size that is smaller, or not of whole sectors; those of the system; what cannot grow in this way.
    pub fn grow(&self, size: u64) -> Result<()> {
        let files = &self.shared.files;
        let refused = |what| Err(LiveError::NotSupported { path: files.path().to_path_buf(), what });
        let info = self.shared.info();
        if size < info.size || !size.is_multiple_of(info.sector.into()) || info.read_only {
            return refused("a disk that can be written can grow, by whole sectors, but not shrink");
        }
        if !self.raw {
            let (tell, told) = channel();
            self.shared.inbox.put([Mail::Grow(size, tell)]);
            let failed = |kind: std::io::ErrorKind| LiveError::io("extend", files.path())(kind.into());
            let result = told.recv_timeout(PATIENCE).map_err(|e| match e {
                RecvTimeoutError::Timeout => failed(std::io::ErrorKind::TimedOut),
                RecvTimeoutError::Disconnected => failed(std::io::ErrorKind::BrokenPipe),
            });
            return Ok(result?.map(drop)?);
        }
        if files.is_device() {
            return refused(
                "a block device grows by whoever made it; then `vireo vm disk grow NAME`, without a size, tells the guest",
            );
        }
        files.own().set_len(size).map_err(LiveError::io("extend", files.path()))?;
        self.refresh().map(drop)
    }

    /// Looks whether the file or device of a raw disk has another size than before; gives the size, in bytes.
    ///
    /// # Errors
    /// Those of the system.
    pub fn refresh(&self) -> Result<u64> {
        if self.raw {
            self.shared.set_size(self.shared.files.len()?);
        }
        Ok(self.shared.info().size)
    }
}

fn describe(disk: &mut Disk, files: &Files, raw: bool, read_only: bool) -> Result<BlockInfo> {
    let device = files.sectors()?;
    let sector = device.map_or(disk.sector(), |d| d.0).max(disk.sector());
    // Files are cached and stored by pages, most often.
    let usual = if raw { crate::files::PAGE as u32 } else { sector };
    let physical = device.map(|d| d.1).or(disk.physical_sector()).unwrap_or(usual);
    let id = disk.id().map_or_else(|| files.identity(), Ok)?;
    Ok(BlockInfo {
        size: disk.size() - disk.size() % u64::from(sector),
        sector,
        physical_sector: physical.max(sector),
        read_only,
        unmap: !read_only && files.can_unmap(),
        id,
    })
}

/// Starts a disk's threads.
fn spawn(path: &Path, disk: Disk, raw: bool, shared: &Arc<Shared>) -> Result<JoinHandle<()>> {
    let thread = |name: &str| thread::Builder::new().name(name.into());
    let jobs = Arc::new(Jobs::default());
    let (theirs, inbox) = (Arc::clone(&jobs), Arc::clone(shared));
    let keeper = thread("disk-images")
        .spawn(move || keep(disk, &theirs, |answer| inbox.inbox.put([Mail::Answer(answer)])))
        .map_err(LiveError::io("start a thread for", path))?;
    let shared = Arc::clone(shared);
    let (tell, told) = sync_channel(1);
    let started = {
        let jobs = Arc::clone(&jobs);
        thread("disk").spawn(move || {
            // The thread that makes the ring is the only one that may use it.
            match Ring::new(&shared.files.all(), shared.inbox.bell()) {
                Ok(ring) => {
                    _ = tell.send(Ok(()));
                    drop(tell);
                    Engine::new(ring, raw, shared, jobs, keeper).run();
                }
                Err(e) => {
                    jobs.add(crate::keeper::Job::Close);
                    _ = keeper.join();
                    _ = tell.send(Err(e));
                }
            }
        })
    };
    let handle = match started {
        Ok(handle) => handle,
        Err(e) => {
            jobs.add(crate::keeper::Job::Close);
            return Err(LiveError::io("start a thread for", path)(e));
        }
    };
    match told.recv() {
        Ok(Ok(())) => Ok(handle),
        Ok(Err(e)) => Err(LiveError::Ring(e)),
        Err(_) => Err(LiveError::Ring(std::io::ErrorKind::BrokenPipe.into())),
    }
}

impl BlockDevice for LiveDisk {
    fn info(&self) -> BlockInfo {
        self.shared.info()
    }

    fn submit(&self, batch: &mut Vec<Request>) {
        self.shared.inbox.put(batch.drain(..).map(Mail::Request));
    }

    fn executor(&self) -> Option<Arc<dyn Executor>> {
        Some(Arc::clone(&self.shared) as _)
    }
}

impl Executor for Shared {
    fn execute(&self, task: Arc<dyn Task>) {
        self.inbox.put([Mail::Run(task)]);
    }
}

impl Drop for LiveDisk {
    fn drop(&mut self) {
        self.shared.inbox.put([Mail::Stop]);
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
        {
            _ = thread.join();
        }
    }
}
