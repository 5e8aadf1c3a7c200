//! What a disk costs: 4 KiB at random places, through [`LiveDisk`] as a raw file and as a dynamic VHDX, against a loop around io_uring
//! that does nothing else, and against fio, if it is there; in turn, in one run.
//!
//! `cargo run --release -p vireo-live --example measure -- [folder [MiB [seconds [rounds]]]]`
//!
//! Files are fully written first: of what is only allocated the file system knows that it is zero. Requests follow each other
//! from the completions, as they do when a guest keeps its queue full. Each figure is the median of the rounds.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use io_uring::types::Fixed;
use io_uring::{IoUring, opcode};
use vireo_block::{BlockDevice, Buffer, HostBuffer, Operation, Request};
use vireo_chain::{Format, Kind, NewDisk, create};
use vireo_live::LiveDisk;
use vireo_vdisk::trial::Random;

const UNIT: u64 = 4096;

/// What is measured.
#[derive(Clone, Copy)]
struct Load {
    write: bool,
    depth: usize,
    size: u64,
    time: Duration,
}

/// Requests per second of a loop around io_uring.
fn plain(path: &Path, load: Load) -> f64 {
    let file =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path).expect("a file");
    let mut ring = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(256).expect("a ring");
    ring.submitter().register_files(&[file.as_raw_fd()]).expect("registered");
    let buffers: Vec<_> = (0..load.depth).map(|_| HostBuffer::new(UNIT as usize)).collect();
    let mut random = Random(1);
    let mut push = |ring: &mut IoUring, n: usize| {
        let at = random.below(load.size / UNIT) * UNIT;
        let memory: *mut u8 = buffers[n].iovec(0, UNIT as usize).iov_base.cast();
        let entry = match load.write {
            true => opcode::Write::new(Fixed(0), memory, UNIT as u32).offset(at).build(),
            false => opcode::Read::new(Fixed(0), memory, UNIT as u32).offset(at).build(),
        };
        // SAFETY: the buffers live until all is done.
        unsafe { ring.submission().push(&entry.user_data(n as u64)).expect("room") };
    };
    (0..load.depth).for_each(|n| push(&mut ring, n));
    let start = Instant::now();
    let (mut done, mut pending) = (0, load.depth);
    while pending > 0 {
        ring.submit_and_wait(1).expect("submitted");
        let ends: Vec<_> = ring.completion().map(|e| (e.user_data() as usize, e.result())).collect();
        let go_on = start.elapsed() < load.time;
        for (n, result) in ends {
            assert_eq!(result, UNIT as i32);
            done += 1;
            match go_on {
                true => push(&mut ring, n),
                false => pending -= 1,
            }
        }
    }
    f64::from(done) / start.elapsed().as_secs_f64()
}

/// One of the requests that follow each other.
struct Chain {
    disk: Arc<LiveDisk>,
    load: Load,
    buffer: Arc<HostBuffer>,
    random: Mutex<Random>,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    end: Sender<()>,
}

impl Chain {
    fn next(self: Arc<Self>) {
        let at = self.random.lock().expect("unlocked").below(self.load.size / UNIT) * UNIT;
        let operation = if self.load.write { Operation::Write { fua: false } } else { Operation::Read };
        let (disk, buffers) = (Arc::clone(&self.disk), vec![Buffer::host(&self.buffer)]);
        let done = Box::new(move |result: Result<(), _>| {
            result.expect("it is done");
            self.done.fetch_add(1, Ordering::Relaxed);
            match self.stop.load(Ordering::Relaxed) {
                true => self.end.send(()).expect("somebody waits"),
                false => self.next(),
            }
        });
        disk.submit(&mut vec![Request { operation, at, len: UNIT, buffers, done }]);
    }
}

/// Requests per second of a disk.
fn through(disk: &Arc<LiveDisk>, load: Load) -> f64 {
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (end, ended) = channel();
    let start = Instant::now();
    for n in 0..load.depth {
        let chain = Chain {
            disk: Arc::clone(disk),
            load,
            buffer: HostBuffer::new(UNIT as usize),
            random: Mutex::new(Random(n as u64)),
            stop: Arc::clone(&stop),
            done: Arc::clone(&done),
            end: end.clone(),
        };
        Arc::new(chain).next();
    }
    std::thread::sleep(load.time);
    stop.store(true, Ordering::Relaxed);
    (0..load.depth).for_each(|_| ended.recv().expect("it ends"));
    done.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64()
}

/// Requests per second of fio. `None`: there is none.
fn fio(path: &Path, load: Load) -> Option<f64> {
    let output = Command::new("fio")
        .args([
            "--name=x",
            "--ioengine=io_uring",
            "--direct=1",
            "--bs=4k",
            "--time_based",
            "--output-format=terse",
        ])
        .args(["--registerfiles=1", "--allow_file_create=0", "--randrepeat=0"])
        .arg(format!("--filename={}", path.display()))
        .arg(format!("--size={}", load.size))
        .arg(format!("--rw={}", if load.write { "randwrite" } else { "randread" }))
        .arg(format!("--iodepth={}", load.depth))
        .arg(format!("--runtime={}ms", load.time.as_millis()))
        .output()
        .ok()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Terse version 3: the eighth field is the IOPS of reads, the 49th that of writes.
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let field = if load.write { 48 } else { 7 };
    text.lines().find(|l| l.starts_with("3;"))?.split(';').nth(field)?.parse().ok()
}

fn fill_file(path: &Path, size: u64) {
    let file: File = OpenOptions::new().write(true).create(true).truncate(true).open(path).expect("a file");
    let piece: Vec<u8> = (0..1 << 20).map(|n: u32| (n * 7) as u8).collect();
    (0..size).step_by(piece.len()).for_each(|at| file.write_all_at(&piece, at).expect("written"));
    file.sync_all().expect("durable");
}

fn fill_disk(disk: &LiveDisk, size: u64) {
    let piece = HostBuffer::of(&vec![5; 1 << 20]);
    for at in (0..size).step_by(1 << 20) {
        let (tell, told) = channel();
        let done = Box::new(move |r| tell.send(r).expect("somebody waits"));
        let (operation, buffers) = (Operation::Write { fua: false }, vec![Buffer::host(&piece)]);
        disk.submit(&mut vec![Request { operation, at, len: 1 << 20, buffers, done }]);
        told.recv().expect("it ends").expect("it is written");
    }
    let (tell, told) = channel();
    let done = Box::new(move |r| tell.send(r).expect("somebody waits"));
    disk.submit(&mut vec![Request { operation: Operation::Flush, at: 0, len: 0, buffers: vec![], done }]);
    told.recv().expect("it ends").expect("it is durable");
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn open(path: &Path, format: Format) -> Arc<LiveDisk> {
    let options = vireo_live::OpenOptions { format: Some(format), ..vireo_live::OpenOptions::default() };
    let disk = LiveDisk::open(path, &options).expect("it opens");
    println!("{}: {}", path.display(), if disk.is_direct() { "direct" } else { "through the page cache" });
    disk
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |n: usize, usual: u64| arguments.get(n).map_or(usual, |a| a.parse().expect("a number"));
    let folder = arguments.get(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let (size, seconds, rounds) = (number(2, 1024) << 20, number(3, 2), number(4, 5));
    let (raw, vhdx) = (folder.join("measure.raw"), folder.join("measure.vhdx"));
    fill_file(&raw, size);
    _ = std::fs::remove_file(&vhdx);
    let new = NewDisk {
        format: Format::Vhdx,
        kind: Kind::Dynamic,
        size: Some(size),
        block: None,
        sector: None,
        allocate: false,
    };
    create(&vhdx, &new).expect("an image");
    let image = open(&vhdx, Format::Vhdx);
    fill_disk(&image, size);
    println!("requests per second, and as a part of io_uring's");
    for write in [false, true] {
        for depth in [1, 4, 32] {
            let load = Load { write, depth, size, time: Duration::from_secs(seconds) };
            let mut found: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
            for _ in 0..rounds {
                found.entry("1 io_uring").or_default().push(plain(&raw, load));
                let disk = open_quietly(&raw);
                found.entry("2 raw").or_default().push(through(&disk, load));
                drop(disk);
                found.entry("3 vhdx").or_default().push(through(&image, load));
                if let Some(f) = fio(&raw, load) {
                    found.entry("4 fio").or_default().push(f);
                }
            }
            print!("{} {depth:2}:", if write { "write" } else { "read " });
            let base = median(&mut found.get_mut("1 io_uring").expect("measured").clone());
            for (name, values) in &mut found {
                let m = median(values);
                let (least, most) = (values[0] / base, values[values.len() - 1] / base);
                print!("  {} {m:.0} ({:.3}, {least:.2} to {most:.2})", &name[2..], m / base);
            }
            println!();
        }
    }
    drop(image);
    _ = std::fs::remove_file(&raw);
    _ = std::fs::remove_file(&vhdx);
}

fn open_quietly(path: &Path) -> Arc<LiveDisk> {
    let options = vireo_live::OpenOptions { format: Some(Format::Raw), ..vireo_live::OpenOptions::default() };
    LiveDisk::open(path, &options).expect("it opens")
}
