//! Counting.

/// Frames and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Frames.
    pub frames: u64,
    /// Bytes of them.
    pub bytes: u64,
}

impl Traffic {
    /// A frame more, of so many bytes.
    pub fn add(&mut self, length: usize) {
        self.frames += 1;
        self.bytes += length as u64;
    }

    /// A frame less: one that was counted too early.
    pub fn take_back(&mut self, length: usize) {
        self.frames = self.frames.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(length as u64);
    }
}
