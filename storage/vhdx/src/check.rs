//! What is wrong with an image that can be opened.

use std::fmt;

use vireo_vdisk::Medium;

use crate::table::Block;
use crate::{MIB, Result, Vhdx, VhdxError};

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// An entry of the block table makes no sense.
    Entry(String),
    /// Two blocks or bitmaps lie in one another.
    Overlap {
        /// Where the second one begins.
        at: u64,
    },
    /// So many bytes at the place of no block: a crash left them, or another program. They do no harm.
    Unused(u64),
}

impl Finding {
    /// Whether data is lost, or will be by the next write.
    pub fn is_harmful(&self) -> bool {
        !matches!(self, Self::Unused(_))
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Entry(what) => f.write_str(what),
            Self::Overlap { at } => write!(f, "two blocks overlap at {at}"),
            Self::Unused(bytes) => write!(f, "{bytes} bytes are not used"),
        }
    }
}

impl<M: Medium> Vhdx<M> {
    /// Looks for what is wrong.
    ///
    /// # Errors
    /// Those of the medium.
    pub fn examine(&mut self) -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        let mut places = Vec::new();
        let mut note = |found: Result<Option<(u64, u64)>>| match found {
            Ok(place) => {
                places.extend(place);
                Ok(())
            }
            Err(VhdxError::Damaged(what)) => {
                findings.push(Finding::Entry(what));
                Ok(())
            }
            Err(e) => Err(e),
        };
        let layout = self.layout();
        for n in 0..layout.blocks() {
            note(self.block(n).map(|b| match b {
                Block::Here(at) | Block::PartlyHere(at) => Some((at, layout.block)),
                Block::NotHere | Block::Zero => None,
            }))?;
            if layout.first_bit(n) == 0 && self.parent().is_some() {
                note(self.bitmap(n).map(|at| Some((at?, MIB))))?;
            }
        }
        places.sort_unstable();
        let mut end = self.regions_end();
        let mut unused = 0;
        for (at, len) in places {
            match at.checked_sub(end) {
                Some(gap) => unused += gap,
                // In front of the last region there may be blocks.
                None if at >= self.regions_end() => findings.push(Finding::Overlap { at }),
                None => {}
            }
            end = end.max(at + len);
        }
        let len = self.medium().len().map_err(VhdxError::io("find the end of the VHDX"))?;
        unused += len.saturating_sub(end);
        if unused > 0 {
            findings.push(Finding::Unused(unused));
        }
        Ok(findings)
    }
}
