//! What has changed of a picture: few rectangles, whatever a guest says.

use crate::Rect;

/// Rectangles that have changed. Together they have each pixel that was added, and maybe others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Damage(Vec<Rect>);

impl Damage {
    /// Most rectangles.
    pub const MOST: usize = 16;

    /// Adds one, which is inside the picture.
    pub fn add(&mut self, mut new: Rect) {
        // One that another makes hardly larger is taken into it: that other may then be near to a third.
        while let Some(near) = self.0.iter().position(|old| {
            let both = old.with(&new);
            both.area() <= old.area() + new.area()
        }) {
            new = self.0.swap_remove(near).with(&new);
        }
        if self.0.len() == Self::MOST {
            let growth = |old: &Rect| old.with(&new).area() - old.area();
            if let Some(best) = (0..self.0.len()).min_by_key(|&n| growth(&self.0[n])) {
                new = self.0.swap_remove(best).with(&new);
                return self.add(new);
            }
        }
        self.0.push(new);
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them; none are left.
    pub fn take(&mut self) -> Vec<Rect> {
        std::mem::take(&mut self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Size;

    const SIZE: Size = Size { width: 64, height: 48 };

    proptest! {
        #[test]
        fn nothing_that_was_added_is_missing_and_they_stay_few(
            corners in prop::collection::vec((-9i32..80, -9i32..80, -9i32..80, -9i32..80), 0..90)
        ) {
            let mut damage = Damage::default();
            let mut model = vec![false; 64 * 48];
            for (x, y, right, bottom) in corners {
                let Some(rect) = Rect::cut((x, y), (right, bottom), SIZE) else { continue };
                for line in rect.y..rect.bottom() {
                    for column in rect.x..rect.right() {
                        prop_assert!((column as i32) >= x && (column as i32) < right && (line as i32) >= y);
                        model[(line * 64 + column) as usize] = true;
                    }
                }
                damage.add(rect);
                prop_assert!(damage.0.len() <= Damage::MOST);
            }
            let rects = damage.take();
            prop_assert!(rects.iter().all(|r| r.within(SIZE) == Some(*r)));
            for (at, _) in model.iter().enumerate().filter(|(_, set)| **set) {
                let (x, y) = (at as u32 % 64, at as u32 / 64);
                let has = |r: &Rect| (r.x..r.right()).contains(&x) && (r.y..r.bottom()).contains(&y);
                prop_assert!(rects.iter().any(has));
            }
        }
    }

    #[test]
    fn numbers_at_the_ends_are_cut() {
        let extremes = (i32::MIN, i32::MIN);
        assert_eq!(Rect::cut(extremes, (i32::MAX, i32::MAX), SIZE), Some(SIZE.all()));
        assert_eq!(Rect::cut((64, 0), (i32::MAX, 9), SIZE), None);
        assert_eq!(Rect::cut((5, 5), (5, 9), SIZE), None);
        let huge = Rect { x: u32::MAX, y: 0, width: u32::MAX, height: 1 };
        assert_eq!(huge.within(SIZE), None);
        assert_eq!(Rect { x: 1, y: 2, width: u32::MAX, height: u32::MAX }.within(SIZE).unwrap().right(), 64);
    }
}
