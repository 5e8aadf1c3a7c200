//! What is wrong with an image that can be opened.

use std::fmt;

use vireo_vdisk::{Medium, SECTOR};

use crate::bitmap::Bitmap;
use crate::create::NOWHERE;
use crate::footer::{self, Footer};
use crate::{Result, Vhd, VhdError, header};

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The copy of the footer at the start is none, or another one: it could not replace the footer.
    NoCopy,
    /// A block lies where the header, the table or another block is.
    Overlap {
        /// The block.
        block: u32,
        /// Where its bitmap begins.
        at: u64,
    },
    /// So many bytes at no block's place: a crash left them, or another program. They do no harm.
    Unused(u64),
}

impl Finding {
    /// Whether data is lost, or will be by the next write.
    pub fn is_harmful(&self) -> bool {
        matches!(self, Self::Overlap { .. })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCopy => write!(f, "the copy of the footer at the start is missing or differs"),
            Self::Overlap { block, at } => write!(f, "block {block}, at {at}, overlaps with something else"),
            Self::Unused(bytes) => write!(f, "{bytes} bytes are not used"),
        }
    }
}

impl<M: Medium> Vhd<M> {
    /// Looks for what is wrong.
    ///
    /// # Errors
    /// Those of the medium.
    pub fn examine(&self) -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        let Some(sparse) = self.sparse() else { return Ok(findings) };
        let mut copy = [0; footer::SIZE];
        self.medium().read(0, &mut copy).map_err(VhdError::io("read the copy of the footer"))?;
        if Footer::parse(&copy)?.as_ref() != Some(self.footer()) {
            findings.push(Finding::NoCopy);
        }
        let block = u64::from(sparse.header.block);
        let size = Bitmap::size(sparse.header.block) + block;
        let entries = (0..).zip(&sparse.table).filter(|(_, e)| **e != NOWHERE);
        let mut places: Vec<(u64, u32)> = entries.map(|(n, e)| (u64::from(*e) * SECTOR, n)).collect();
        places.sort_unstable();
        // In front of the blocks.
        let table = sparse.header.table_at + 4 * sparse.table.len() as u64;
        let header = self.footer().header_at.unwrap_or(0) + header::SIZE as u64;
        let mut end = table.max(header);
        let mut unused = 0;
        for (at, block) in places {
            if at < end {
                findings.push(Finding::Overlap { block, at });
            }
            // Less than a page is for alignment.
            unused += at.saturating_sub(end) / size * size;
            end = end.max(at + size);
        }
        if unused > 0 {
            findings.push(Finding::Unused(unused));
        }
        Ok(findings)
    }
}
