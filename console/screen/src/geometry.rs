//! Sizes and rectangles.

use std::fmt;
use std::str::FromStr;

/// Pixels in a line, and lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Pixels in a line.
    pub width: u32,
    /// Lines.
    pub height: u32,
}

impl Size {
    /// Most pixels in a line, and lines.
    pub const MOST: u32 = 8192;

    /// A size that a screen can have.
    pub const fn new(width: u32, height: u32) -> Option<Self> {
        let possible = width > 0 && height > 0 && width <= Self::MOST && height <= Self::MOST;
        if possible { Some(Self { width, height }) } else { None }
    }

    /// All of it.
    pub fn all(self) -> Rect {
        Rect { x: 0, y: 0, width: self.width, height: self.height }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

impl FromStr for Size {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let numbers = s.split_once('x').and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
        let size = numbers.and_then(|(w, h)| Self::new(w, h));
        size.ok_or_else(|| format!("{s:?} is no size: it is WIDTHxHEIGHT, as in 1024x768"))
    }
}

/// A rectangle of pixels. None reaches beyond [`Size::MOST`] once it was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rect {
    /// First pixel of its lines.
    pub x: u32,
    /// First line.
    pub y: u32,
    /// Pixels in a line.
    pub width: u32,
    /// Lines.
    pub height: u32,
}

impl Rect {
    /// From the corner that is in it and the one that is not, as far as it is inside `size`; `None`: nothing of it is.
    pub fn cut(from: (i32, i32), to: (i32, i32), size: Size) -> Option<Self> {
        let clamp = |v: i32, most: u32| u32::try_from(v).unwrap_or(0).min(most);
        let (x, y) = (clamp(from.0, size.width), clamp(from.1, size.height));
        let (right, bottom) = (clamp(to.0, size.width), clamp(to.1, size.height));
        (x < right && y < bottom).then(|| Self { x, y, width: right - x, height: bottom - y })
    }

    /// As far as it is inside `size`; `None`: nothing of it is.
    pub fn within(self, size: Size) -> Option<Self> {
        let end = |start: u32, len: u32| i32::try_from(start.saturating_add(len)).unwrap_or(i32::MAX);
        let start = |v: u32| i32::try_from(v).unwrap_or(i32::MAX);
        Self::cut((start(self.x), start(self.y)), (end(self.x, self.width), end(self.y, self.height)), size)
    }

    /// First pixel after its lines.
    pub fn right(&self) -> u32 {
        self.x + self.width
    }

    /// First line after it.
    pub fn bottom(&self) -> u32 {
        self.y + self.height
    }

    /// Pixels.
    pub fn area(&self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }

    /// The smallest rectangle that has both.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        let (x, y) = (self.x.min(other.x), self.y.min(other.y));
        let (right, bottom) = (self.right().max(other.right()), self.bottom().max(other.bottom()));
        Self { x, y, width: right - x, height: bottom - y }
    }
}
