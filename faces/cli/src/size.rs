//! Sizes for people.

use std::fmt::{self, Display};

/// A number of bytes, in the largest unit that it has one of.
pub struct Size(pub u64);

impl Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
        match units.into_iter().find(|(_, shift)| self.0 >> shift != 0) {
            Some((unit, shift)) if self.0.trailing_zeros() >= shift => {
                write!(f, "{} {unit}", self.0 >> shift)
            }
            Some((unit, shift)) => write!(f, "{:.1} {unit}", self.0 as f64 / (1u64 << shift) as f64),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written() {
        assert_eq!(Size(20 << 30).to_string(), "20 GiB");
        assert_eq!(Size((1 << 20) + 512).to_string(), "1.0 MiB");
        assert_eq!(Size(512).to_string(), "512 bytes");
    }
}
