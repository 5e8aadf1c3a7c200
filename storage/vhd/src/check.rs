//! What is wrong with an image that can be opened.

use vireo_vdisk::{Finding, Medium, SECTOR};

use crate::bitmap::Bitmap;
use crate::create::NOWHERE;
use crate::footer::{self, Footer};
use crate::{Result, Vhd, VhdError, header};

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
            // It could not replace the footer.
            findings.push(Finding::blemish("the copy of the footer at the start is missing or differs"));
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
                let what = format!("block {block}, at {at}, overlaps with something else");
                findings.push(Finding::harm(what));
            }
            // Less than a page is for alignment.
            unused += at.saturating_sub(end) / size * size;
            end = end.max(at + size);
        }
        findings.extend(Finding::unused(unused));
        Ok(findings)
    }
}
