//! A disk in use: by many at once, when it ends, when it grows, when what is below is full, or no file at all.

mod rig;

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, ThreadId};
use std::time::Duration;

use rig::root::{Loop, Mounted};
use rig::{What, contents, difference, flush, open, read, start, write};
use vireo_block::{BlockDevice, BlockError, Buffer, HostBuffer, Operation, Request, Task};
use vireo_chain::{DiskError, Format};
use vireo_live::{LiveDisk, LiveError, OpenOptions};
use vireo_vdisk::trial::Random;
use vireo_vdisk::trial::peer::Folder;

/// Each thread has every eighth sector to itself: so all write to the same blocks, and allocate them.
#[test]
fn threads_do_not_lose_what_others_write() {
    const SIZE: u64 = 2 << 20;
    const THREADS: u64 = 8;
    for what in [What::Raw, What::Vhd, What::Vhdx, What::VhdChain, What::VhdxChain] {
        let folder = Folder::new(&format!("live-threads-{what:?}"));
        let (path, mut model) = what.make(&folder, SIZE);
        let disk = open(what, &path);
        let work = |thread: u64| {
            let mut random = Random(thread);
            let mut own = Vec::new();
            for round in 0..20_u8 {
                let sectors: Vec<u64> =
                    (0..8).map(|n| n * 64 + random.below(8) * 8 + thread + random.below(8) * 512).collect();
                let byte = round * 8 + thread as u8 + 1;
                let ends: Vec<_> = sectors
                    .iter()
                    .map(|s| {
                        let buffer = Buffer::host(&HostBuffer::of(&[byte; 512]));
                        start(&*disk, Operation::Write { fua: round == 7 }, s * 512, 512, vec![buffer])
                    })
                    .collect();
                ends.into_iter().for_each(|e| e.recv().expect("it ends").expect("it is written"));
                own.extend(sectors.iter().map(|s| (*s, byte)));
                let found = read(&*disk, sectors[3] * 512, 512).expect("it can be read");
                assert_eq!(found, [byte; 512], "{what:?}");
                if round % 8 == thread as u8 {
                    flush(&*disk).expect("it is flushed");
                }
            }
            own
        };
        let all: Vec<Vec<(u64, u8)>> = std::thread::scope(|s| {
            let threads: Vec<_> = (0..THREADS).map(|t| s.spawn(move || work(t))).collect();
            threads.into_iter().map(|t| t.join().expect("it ends")).collect()
        });
        for (sector, byte) in all.into_iter().flatten() {
            model[sector as usize * 512..][..512].fill(byte);
        }
        drop(disk);
        assert_eq!(difference(&contents(&path), &model), None, "{what:?}");
    }
}

/// Whether a VHDX has nothing in its log: the identity of the log is zero in the header that counts ([MS-VHDX] 2.2.2).
fn log_is_empty(path: &Path) -> bool {
    let bytes = std::fs::read(path).expect("it can be read");
    let headers = [&bytes[64 << 10..][..4096], &bytes[128 << 10..][..4096]];
    let last = headers.iter().max_by_key(|h| u64::from_le_bytes(h[8..16].try_into().expect("eight")));
    last.expect("two")[48..64] == [0; 16]
}

#[test]
fn what_was_submitted_is_done_when_the_disk_is_dropped() {
    for what in rig::ALL {
        let folder = Folder::new(&format!("live-drop-{what:?}"));
        let (path, mut model) = what.make(&folder, 4 << 20);
        let disk = open(what, &path);
        let mut ends = Vec::new();
        for n in 0..256_u64 {
            let bytes = [n as u8; 4096];
            let at = n * 16384 % (4 << 20);
            model[at as usize..][..4096].copy_from_slice(&bytes);
            let buffer = Buffer::host(&HostBuffer::of(&bytes));
            ends.push(start(&*disk, Operation::Write { fua: false }, at, 4096, vec![buffer]));
        }
        drop(disk);
        for end in ends {
            end.try_recv().expect("it is done").expect("it is written");
        }
        assert!(!matches!(what, What::Vhdx | What::VhdxChain) || log_is_empty(&path));
        assert_eq!(difference(&contents(&path), &model), None, "{what:?}");
    }
}

#[test]
fn a_completion_may_drop_the_disk_or_submit_or_panic() {
    let folder = Folder::new("live-within");
    let (path, _) = What::Vhdx.make(&folder, 4 << 20);
    let disk = open(What::Vhdx, &path);
    let (tell, told) = channel();
    let (again, last) = (Arc::clone(&disk), tell.clone());
    let request = |n: u8, done: vireo_block::Completion| Request {
        operation: Operation::Write { fua: false },
        at: u64::from(n) * 4096,
        len: 4096,
        buffers: vec![Buffer::host(&HostBuffer::of(&[n; 4096]))],
        done,
    };
    let second = request(2, Box::new(move |r| last.send(r.is_ok()).expect("somebody waits")));
    let first = request(
        1,
        Box::new(move |r| {
            tell.send(r.is_ok()).expect("somebody waits");
            again.submit(&mut vec![second]);
            drop(again);
        }),
    );
    disk.submit(&mut vec![request(3, Box::new(|_| panic!("as a test"))), first]);
    drop(disk);
    assert_eq!(told.iter().collect::<Vec<_>>(), [true, true]);
    // It is closed by itself, soon.
    let disk = loop {
        match LiveDisk::open(&path, &OpenOptions::default()) {
            Err(LiveError::Disk(DiskError::InUse(_))) => std::thread::yield_now(),
            other => break other.expect("it opens"),
        }
    };
    assert_eq!(
        read(&*disk, 4096, 3 * 4096).expect("it can be read"),
        [[1; 4096], [2; 4096], [3; 4096]].concat()
    );
}

#[test]
fn a_disk_has_one_writer_or_many_readers() {
    let folder = Folder::new("live-users");
    let (path, _) = What::VhdxChain.make(&folder, 1 << 20);
    let writer = open(What::VhdxChain, &path);
    let only_read = OpenOptions { read_only: true, ..OpenOptions::default() };
    let in_use = |r| matches!(r, Err(LiveError::Disk(DiskError::InUse(_))));
    assert!(
        in_use(LiveDisk::open(&path, &only_read)) && in_use(LiveDisk::open(&path, &OpenOptions::default()))
    );
    write(&*writer, 512, &[5; 1024]).expect("it is written");
    let id = writer.info().id;
    assert!(id != [0; 16] && writer.info().physical_sector == 4096);
    drop(writer);
    let readers = [(); 2].map(|()| LiveDisk::open(&path, &only_read).expect("it opens"));
    for reader in &readers {
        assert!(!reader.is_direct() && reader.info().read_only && !reader.info().unmap);
        assert_eq!(
            (read(&**reader, 512, 1024).expect("it can be read"), reader.info().id),
            (vec![5; 1024], id)
        );
        assert!(matches!(write(&**reader, 0, &[1; 512]), Err(BlockError::ReadOnly)));
        flush(&**reader).expect("nothing is to be done");
        assert!(matches!(read(&**reader, 1 << 20, 512), Err(BlockError::OutOfRange { .. })));
        assert!(reader.grow(2 << 20).is_err());
    }
}

#[test]
fn disks_grow_while_they_are_used() {
    for what in rig::ALL {
        let folder = Folder::new(&format!("live-grow-{what:?}"));
        let (path, mut model) = what.make(&folder, (1 << 20) + 512);
        let disk = open(what, &path);
        let mut ends = Vec::new();
        for n in 0..64_u64 {
            let bytes = [n as u8 + 1; 4096];
            model[n as usize * 16384..][..4096].copy_from_slice(&bytes);
            let buffer = Buffer::host(&HostBuffer::of(&bytes));
            ends.push(start(&*disk, Operation::Write { fua: false }, n * 16384, 4096, vec![buffer]));
        }
        const NEW: u64 = (40 << 20) + 1024;
        disk.grow(NEW).expect("it grows");
        assert!(disk.grow(1 << 20).is_err(), "it does not shrink");
        ends.into_iter().for_each(|e| e.recv().expect("it ends").expect("it is written"));
        assert_eq!(disk.info().size, NEW);
        model.resize(NEW as usize, 0);
        write(&*disk, NEW - 1024, &[9; 1024]).expect("it is written");
        model[NEW as usize - 1024..].fill(9);
        assert_eq!(difference(&read(&*disk, 0, NEW).expect("it can be read"), &model), None, "{what:?}");
        if what == What::Raw {
            let file = std::fs::OpenOptions::new().write(true).open(&path).expect("it opens");
            file.set_len(NEW + 4096 + 100).expect("it grows");
            assert_eq!(disk.refresh().expect("it is looked at"), NEW + 4096);
            write(&*disk, NEW, &[8; 4096]).expect("it is written");
            file.set_len(NEW).expect("it shrinks");
            assert_eq!(disk.refresh().expect("it is looked at"), NEW);
        }
        drop(disk);
        assert_eq!(difference(&contents(&path), &model), None, "{what:?}");
    }
}

/// Whole blocks that were unmapped take no space any more, and read as zeros.
#[test]
fn what_is_unmapped_is_given_back() {
    use std::os::unix::fs::MetadataExt;
    for what in rig::ALL {
        let folder = Folder::new(&format!("live-unmap-{what:?}"));
        let (path, mut model) = what.make(&folder, 8 << 20);
        let disk = open(what, &path);
        assert!(disk.info().unmap);
        write(&*disk, 0, &vec![7; 8 << 20]).expect("it is written");
        flush(&*disk).expect("it is flushed");
        model.fill(7);
        let before = std::fs::metadata(&path).expect("it is there").blocks() * 512;
        let (at, len) = (2 << 20, 4 << 20);
        start(&*disk, Operation::Unmap, at, len, vec![]).recv().expect("it ends").expect("it is unmapped");
        flush(&*disk).expect("it is flushed");
        let after = std::fs::metadata(&path).expect("it is there").blocks() * 512;
        assert!(before - after >= len - (128 << 10), "{what:?}: {before} bytes, then {after}");
        model[at as usize..][..len as usize].fill(0);
        assert_eq!(difference(&read(&*disk, 0, 8 << 20).expect("it can be read"), &model), None, "{what:?}");
        // What was given back is used again, for other blocks as well.
        write(&*disk, 4 << 20, &vec![3; 1 << 20]).expect("it is written");
        model[4 << 20..][..1 << 20].fill(3);
        drop(disk);
        assert_eq!(difference(&contents(&path), &model), None, "{what:?}");
    }
}

#[test]
fn a_full_file_system_loses_nothing() {
    const SIZE: u64 = 32 << 20;
    for what in [What::Raw, What::Buffered, What::Vhd, What::Vhdx, What::VhdxChain] {
        let folder = Folder::new(&format!("live-full-{what:?}"));
        let Some(small) = Mounted::small(&folder, 16 << 20) else { return };
        let ballast = small.path.join("ballast");
        std::fs::write(&ballast, vec![1; 2 << 20]).expect("there is room");
        let (path, mut model) = what.make(&small.path, SIZE);
        let options = OpenOptions { direct: None, ..what.options() };
        let disk = LiveDisk::open(&path, &options).expect("it opens");
        let mut refused = Vec::new();
        for n in 0..SIZE >> 16 {
            let (at, bytes) = (n << 16, vec![(n as u8).wrapping_add(1); 1 << 16]);
            match write(&*disk, at, &bytes) {
                Ok(()) => model[at as usize..][..bytes.len()].copy_from_slice(&bytes),
                Err(BlockError::NoSpace) => refused.push(at),
                Err(other) => panic!("{what:?}: {other}"),
            }
        }
        assert!(!refused.is_empty(), "{what:?}: it was to be full");
        // What was there can still be changed, and flushed when there is a little room.
        std::fs::remove_file(&ballast).expect("it goes");
        write(&*disk, 0, &[0xaa; 4096]).expect("it is written");
        model[..4096].fill(0xaa);
        write(&*disk, refused[0], &[0xbb; 1 << 16]).expect("there is room again");
        model[refused[0] as usize..][..1 << 16].fill(0xbb);
        flush(&*disk).expect("it is flushed");
        let is_lost = |found: &[u8]| {
            // Of what was refused nothing is known.
            let known = |n: &usize| !refused[1..].contains(&((n * 512) as u64 >> 16 << 16));
            let mut sectors = found.chunks(512).zip(model.chunks(512)).enumerate();
            sectors.find(|(n, (a, b))| known(n) && a != b).map(|(n, _)| n)
        };
        assert_eq!(is_lost(&read(&*disk, 0, SIZE).expect("it can be read")), None, "{what:?}");
        drop(disk);
        assert_eq!(is_lost(&contents(&path)), None, "{what:?}");
    }
}

#[test]
fn a_block_device_is_passed_through() {
    for sector in [512, 4096] {
        let folder = Folder::new(&format!("live-loop-{sector}"));
        let file = folder.join("disk.img");
        let Some(device) = Loop::new(&file, 8 << 20, sector) else { return };
        let options = OpenOptions { format: Some(Format::Raw), ..OpenOptions::default() };
        let disk = LiveDisk::open(&device.0, &options).expect("it opens");
        let info = disk.info();
        assert_eq!((info.size, info.sector, info.physical_sector >= sector), (8 << 20, sector, true));
        assert!(info.unmap && disk.is_direct() && info.id != [0; 16]);
        assert!(disk.grow(16 << 20).is_err(), "it is not ours to grow");
        write(&*disk, 4096, &vec![6; 1 << 20]).expect("it is written");
        let end = start(&*disk, Operation::WriteZeroes, 8192, 4096, vec![]).recv().expect("it ends");
        end.expect("it is cleared");
        let end = start(&*disk, Operation::Unmap, 65536, 65536, vec![]).recv().expect("it ends");
        end.expect("it is unmapped");
        flush(&*disk).expect("it is flushed");
        // Nobody else has it.
        assert!(matches!(
            LiveDisk::open(&device.0, &options),
            Err(LiveError::Disk(DiskError::DeviceInUse(_) | DiskError::InUse(_)))
        ));
        drop(disk);
        let found = std::fs::read(&file).expect("it can be read");
        assert_eq!((found[4096..8192].to_vec(), found[8192..12288].to_vec()), (vec![6; 4096], vec![0; 4096]));
        assert!(found[12288..65536].iter().all(|b| *b == 6));
    }
}

#[test]
fn a_mounted_device_is_refused() {
    let folder = Folder::new("live-mounted");
    let Some(mounted) = Mounted::ext4_on_large_sectors(&folder) else { return };
    let device = &mounted.device.as_ref().expect("it has one").0;
    for read_only in [false, true] {
        let options = OpenOptions { format: Some(Format::Raw), read_only, ..OpenOptions::default() };
        let refused = LiveDisk::open(device, &options).err().expect("it is refused");
        assert!(matches!(refused, LiveError::Disk(DiskError::DeviceInUse(_))), "{refused}");
        assert!(refused.to_string().contains("unmount"), "{refused}");
    }
}

/// A task that reads the disk once, and tells on which thread it was and on which the read ended.
struct Reads(Arc<LiveDisk>, Sender<[ThreadId; 2]>);

impl Task for Reads {
    fn run(&self) {
        let (here, tell) = (thread::current().id(), self.1.clone());
        let done = Box::new(move |result: Result<(), BlockError>| {
            result.expect("it is read");
            _ = tell.send([here, thread::current().id()]);
        });
        let buffers = vec![Buffer::host(&HostBuffer::new(4096))];
        self.0.submit(&mut vec![Request { operation: Operation::Read, at: 0, len: 4096, buffers, done }]);
    }
}

#[test]
fn a_disks_thread_does_what_it_is_asked_to_until_it_ends() {
    struct Panics;
    impl Task for Panics {
        fn run(&self) {
            panic!("as it is meant to");
        }
    }
    let folder = Folder::new("live-executor");
    let (path, _) = What::Vhdx.make(&folder, 1 << 20);
    let disk = open(What::Vhdx, &path);
    let executor = disk.executor().expect("it has a thread");
    executor.execute(Arc::new(Panics));
    let (tell, told) = channel();
    executor.execute(Arc::new(Reads(Arc::clone(&disk), tell)));
    let [task, end] = told.recv_timeout(Duration::from_secs(60)).expect("it is done");
    assert!(task == end && task != thread::current().id());
    // When the thread has ended, tasks are not kept: they may keep disks alive.
    drop(disk);
    while LiveDisk::open(&path, &OpenOptions::default()).is_err() {
        thread::yield_now();
    }
    let task: Arc<dyn Task> = Arc::new(Panics);
    executor.execute(Arc::clone(&task));
    assert_eq!(Arc::strong_count(&task), 1);
}
