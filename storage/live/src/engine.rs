//! The thread of a disk: takes requests, gives orders to the kernel, and tells of their ends.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;

use vireo_block::{BlockError, BlockInfo, HostBuffer, Operation, Request, Task};
use vireo_chain::DiskError;

use crate::disk::Shared;
use crate::files::{Alignment, Files, PAGE};
use crate::gather;
use crate::held::{Claim, Held};
use crate::keeper::{Answer, Job, Jobs};
use crate::map::{Chart, Map, Segment, Source, is_own};
use crate::part::{Clear, End, Part, Work};
use crate::ring::Ring;
use crate::slab::Slab;

/// What comes to the thread.
pub enum Mail {
    /// A request.
    Request(Request),
    /// What the keeper says.
    Answer(Answer),
    /// The disk's image is to be larger: to so many bytes, and what came of it is told.
    Grow(u64, Sender<Result<u64, DiskError>>),
    /// Something that somebody wants done on this thread.
    Run(Arc<dyn Task>),
    /// Nobody uses the disk any more: end, when all is done.
    Stop,
}

/// A request that is not done.
struct Op {
    request: Request,
    /// Parts that are not done.
    left: usize,
    /// Why the first part failed that did.
    error: Option<BlockError>,
    /// The image is to be told when all parts are done.
    tell: bool,
    /// Nothing else may be done in its range, rounded to pages, at the same time.
    alone: bool,
    /// It is none of a guest's, but to make the disk larger; its range is the whole disk.
    grow: Option<(u64, Sender<Result<u64, DiskError>>)>,
}

impl Op {
    fn new(request: Request, alone: bool) -> Self {
        Self { request, left: 0, error: None, tell: false, alone, grow: None }
    }

    /// Its range in pages. A flush, which has none, is in nobody's way.
    fn claim(&self) -> Claim {
        let (start, end) = match self.grow {
            Some(_) => (0, u64::MAX),
            None => (self.request.at, self.request.at + self.request.len),
        };
        Claim {
            start: start / PAGE * PAGE,
            end: end.checked_next_multiple_of(PAGE).unwrap_or(end),
            alone: self.alone,
        }
    }
}

/// Copies that are made of what cannot be transferred directly: at most so many bytes at once.
const MOST_COPIED: usize = 32 << 20;
/// And so many of them in one piece.
const COPY: usize = 1 << 20;
/// How often the thread looks for more mail before it turns to the kernel: a task that is put in by an end submits requests.
const LOOKS: usize = 3;
/// Zeros that are written where there is no better way to clear.
const ZEROS: usize = 1 << 20;

/// See the [module](self).
pub struct Engine {
    /// First, so that it is dropped first: then the kernel uses no memory any more.
    ring: Ring,
    parts: Slab<Part>,
    ops: Slab<Op>,
    /// Parts that are to be given to the kernel.
    ready: VecDeque<usize>,
    /// What is in `ops`, and which of these wait for others.
    held: Held,
    /// Requests that waited, and need not any more.
    free: Vec<usize>,
    copied: usize,
    zeros: Option<Arc<HostBuffer>>,
    map: Map,
    /// The first change was announced to the image: what is in it may be overwritten in place.
    announced: bool,
    /// Changes of the images' metadata that were asked for, and how many of them are known to be durable.
    changes: u64,
    durable: u64,
    raw: bool,
    alignment: Option<Alignment>,
    /// The best ways to clear that were not refused yet.
    zero: Clear,
    unmap: Clear,
    stop: bool,
    shared: Arc<Shared>,
    jobs: Arc<Jobs>,
    keeper: Option<JoinHandle<()>>,
}

impl Engine {
    /// That of a disk.
    pub fn new(ring: Ring, raw: bool, shared: Arc<Shared>, jobs: Arc<Jobs>, keeper: JoinHandle<()>) -> Self {
        let alignment = shared.files.alignment();
        Self {
            ring,
            parts: Slab::default(),
            ops: Slab::default(),
            ready: VecDeque::new(),
            held: Held::default(),
            free: Vec::new(),
            copied: 0,
            zeros: None,
            map: Map::default(),
            announced: false,
            changes: 0,
            durable: 0,
            raw,
            alignment,
            zero: Clear::ZERO,
            unmap: Clear::UNMAP,
            stop: false,
            shared,
            jobs,
            keeper: Some(keeper),
        }
    }

    /// Serves the disk until all is done after [`Mail::Stop`].
    pub fn run(mut self) {
        let (mut mail, mut done) = (Vec::new(), Vec::new());
        let shared = Arc::clone(&self.shared);
        loop {
            shared.inbox.take(&mut mail);
            // Before new mail: what completes is often followed by a request within the call, or by a task that tells of all
            // these ends, finds new requests, and submits them.
            for (token, result) in done.drain(..) {
                self.end_of(token as usize, result);
            }
            for _ in 0..LOOKS {
                self.read(&mut mail);
                shared.inbox.take(&mut mail);
                if mail.is_empty() {
                    break;
                }
            }
            self.read(&mut mail);
            self.release();
            self.give();
            // What the kernel does not even take ends at once: others may have waited for that.
            while !self.free.is_empty() {
                self.release();
                self.give();
            }
            if self.stop && self.ops.is_empty() {
                break;
            }
            let wait = shared.inbox.sleep();
            if let Err(e) = self.ring.turn(wait, &mut done) {
                // Nothing can be done any more, and nothing is known of what was to be.
                tracing::error!("{}: the kernel's ring is broken: {e}", shared.files.path().display());
                std::process::abort();
            }
        }
        shared.inbox.close();
        self.jobs.add(Job::Close);
        if let Some(keeper) = self.keeper.take() {
            _ = keeper.join();
        }
    }

    fn read(&mut self, mail: &mut Vec<Mail>) {
        for item in mail.drain(..) {
            match item {
                Mail::Request(request) => self.start(request),
                Mail::Answer(answer) => self.hear(answer),
                Mail::Grow(size, tell) => self.grow(size, tell),
                Mail::Run(task) => guarded("a task", || task.run()),
                Mail::Stop => self.stop = true,
            }
        }
    }

    fn info(&self) -> BlockInfo {
        self.shared.info()
    }

    /// Takes a request.
    fn start(&mut self, request: Request) {
        let info = self.info();
        let flush = request.operation == Operation::Flush;
        let checked = request.check(&info);
        if checked.is_err() || request.len == 0 && !flush || flush && info.read_only {
            return complete(request, checked);
        }
        let clears = matches!(request.operation, Operation::Unmap | Operation::WriteZeroes);
        let alone = clears && !self.raw || !flush && !self.is_aligned(&request) && changes(&request);
        self.enter(Op::new(request, alone));
    }

    /// Makes the disk's image larger, when nothing is in flight.
    fn grow(&mut self, size: u64, tell: Sender<Result<u64, DiskError>>) {
        // A request that stands for it among those of guests.
        let request = Request {
            operation: Operation::Flush,
            at: 0,
            len: 0,
            buffers: Vec::new(),
            done: Box::new(|_| ()),
        };
        self.enter(Op { grow: Some((size, tell)), ..Op::new(request, true) });
    }

    fn enter(&mut self, op: Op) {
        let claim = op.claim();
        let n = self.ops.insert(op);
        if self.held.enter(n, claim) {
            self.admit(n);
        }
    }

    /// Whether direct transfers can do a request's range.
    fn is_aligned(&self, request: &Request) -> bool {
        self.alignment.is_none_or(|a| (request.at | request.len).is_multiple_of(a.offset.into()))
    }

    /// Admits those that need not wait any more.
    fn release(&mut self) {
        while !self.free.is_empty() {
            for n in std::mem::take(&mut self.free) {
                self.admit(n);
            }
        }
    }

    /// Begins a request that nothing stands against.
    fn admit(&mut self, n: usize) {
        let Some(op) = self.ops.get(n) else { return };
        let (at, len) = (op.request.at, op.request.len);
        if let Some((size, _)) = op.grow {
            return self.jobs.add(Job::Grow { op: n, size });
        }
        match op.request.operation {
            Operation::Flush => return self.flush(n),
            Operation::WriteZeroes if self.raw => return self.clear(n, self.zero),
            Operation::Unmap if self.raw => return self.clear(n, self.unmap),
            operation @ (Operation::Unmap | Operation::WriteZeroes) => {
                self.changes += 1;
                return self.jobs.add(Job::Clear { op: n, at, len, unmap: operation == Operation::Unmap });
            }
            Operation::Read | Operation::Write { .. } => {}
        }
        let mut found = Vec::new();
        let known = self.find(at, len, &mut found);
        if op.request.operation == Operation::Read {
            match known {
                true => self.transfer(n, &found),
                false => self.jobs.add(Job::Map { op: n, at, len }),
            }
        } else if known && self.announced && is_own(&found) {
            self.transfer(n, &found);
        } else {
            self.changes += 1;
            self.jobs.add(Job::Place { op: n, at, len });
        }
    }

    fn find(&self, at: u64, len: u64, found: &mut Vec<Segment>) -> bool {
        if self.raw {
            found.push(Segment { len, source: Source::File { layer: 0, at } });
            return true;
        }
        self.map.find(at, len, found)
    }

    /// Makes durable what was written, and ends the request.
    fn flush(&mut self, n: usize) {
        if self.changes == self.durable {
            self.add_part(n, Work::Sync);
        } else {
            self.jobs.add(Job::Flush { op: n, changes: self.changes });
        }
    }

    fn hear(&mut self, answer: Answer) {
        match answer {
            Answer::Chart(n, Ok(chart)) => {
                self.learn(&chart);
                let Some(op) = self.ops.get(n) else { return };
                match op.request.operation {
                    Operation::Read => {
                        let segments = chart.part(op.request.at, op.request.len);
                        self.transfer(n, &segments);
                    }
                    _ => self.settle(n),
                }
            }
            Answer::Placed(n, Ok((segments, chart))) => {
                self.learn(&chart);
                self.announced = true;
                if let Some(op) = self.ops.get_mut(n) {
                    op.tell = true;
                }
                self.transfer(n, &segments);
            }
            Answer::Grown(n, result) => {
                // What failed half-way may have moved things, too.
                self.map.forget();
                if let Ok(size) = result {
                    self.shared.set_size(size);
                }
                if let Some((_, tell)) = self.ops.get_mut(n).and_then(|op| op.grow.take()) {
                    _ = tell.send(result);
                }
                self.finish(n);
            }
            Answer::Flushed(n, changes, Ok(())) => {
                self.durable = self.durable.max(changes);
                self.finish(n);
            }
            Answer::Chart(n, Err(e)) | Answer::Placed(n, Err(e)) | Answer::Flushed(n, _, Err(e)) => {
                self.fail(n, e);
            }
        }
    }

    fn learn(&mut self, chart: &Chart) {
        let size = self.info().size;
        self.map.learn(chart, size);
    }

    /// Moves a request's bytes to or from where they are.
    fn transfer(&mut self, n: usize, segments: &[Segment]) {
        let Some(op) = self.ops.get_mut(n) else { return };
        // Held until all are made, since a part may be done at once.
        op.left += 1;
        let (write, mut at) = (op.request.operation != Operation::Read, op.request.at);
        let durable = op.request.operation == Operation::Write { fua: true } && !op.tell;
        for s in segments {
            let Some(op) = self.ops.get(n) else { return };
            let skip = (at - op.request.at) as usize;
            match s.source {
                Source::Zero => gather::clear(&op.request.buffers, skip, s.len as usize),
                Source::File { layer, at: offset } => {
                    let (file, copy) = self.route(op, layer, at, offset, s.len);
                    let most = if copy { COPY } else { usize::MAX };
                    for from in (0..s.len as usize).step_by(most.min(s.len as usize)) {
                        let (at, skip) = (offset + from as u64, skip + from);
                        let len = most.min(s.len as usize - from);
                        self.add_part(n, Work::Move { write, file, at, skip, len, durable, copy });
                    }
                }
            }
            at += s.len;
        }
        self.part_done(n);
    }

    /// By which file a segment is transferred, and whether by way of a copy. `at` is its place on the disk, `offset` in the file.
    fn route(&self, op: &Op, layer: u16, at: u64, offset: u64, len: u64) -> (u32, bool) {
        let buffered = (Files::buffered(layer), false);
        let Some(a) = self.alignment else { return buffered };
        // Not on the pages that it has on the disk: it may share one with the image's metadata, or another block.
        let apart = (at ^ offset).is_multiple_of(PAGE);
        if layer != 0 || !apart || !(offset | len).is_multiple_of(a.offset.into()) {
            return buffered;
        }
        let skip = (at - op.request.at) as usize;
        // Zeros have memory of their own.
        let fits = gather::is_aligned(&op.request.buffers, skip, len as usize, a.memory, a.offset);
        (Files::DIRECT, !fits)
    }

    fn clear(&mut self, n: usize, how: Clear) {
        let Some(op) = self.ops.get(n) else { return };
        let (at, len) = (op.request.at, op.request.len);
        match how {
            Clear::Allocate(mode) => self.add_part(n, Work::Clear { at, len, mode }),
            Clear::Write => self.transfer(n, &[Segment { len, source: Source::File { layer: 0, at } }]),
            Clear::Leave => self.finish(n),
        }
    }

    fn add_part(&mut self, n: usize, work: Work) {
        if let Some(op) = self.ops.get_mut(n) {
            op.left += 1;
            let part = self.parts.insert(Part::new(n, work));
            self.ready.push_back(part);
        }
    }

    /// Gives the kernel what is ready.
    fn give(&mut self) {
        while let Some(&n) = self.ready.front() {
            let Some(part) = self.parts.get_mut(n) else { return };
            let copied = part.copies();
            let many = self.copied > 0 && self.copied + copied > MOST_COPIED;
            if !self.ring.has_room() || many {
                return;
            }
            self.ready.pop_front();
            self.copied += copied;
            let Some(op) = self.ops.get(part.op) else { return };
            let zeros = match op.request.operation {
                Operation::WriteZeroes => Some(&*self.zeros.get_or_insert_with(|| HostBuffer::new(ZEROS))),
                _ => None,
            };
            // SAFETY: the memory is the part's and the request's, or the zeros, which only go with `self`; both others stay in
            // their tables until the end was told. When `self` is dropped the ring goes first, and waits.
            let given = unsafe { part.give(n as u64, &mut self.ring, &op.request, zeros) };
            if let Err(e) = given {
                let op = part.op;
                self.drop_part(n);
                self.part_failed(op, e.into());
            }
        }
    }

    /// The kernel is done with a part.
    fn end_of(&mut self, n: usize, result: i32) {
        let Some(part) = self.parts.get_mut(n) else { return };
        let Some(op) = self.ops.get(part.op) else { return };
        let (number, end) = (part.op, part.end(result, &op.request));
        if let End::Again = end {
            return self.ready.push_back(n);
        }
        self.drop_part(n);
        match end {
            End::Failed(e) => self.part_failed(number, e.into()),
            End::Refused(mode) => {
                self.refused(number, mode);
                self.part_done(number);
            }
            End::Again | End::Done => self.part_done(number),
        }
    }

    fn drop_part(&mut self, n: usize) {
        if let Some(part) = self.parts.remove(n) {
            self.copied -= part.copied();
        }
    }

    /// What is below cannot clear in this way: now, and from now on, it is tried in the next.
    fn refused(&mut self, n: usize, mode: i32) {
        let zero = self.ops.get(n).is_some_and(|op| op.request.operation == Operation::WriteZeroes);
        let way = if zero { &mut self.zero } else { &mut self.unmap };
        if *way == Clear::Allocate(mode) {
            *way = way.next(zero);
        }
        let next = Clear::Allocate(mode).next(zero);
        // The part that was refused still counts: so this does not end the request.
        if next != Clear::Leave {
            self.clear(n, next);
        }
    }

    fn part_failed(&mut self, n: usize, e: BlockError) {
        if let Some(op) = self.ops.get_mut(n) {
            op.error.get_or_insert(e);
        }
        self.part_done(n);
    }

    fn part_done(&mut self, n: usize) {
        let Some(op) = self.ops.get_mut(n) else { return };
        op.left -= 1;
        if op.left > 0 {
            return;
        }
        if let Some(e) = op.error.take() {
            return self.fail(n, e);
        }
        if std::mem::take(&mut op.tell) {
            let (at, len) = (op.request.at, op.request.len);
            self.changes += 1;
            return self.jobs.add(Job::Written { op: n, at, len });
        }
        self.settle(n);
    }

    /// All is where it belongs: ends the request, when it is durable if that was wanted.
    fn settle(&mut self, n: usize) {
        let Some(op) = self.ops.get(n) else { return };
        // The bytes themselves were written durably, or will be by this flush.
        if op.request.operation == (Operation::Write { fua: true }) && self.changes != self.durable {
            return self.jobs.add(Job::Flush { op: n, changes: self.changes });
        }
        self.finish(n);
    }

    fn finish(&mut self, n: usize) {
        self.leave(n, Ok(()));
    }

    fn fail(&mut self, n: usize, e: BlockError) {
        self.leave(n, Err(e));
    }

    fn leave(&mut self, n: usize, result: Result<(), BlockError>) {
        let Some(op) = self.ops.remove(n) else { return };
        self.held.leave(n, &mut self.free);
        if op.request.operation == Operation::Read {
            // Of one that failed nobody knows how much was.
            op.request.buffers.iter().for_each(|b| b.done_write(b.len()));
        }
        complete(op.request, result);
    }
}

/// Whether a request changes what is on the disk.
fn changes(request: &Request) -> bool {
    !matches!(request.operation, Operation::Read | Operation::Flush)
}

/// Tells of a request's end. Other requests do not suffer from what goes wrong there.
fn complete(request: Request, result: Result<(), BlockError>) {
    guarded("whoever was told of a request's end", || request.complete(result));
}

/// Calls what is others': a disk does not end with them.
fn guarded(who: &str, call: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(call)).is_err() {
        tracing::error!("{who} panicked");
    }
}
