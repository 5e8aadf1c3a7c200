//! What is wrong with an image that can be opened.

use vireo_vdisk::{Finding, Medium};

use crate::bitmap::Bitmap;
use crate::footer::{self, Footer};
use crate::{Result, Vhd, VhdError};

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
        let size = Bitmap::size(sparse.header.block) + u64::from(sparse.header.block);
        let mut used = self.used();
        used.sort_unstable_by_key(|u| (u.at, u.len));
        let (mut end, mut unused) = (0, 0);
        for part in used {
            if let Some(block) = part.id.filter(|_| part.at < end) {
                let what = format!("block {block}, at {}, overlaps with something else", part.at);
                findings.push(Finding::harm(what));
            }
            // Less than a block is for alignment.
            unused += part.at.saturating_sub(end) / size * size;
            end = end.max(part.at + part.len);
        }
        findings.extend(Finding::unused(unused));
        Ok(findings)
    }
}
