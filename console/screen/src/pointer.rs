//! The pointer.

/// Buttons that are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Buttons {
    /// The first.
    pub left: bool,
    /// The second.
    pub right: bool,
    /// The third.
    pub middle: bool,
}

/// A pointer's report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PointerState {
    /// From 0 at the left to [`PointerState::END`] at the right.
    pub x: u16,
    /// From 0 at the top to [`PointerState::END`] at the bottom.
    pub y: u16,
    /// Buttons.
    pub buttons: Buttons,
    /// Steps of the wheel since the last report, away from the user.
    pub wheel: i8,
}

impl PointerState {
    /// The last place to the right, or at the bottom.
    pub const END: u16 = 0x7fff;

    /// Pixel `at` of `count`, as a place.
    pub fn place(at: u32, count: u32) -> u16 {
        let last = count.saturating_sub(1).max(1);
        (u64::from(at.min(last)) * u64::from(Self::END) / u64::from(last)) as u16
    }
}

/// A machine's pointer.
pub trait Pointer: Send + Sync {
    /// Moves it, and says what is held.
    fn report(&self, state: PointerState);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_span_the_screen() {
        assert_eq!([0, 1023, 5000].map(|x| PointerState::place(x, 1024)), [0, 0x7fff, 0x7fff]);
        assert_eq!(PointerState::place(u32::MAX, u32::MAX), 0x7fff);
        assert_eq!((PointerState::place(0, 0), PointerState::place(9, 1)), (0, 0x7fff));
    }
}
