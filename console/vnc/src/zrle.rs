//! ZRLE (RFC 6143 §7.7.6): tiles of 64 by 64 pixels, each in the shortest of some ways, all in one deflate stream.

use flate2::{Compress, Compression, FlushCompress};

use crate::pixel::Format;

/// Side of a tile.
pub const TILE: u32 = 64;

/// Most colours of a tile with a palette.
const PALETTE_MOST: usize = 16;

/// A client's stream.
pub struct Zrle {
    stream: Compress,
    /// Tiles, before they are deflated.
    tiles: Vec<u8>,
}

impl Default for Zrle {
    fn default() -> Self {
        // Screens are mostly plain: more effort finds little more.
        Self { stream: Compress::new(Compression::new(2), true), tiles: Vec::new() }
    }
}

impl Zrle {
    /// Appends a rectangle of so many pixels a line to `to`.
    pub fn encode(&mut self, pixels: &[u8], width: u32, format: &Format, to: &mut Vec<u8>) {
        let width = width as usize;
        let height = pixels.len() / 4 / width.max(1);
        self.tiles.clear();
        let mut tile = Vec::new();
        for y in (0..height).step_by(TILE as usize) {
            for x in (0..width).step_by(TILE as usize) {
                let columns = (width - x).min(TILE as usize);
                tile.clear();
                for line in y..(y + TILE as usize).min(height) {
                    let start = (line * width + x) * 4;
                    let line = pixels[start..start + columns * 4].chunks_exact(4);
                    tile.extend(line.map(|p| format.value([p[0], p[1], p[2], 0])));
                }
                put_tile(&tile, columns, format, &mut self.tiles);
            }
        }
        self.deflate(to);
    }

    /// Deflates the tiles, with their length before them.
    fn deflate(&mut self, to: &mut Vec<u8>) {
        let length_at = to.len();
        to.extend([0; 4]);
        // Room for what cannot be made shorter: a flush that finds no room is not complete, and nobody says so.
        to.reserve(self.tiles.len() + self.tiles.len() / 64 + 1024);
        // The stream is one of memory: it has no errors.
        _ = self.stream.compress_vec(&self.tiles, to, FlushCompress::Sync);
        let length = (to.len() - length_at - 4) as u32;
        to[length_at..length_at + 4].copy_from_slice(&length.to_be_bytes());
    }
}

/// The colours of a tile, if they are few.
fn palette(tile: &[u32]) -> Option<Vec<u32>> {
    let mut colours: Vec<u32> = Vec::new();
    let mut last = None;
    for value in tile {
        if last == Some(value) || colours.contains(value) {
            last = Some(value);
            continue;
        }
        if colours.len() == PALETTE_MOST {
            return None;
        }
        colours.push(*value);
        last = Some(value);
    }
    Some(colours)
}

/// A tile of so many columns.
fn put_tile(tile: &[u32], columns: usize, format: &Format, to: &mut Vec<u8>) {
    let Some(colours) = palette(tile) else {
        to.push(0);
        return tile.iter().for_each(|v| format.put_compressed(*v, to));
    };
    to.push(colours.len() as u8);
    colours.iter().for_each(|v| format.put_compressed(*v, to));
    let bits = match colours.len() {
        1 => return,
        2 => 1,
        3..=4 => 2,
        _ => 4,
    };
    for line in tile.chunks(columns) {
        let (mut byte, mut free) = (0, 8);
        for value in line {
            let index = colours.iter().position(|c| c == value).unwrap_or(0) as u8;
            free -= bits;
            byte |= index << free;
            if free == 0 {
                to.push(byte);
                (byte, free) = (0, 8);
            }
        }
        // Lines start on bytes.
        if free < 8 {
            to.push(byte);
        }
    }
}

/// The other side, written from the client's point of view.
#[cfg(test)]
pub mod client {
    use flate2::{Decompress, FlushDecompress};

    pub struct Unzrle(Decompress);

    impl Default for Unzrle {
        fn default() -> Self {
            Self(Decompress::new(true))
        }
    }

    impl Unzrle {
        /// Pixels of the screen, of the native format.
        pub fn decode(&mut self, data: &[u8], width: usize, height: usize) -> Vec<u8> {
            let mut plain = Vec::with_capacity(width * height * 4 + (1 << 16));
            let (start, mut made) = (self.0.total_in(), 0);
            while (self.0.total_in() - start) < data.len() as u64 || plain.len() > made {
                made = plain.len();
                let left = &data[(self.0.total_in() - start) as usize..];
                self.0.decompress_vec(left, &mut plain, FlushDecompress::Sync).expect("it is deflated");
            }
            let mut pixels = vec![0; width * height * 4];
            let mut from = plain.into_iter();
            let colour = |from: &mut dyn Iterator<Item = u8>| [(); 3].map(|()| from.next().expect("a byte"));
            for y in (0..height).step_by(64) {
                for x in (0..width).step_by(64) {
                    let (w, h) = ((width - x).min(64), (height - y).min(64));
                    let kind = usize::from(from.next().expect("a tile"));
                    let colours: Vec<_> = (0..kind).map(|_| colour(&mut from)).collect();
                    for line in y..y + h {
                        let (mut byte, mut left) = (0_u8, 0);
                        for column in x..x + w {
                            let bits = [0, 0, 1, 2, 2, 4][kind.min(5)];
                            let value = match kind {
                                0 => colour(&mut from),
                                1 => colours[0],
                                _ => {
                                    if left == 0 {
                                        (byte, left) = (from.next().expect("a byte"), 8);
                                    }
                                    left -= bits;
                                    colours[usize::from(byte >> left) & ((1 << bits) - 1)]
                                }
                            };
                            let at = (line * width + column) * 4;
                            pixels[at..at + 3].copy_from_slice(&value);
                        }
                    }
                }
            }
            assert_eq!(from.next(), None, "more than the tiles");
            pixels
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_is_encoded_is_decoded(
            width in 1_u32..200, height in 1_u32..150, colours in prop_oneof![1_u32..20, Just(1 << 24)], seed in any::<u32>()
        ) {
            let (mut zrle, mut client) = (Zrle::default(), client::Unzrle::default());
            let mut random = seed;
            // Several in a row: they are one stream.
            for _ in 0..3 {
                let pixels: Vec<u8> = (0..width * height).flat_map(|_| {
                    random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    ((random >> 7) % colours).to_le_bytes()
                }).collect();
                let mut out = Vec::new();
                zrle.encode(&pixels, width, &Format::NATIVE, &mut out);
                let length = u32::from_be_bytes(out[..4].try_into().unwrap()) as usize;
                prop_assert_eq!(length, out.len() - 4);
                let got = client.decode(&out[4..], width as usize, height as usize);
                prop_assert!(got == pixels);
            }
        }
    }
}
