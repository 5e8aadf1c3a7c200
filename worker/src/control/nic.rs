//! What is asked of network adapters.

use super::{Answer, Request};
use crate::nics::{NicSpec, Nics};

/// Does what is asked. The error is for the user.
pub fn answer(request: &Request, nics: &Nics) -> Result<Answer, String> {
    match request {
        Request::NicAdd { nic } => {
            nics.add(&nic.parse::<NicSpec>()?).map(|status| Answer::Nics { nics: vec![status] })
        }
        Request::NicRemove { name } => nics.remove(name).map(|()| Answer::Done),
        _ => Ok(Answer::Nics { nics: nics.list() }),
    }
    .map_err(|e| e.to_string())
}
