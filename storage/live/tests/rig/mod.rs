//! What the tests of a disk share.
#![allow(dead_code, reason = "each test uses what it needs")]

pub mod root;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use vireo_block::{BlockDevice, BlockError, Buffer, HostBuffer, Operation, Request};
use vireo_chain::{Disk, Format, Kind, NewDisk, create};
use vireo_live::{LiveDisk, OpenOptions};

pub type Outcome = Result<(), BlockError>;

/// A request, and where its end is told.
pub fn request(
    operation: Operation,
    at: u64,
    len: u64,
    buffers: Vec<Buffer>,
) -> (Request, Receiver<Outcome>) {
    let (tell, told) = channel();
    let done = Box::new(move |result| _ = tell.send(result));
    (Request { operation, at, len, buffers, done }, told)
}

pub fn start(
    disk: &dyn BlockDevice,
    operation: Operation,
    at: u64,
    len: u64,
    buffers: Vec<Buffer>,
) -> Receiver<Outcome> {
    let (request, told) = request(operation, at, len, buffers);
    disk.submit(&mut vec![request]);
    told
}

pub fn write(disk: &dyn BlockDevice, at: u64, bytes: &[u8]) -> Outcome {
    let buffer = Buffer::host(&HostBuffer::of(bytes));
    let told = start(disk, Operation::Write { fua: false }, at, bytes.len() as u64, vec![buffer]);
    told.recv().expect("every request completes")
}

pub fn read(disk: &dyn BlockDevice, at: u64, len: u64) -> Result<Vec<u8>, BlockError> {
    let host = HostBuffer::new(len as usize);
    let told = start(disk, Operation::Read, at, len, vec![Buffer::host(&host)]);
    told.recv().expect("every request completes")?;
    let mut bytes = vec![0; len as usize];
    host.read(0, &mut bytes);
    Ok(bytes)
}

pub fn flush(disk: &dyn BlockDevice) -> Outcome {
    start(disk, Operation::Flush, 0, 0, vec![]).recv().expect("every request completes")
}

/// What a disk to try is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Raw,
    Buffered,
    FixedVhd,
    Vhd,
    Vhdx,
    VhdChain,
    VhdxChain,
}

pub const ALL: [What; 7] =
    [What::Raw, What::Buffered, What::FixedVhd, What::Vhd, What::Vhdx, What::VhdChain, What::VhdxChain];

impl What {
    pub fn options(self) -> OpenOptions {
        OpenOptions { direct: Some(self != Self::Buffered), ..OpenOptions::default() }
    }

    fn format(self) -> Format {
        match self {
            Self::Raw | Self::Buffered => Format::Raw,
            Self::FixedVhd | Self::Vhd | Self::VhdChain => Format::Vhd,
            Self::Vhdx | Self::VhdxChain => Format::Vhdx,
        }
    }

    /// Makes one of so many bytes. Of a chain, gives what its parents have.
    pub fn make(self, folder: &Path, size: u64) -> (PathBuf, Vec<u8>) {
        let format = self.format();
        let path = |name: &str| folder.join(format!("{name}.{format}"));
        let block = match format {
            Format::Vhd => Some(64 << 10),
            Format::Vhdx => Some(1 << 20),
            _ => None,
        };
        let new = |kind| NewDisk { format, kind, size: Some(size), block, sector: None, allocate: false };
        let mut model = vec![0; size as usize];
        let kind = match self {
            Self::Raw | Self::Buffered | Self::FixedVhd => Kind::Fixed,
            Self::Vhd | Self::Vhdx => Kind::Dynamic,
            Self::VhdChain | Self::VhdxChain => {
                create(&path("base"), &new(Kind::Dynamic)).expect("a base");
                fill(&path("base"), &mut model, 7, 0x10);
                create(&path("middle"), &new(Kind::Differencing(path("base")))).expect("a child");
                fill(&path("middle"), &mut model, 13, 0x80);
                Kind::Differencing(path("middle"))
            }
        };
        create(&path("disk"), &new(kind)).expect("a disk");
        (path("disk"), model)
    }
}

/// Writes here and there.
fn fill(path: &Path, model: &mut [u8], every: usize, byte: u8) {
    let mut disk = Disk::open(path, None, true).expect("it opens");
    for (n, at) in (0..model.len()).step_by(every * 4096).enumerate() {
        let end = model.len().min(at + 512 * (1 + n % 20));
        model[at..end].fill(byte + n as u8 % 64);
        disk.write(at as u64, &model[at..end]).expect("it is written");
    }
    disk.close().expect("it is closed");
}

pub fn open(what: What, path: &Path) -> Arc<LiveDisk> {
    LiveDisk::open(path, &what.options()).expect("it opens")
}

/// What another program finds in the image; it is sound, too.
pub fn contents(path: &Path) -> Vec<u8> {
    for report in vireo_chain::check(path, None).expect("it can be checked") {
        assert!(!report.harmful, "{}: {:?}", report.path.display(), report.findings);
    }
    let mut disk = Disk::open(path, None, false).expect("it opens");
    let mut bytes = vec![0; disk.size() as usize];
    disk.read(0, &mut bytes).expect("it can be read");
    bytes
}

/// The first sector that differs.
pub fn difference(a: &[u8], b: &[u8]) -> Option<usize> {
    assert_eq!(a.len(), b.len());
    a.chunks(512).zip(b.chunks(512)).position(|(a, b)| a != b)
}
