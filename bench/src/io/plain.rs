//! A loop around io_uring that does nothing else: what the host can do, as far as a program can have it.
#![allow(unsafe_code)] // io_uring's queue takes addresses.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use io_uring::squeue::Entry;
use io_uring::types::Fixed;
use io_uring::{IoUring, opcode};
use vireo_block::HostBuffer;
use vireo_vdisk::trial::Random;

use crate::io::initiator::{Load, UNIT};

/// Most requests under way.
const DEPTH_MAX: u32 = 256;

fn entry(load: Load, at: u64, buffer: &Arc<HostBuffer>, number: usize) -> Entry {
    let memory: *mut u8 = buffer.iovec(0, UNIT as usize).iov_base.cast();
    let entry = match load.write {
        true => opcode::Write::new(Fixed(0), memory, UNIT as u32).offset(at).build(),
        false => opcode::Read::new(Fixed(0), memory, UNIT as u32).offset(at).build(),
    };
    entry.user_data(number as u64)
}

/// Requests per second on a file.
///
/// # Errors
/// The host refuses the file, the ring or a request.
pub fn measure(path: &Path, load: Load) -> io::Result<f64> {
    assert!(load.depth <= DEPTH_MAX as usize, "room for all requests");
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path)?;
    let mut ring = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(DEPTH_MAX)?;
    ring.submitter().register_files(&[file.as_raw_fd()])?;
    let buffers: Vec<_> = (0..load.depth).map(|_| HostBuffer::new(UNIT as usize)).collect();
    let mut random = Random(1);
    let mut push = |ring: &mut IoUring, n: usize| {
        let entry = entry(load, random.below(load.size / UNIT) * UNIT, &buffers[n], n);
        // SAFETY: the buffer, of the entry's length, lives until all is done: below, each request is waited for.
        unsafe { ring.submission().push(&entry) }.expect("room for all requests");
    };
    (0..load.depth).for_each(|n| push(&mut ring, n));
    let start = Instant::now();
    let (mut done, mut pending, mut failed) = (0, load.depth, None);
    while pending > 0 {
        if let Err(e) = ring.submit_and_wait(1) {
            // What the kernel still writes to must not be freed.
            std::mem::forget(buffers.clone());
            return Err(e);
        }
        let ends: Vec<_> = ring.completion().map(|e| (e.user_data() as usize, e.result())).collect();
        let go_on = failed.is_none() && start.elapsed() < load.time;
        for (n, result) in ends {
            if result != UNIT as i32 {
                failed = Some(match result {
                    0.. => io::Error::other(format!("{result} of {UNIT} bytes")),
                    error => io::Error::from_raw_os_error(-error),
                });
            }
            done += 1;
            match go_on {
                true => push(&mut ring, n),
                false => pending -= 1,
            }
        }
    }
    failed.map_or(Ok(f64::from(done) / start.elapsed().as_secs_f64()), Err)
}
