//! Memory that the guest gives away under a name (guest physical address descriptor list).

use std::collections::HashMap;
use std::sync::Arc;

const PAGE: u64 = 4096;

/// Most lists at a time.
const LISTS_MAX: usize = 1024;
/// Most pages in all lists together: 4 GiB of buffers.
const PAGES_MAX: usize = 1 << 20;

/// Bytes of a range's head: its length, its offset in the first page.
const HEAD: usize = 8;

/// A list.
#[derive(Clone, Debug)]
struct Gpadl {
    relid: u32,
    /// Pages that it says it has.
    count: usize,
    /// Bytes of the list that are still to come.
    missing: usize,
    /// The list's bytes, until it is whole.
    bytes: Vec<u8>,
    /// Page addresses of its range, when it is.
    pages: Arc<[u64]>,
    /// A channel's rings are in it.
    used: bool,
}

/// All lists of a guest.
#[derive(Clone, Debug, Default)]
pub struct Gpadls {
    lists: HashMap<u32, Gpadl>,
    pages: usize,
}

/// What became of a part of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// More is to come.
    Incomplete,
    /// It is whole, and of this channel.
    Whole { relid: u32 },
    /// It is not what it should be, and forgotten.
    Bad { relid: u32 },
    /// Nobody knows it.
    Unknown,
}

impl Gpadls {
    /// The first part of a list of `list` bytes. One range is all that guests give.
    pub fn begin(&mut self, relid: u32, name: u32, list: u16, ranges: u16, bytes: &[u8]) -> Part {
        let bad = Part::Bad { relid };
        let count = usize::from(list).saturating_sub(HEAD) / 8;
        if self.lists.contains_key(&name)
            || ranges != 1
            || usize::from(list) <= HEAD
            || self.lists.len() >= LISTS_MAX
            || self.pages + count > PAGES_MAX
        {
            return bad;
        }
        let gpadl =
            Gpadl { relid, count, missing: list.into(), bytes: Vec::new(), pages: [].into(), used: false };
        self.pages += count;
        self.lists.insert(name, gpadl);
        self.add(name, bytes)
    }

    /// A further part.
    pub fn add(&mut self, name: u32, bytes: &[u8]) -> Part {
        let Some(gpadl) = self.lists.get_mut(&name).filter(|g| g.missing > 0) else { return Part::Unknown };
        let relid = gpadl.relid;
        // What is beyond the list's end fills the message up.
        let taken = &bytes[..bytes.len().min(gpadl.missing)];
        gpadl.bytes.extend(taken);
        gpadl.missing -= taken.len();
        if taken.is_empty() {
            self.forget(name);
            return Part::Bad { relid };
        }
        if gpadl.missing > 0 {
            return Part::Incomplete;
        }
        match page_addresses(&std::mem::take(&mut gpadl.bytes)) {
            Some(pages) => {
                gpadl.pages = pages;
                Part::Whole { relid }
            }
            None => {
                self.forget(name);
                Part::Bad { relid }
            }
        }
    }

    /// The pages of a channel's whole list.
    pub fn pages(&self, relid: u32, name: u32) -> Option<Arc<[u64]>> {
        let gpadl = self.lists.get(&name).filter(|g| g.relid == relid && g.missing == 0)?;
        Some(Arc::clone(&gpadl.pages))
    }

    /// Marks it as used by rings, or not any more.
    pub fn set_used(&mut self, name: u32, used: bool) {
        if let Some(gpadl) = self.lists.get_mut(&name) {
            gpadl.used = used;
        }
    }

    /// Forgets a list of a channel's, if no ring is in it; whether it did.
    pub fn tear_down(&mut self, relid: u32, name: u32) -> bool {
        let free = self.lists.get(&name).is_some_and(|g| g.relid == relid && !g.used);
        if free {
            self.forget(name);
        }
        free
    }

    /// Forgets all of a channel's.
    pub fn release(&mut self, relid: u32) {
        let names: Vec<u32> = self.lists.iter().filter(|(_, g)| g.relid == relid).map(|(n, _)| *n).collect();
        names.into_iter().for_each(|name| self.forget(name));
    }

    fn forget(&mut self, name: u32) {
        if let Some(gpadl) = self.lists.remove(&name) {
            self.pages -= gpadl.count;
        }
    }
}

/// Addresses of the pages of a list with one range of whole pages.
fn page_addresses(list: &[u8]) -> Option<Arc<[u64]>> {
    let (head, numbers) = list.split_first_chunk::<HEAD>()?;
    let length = u64::from(u32::from_le_bytes([head[0], head[1], head[2], head[3]]));
    let offset = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
    let whole = offset == 0 && length == numbers.len() as u64 / 8 * PAGE && numbers.len().is_multiple_of(8);
    let address = |n: &[u8]| u64::from_le_bytes(n.try_into().ok()?).checked_mul(PAGE);
    numbers.chunks(8).map(address).collect::<Option<Arc<[u64]>>>().filter(|_| whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(pages: &[u64]) -> Vec<u8> {
        let head = (pages.len() as u64 * PAGE).to_le_bytes();
        head.into_iter().chain(pages.iter().flat_map(|p| p.to_le_bytes())).collect()
    }

    #[test]
    fn a_list_in_parts_is_whole_at_its_end_and_its_pages_count() {
        let mut g = Gpadls::default();
        let bytes = list(&[5, 6, 9]);
        assert_eq!(g.begin(1, 0xe1, 32, 1, &bytes[..16]), Part::Incomplete);
        assert_eq!(g.pages(1, 0xe1), None);
        assert_eq!(g.add(0xe1, &bytes[16..24]), Part::Incomplete);
        // The last message may be longer than what is left.
        assert_eq!(g.add(0xe1, &[&bytes[24..], &[7; 40]].concat()), Part::Whole { relid: 1 });
        assert_eq!(*g.pages(1, 0xe1).unwrap(), [0x5000, 0x6000, 0x9000]);
        assert_eq!((g.pages(2, 0xe1), g.add(0xe1, &[0; 8])), (None, Part::Unknown));
        assert_eq!(g.pages, 3);
        g.set_used(0xe1, true);
        assert!(!g.tear_down(1, 0xe1));
        g.set_used(0xe1, false);
        assert!(!g.tear_down(2, 0xe1) && g.tear_down(1, 0xe1) && !g.tear_down(1, 0xe1));
        assert_eq!(g.pages, 0);
    }

    #[test]
    fn what_is_no_list_is_forgotten() {
        let mut g = Gpadls::default();
        let bad = Part::Bad { relid: 1 };
        assert_eq!(g.begin(1, 1, 8, 1, &[0; 8]), bad, "no page");
        assert_eq!(g.begin(1, 1, 16, 2, &list(&[1])), bad, "two ranges");
        assert_eq!(g.begin(1, 1, 20, 1, &[&list(&[1])[..], &[0; 4]].concat()), bad, "half a page number");
        assert_eq!(g.begin(1, 1, 16, 1, &list(&[u64::MAX])), bad, "a page that is nowhere");
        assert_eq!(g.begin(1, 1, 24, 1, &[]), bad, "nothing in it");
        let mut offset = list(&[1]);
        offset[4] = 1;
        assert_eq!(g.begin(1, 1, 16, 1, &offset), bad);
        assert_eq!((g.pages, g.lists.len()), (0, 0));
        for name in 0..LISTS_MAX as u32 {
            assert_eq!(g.begin(1, name, 16, 1, &list(&[1])), Part::Whole { relid: 1 });
        }
        assert_eq!(g.begin(1, u32::MAX, 16, 1, &list(&[1])), bad, "too many");
        g.release(1);
        assert_eq!((g.pages, g.lists.len()), (0, 0));
    }
}
