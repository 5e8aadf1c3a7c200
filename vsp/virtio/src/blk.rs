//! A disk.
//!
//! Source: virtio 1.2 §5.2.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use vireo_block::{BlockDevice, BlockError, BlockInfo, Buffer, Operation, Request};
use vireo_memory::GuestSlice;
use virtio_bindings::virtio_blk as spec;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use crate::device::{Device, Identity, Kicker, Turn};
use crate::queue::{Broken, Chain, PIECES_MAX, ServedQueue};

/// Most segments of data of a request: header and status have a descriptor each.
pub(crate) const SEGMENTS_MAX: u32 = PIECES_MAX as u32 - 2;

const QUEUE_SIZE: u16 = 256;
/// Mass storage, of no more special kind.
const CLASS: u32 = 0x01_80_00;
/// The protocol's sectors, whatever the disk's are (§5.2.6).
const SECTOR: u64 = 512;
const HEADER: usize = 16;
/// A range to discard or to zero: sector, number of sectors, flags.
const RANGE: usize = 16;
/// Most ranges of one request, and most sectors of a range (1 GiB): what a request costs the host is bounded.
const RANGES_MAX: usize = 16;
const RANGE_SECTORS_MAX: u32 = 1 << 21;

/// Status of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Ok = spec::VIRTIO_BLK_S_OK as isize,
    IoError = spec::VIRTIO_BLK_S_IOERR as isize,
    Unsupported = spec::VIRTIO_BLK_S_UNSUPP as isize,
}

/// A disk as a virtio device. Several queues are served by one thread: it is the disk that works on requests at once.
pub struct Blk {
    disk: Arc<dyn BlockDevice>,
    queues: u16,
    /// As the disk was at first: what features say cannot change later.
    first: BlockInfo,
    /// What the driver was last told, in bytes.
    told_size: AtomicU64,
    kicker: OnceLock<Kicker>,
}

impl Blk {
    /// `disk`, with `queues` queues (1 to 63; one for each vCPU is best).
    pub fn new(disk: Arc<dyn BlockDevice>, queues: u16) -> Arc<Self> {
        let first = disk.info();
        let told_size = AtomicU64::new(first.size);
        Arc::new(Self { disk, queues, first, told_size, kicker: OnceLock::new() })
    }

    /// Tells the driver if the disk's size has changed. Call it when the disk has grown; otherwise the driver learns of it with
    /// its next request.
    pub fn look_at_size(&self) {
        let size = self.disk.info().size;
        if self.told_size.swap(size, Ordering::AcqRel) != size
            && let Some(kicker) = self.kicker.get()
        {
            kicker.config_changed();
        }
    }

    /// Takes the chains of one turn.
    fn take(&self, queue: &ServedQueue, batch: &mut Vec<Request>) -> Result<(), Broken> {
        // Without a cache to flush, what is written is durable (§5.2.6.2).
        let fua = !queue.has_feature(spec::VIRTIO_BLK_F_FLUSH);
        while let Some(chain) = queue.pop()? {
            let mut header = [0; HEADER];
            if chain.read(0, &mut header) < HEADER || chain.writable_len() == 0 {
                return Err(Broken::new("a disk request without header or status"));
            }
            self.begin(chain, &header, fua, batch);
        }
        Ok(())
    }

    /// Makes requests of a chain, or ends it.
    fn begin(&self, chain: Chain, header: &[u8; HEADER], fua: bool, batch: &mut Vec<Request>) {
        let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let sector = u64::from_le_bytes(std::array::from_fn(|i| header[8 + i]));
        let (to_read, to_write) = (chain.readable_len() - HEADER, chain.writable_len() - 1);
        match kind {
            spec::VIRTIO_BLK_T_IN => {
                let buffers = part(chain.writable(), 0, to_write);
                transfer(chain, Operation::Read, sector, to_write, buffers, batch);
            }
            spec::VIRTIO_BLK_T_OUT => {
                let buffers = part(chain.readable(), HEADER, to_read);
                transfer(chain, Operation::Write { fua }, sector, to_read, buffers, batch);
            }
            spec::VIRTIO_BLK_T_FLUSH => {
                batch.push(Request {
                    operation: Operation::Flush,
                    at: 0,
                    len: 0,
                    buffers: Vec::new(),
                    done: Box::new(move |result| finish(chain, status_of(result))),
                });
            }
            spec::VIRTIO_BLK_T_GET_ID => {
                chain.write(0, &self.serial_number()[..to_write.min(spec::VIRTIO_BLK_ID_BYTES as usize)]);
                finish(chain, Status::Ok);
            }
            spec::VIRTIO_BLK_T_DISCARD if self.first.unmap => {
                change_ranges(chain, Operation::Unmap, to_read, batch);
            }
            spec::VIRTIO_BLK_T_WRITE_ZEROES => change_ranges(chain, Operation::WriteZeroes, to_read, batch),
            _ => finish(chain, Status::Unsupported),
        }
    }

    /// The disk's short id in hexadecimal; nothing, if it has none.
    fn serial_number(&self) -> [u8; spec::VIRTIO_BLK_ID_BYTES as usize] {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        if self.first.id == [0; 16] {
            return [0; _];
        }
        let id = self.first.short_id();
        std::array::from_fn(|i| {
            let byte = id[i / 2];
            DIGITS[usize::from(if i % 2 == 0 { byte >> 4 } else { byte & 0xF })]
        })
    }

    /// The configuration (§5.2.4).
    fn config(&self) -> [u8; 60] {
        let info = self.disk.info();
        let mut config = [0; 60];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        let physical = (self.first.physical_sector / self.first.sector).max(1);
        put(0, &(info.size / SECTOR).to_le_bytes());
        put(12, &SEGMENTS_MAX.to_le_bytes());
        put(20, &self.first.sector.to_le_bytes());
        put(24, &[physical.trailing_zeros() as u8]);
        put(34, &self.queues.to_le_bytes());
        for limits in [36, 48] {
            put(limits, &RANGE_SECTORS_MAX.to_le_bytes());
            put(limits + 4, &(RANGES_MAX as u32).to_le_bytes());
        }
        let granularity = u64::from(self.first.physical_sector) / SECTOR;
        put(44, &(granularity as u32).to_le_bytes());
        // Zeroes may be made by giving space back: the disk does as it likes.
        put(56, &[1]);
        config
    }
}

impl Device for Blk {
    fn identity(&self) -> Identity {
        Identity { kind: VIRTIO_ID_BLOCK as u16, class: CLASS }
    }

    fn features(&self) -> u64 {
        let always = [
            spec::VIRTIO_BLK_F_SEG_MAX,
            spec::VIRTIO_BLK_F_BLK_SIZE,
            spec::VIRTIO_BLK_F_FLUSH,
            spec::VIRTIO_BLK_F_TOPOLOGY,
            spec::VIRTIO_BLK_F_MQ,
        ];
        let bit = |offered: bool, bit: u32| if offered { 1u64 << bit } else { 0 };
        always.iter().fold(0, |features, bit| features | 1 << bit)
            | bit(self.first.read_only, spec::VIRTIO_BLK_F_RO)
            | bit(self.first.unmap && !self.first.read_only, spec::VIRTIO_BLK_F_DISCARD)
            | bit(!self.first.read_only, spec::VIRTIO_BLK_F_WRITE_ZEROES)
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; self.queues.into()]
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        for (to, from) in data.iter_mut().zip(self.config().iter().skip(offset)) {
            *to = *from;
        }
    }

    fn connect(&self, kicker: Kicker) {
        _ = self.kicker.set(kicker);
    }

    fn serve(&self, queue: &ServedQueue) -> Result<Turn, Broken> {
        self.look_at_size();
        let mut batch = Vec::new();
        let taken = self.take(queue, &mut batch);
        // What was taken before a broken chain is done: requests of others may be among it.
        self.disk.submit(&mut batch);
        taken.map(|()| Turn::Drained)
    }
}

/// The `len` bytes from `skip` on, as buffers of a request.
fn part(pieces: &[GuestSlice], mut skip: usize, mut len: usize) -> Vec<Buffer> {
    let mut buffers = Vec::with_capacity(pieces.len());
    for piece in pieces {
        let (_, rest) = piece.split_at(skip);
        skip -= piece.len() - rest.len();
        let (wanted, _) = rest.split_at(len);
        len -= wanted.len();
        if !wanted.is_empty() {
            buffers.push(Buffer::Guest(wanted));
        }
    }
    buffers
}

fn transfer(
    chain: Chain,
    operation: Operation,
    sector: u64,
    len: usize,
    buffers: Vec<Buffer>,
    batch: &mut Vec<Request>,
) {
    let Some(at) = sector.checked_mul(SECTOR).filter(|_| len > 0) else {
        return finish(chain, Status::IoError);
    };
    let done = Box::new(move |result| finish(chain, status_of(result)));
    batch.push(Request { operation, at, len: len as u64, buffers, done });
}

fn status_of(result: Result<(), BlockError>) -> Status {
    match result {
        Ok(()) => Status::Ok,
        Err(e) => {
            tracing::debug!("virtio disk: {e}");
            Status::IoError
        }
    }
}

/// Returns a chain, whose last byte to write is the status.
fn finish(chain: Chain, status: Status) {
    let len = chain.writable_len();
    chain.write(len.saturating_sub(1), &[status as u8]);
    // Chains have less than 4 GiB.
    chain.complete(len as u32);
}

/// Ranges to discard or to zero.
fn change_ranges(chain: Chain, operation: Operation, len: usize, batch: &mut Vec<Request>) {
    let mut bytes = [0; RANGE * RANGES_MAX];
    if len == 0 || len > bytes.len() || !len.is_multiple_of(RANGE) {
        return finish(chain, Status::IoError);
    }
    chain.read(HEADER, &mut bytes[..len]);
    let mut ranges = Vec::with_capacity(RANGES_MAX);
    for range in bytes[..len].chunks_exact(RANGE) {
        let sector = u64::from_le_bytes(std::array::from_fn(|i| range[i]));
        let sectors = u32::from_le_bytes(std::array::from_fn(|i| range[8 + i]));
        let flags = u32::from_le_bytes(std::array::from_fn(|i| range[12 + i]));
        let known = if operation == Operation::Unmap { 0 } else { spec::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP };
        if flags & !known != 0 {
            return finish(chain, Status::Unsupported);
        }
        let Some(at) = sector.checked_mul(SECTOR).filter(|_| sectors <= RANGE_SECTORS_MAX) else {
            return finish(chain, Status::IoError);
        };
        ranges.push((at, u64::from(sectors) * SECTOR));
    }
    let joined = Arc::new(Joined {
        chain: Some(chain),
        left: AtomicUsize::new(ranges.len()),
        failed: AtomicBool::new(false),
    });
    for (at, len) in ranges {
        let joined = Arc::clone(&joined);
        let done = Box::new(move |result| joined.one_done(result));
        batch.push(Request { operation, at, len, buffers: Vec::new(), done });
    }
}

/// A chain that several requests are made of; it is returned when the last of them has forgotten it.
struct Joined {
    chain: Option<Chain>,
    /// Requests that have not completed.
    left: AtomicUsize,
    failed: AtomicBool,
}

impl Joined {
    fn one_done(&self, result: Result<(), BlockError>) {
        if status_of(result) != Status::Ok {
            self.failed.store(true, Ordering::Relaxed);
        }
        self.left.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        // The last reference was dropped after all others: what they stored is seen.
        let ok = !*self.failed.get_mut() && *self.left.get_mut() == 0;
        if let Some(chain) = self.chain.take() {
            finish(chain, if ok { Status::Ok } else { Status::IoError });
        }
    }
}
