//! Screenshots, as tests read them.

use std::collections::HashSet;
use std::path::Path;

/// "Vireo" in the console's font, 8 by 16 pixels: as the banner of guests has it.
const VIREO: [[u8; 16]; 5] = [
    [0, 0, 0xc6, 0xc6, 0xc6, 0xc6, 0xc6, 0xc6, 0xc6, 0x6c, 0x38, 0x10, 0, 0, 0, 0],
    [0, 0, 0x18, 0x18, 0, 0x38, 0x18, 0x18, 0x18, 0x18, 0x18, 0x3c, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 0xdc, 0x76, 0x66, 0x60, 0x60, 0x60, 0xf0, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 0x7c, 0xc6, 0xfe, 0xc0, 0xc0, 0xc6, 0x7c, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 0x7c, 0xc6, 0xc6, 0xc6, 0xc6, 0xc6, 0x7c, 0, 0, 0, 0],
];

/// A picture, as lines of brightness.
pub struct Picture {
    width: usize,
    lines: Vec<Vec<u8>>,
}

impl Picture {
    /// Reads a PNG.
    ///
    /// # Panics
    /// It is none.
    pub fn read(path: &Path) -> Self {
        let file = std::io::BufReader::new(std::fs::File::open(path).expect("a screenshot"));
        let mut reader = png::Decoder::new(file).read_info().expect("a PNG");
        let mut pixels = vec![0; reader.output_buffer_size().expect("a size")];
        let info = reader.next_frame(&mut pixels).expect("a picture");
        let (width, samples) = (info.width as usize, info.color_type.samples());
        let brightest = |p: &[u8]| p.iter().take(3).copied().max().unwrap_or(0);
        let lines = pixels[..info.buffer_size()].chunks(width * samples);
        Self { width, lines: lines.map(|l| l.chunks(samples).map(brightest).collect()).collect() }
    }

    /// Width and height, in pixels.
    pub fn size(&self) -> (usize, usize) {
        (self.width, self.lines.len())
    }

    /// How often "Vireo" stands in it, where the console writes.
    pub fn count(&self) -> usize {
        let cell = |x: usize, y: usize| -> [u8; 16] {
            std::array::from_fn(|line| {
                let pixels = &self.lines[y * 16 + line][x * 8..x * 8 + 8];
                pixels.iter().fold(0, |bits, p| bits << 1 | u8::from(*p > 80))
            })
        };
        let columns = self.width / 8;
        let rows = self.lines.len() / 16;
        let starts = (0..rows).flat_map(|y| (0..columns.saturating_sub(4)).map(move |x| (x, y)));
        starts.filter(|&(x, y)| (0..5).all(|n| cell(x + n, y) == VIREO[n])).count()
    }

    /// How many levels of brightness there are: a console has a handful, a picture whose edges are smooth has many.
    pub fn levels(&self) -> usize {
        self.lines.iter().flatten().collect::<HashSet<_>>().len()
    }
}
