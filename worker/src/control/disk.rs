//! What is asked of disks.

use super::{Answer, Request};
use crate::disks::{DiskSpec, Disks};

/// Does what is asked. The error is for the user.
pub fn answer(request: &Request, disks: &Disks) -> Result<Answer, String> {
    let one = |status| Answer::Disks { disks: vec![status] };
    match request {
        Request::DiskAdd { disk } => disks.add(&disk.parse::<DiskSpec>()?).map(one),
        Request::DiskRemove { name } => disks.remove(name).map(|()| Answer::Done),
        Request::DiskGrow { name, size } => disks.grow(name, *size).map(one),
        _ => Ok(Answer::Disks { disks: disks.list() }),
    }
    .map_err(|e| e.to_string())
}
