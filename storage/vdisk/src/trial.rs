//! Trials of a format: what happens to a disk is compared with a model of it, and crashes are tried at each point. For tests.

pub mod peer;

use crate::crash::ForgetfulMedium;
use crate::{Extent, Image, Place, SECTOR};

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

/// Does an act. Gives the first sector that it changes, and what each from there on is now; `None`: it was a flush.
fn change(image: &mut dyn Image, act: &Act) -> Option<(u64, Vec<u8>)> {
    let sector = u64::from(image.sector());
    let (first, count) = match act {
        Act::Write { sector: at, count, byte } => {
            write(image, at * sector, &vec![*byte; (count * sector) as usize]);
            return Some((*at, vec![*byte; *count as usize]));
        }
        Act::Zero { sector: at, count } => {
            zero(image, at * sector, count * sector);
            return Some((*at, vec![0; *count as usize]));
        }
        Act::Unmap { sector, count } => (*sector, *count),
        Act::Flush | Act::Reopen => {
            image.flush().expect("it flushes");
            return None;
        }
    };
    unmap(image, first * sector, count * sector);
    let now = read(image, first * sector, count * sector);
    // What it is from now on, for good.
    Some((first, now.chunks(sector as usize).map(|s| s[0]).collect()))
}

/// A disk to try.
pub struct Trial<'a> {
    /// The image when it is new.
    pub new: Vec<u8>,
    /// Each byte of the disk then.
    pub fresh: u8,
    /// Opens it.
    pub open: &'a dyn Fn(ForgetfulMedium) -> Box<dyn Image>,
}

impl Trial<'_> {
    /// An image opens, and nothing harmful is found in it.
    fn is_sound(&self, medium: ForgetfulMedium) {
        let findings = (self.open)(medium).examine().expect("it can be read");
        assert!(findings.iter().all(|f| !f.is_harmful()), "{findings:?}");
    }

    /// What is read is what was written, after each act.
    ///
    /// # Panics
    /// It is not.
    pub fn keeps(&self, acts: &[Act]) {
        let mut medium = ForgetfulMedium::new(self.new.clone());
        let mut image = (self.open)(medium.clone());
        let sector = u64::from(image.sector());
        let mut model = vec![self.fresh; image.size() as usize];
        for act in acts {
            if let Some((first, now)) = change(&mut *image, act) {
                for (at, byte) in (first * sector..).step_by(sector as usize).zip(now) {
                    let part = &mut model[at as usize..][..sector as usize];
                    // What was unmapped is as it was, or zero.
                    assert!(
                        !matches!(act, Act::Unmap { .. }) || byte == 0 || byte == part[0],
                        "{at}: {byte}"
                    );
                    part.fill(byte);
                }
            }
            if matches!(act, Act::Reopen) {
                self.is_sound(medium.clone());
                medium = ForgetfulMedium::new(medium.contents());
                image = (self.open)(medium.clone());
            }
            let size = image.size();
            assert!(read(&mut *image, 0, size) == model, "the disk differs after {act:?}");
        }
    }

    /// After a crash at any point the image opens and is sound; each sector is what it was at the last flush, or something
    /// written since: as a whole, or in parts of 512 bytes, if it is larger, since the medium tears it so. And it can be used.
    /// `random` chooses what a crash leaves.
    ///
    /// # Panics
    /// It is not so.
    pub fn survives(&self, acts: &[Act], mut random: Random) {
        let medium = ForgetfulMedium::new(self.new.clone());
        let states = self.states(acts, &medium);
        for point in 0..=medium.points() {
            // After the last act that was done, and perhaps a part of the next, of which the state knows.
            let n = states.iter().rposition(|(at, _)| *at <= point).expect("the first");
            let after = ForgetfulMedium::new(medium.after_crash(point, |n| random.below(n)));
            let mut image = (self.open)(after.clone());
            let (size, sector) = (image.size(), u64::from(image.sector()));
            let disk = read(&mut *image, 0, size);
            for (unit, found) in disk.chunks(SECTOR as usize).enumerate() {
                let at = unit as u64 * SECTOR;
                let (byte, may) = (found[0], &states[n].1[(at / sector) as usize]);
                assert!(found.iter().all(|b| *b == byte), "{at} is torn after a crash at {point}");
                assert!(may.contains(&byte), "{at} is {byte}, not one of {may:?}, after a crash at {point}");
            }
            write(&mut *image, 0, &vec![1; sector as usize]);
            image.flush().expect("it flushes");
            assert!(read(&mut *image, 0, sector).iter().all(|b| *b == 1));
            self.is_sound(after);
        }
    }

    /// Does the acts. For each: the journal's length after it, and what each sector may be from there until the next is done.
    fn states(&self, acts: &[Act], medium: &ForgetfulMedium) -> Vec<(usize, Vec<Vec<u8>>)> {
        let mut image = (self.open)(medium.clone());
        let sector = u64::from(image.sector());
        let mut may = vec![vec![self.fresh]; (image.size() / sector) as usize];
        let mut states = vec![(0, may.clone())];
        for act in acts {
            if let Some((first, now)) = change(&mut *image, act) {
                may[first as usize..].iter_mut().zip(now).for_each(|(m, byte)| m.push(byte));
                states.last_mut().expect("the first").1.clone_from(&may);
            } else {
                may.iter_mut().for_each(|m| *m = vec![*m.last().expect("one")]);
            }
            states.push((medium.points(), may.clone()));
        }
        states
    }
}
