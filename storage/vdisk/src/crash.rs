//! A medium in memory that forgets, tears and reorders what was not flushed: for tests of formats.
//!
//! It keeps a journal. A *crash* at a point of it leaves everything up to the last flush before, and of what came
//! later, up to the point, any part: each write in full, not at all, or torn at a sector.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{Medium, SECTOR};

#[derive(Clone, Debug)]
enum Op {
    Write { at: u64, data: Vec<u8> },
    SetLen(u64),
    Punch { at: u64, len: u64 },
    Flush,
}

#[derive(Default)]
struct State {
    /// As it is read.
    now: Vec<u8>,
    /// As it was when the journal began.
    before: Vec<u8>,
    journal: Vec<Op>,
}

/// Most bytes that it takes.
const CAPACITY: u64 = 1 << 30;

/// See the [module](self). Clones are the same medium.
#[derive(Clone, Default)]
pub struct ForgetfulMedium(Arc<Mutex<State>>);

impl ForgetfulMedium {
    /// With durable contents.
    pub fn new(contents: Vec<u8>) -> Self {
        let state = State { now: contents.clone(), before: contents, journal: Vec::new() };
        Self(Arc::new(Mutex::new(state)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Length of the journal: crashes can be at 0 up to this.
    pub fn points(&self) -> usize {
        self.state().journal.len()
    }

    /// What it contains.
    pub fn contents(&self) -> Vec<u8> {
        self.state().now.clone()
    }

    /// What a crash at a point leaves. `choose(n)` gives a number below `n`, by which it is decided what happened to
    /// what was not flushed.
    pub fn after_crash(&self, point: usize, mut choose: impl FnMut(u64) -> u64) -> Vec<u8> {
        let state = self.state();
        let journal = &state.journal[..point];
        let durable = journal.iter().rposition(|op| matches!(op, Op::Flush)).map_or(0, |at| at + 1);
        let mut bytes = state.before.clone();
        for (n, op) in journal.iter().enumerate() {
            let lost = n >= durable && choose(2) == 0;
            match op {
                Op::SetLen(len) if !lost => bytes.resize(*len as usize, 0),
                Op::Write { at, data } if !lost => {
                    let len = torn(data.len() as u64, n < durable, &mut choose);
                    put(&mut bytes, *at, &data[..len as usize]);
                }
                Op::Punch { at, len } if !lost => {
                    let len = torn(*len, n < durable, &mut choose);
                    clear(&mut bytes, *at, len);
                }
                _ => {}
            }
        }
        bytes
    }
}

/// How much of a write of so many bytes is done: of one that is not durable perhaps only some sectors.
fn torn(len: u64, durable: bool, choose: &mut impl FnMut(u64) -> u64) -> u64 {
    let sectors = len.div_ceil(SECTOR);
    let whole = if durable || choose(3) > 0 { sectors } else { choose(sectors + 1) };
    len.min(whole * SECTOR)
}

/// Makes a range zero, as far as it is there.
fn clear(bytes: &mut [u8], at: u64, len: u64) {
    let all = bytes.len() as u64;
    bytes[at.min(all) as usize..at.saturating_add(len).min(all) as usize].fill(0);
}

fn put(bytes: &mut Vec<u8>, at: u64, data: &[u8]) {
    if data.is_empty() {
        return;
    }
    let end = at as usize + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[at as usize..end].copy_from_slice(data);
}

/// The medium is full.
fn check_end(end: u64) -> io::Result<()> {
    if end > CAPACITY { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
}

impl Medium for ForgetfulMedium {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().now.len() as u64)
    }
    fn read(&self, at: u64, to: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        let from = usize::try_from(at).ok().and_then(|at| state.now.get(at..at.checked_add(to.len())?));
        to.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
    fn write(&self, at: u64, from: &[u8]) -> io::Result<()> {
        check_end(at.saturating_add(from.len() as u64))?;
        let mut state = self.state();
        put(&mut state.now, at, from);
        state.journal.push(Op::Write { at, data: from.to_vec() });
        Ok(())
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        check_end(len)?;
        let mut state = self.state();
        state.now.resize(len as usize, 0);
        state.journal.push(Op::SetLen(len));
        Ok(())
    }
    fn punch(&self, at: u64, len: u64) -> io::Result<()> {
        let mut state = self.state();
        clear(&mut state.now, at, len);
        state.journal.push(Op::Punch { at, len });
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        self.state().journal.push(Op::Flush);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_flushed_stays() {
        let m = ForgetfulMedium::new(vec![1; 2048]);
        m.write(0, &[2; 512]).unwrap();
        m.flush().unwrap();
        m.write(512, &[3; 1024]).unwrap();
        m.set_len(4096).unwrap();
        let lost = m.after_crash(m.points(), |_| 0);
        assert_eq!((lost.len(), lost[0], lost[512]), (2048, 2, 1));
        let kept = m.after_crash(m.points(), |n| n - 1);
        assert_eq!(kept, m.contents());
        // The write happened, but for its second half; the new length did not.
        let mut choices = [1, 0, 1, 0].into_iter();
        let torn = m.after_crash(m.points(), |_| choices.next().expect("a choice"));
        assert_eq!((torn.len(), torn[512], torn[1024]), (2048, 3, 1));
    }

    #[test]
    fn a_hole_is_forgotten_and_torn_as_a_write_is() {
        let m = ForgetfulMedium::new(vec![1; 2048]);
        m.punch(512, 1 << 40).unwrap();
        assert_eq!(m.contents(), [[1; 512], [0; 512], [0; 512], [0; 512]].concat());
        assert_eq!(m.after_crash(1, |_| 0), [1; 2048]);
        let mut choices = [1, 0, 1].into_iter();
        let torn = m.after_crash(1, |_| choices.next().expect("a choice"));
        assert_eq!((torn[512], torn[1024]), (0, 1));
        m.flush().unwrap();
        assert_eq!(m.after_crash(2, |_| 0), m.contents());
    }
}
