//! A picture of one size, and where its pixels are.

use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;

use crate::{Rect, Size};

/// Memory that holds pixels: 4 bytes each, blue, green, red and one that means nothing.
pub trait Pixels: Send + Sync {
    /// Copies bytes from `offset` on; whether they are there.
    fn read(&self, offset: u64, to: &mut [u8]) -> bool;
}

/// How a frame buffer is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// What is seen.
    pub size: Size,
    /// Bytes from one line to the next.
    pub stride: u32,
    /// Where the first line is.
    pub offset: u64,
}

/// A guest asked for a mode that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModeError {
    /// No such screen.
    #[error("a screen cannot have {0}x{1} pixels")]
    Size(u32, u32),
    /// Lines overlap, or pixels are not where they can be.
    #[error("lines of {width} pixels cannot be {stride} bytes apart")]
    Stride {
        /// Pixels in a line.
        width: u32,
        /// What was asked for.
        stride: u32,
    },
    /// There is not so much memory.
    #[error("the frame buffer has not {0} bytes")]
    Memory(u64),
}

impl Mode {
    /// Bytes of a pixel.
    pub const PIXEL: u32 = 4;

    /// A mode in a frame buffer of `memory` bytes.
    ///
    /// # Errors
    /// It is none.
    pub fn new(width: u32, height: u32, stride: u32, offset: u64, memory: u64) -> Result<Self, ModeError> {
        let size = Size::new(width, height).ok_or(ModeError::Size(width, height))?;
        if stride < width * Self::PIXEL || !stride.is_multiple_of(Self::PIXEL) || stride > 1 << 20 {
            return Err(ModeError::Stride { width, stride });
        }
        let end = offset.saturating_add(u64::from(stride) * u64::from(height));
        if end > memory { Err(ModeError::Memory(end)) } else { Ok(Self { size, stride, offset }) }
    }
}

/// What is shown: always of the same size.
pub struct Picture {
    mode: Mode,
    /// `None`: it is black.
    pixels: Option<Arc<dyn Pixels>>,
}

impl Picture {
    pub(crate) fn new(mode: Mode, pixels: Arc<dyn Pixels>) -> Self {
        Self { mode, pixels: Some(pixels) }
    }

    pub(crate) fn black(size: Size) -> Self {
        Self { mode: Mode { size, stride: size.width * Mode::PIXEL, offset: 0 }, pixels: None }
    }

    /// Its size.
    pub fn size(&self) -> Size {
        self.mode.size
    }

    /// Whether a device shows it: without one it is black.
    pub fn is_shown(&self) -> bool {
        self.pixels.is_some()
    }

    /// Copies the pixels of `rect`, which is cut to the picture, line after line to the end of `to`. What is not there is black.
    pub fn read(&self, rect: Rect, to: &mut Vec<u8>) {
        let Some(rect) = rect.within(self.size()) else { return };
        let bytes = (rect.width * Mode::PIXEL) as usize;
        for line in rect.y..rect.bottom() {
            let start = to.len();
            to.resize(start + bytes, 0);
            let at = u64::from(line) * u64::from(self.mode.stride) + u64::from(rect.x * Mode::PIXEL);
            let there = |pixels: &Arc<dyn Pixels>| pixels.read(self.mode.offset + at, &mut to[start..]);
            if !self.pixels.as_ref().is_some_and(there) {
                to[start..].fill(0);
            }
        }
    }

    /// The picture as a PNG.
    ///
    /// # Errors
    /// The encoder fails.
    pub fn png(&self) -> Result<Vec<u8>, png::EncodingError> {
        let size = self.size();
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, size.width, size.height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header()?;
        let mut pixels = Vec::new();
        self.read(size.all(), &mut pixels);
        let rgb: Vec<u8> = pixels.chunks_exact(4).flat_map(|p| [p[2], p[1], p[0]]).collect();
        writer.write_image_data(&rgb)?;
        writer.finish()?;
        Ok(file)
    }
}

/// Finds what has changed where nobody says so, by a hash of each line.
#[derive(Default)]
pub struct Compare(Vec<u64>);

impl Compare {
    /// Lines that have changed since the last call, in as few rectangles as there are runs of them.
    pub fn changes(&mut self, picture: &Picture) -> Vec<Rect> {
        let size = picture.size();
        let mut found: Vec<Rect> = Vec::new();
        let mut bytes = Vec::new();
        self.0.resize(size.height as usize, 0);
        for (y, last) in (0..).zip(&mut self.0) {
            let line = Rect { x: 0, y, width: size.width, height: 1 };
            bytes.clear();
            picture.read(line, &mut bytes);
            let mut hasher = DefaultHasher::new();
            hasher.write(&bytes);
            if std::mem::replace(last, hasher.finish()) == *last {
                continue;
            }
            match found.last_mut().filter(|run| run.bottom() == y) {
                Some(run) => run.height += 1,
                None => found.push(line),
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    struct Bytes(Mutex<Vec<u8>>);
    impl Pixels for Bytes {
        fn read(&self, offset: u64, to: &mut [u8]) -> bool {
            let bytes = self.0.lock().unwrap();
            let from = usize::try_from(offset).ok().and_then(|at| bytes.get(at..at + to.len()));
            from.map(|from| to.copy_from_slice(from)).is_some()
        }
    }

    #[test]
    fn impossible_modes_are_refused() {
        let mode = |w, h, stride, offset| Mode::new(w, h, stride, offset, 1 << 20);
        assert!(mode(512, 512, 2048, 0).is_ok());
        assert_eq!(mode(512, 512, 2048, 1), Err(ModeError::Memory((1 << 20) + 1)));
        assert_eq!(mode(512, 2, 2048, u64::MAX), Err(ModeError::Memory(u64::MAX)));
        assert!(mode(512, 2, 2044, 0).is_err() && mode(512, 2, 2050, 0).is_err());
        assert!(mode(512, 2, 0xffff_fffc, 0).is_err());
        for (w, h) in [(0, 1), (1, 0), (Size::MOST + 1, 1), (1, u32::MAX)] {
            assert_eq!(mode(w, h, u32::MAX, 0), Err(ModeError::Size(w, h)));
        }
    }

    #[test]
    fn rectangles_are_read_with_the_stride_and_what_is_missing_is_black() {
        let bytes = Arc::new(Bytes(Mutex::new((0..40).collect())));
        let mode = Mode { size: Size { width: 2, height: 3 }, stride: 12, offset: 4 };
        let picture = Picture::new(mode, Arc::clone(&bytes) as _);
        let mut got = Vec::new();
        picture.read(Rect { x: 1, y: 1, width: 9, height: 9 }, &mut got);
        assert_eq!(got, [20, 21, 22, 23, 32, 33, 34, 35]);
        bytes.0.lock().unwrap().truncate(30);
        got.clear();
        picture.read(Rect { x: 1, y: 1, width: 1, height: 2 }, &mut got);
        assert_eq!(got, [20, 21, 22, 23, 0, 0, 0, 0]);
    }

    #[test]
    fn changed_lines_are_found() {
        let bytes = Arc::new(Bytes(Mutex::new(vec![0; 64])));
        let mode = Mode { size: Size { width: 2, height: 8 }, stride: 8, offset: 0 };
        let picture = Picture::new(mode, Arc::clone(&bytes) as _);
        let mut compare = Compare::default();
        assert_eq!(compare.changes(&picture), [mode.size.all()]);
        assert_eq!(compare.changes(&picture), []);
        for at in [9, 17, 63] {
            bytes.0.lock().unwrap()[at] = 1;
        }
        let lines: Vec<_> = compare.changes(&picture).iter().map(|r| r.y..r.bottom()).collect();
        assert_eq!(lines, [1..3, 7..8]);
    }

    #[test]
    fn a_screenshot_is_a_png_of_the_pixels() {
        let bytes = Bytes(Mutex::new(vec![1, 2, 3, 0, 4, 5, 6, 255]));
        let mode = Mode { size: Size { width: 2, height: 1 }, stride: 8, offset: 0 };
        let file = Picture::new(mode, Arc::new(bytes)).png().unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(file)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((info.width, info.height, pixels), (2, 1, vec![3, 2, 1, 6, 5, 4]));
    }
}
