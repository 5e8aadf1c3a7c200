//! Bytes on their way to the guest's serial port, which takes no more than its FIFO holds.

use std::collections::VecDeque;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vireo_chipset::uart::Uart;

/// Most bytes that wait.
const LIMIT: usize = 64 * 1024;

/// How long the line takes for what a FIFO holds. A port that is full again before its driver has left the interrupt handler
/// keeps it there: Linux's reads so much, and no more, and then waits for an edge of the interrupt that never comes.
const LINE: Duration = Duration::from_micros(250);

/// How often those who wait are asked whether they still do.
const ASK: Duration = Duration::from_millis(200);

/// The queue in front of a serial port.
pub struct SerialInput {
    uart: Arc<Uart>,
    waiting: Mutex<VecDeque<u8>>,
    /// The port took some.
    taken: Condvar,
}

impl SerialInput {
    /// A queue that the port empties as it has room, a little later each time.
    ///
    /// # Errors
    /// The host refused the thread.
    pub fn new(uart: &Arc<Uart>) -> std::io::Result<Arc<Self>> {
        let input =
            Arc::new(Self { uart: Arc::clone(uart), waiting: Mutex::default(), taken: Condvar::new() });
        let weak = Arc::downgrade(&input);
        let (room, rooms) = sync_channel(1);
        let feed = move || {
            for () in rooms {
                std::thread::sleep(LINE);
                let Some(input) = weak.upgrade() else { return };
                input.feed();
            }
        };
        std::thread::Builder::new().name("serial input".into()).spawn(feed)?;
        // Said once is enough.
        uart.on_space(Box::new(move || _ = room.try_send(())));
        Ok(input)
    }

    /// Adds all bytes; waits for room, perhaps for ever: a guest need not read. Gives up when `wanted`, which is asked a few
    /// times a second, says that nobody wants it any more.
    pub fn push_while(&self, bytes: &[u8], wanted: impl Fn() -> bool) {
        let mut left = bytes;
        loop {
            left = &left[self.push(left)..];
            if left.is_empty() || !wanted() {
                return;
            }
            let full = |w: &mut VecDeque<u8>| w.len() >= LIMIT;
            let waited = self.taken.wait_timeout_while(self.lock(), ASK, full);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// Forgets what waits: the machine is reset, and it was for the guest before.
    pub fn clear(&self) {
        self.lock().clear();
        self.taken.notify_all();
    }

    /// Adds bytes; gives how many there was room for.
    pub fn push(&self, bytes: &[u8]) -> usize {
        let mut waiting = self.lock();
        let n = bytes.len().min(LIMIT.saturating_sub(waiting.len()));
        waiting.extend(&bytes[..n]);
        drop(waiting);
        self.feed();
        n
    }

    fn feed(&self) {
        let mut waiting = self.lock();
        let taken = self.uart.push_input(waiting.make_contiguous());
        waiting.drain(..taken);
        if taken > 0 {
            self.taken.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use vireo_chipset::lines::{IrqLine, SerialSink};

    use super::*;

    struct Nothing;
    impl SerialSink for Nothing {
        fn write(&self, _: &[u8]) {}
    }
    impl IrqLine for Nothing {
        fn set(&self, _: bool) {}
    }

    /// In front of a port that a guest never reads.
    fn input() -> Arc<SerialInput> {
        SerialInput::new(&Arc::new(Uart::new(Arc::new(Nothing), Arc::new(Nothing)))).unwrap()
    }

    #[test]
    fn what_there_is_no_room_for_waits_until_there_is() {
        let input = input();
        let all = vec![7; 3 * LIMIT];
        std::thread::scope(|s| {
            let typist = s.spawn(|| input.push_while(&all, || true));
            while !typist.is_finished() {
                if input.lock().len() == LIMIT {
                    input.clear();
                }
                std::thread::yield_now();
            }
        });
        assert!(input.lock().len() <= LIMIT);
    }

    #[test]
    fn nobody_waits_for_what_is_not_wanted() {
        let (input, wanted) = (input(), AtomicBool::new(true));
        std::thread::scope(|s| {
            s.spawn(|| input.push_while(&vec![7; 2 * LIMIT], || wanted.load(Ordering::Relaxed)));
            wanted.store(false, Ordering::Relaxed);
        });
        assert!(input.lock().len() <= LIMIT);
    }
}
