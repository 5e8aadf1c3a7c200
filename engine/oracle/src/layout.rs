//! Where a case's code, data and stack lie, and what memory holds before a case patches it.
//!
//! All windows are below 2 GiB, so that 64-bit code, 32-bit code and absolute operands reach them. They are
//! the only pages present; everything round them faults.

use std::ops::Range;
use std::sync::LazyLock;

/// Bytes per page.
pub const PAGE: u64 = 4096;

/// The base of all segments in 16-bit code, whose limit is 0xffff: all windows lie within.
pub const BASE16: u64 = 0x2000_0000;

/// Readable and executable, not writable.
pub const CODE: u64 = 0x2000_c000;
/// Readable only; [`DATA`] follows it.
pub const READ_ONLY: u64 = 0x2000_1000;
/// Two writable pages; after them nothing is present.
pub const DATA: u64 = 0x2000_2000;
/// The first absent byte after the data pages.
pub const GUARD: u64 = DATA + 2 * PAGE;
/// One writable page between absent ones.
pub const STACK: u64 = 0x2000_8000;

/// Where the instruction under test starts, unless the case says otherwise.
pub const ENTRY: u64 = CODE + 0x100;
/// Where generated branches go.
pub const LANDING: u64 = CODE + 0x140;
/// What fills the code page elsewhere: HLT, which faults in user mode.
pub const FILLER: u8 = 0xf4;

/// A run of present pages with the same access rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First address.
    pub start: u64,
    /// Length in pages.
    pub pages: u64,
    /// Data may be written.
    pub writable: bool,
    /// Instructions may be fetched; all other windows are no-execute.
    pub executable: bool,
}

impl Window {
    /// The addresses of the window.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.start..self.start + self.pages * PAGE
    }
}

/// The windows of every case, in the order in which [`background`] holds their pages.
pub const WINDOWS: [Window; 4] = [
    Window { start: CODE, pages: 1, writable: false, executable: true },
    Window { start: READ_ONLY, pages: 1, writable: false, executable: false },
    Window { start: DATA, pages: 2, writable: true, executable: false },
    Window { start: STACK, pages: 1, writable: true, executable: false },
];

/// Pages of all windows.
pub const PAGES: usize = 5;
/// Bytes of all windows.
pub const BYTES: usize = PAGES * PAGE as usize;

/// The offset of an address in the concatenation of all windows, if the address is present.
#[must_use]
pub fn offset(address: u64) -> Option<usize> {
    let mut before = 0;
    for window in WINDOWS {
        if window.range().contains(&address) {
            return usize::try_from(before + (address - window.start)).ok();
        }
        before += window.pages * PAGE;
    }
    None
}

/// The address at an offset of the concatenation of all windows.
#[must_use]
pub fn address(offset: usize) -> Option<u64> {
    let mut left = offset as u64;
    for window in WINDOWS {
        if left < window.pages * PAGE {
            return Some(window.start + left);
        }
        left -= window.pages * PAGE;
    }
    None
}

/// The content of all windows before a case patches them: [`FILLER`] in the code page, elsewhere a fixed
/// noise, so that a stray access shows.
#[must_use]
pub fn background() -> &'static [u8; BYTES] {
    static NOISE: LazyLock<Box<[u8; BYTES]>> = LazyLock::new(|| {
        let mut rng = crate::Rng::new(0x5eed);
        let mut bytes = Box::new([FILLER; BYTES]);
        for byte in &mut bytes[PAGE as usize..] {
            *byte = rng.next() as u8;
        }
        bytes
    });
    &NOISE
}
