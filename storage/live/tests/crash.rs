//! A writer is killed in the midst of its work: what it had flushed is there, and each sector is what it was or is to be.
//!
//! The writer is this program, started by itself: so it has no test harness.

mod rig;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use rig::{What, contents, open};
use vireo_block::{Buffer, HostBuffer, Operation};
use vireo_chain::DiskError;
use vireo_live::{LiveDisk, LiveError};
use vireo_vdisk::trial::Random;
use vireo_vdisk::trial::peer::{Folder, text};

const SIZE: u64 = 6 << 20;
const SECTORS: u64 = SIZE / 512;
/// Requests in flight at once, between two flushes.
const DEPTH: u64 = 24;

/// A write of the writer's round: disjoint within a round, since each has a part of the disk.
struct Planned {
    at: u64,
    bytes: Vec<u8>,
}

/// What is written in a round: the same in writer and judge. A sector tells its round.
fn round(n: u32) -> Vec<Planned> {
    let mut random = Random(u64::from(n) + 1);
    let share = SECTORS / DEPTH;
    (0..DEPTH)
        .map(|part| {
            let count = 1 + random.below(9);
            let at = (part * share + random.below(share - count)) * 512;
            let sector: Vec<u8> = n.to_le_bytes().repeat(128);
            Planned { at, bytes: sector.repeat(count as usize) }
        })
        .collect()
}

/// Writes until it is killed; says when a round is durable.
fn writer(what: What, path: &Path) {
    let disk = open(what, path);
    for n in 1.. {
        let durable = n % 4 == 3;
        let writes = round(n);
        let ends: Vec<Receiver<_>> = writes
            .iter()
            .map(|w| {
                let buffer = Buffer::host(&HostBuffer::of(&w.bytes));
                let operation = Operation::Write { fua: durable };
                rig::start(&*disk, operation, w.at, w.bytes.len() as u64, vec![buffer])
            })
            .collect();
        ends.into_iter().for_each(|end| end.recv().expect("it ends").expect("it is written"));
        if !durable {
            rig::flush(&*disk).expect("it is flushed");
        }
        println!("{n}");
        std::io::stdout().flush().expect("somebody listens");
    }
}

/// Opens a disk whose user was killed: the kernel keeps the lock until the last of its transfers has ended.
fn open_when_free(what: What, path: &Path) -> Arc<LiveDisk> {
    loop {
        match LiveDisk::open(path, &what.options()) {
            Err(LiveError::Disk(DiskError::InUse(_))) => std::thread::yield_now(),
            other => return other.expect("it opens"),
        }
    }
}

/// Kills a writer after some rounds; judges what is there.
fn killed(what: What, rounds: u32) {
    let folder = Folder::new(&format!("live-crash-{what:?}-{rounds}"));
    let (path, mut model) = what.make(&folder, SIZE);
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--writer", &format!("{what:?}"), text(&path)])
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut last = 0;
    for line in lines.map_while(Result::ok) {
        last = line.parse().expect("a number");
        if last == rounds {
            // SIGKILL. What it says before it dies still counts.
            child.kill().expect("it is killed");
        }
    }
    assert!(!child.wait().expect("it ends").success(), "it ended by itself");
    assert!(last >= rounds, "it ended after {last} rounds");
    for n in 1..=last {
        round(n).iter().for_each(|w| model[w.at as usize..][..w.bytes.len()].copy_from_slice(&w.bytes));
    }
    // What an opening repairs.
    drop(open_when_free(what, &path));
    let found = contents(&path);
    let mut next = model.clone();
    round(last + 1).iter().for_each(|w| next[w.at as usize..][..w.bytes.len()].copy_from_slice(&w.bytes));
    let sectors = found.chunks(512).zip(model.chunks(512)).zip(next.chunks(512));
    for (n, ((found, was), is_to_be)) in sectors.enumerate() {
        assert!(found == was || found == is_to_be, "{what:?}: sector {n} is {found:?} after {last} rounds");
    }
    println!("test {what:?}, killed after {last} rounds ... ok");
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, flag, what, path] = &arguments[..]
        && flag == "--writer"
    {
        let what = rig::ALL.into_iter().find(|w| format!("{w:?}") == *what).expect("a kind of disk");
        return writer(what, path.as_ref());
    }
    for what in [What::Raw, What::Vhd, What::Vhdx, What::VhdChain, What::VhdxChain] {
        [1, 6, 25].into_iter().for_each(|rounds| killed(what, rounds));
    }
}
