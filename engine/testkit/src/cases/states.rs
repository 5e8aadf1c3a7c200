use super::Case;
pub const CASES: &[Case] = &[];
/// x
pub fn transfers() {}
