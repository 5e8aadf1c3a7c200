//! What is measured in this process: the path alone, and on files.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use vireo_block::{BlockDevice, Buffer, HostBuffer, Null, Operation, Request};
use vireo_chain::{Format, Kind, NewDisk};
use vireo_live::{LiveDisk, OpenOptions};

use crate::AnyResult;
use crate::io::initiator::{Initiator, Load};
use crate::io::plain;
use crate::io::table::Table;

/// How much is written at a time.
const PIECE: usize = 1 << 20;
/// How long a disk is used before it is measured.
const WARM_UP: Duration = Duration::from_millis(200);
/// Requests per second that a channel is to serve.
const NULL_TARGET: f64 = 300e3;

/// The files that are measured on, fully written: of what is only allocated the file system knows that it is zero. Removed in
/// the end.
pub struct Files {
    /// A raw disk.
    pub raw: PathBuf,
    vhdx: PathBuf,
    size: u64,
}

impl Files {
    /// Makes them.
    pub fn make(folder: &Path, size: u64) -> AnyResult<Self> {
        let files = Self { raw: folder.join("disk.raw"), vhdx: folder.join("disk.vhdx"), size };
        eprintln!("writing files of {} MiB", size >> 20);
        for path in [&files.raw, &files.vhdx] {
            _ = std::fs::remove_file(path);
        }
        let new = |format, kind| NewDisk {
            format,
            kind,
            size: Some(size),
            block: None,
            sector: None,
            allocate: false,
        };
        vireo_chain::create(&files.raw, &new(Format::Raw, Kind::Fixed))?;
        vireo_chain::create(&files.vhdx, &new(Format::Vhdx, Kind::Dynamic))?;
        files.open(&files.raw, Format::Raw).and_then(|disk| fill(&*disk, size))?;
        files.open(&files.vhdx, Format::Vhdx).and_then(|disk| fill(&*disk, size))?;
        Ok(files)
    }

    fn open(&self, path: &Path, format: Format) -> AnyResult<Arc<LiveDisk>> {
        let options = OpenOptions { format: Some(format), ..OpenOptions::default() };
        let disk = LiveDisk::open(path, &options)?;
        if !disk.is_direct() {
            return Err(format!(
                "{}: its file system has no direct I/O: choose another --folder",
                path.display()
            )
            .into());
        }
        Ok(disk)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        for path in [&self.raw, &self.vhdx] {
            _ = std::fs::remove_file(path);
        }
    }
}

/// Writes all of a disk, with what does not compress to nothing.
fn fill(disk: &dyn BlockDevice, size: u64) -> AnyResult<()> {
    let bytes: Vec<u8> = (0..PIECE).map(|n| (n * 7 + n / 4096) as u8).collect();
    let piece = HostBuffer::of(&bytes);
    let write = |at| (Operation::Write { fua: false }, at, PIECE as u64, vec![Buffer::host(&piece)]);
    let writes = (0..size).step_by(PIECE).map(write);
    for (operation, at, len, buffers) in writes.chain([(Operation::Flush, 0, 0, Vec::new())]) {
        let (tell, told) = channel();
        let done = Box::new(move |result| _ = tell.send(result));
        disk.submit(&mut vec![Request { operation, at, len, buffers, done }]);
        told.recv()??;
    }
    Ok(())
}

/// The path alone, with one channel and two.
pub fn null(time: Duration, table: &mut Table) {
    for channels in [1, 2] {
        let size = 1 << 30;
        let initiator = Initiator::new(Arc::new(Null::new(size)), channels);
        for depth in [32, 128] {
            let figure = initiator.run(Load { write: false, depth, size, time });
            let line = format!("{channels} channel(s), depth {depth}");
            let rate = figure.rate / f64::from(channels);
            table.null(&line, rate, NULL_TARGET, figure.cost);
        }
    }
}

/// Files: io_uring's loop and the path on the raw one (`plain`), the path on a VHDX and the raw one (`vhdx`).
pub fn files(files: &Files, time: Duration, plain: bool, vhdx: bool, table: &mut Table) -> AnyResult<()> {
    let depths: &[usize] = if vhdx { &[1, 4, 32] } else { &[32] };
    for write in [false, true] {
        for &depth in depths {
            let load = Load { write, depth, size: files.size, time };
            let line = format!("4k {}, depth {depth}", if write { "randwrite" } else { "randread" });
            let through = |path, format| -> AnyResult<f64> {
                let initiator = Initiator::new(files.open(path, format)?, 1);
                // The first write marks an image as in use, and waits for that to be durable.
                initiator.run(Load { time: WARM_UP, ..load });
                Ok(initiator.run(load).rate)
            };
            if plain {
                table.file(&line, "io_uring", plain::measure(&files.raw, load)?);
            }
            table.file(&line, "raw", through(&files.raw, Format::Raw)?);
            if vhdx {
                table.file(&line, "vhdx", through(&files.vhdx, Format::Vhdx)?);
            }
        }
    }
    Ok(())
}
