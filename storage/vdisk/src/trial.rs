//! Trials of a format: what happens to a disk is compared with a model of it, and crashes are tried at each point. For
//! tests.

pub mod peer;

use crate::crash::ForgetfulMedium;
use crate::{Compact, Extent, Image, Place, SECTOR, compact};

/// What a parent has at each byte.
pub const PARENT: u8 = 0xee;

/// What happens to a disk.
#[derive(Clone, Debug)]
pub enum Act {
    /// Sectors are written, all of one byte.
    Write {
        /// The first.
        sector: u64,
        /// How many.
        count: u64,
        /// The byte.
        byte: u8,
    },
    /// Sectors are made zero.
    Zero {
        /// The first.
        sector: u64,
        /// How many.
        count: u64,
    },
    /// Sectors are not needed any more.
    Unmap {
        /// The first.
        sector: u64,
        /// How many.
        count: u64,
    },
    /// The disk becomes larger.
    Grow {
        /// By so many sectors.
        by: u64,
    },
    /// The disk becomes smaller; what goes was made zero before. A disk with a parent stays as it is.
    Shrink {
        /// By so many sectors, but one of it stays.
        by: u64,
    },
    /// The image is made to take no more than it needs.
    Compact,
    /// What was written is made durable.
    Flush,
    /// The same, and the image is opened anew, as after a crash.
    Reopen,
}

/// Reads a range of a disk.
///
/// # Panics
/// It cannot be read.
pub fn read(image: &mut dyn Image, at: u64, len: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len as usize);
    for e in image.resolve(at, len).expect("it resolves") {
        let from = bytes.len();
        bytes.resize(from + e.len as usize, if e.place == Place::Parent { PARENT } else { 0 });
        if let Place::Medium(at) = e.place {
            image.medium().read(at, &mut bytes[from..]).expect("it reads");
        }
    }
    assert_eq!(bytes.len() as u64, len);
    bytes
}

/// Writes to a disk.
///
/// # Panics
/// It cannot be written.
pub fn write(image: &mut dyn Image, at: u64, bytes: &[u8]) {
    let mut rest = bytes;
    for e in image.place(at, bytes.len() as u64).expect("it has room") {
        let Place::Medium(at) = e.place else { panic!("{e:?} is no place to write to") };
        let (part, more) = rest.split_at(e.len as usize);
        image.medium().write(at, part).expect("it writes");
        rest = more;
    }
    image.written(at, bytes.len() as u64).expect("it is on the disk");
}

/// Makes a range of a disk zero.
///
/// # Panics
/// It cannot be made zero.
pub fn zero(image: &mut dyn Image, at: u64, len: u64) {
    let extents = image.zero(at, len).expect("it can be zero");
    punch(image, &extents);
    image.written(at, len).expect("it is on the disk");
}

/// Says that a range of a disk is not needed any more.
///
/// # Panics
/// That fails.
pub fn unmap(image: &mut dyn Image, at: u64, len: u64) {
    let extents = image.unmap(at, len).expect("it can be unmapped");
    punch(image, &extents);
}

fn punch(image: &dyn Image, extents: &[Extent]) {
    for e in extents {
        let Place::Medium(at) = e.place else { panic!("{e:?} is no place to make zero") };
        image.medium().punch(at, e.len).expect("a hole");
    }
}

/// Numbers that look like chance, from one that is (Knuth's MMIX generator).
#[derive(Clone, Copy, Debug)]
pub struct Random(pub u64);

impl Random {
    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 33) % n
    }
}

/// The first byte of each of some sectors.
fn firsts(image: &mut dyn Image, first: u64, count: u64) -> Vec<u8> {
    let sector = u64::from(image.sector());
    read(image, first * sector, count * sector).chunks(sector as usize).map(|s| s[0]).collect()
}

/// What there may be at each sector of a disk.
type May = Vec<Vec<u8>>;

/// What a disk may be from some point on.
struct State {
    /// Where the journal was then.
    point: usize,
    /// What there may be at each sector, of the largest that the disk may be.
    may: May,
    /// Sectors that it has at least.
    least: usize,
}

/// A disk to try.
pub struct Trial<'a> {
    /// The image when it is new.
    pub new: Vec<u8>,
    /// Each byte of the disk then.
    pub fresh: u8,
    /// Opens it.
    pub open: &'a dyn Fn(ForgetfulMedium) -> Box<dyn Compact>,
}

impl Trial<'_> {
    /// An image opens, and nothing harmful is found in it.
    fn is_sound(&self, medium: ForgetfulMedium) {
        let findings = (self.open)(medium).examine().expect("it can be read");
        assert!(findings.iter().all(|f| !f.is_harmful()), "{findings:?}");
    }

    /// Does an act. Adds to what there may be at each sector what it is from then on. Of a flush all else is forgotten,
    /// and of a change of size, which is durable at once, what is no more.
    fn act(&self, image: &mut dyn Compact, act: &Act, may: &mut May) {
        let sector = u64::from(image.sector());
        let now = |may: &mut May, first: u64, bytes: &[u8]| {
            may[first as usize..].iter_mut().zip(bytes).for_each(|(m, b)| m.push(*b));
        };
        match *act {
            Act::Write { sector: at, count, byte } => {
                write(image, at * sector, &vec![byte; (count * sector) as usize]);
                now(may, at, &vec![byte; count as usize]);
            }
            Act::Zero { sector: at, count } => {
                zero(image, at * sector, count * sector);
                now(may, at, &vec![0; count as usize]);
            }
            Act::Unmap { sector: at, count } => {
                unmap(image, at * sector, count * sector);
                // What it is from now on, for good: what it was, or zero.
                let found = firsts(image, at, count);
                let known =
                    may[at as usize..].iter().zip(&found).all(|(m, b)| *b == 0 || m.last() == Some(b));
                assert!(known, "what is unmapped reads as something else");
                now(may, at, &found);
            }
            Act::Grow { by } => {
                image.grow(image.size() + by * sector).expect("it grows");
                // In a block that is zero what is new is too.
                let found = firsts(image, may.len() as u64, by);
                assert!(found.iter().all(|b| *b == 0 || *b == self.fresh), "what is new is something else");
                may.extend(found.into_iter().map(|b| vec![b]));
            }
            Act::Shrink { by } if self.fresh != PARENT => {
                let left = (image.size() / sector).saturating_sub(by).max(1);
                let size = image.size();
                zero(image, left * sector, size - left * sector);
                now(may, left, &vec![0; may.len() - left as usize]);
                image.shrink(left * sector).expect("it shrinks");
                may.truncate(left as usize);
            }
            Act::Shrink { .. } => {}
            Act::Compact => {
                assert!(compact(image, &mut |_, _| true).expect("it moves"));
                may.iter_mut().for_each(|m| *m = vec![*m.last().expect("one")]);
            }
            Act::Flush | Act::Reopen => {
                image.flush().expect("it flushes");
                may.iter_mut().for_each(|m| *m = vec![*m.last().expect("one")]);
            }
        }
    }

    fn may(&self, image: &dyn Image) -> May {
        vec![vec![self.fresh]; (image.size() / u64::from(image.sector())) as usize]
    }

    /// What is read is what was written, after each act.
    ///
    /// # Panics
    /// It is not.
    pub fn keeps(&self, acts: &[Act]) {
        let mut medium = ForgetfulMedium::new(self.new.clone());
        let mut image = (self.open)(medium.clone());
        let mut may = self.may(&*image);
        for act in acts {
            self.act(&mut *image, act, &mut may);
            if matches!(act, Act::Reopen) {
                self.is_sound(medium.clone());
                medium = ForgetfulMedium::new(medium.contents());
                image = (self.open)(medium.clone());
            }
            let (size, sector) = (image.size(), u64::from(image.sector()));
            assert_eq!(size / sector, may.len() as u64, "after {act:?}");
            let disk = read(&mut *image, 0, size);
            for (n, found) in disk.chunks(sector as usize).enumerate() {
                let right = may[n].last().expect("one");
                assert!(found.iter().all(|b| b == right), "sector {n} is not {right} after {act:?}");
            }
        }
    }

    /// After a crash at any point the image opens and is sound; each sector is what it was at the last flush, or
    /// something written since: as a whole, or in parts of 512 bytes, if it is larger, since the medium tears it so.
    /// And it can be used. `random` chooses what a crash leaves.
    ///
    /// # Panics
    /// It is not so.
    pub fn survives(&self, acts: &[Act], mut random: Random) {
        let medium = ForgetfulMedium::new(self.new.clone());
        let states = self.states(acts, &medium);
        for point in 0..=medium.points() {
            // After the last act that was done, and perhaps a part of the next, of which the state knows.
            let state = states.iter().rfind(|s| s.point <= point).expect("the first");
            let after = ForgetfulMedium::new(medium.after_crash(point, |n| random.below(n)));
            let mut image = (self.open)(after.clone());
            let (size, sector) = (image.size(), u64::from(image.sector()));
            let sectors = (size / sector) as usize;
            assert!((state.least..=state.may.len()).contains(&sectors), "{sectors} after a crash at {point}");
            let disk = read(&mut *image, 0, size);
            for (unit, found) in disk.chunks(SECTOR as usize).enumerate() {
                let at = unit as u64 * SECTOR;
                let (byte, may) = (found[0], &state.may[(at / sector) as usize]);
                assert!(found.iter().all(|b| *b == byte), "{at} is torn after a crash at {point}");
                assert!(may.contains(&byte), "{at} is {byte}, not one of {may:?}, after a crash at {point}");
            }
            write(&mut *image, 0, &vec![1; sector as usize]);
            image.flush().expect("it flushes");
            assert!(read(&mut *image, 0, sector).iter().all(|b| *b == 1));
            self.is_sound(after);
        }
    }

    /// Does the acts. For each what the disk may be from where it is done until the next is.
    fn states(&self, acts: &[Act], medium: &ForgetfulMedium) -> Vec<State> {
        let mut image = (self.open)(medium.clone());
        let mut may = self.may(&*image);
        let mut states = vec![State { point: 0, may: may.clone(), least: may.len() }];
        for act in acts {
            let before = may.clone();
            self.act(&mut *image, act, &mut may);
            // Until it was done the disk may have been what it was, and what it became.
            let during = states.last_mut().expect("the first");
            during.least = before.len().min(may.len());
            during.may = before;
            during.may.resize(during.may.len().max(may.len()), vec![]);
            during.may.iter_mut().zip(&may).for_each(|(m, after)| m.extend(after));
            during.may.iter_mut().skip(during.least).for_each(|m| m.extend([0, self.fresh]));
            states.push(State { point: medium.points(), may: may.clone(), least: may.len() });
        }
        states
    }
}
