//! Where a piece of a disk is.

/// A piece of a disk. Lengths are in bytes, multiples of [`crate::SECTOR`], and never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its length.
    pub len: u64,
    /// Where its bytes are.
    pub place: Place,
}

/// Where bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the image's medium, from this offset on.
    Medium(u64),
    /// Nowhere: they are zero.
    Zero,
    /// In the parent, at the same place of its disk; zero beyond its end.
    Parent,
}

impl Place {
    /// The place of what is `by` bytes further on.
    pub fn after(self, by: u64) -> Self {
        match self {
            Self::Medium(at) => Self::Medium(at + by),
            other => other,
        }
    }
}

impl Extent {
    /// Appends to a list, as a part of its last entry if it goes on where that ends.
    pub fn append_to(self, list: &mut Vec<Self>) {
        match list.last_mut() {
            Some(last) if last.place.after(last.len) == self.place => last.len += self.len,
            _ => list.push(self),
        }
    }

    /// Appends those of `found` that are in the medium.
    pub fn append_placed(found: Vec<Self>, list: &mut Vec<Self>) {
        let placed = found.into_iter().filter(|e| matches!(e.place, Place::Medium(_)));
        placed.for_each(|e| e.append_to(list));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_become_one() {
        let mut list = Vec::new();
        let add = |list: &mut Vec<_>, len, place| Extent { len, place }.append_to(list);
        add(&mut list, 512, Place::Zero);
        add(&mut list, 512, Place::Zero);
        add(&mut list, 512, Place::Medium(4096));
        add(&mut list, 512, Place::Medium(4608));
        add(&mut list, 512, Place::Medium(512));
        add(&mut list, 512, Place::Parent);
        let expected = [
            (1024, Place::Zero),
            (1024, Place::Medium(4096)),
            (512, Place::Medium(512)),
            (512, Place::Parent),
        ];
        assert_eq!(list, expected.map(|(len, place)| Extent { len, place }));
        let mut placed = Vec::new();
        Extent::append_placed(list, &mut placed);
        assert_eq!(placed, [expected[1], expected[2]].map(|(len, place)| Extent { len, place }));
    }
}
