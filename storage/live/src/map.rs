//! Where the pieces of a disk are, as far as that was asked: so that nobody asks the images again who need not.

use std::collections::HashMap;

/// Where bytes of a disk are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nowhere: they are zero.
    Zero,
    /// In the file of an image, from an offset on. Image 0 is the disk's own.
    File {
        /// Which image.
        layer: u16,
        /// From here on, in bytes.
        at: u64,
    },
}

/// A piece of a disk: its length in bytes, and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its length.
    pub len: u64,
    /// Where it is.
    pub source: Source,
}

impl Source {
    /// The place of what is `by` bytes further on.
    fn after(self, by: u64) -> Self {
        match self {
            Self::Zero => Self::Zero,
            Self::File { layer, at } => Self::File { layer, at: at + by },
        }
    }
}

impl Segment {
    /// Appends to a list, as a part of its last entry if it goes on where that ends.
    pub fn append_to(self, list: &mut Vec<Self>) {
        match list.last_mut() {
            Some(last) if last.source.after(last.len) == self.source => last.len += self.len,
            _ => list.push(self),
        }
    }
}

/// Appends the part of `segments` from `skip` on, `len` bytes (or as many as there are).
fn cut(segments: &[Segment], skip: u64, len: u64, to: &mut Vec<Segment>) {
    let (mut skip, mut left) = (skip, len);
    for s in segments {
        let start = skip.min(s.len);
        let n = left.min(s.len - start);
        skip -= start;
        left -= n;
        if n > 0 {
            Segment { len: n, source: s.source.after(start) }.append_to(to);
        }
    }
}

/// Whether all of it is in the disk's own image.
pub fn is_own(segments: &[Segment]) -> bool {
    segments.iter().all(|s| matches!(s.source, Source::File { layer: 0, .. }))
}

/// What an image said of a range.
#[derive(Debug)]
pub struct Chart {
    /// Start of the range, in bytes.
    pub at: u64,
    /// The pieces of it, in order.
    pub segments: Vec<Segment>,
}

impl Chart {
    fn end(&self) -> u64 {
        self.at + self.segments.iter().map(|s| s.len).sum::<u64>()
    }

    /// The pieces of a range in it.
    pub fn part(&self, at: u64, len: u64) -> Vec<Segment> {
        let mut found = Vec::new();
        cut(&self.segments, at - self.at, len, &mut found);
        found
    }
}

/// Size of the pieces in which it is remembered, in bytes.
pub const GRANULE: u64 = 2 << 20;
/// Most segments that are remembered: some ten megabytes.
const MOST: usize = 1 << 18;

/// The whole granules around a range of a disk of `size` bytes: start and length.
pub fn around(at: u64, len: u64, size: u64) -> (u64, u64) {
    let start = at / GRANULE * GRANULE;
    let end = (at + len).div_ceil(GRANULE).saturating_mul(GRANULE).min(size);
    (start, end - start)
}

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Map {
    granules: HashMap<u64, Box<[Segment]>>,
    kept: usize,
}

impl Map {
    /// Where a range is, into `found`. False: it is not known of all of it.
    pub fn find(&self, at: u64, len: u64, found: &mut Vec<Segment>) -> bool {
        found.clear();
        let (mut at, end) = (at, at + len);
        while at < end {
            let Some(known) = self.granules.get(&(at / GRANULE)) else { return false };
            let n = (GRANULE - at % GRANULE).min(end - at);
            cut(known, at % GRANULE, n, found);
            at += n;
        }
        // What was remembered when the disk was smaller ends there.
        found.iter().map(|s| s.len).sum::<u64>() == len
    }

    /// Nothing is known any more.
    pub fn forget(&mut self) {
        self.granules.clear();
        self.kept = 0;
    }

    /// Remembers what an image said of all granules that are wholly in its range, and forgets those that are in part;
    /// `size`: the disk's, in bytes.
    pub fn learn(&mut self, chart: &Chart, size: u64) {
        let end = chart.end();
        for edge in [chart.at / GRANULE, end.saturating_sub(1) / GRANULE] {
            if let Some(old) = self.granules.remove(&edge) {
                self.kept -= old.len();
            }
        }
        let mut granule = chart.at.div_ceil(GRANULE);
        while granule * GRANULE < end && ((granule + 1) * GRANULE).min(size) <= end {
            let part = chart.part(granule * GRANULE, GRANULE.min(end - granule * GRANULE));
            if self.kept + part.len() > MOST {
                self.forget();
            }
            self.kept += part.len();
            if let Some(old) = self.granules.insert(granule, part.into()) {
                self.kept -= old.len();
            }
            granule += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn own(at: u64, len: u64) -> Segment {
        Segment { len, source: Source::File { layer: 0, at } }
    }
    const fn zero(len: u64) -> Segment {
        Segment { len, source: Source::Zero }
    }

    #[test]
    fn what_was_learnt_is_found() {
        let size = 3 * GRANULE + 4096;
        let mut map = Map::default();
        let mut found = Vec::new();
        assert!(!map.find(0, 512, &mut found));
        // Not all of the first granule, and the last one up to the disk's end.
        let chart = Chart { at: 512, segments: vec![zero(2 * GRANULE - 512), own(1 << 30, GRANULE + 4096)] };
        map.learn(&chart, size);
        assert!(!map.find(512, 512, &mut found));
        assert!(map.find(2 * GRANULE - 512, 1024, &mut found));
        assert_eq!(found, [zero(512), own(1 << 30, 512)]);
        assert!(!is_own(&found));
        assert!(map.find(3 * GRANULE - 512, 4608, &mut found));
        assert_eq!(found, [own((1 << 30) + GRANULE - 512, 4608)]);
        assert!(is_own(&found));
        // The disk grew.
        assert!(!map.find(3 * GRANULE, 8192, &mut found));
        // Newer news.
        map.learn(&Chart { at: GRANULE, segments: vec![own(0, GRANULE)] }, size);
        assert!(map.find(GRANULE + 512, 512, &mut found));
        assert_eq!(found, [own(512, 512)]);
        // News of a part: the rest may be old.
        map.learn(&Chart { at: GRANULE + 512, segments: vec![zero(512)] }, size);
        assert!(!map.find(GRANULE, 512, &mut found) && map.find(2 * GRANULE, 512, &mut found));
        assert_eq!(around(GRANULE + 1, GRANULE, size), (GRANULE, 2 * GRANULE));
        assert_eq!(around(3 * GRANULE, 512, size), (3 * GRANULE, 4096));
    }

    #[test]
    fn it_forgets_rather_than_grow() {
        let mut map = Map::default();
        // Nothing of it is contiguous.
        let scattered: Vec<_> = (0..GRANULE / 512).map(|n| own((n * 2 + 1) * 512, 512)).collect();
        for n in 0..100 {
            map.learn(&Chart { at: n * GRANULE, segments: scattered.clone() }, 100 * GRANULE);
            assert!(map.kept <= MOST, "{}", map.kept);
        }
        assert!(map.find(99 * GRANULE, GRANULE, &mut Vec::new()));
    }
}
