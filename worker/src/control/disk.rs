//! Requests about disks.

use super::{Answer, Request};
use crate::disks::{DiskSpec, Disks};

/// The answer, if it is such a request.
pub fn answer(request: &Request, disks: &Disks) -> Option<Answer> {
    let one = |status| Answer::Disks { disks: vec![status] };
    let done = match request {
        Request::DiskAdd { disk } => match disk.parse::<DiskSpec>() {
            Ok(spec) => disks.add(&spec).map(one),
            Err(why) => return Some(Answer::refused(why)),
        },
        Request::DiskRemove { name } => disks.remove(name).map(|()| Answer::Done),
        Request::DiskGrow { name, size } => disks.grow(name, *size).map(one),
        Request::DiskList => Ok(Answer::Disks { disks: disks.list() }),
        _ => return None,
    };
    Some(done.unwrap_or_else(Answer::refused))
}
