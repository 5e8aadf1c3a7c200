//! Output on its way to a reader who may be slow, or may not read at all.
//!
//! A bounded queue and a thread that empties it. Whoever writes waits for room while the reader goes on reading, so that
//! a slow reader gets everything; a reader who takes nothing is waited for once, and what comes then is dropped until it
//! takes something again. Nobody ever waits for the thread itself: the reader may hold it in a write for ever.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vireo_chipset::lines::SerialSink;

/// Most bytes that wait.
const CAPACITY: usize = 64 * 1024;
/// Most bytes of one write. Small, because only a finished write shows that somebody reads: a terminal at 9600 baud takes
/// a chunk in a quarter of a second.
const CHUNK: usize = 256;
/// A reader who takes nothing for so long has stalled.
const STALL: Duration = Duration::from_secs(1);

/// A queue of output, shared by those who write to it and the thread that empties it.
pub struct Output {
    queue: Mutex<Queue>,
    /// How long a reader may take nothing.
    patience: Duration,
    /// There is something to write, or the end has come.
    work: Condvar,
    /// The reader took something, or is no longer waited for.
    progress: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<u8>,
    /// Bytes that the thread has taken and not yet written.
    in_flight: usize,
    /// Writes that the reader took, for those who wait to see it go on.
    writes: u64,
    /// Bytes dropped that the reader has not been told of.
    dropped: u64,
    /// Bytes whose write failed, and why the first did.
    failed: u64,
    failure: Option<io::Error>,
    /// Those of them that a note is due for where they are missing.
    missing: u64,
    /// The reader took nothing while somebody waited; the queue is full.
    stalled: bool,
    /// The machine is being ended: nobody waits for room.
    hurried: bool,
    /// Nothing more is taken.
    closed: bool,
}

impl Queue {
    fn room(&self) -> usize {
        CAPACITY.saturating_sub(self.waiting.len())
    }

    fn drop_bytes(&mut self, count: usize) {
        self.dropped = self.dropped.saturating_add(count as u64);
    }

    /// The reader took the last chunk. What was dropped is missing after what waits now, so that is where the note goes.
    fn written(&mut self) {
        self.in_flight = 0;
        self.writes = self.writes.wrapping_add(1);
        self.stalled = false;
        let dropped = std::mem::take(&mut self.dropped);
        if dropped > 0 {
            let note = format!("\r\n[vireo: {dropped} bytes of console output dropped]\r\n");
            self.waiting.extend(note.as_bytes());
        }
    }

    /// The host refused the last `count` bytes of the last chunk; they are gone.
    fn refused(&mut self, count: usize, why: io::Error) {
        self.failed = self.failed.saturating_add(count as u64);
        self.missing = self.missing.saturating_add(count as u64);
        self.failure.get_or_insert(why);
    }

    /// The next chunk.
    fn take<'a>(&mut self, buffer: &'a mut [u8; CHUNK]) -> &'a [u8] {
        let n = self.waiting.len().min(CHUNK);
        buffer.iter_mut().zip(self.waiting.drain(..n)).for_each(|(to, byte)| *to = byte);
        self.in_flight = n;
        &buffer[..n]
    }

    /// Bytes that have not reached the reader and may still do so.
    fn pending(&self) -> usize {
        self.waiting.len().saturating_add(self.in_flight)
    }
}

impl Output {
    /// A queue whose bytes a thread of its own writes to `to`. A write that fails loses its bytes and nothing else: a
    /// closed pipe is no reason to stop a guest.
    ///
    /// # Errors
    /// The host refused the thread.
    pub fn start(to: impl Write + Send + 'static) -> io::Result<Arc<Self>> {
        Self::start_with(to, STALL)
    }

    fn start_with(to: impl Write + Send + 'static, patience: Duration) -> io::Result<Arc<Self>> {
        let output = Arc::new(Self {
            queue: Mutex::default(),
            patience,
            work: Condvar::new(),
            progress: Condvar::new(),
        });
        let thread = Arc::clone(&output);
        std::thread::Builder::new().name("output".into()).spawn(move || thread.write_out(to))?;
        Ok(output)
    }

    /// Adds what there is room for and drops the rest; never waits.
    pub fn offer(&self, bytes: &[u8]) {
        let mut queue = self.lock();
        let taken = self.add(&mut queue, bytes);
        queue.drop_bytes(bytes.len().saturating_sub(taken));
    }

    /// From now on nobody waits for room, and [`Output::finish`] waits no longer than for a reader who takes nothing.
    pub fn hurry(&self) {
        self.lock().hurried = true;
        self.progress.notify_all();
    }

    /// Takes nothing more and waits until the reader has everything, as long as it goes on reading. Gives how many bytes
    /// it did not get.
    pub fn finish(&self) -> u64 {
        let mut queue = self.lock();
        queue.closed = true;
        self.work.notify_all();
        let mut hurried_until = None;
        while queue.pending() > 0 {
            let seen = (queue.writes, queue.hurried);
            let mut wait = self.patience;
            if queue.hurried {
                let until: Instant = *hurried_until.get_or_insert_with(|| Instant::now() + self.patience);
                wait = until.saturating_duration_since(Instant::now());
            }
            let same = |q: &mut Queue| (q.writes, q.hurried) == seen;
            let waited = self.progress.wait_timeout_while(queue, wait, same);
            let (after, result) = waited.unwrap_or_else(PoisonError::into_inner);
            queue = after;
            if result.timed_out() {
                break;
            }
        }
        queue.dropped.saturating_add(queue.pending() as u64)
    }

    /// How many bytes could not be written so far, and why the first could not.
    pub fn failure(&self) -> Option<(u64, io::Error)> {
        let mut queue = self.lock();
        let why = queue.failure.take()?;
        Some((queue.failed, why))
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what there is room for; gives how many bytes that were.
    fn add(&self, queue: &mut Queue, bytes: &[u8]) -> usize {
        if queue.closed {
            return 0;
        }
        let n = queue.room().min(bytes.len());
        // The thread sleeps only when there is nothing to write.
        if queue.waiting.is_empty() && n > 0 {
            self.work.notify_one();
        }
        queue.waiting.extend(&bytes[..n]);
        n
    }

    /// The thread: writes chunk after chunk until the queue is closed and empty.
    fn write_out(&self, mut to: impl Write) {
        let mut buffer = [0; CHUNK];
        let mut queue = self.lock();
        loop {
            let idle = |q: &mut Queue| q.waiting.is_empty() && !q.closed;
            queue = self.work.wait_while(queue, idle).unwrap_or_else(PoisonError::into_inner);
            let chunk = queue.take(&mut buffer);
            if chunk.is_empty() {
                return;
            }
            let missing = queue.missing;
            drop(queue);
            let told = missing == 0 || tell_missing(&mut to, missing);
            let result = write_whole(&mut to, chunk);
            queue = self.lock();
            if told {
                queue.missing -= missing;
            }
            if let Err((count, why)) = result {
                queue.refused(count, why);
            }
            queue.written();
            self.progress.notify_all();
        }
    }
}

/// Says, where bytes are missing that could not be written, how many. False: nor can this.
fn tell_missing(to: &mut impl Write, missing: u64) -> bool {
    let note = format!("\r\n[vireo: {missing} bytes of console output could not be written]\r\n");
    write_whole(to, note.as_bytes()).is_ok()
}

/// Writes all bytes, or gives how many could not be written.
fn write_whole(to: &mut impl Write, bytes: &[u8]) -> Result<(), (usize, io::Error)> {
    let mut left = bytes;
    while !left.is_empty() {
        match to.write(left) {
            Ok(0) => return Err((left.len(), io::ErrorKind::WriteZero.into())),
            Ok(n) => left = &left[n..],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err((left.len(), e)),
        }
    }
    to.flush().map_err(|e| (0, e))
}

impl SerialSink for Output {
    fn write(&self, bytes: &[u8]) {
        let mut left = bytes;
        let mut queue = self.lock();
        loop {
            let taken = self.add(&mut queue, left);
            left = &left[taken..];
            if left.is_empty() {
                return;
            }
            if queue.stalled || queue.hurried || queue.closed {
                queue.drop_bytes(left.len());
                return;
            }
            let writes = queue.writes;
            let full = |q: &mut Queue| q.writes == writes && q.room() == 0 && !q.hurried && !q.closed;
            let waited = self.progress.wait_timeout_while(queue, self.patience, full);
            let (after, result) = waited.unwrap_or_else(PoisonError::into_inner);
            queue = after;
            queue.stalled |= result.timed_out();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// Long enough for a loaded host never to take a working reader for a stalled one.
    const PATIENT: Duration = Duration::from_secs(600);

    /// A reader who takes a chunk for each permit, and everything once permits can no longer come.
    struct Reader {
        permits: Receiver<()>,
        taken: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Reader {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            _ = self.permits.recv();
            self.taken.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn start(patience: Duration) -> (Arc<Output>, Sender<()>, Arc<Mutex<Vec<u8>>>) {
        let (permit, permits) = channel();
        let taken = Arc::<Mutex<Vec<u8>>>::default();
        let reader = Reader { permits, taken: Arc::clone(&taken) };
        (Output::start_with(reader, patience).unwrap(), permit, taken)
    }

    fn pattern(length: usize) -> Vec<u8> {
        (0..length).map(|i| (i % 251) as u8).collect()
    }

    /// Fills the queue and the thread's hands, so that the next byte finds no room; gives what was written.
    fn fill(output: &Output) -> Vec<u8> {
        let bytes = pattern(CAPACITY + CHUNK);
        output.write(&bytes[..CHUNK]);
        while output.lock().in_flight == 0 {
            std::thread::yield_now();
        }
        output.write(&bytes[CHUNK..]);
        bytes
    }

    #[test]
    fn a_reader_who_reads_slowly_gets_everything_in_order() {
        let (output, permit, taken) = start(PATIENT);
        let bytes = pattern(3 * CAPACITY);
        let permits = std::thread::spawn(move || {
            while permit.send(()).is_ok() && permit.send(()).is_ok() {
                std::thread::sleep(Duration::from_micros(100));
            }
        });
        // As a serial port writes, and as other writers may.
        bytes[..CAPACITY].iter().for_each(|b| output.write(&[*b]));
        output.write(&bytes[CAPACITY..]);
        assert_eq!(output.finish(), 0);
        assert!(*taken.lock().unwrap() == bytes);
        drop(output);
        permits.join().unwrap();
    }

    #[test]
    fn a_stalled_reader_is_waited_for_once_and_told_what_it_missed() {
        let (output, permit, taken) = start(Duration::from_millis(50));
        let mut expected = fill(&output);
        output.write(b"lost");
        assert!(output.lock().stalled);
        output.write(b"lost too");
        assert_eq!(output.lock().dropped, 12);
        // The reader takes one chunk: there is room again, and no stall.
        let writes = output.lock().writes;
        permit.send(()).unwrap();
        while output.lock().writes == writes {
            std::thread::yield_now();
        }
        output.write(b"here again");
        drop(permit);
        // On a loaded host the reader may get no turn for as long as this test's patience.
        assert!((0..1000).any(|_| output.finish() == 0));
        expected.extend_from_slice(b"\r\n[vireo: 12 bytes of console output dropped]\r\nhere again");
        assert!(*taken.lock().unwrap() == expected);
    }

    #[test]
    fn the_end_does_not_wait_for_a_reader_who_takes_nothing() {
        let (output, permit, taken) = start(Duration::from_millis(50));
        output.write(b"never read");
        assert_eq!(output.finish(), 10);
        output.write(b"after the end");
        assert!(taken.lock().unwrap().is_empty());
        drop(permit);
    }

    #[test]
    fn in_a_hurry_nobody_waits_for_room() {
        let (output, permit, _) = start(PATIENT);
        fill(&output);
        let writer = Arc::clone(&output);
        let waiting = std::thread::spawn(move || writer.write(b"x"));
        output.hurry();
        waiting.join().unwrap();
        output.write(b"y");
        assert_eq!(output.lock().dropped, 2);
        drop(permit);
    }

    #[test]
    fn an_offer_never_waits() {
        let (output, permit, _) = start(PATIENT);
        fill(&output);
        output.offer(b"more");
        assert_eq!(output.lock().dropped, 4);
        drop(permit);
        assert_eq!(output.finish(), 0);
    }

    #[test]
    fn a_reader_who_has_gone_stops_nobody() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let output = Output::start_with(Gone, PATIENT).unwrap();
        output.write(&pattern(3 * CAPACITY));
        assert_eq!(output.finish(), 0);
        let failure = output.failure().map(|(bytes, why)| (bytes, why.kind()));
        assert_eq!(failure, Some((3 * CAPACITY as u64, io::ErrorKind::BrokenPipe)));
    }
}
