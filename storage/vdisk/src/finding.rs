//! What is wrong with an image that can be opened.

use std::fmt;

/// One thing that is wrong with an image, or left over in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    what: String,
    harmful: bool,
}

impl Finding {
    /// Data is lost, or will be by the next write.
    pub fn harm(what: impl Into<String>) -> Self {
        Self { what: what.into(), harmful: true }
    }

    /// Something that does no harm.
    pub fn blemish(what: impl Into<String>) -> Self {
        Self { what: what.into(), harmful: false }
    }

    /// So many bytes at no block's place: a crash left them, or another program. `None`: there are none.
    pub fn unused(bytes: u64) -> Option<Self> {
        (bytes > 0).then(|| Self::blemish(format!("{bytes} bytes are not used")))
    }

    /// Whether data is lost, or will be by the next write.
    pub fn is_harmful(&self) -> bool {
        self.harmful
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}
