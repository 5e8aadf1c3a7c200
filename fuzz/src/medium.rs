//! A medium that an image is written on, and the use of an image.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vireo_vdisk::{Compact, Medium};

use crate::Input;

const PAGE: u64 = 4096;
/// No image may make a medium of an input larger.
const MOST: u64 = 1 << 40;

struct State {
    original: Arc<[u8]>,
    /// Pages that were changed.
    pages: HashMap<u64, Box<[u8; PAGE as usize]>>,
    len: u64,
}

/// A copy of an image, as cheap as what is changed of it. Clones are the same medium.
#[derive(Clone)]
pub struct Patched(Arc<Mutex<State>>);

impl Patched {
    /// Of an image.
    pub fn new(original: &Arc<[u8]>) -> Self {
        let len = original.len() as u64;
        Self(Arc::new(Mutex::new(State { original: Arc::clone(original), pages: HashMap::new(), len })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes up to eight pieces of an image as an input says, in what `parts` (start, length) says has meaning.
    pub fn patch(&self, input: &mut Input<'_>, parts: &[(u64, u64)]) {
        for _ in 0..input.u8() % 8 {
            let (start, len) = parts[usize::from(input.u8()) % parts.len()];
            let at = start + u64::from(input.u16()) % len;
            let count = usize::from(input.u8() % 16) + 1;
            let bytes = input.bytes(count);
            if at + bytes.len() as u64 <= self.state().len {
                self.write(at, bytes).expect("it is on the medium");
            }
        }
    }

    /// A piece of it.
    pub fn piece(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.read(at, &mut bytes).expect("it is on the medium");
        bytes
    }
}

impl State {
    fn page(&self, number: u64) -> [u8; PAGE as usize] {
        if let Some(page) = self.pages.get(&number) {
            return **page;
        }
        let mut page = [0; PAGE as usize];
        let from = ((number * PAGE) as usize).min(self.original.len());
        let to = (from + PAGE as usize).min(self.original.len());
        page[..to - from].copy_from_slice(&self.original[from..to]);
        page
    }
}

impl Medium for Patched {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().len)
    }

    fn read(&self, at: u64, to: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        if at.checked_add(to.len() as u64).is_none_or(|end| end > state.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut done = 0;
        while done < to.len() {
            let now = at + done as u64;
            let (page, skip) = (state.page(now / PAGE), (now % PAGE) as usize);
            let n = (to.len() - done).min(PAGE as usize - skip);
            to[done..done + n].copy_from_slice(&page[skip..skip + n]);
            done += n;
        }
        Ok(())
    }

    fn write(&self, at: u64, from: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        let end =
            at.checked_add(from.len() as u64).filter(|end| *end <= MOST).ok_or(io::ErrorKind::StorageFull)?;
        let mut done = 0;
        while done < from.len() {
            let now = at + done as u64;
            let (mut page, skip) = (state.page(now / PAGE), (now % PAGE) as usize);
            let n = (from.len() - done).min(PAGE as usize - skip);
            page[skip..skip + n].copy_from_slice(&from[done..done + n]);
            state.pages.insert(now / PAGE, Box::new(page));
            done += n;
        }
        state.len = state.len.max(end);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if len > MOST {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut state = self.state();
        if len < state.len {
            // What is cut off reads as zeros, should it be there again.
            let original = state.original[..state.original.len().min(len as usize)].into();
            state.original = original;
            state.pages.retain(|n, _| *n < len.div_ceil(PAGE));
            if let Some(page) = state.pages.get_mut(&(len / PAGE)) {
                page[(len % PAGE) as usize..].fill(0);
            }
        }
        state.len = len;
        Ok(())
    }

    fn punch(&self, at: u64, len: u64) -> io::Result<()> {
        let end = at.saturating_add(len).min(self.state().len);
        let mut at = at;
        while at < end {
            let n = (end - at).min(PAGE - at % PAGE);
            self.write(at, &[0; PAGE as usize][..n as usize])?;
            at += n;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Has an image do what an input says: all within its disk, in whole units of so many bytes.
pub fn use_image(image: &mut dyn Compact, unit: u64, input: &mut Input<'_>) {
    for _ in 0..8 {
        let units = image.size() / unit;
        if units == 0 {
            return;
        }
        let at = input.u64() % units;
        let len = (u64::from(input.u8()) + 1).min(units - at) * unit;
        let at = at * unit;
        _ = match input.u8() % 7 {
            0 => image.resolve(at, len).map(drop),
            1 => image.place(at, len).map(drop).and_then(|()| image.written(at, len)),
            2 => image.unmap(at, len).map(drop),
            3 => image.zero(at, len).map(drop),
            4 => image.grow(image.size() + len),
            5 => vireo_vdisk::compact(image, &mut |_, _| true).map(drop),
            _ => image.flush(),
        };
    }
}
