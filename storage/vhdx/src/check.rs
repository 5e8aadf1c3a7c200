//! What is wrong with an image that can be opened.

use vireo_vdisk::{Finding, Medium};

use crate::table::Block;
use crate::{MIB, Result, Vhdx, VhdxError};

impl<M: Medium> Vhdx<M> {
    /// Looks for what is wrong.
    ///
    /// # Errors
    /// Those of the medium.
    pub fn examine(&mut self) -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        if self.replayed().keeps_changes() {
            findings.push(Finding::blemish(
                "it was not closed: what its log says is done when it is written next",
            ));
        }
        let mut places = Vec::new();
        let mut note = |found: Result<Option<(u64, u64)>>| match found {
            Ok(place) => {
                places.extend(place);
                Ok(())
            }
            Err(VhdxError::Damaged(what)) => {
                findings.push(Finding::harm(what));
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
                None if at >= self.regions_end() => {
                    findings.push(Finding::harm(format!("two blocks overlap at {at}")));
                }
                None => {}
            }
            end = end.max(at + len);
        }
        let len = self.replayed().len().map_err(VhdxError::io("find the end of the VHDX"))?;
        unused += len.saturating_sub(end);
        findings.extend(Finding::unused(unused));
        Ok(findings)
    }
}
