//! File copy: a file of the host's comes into the guest, piece by piece.

use std::io::Read;
use std::sync::{MutexGuard, TryLockError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::uuid;

use crate::error::ServiceError;
use crate::link::Service;
use crate::message::{Version, kind};
use crate::text::utf16;
use crate::{Asked, Services};

/// What it is.
pub static SERVICE: Service = Service {
    name: "file copy",
    interface: uuid!("34d14be3-dee4-41c8-9ae7-6b174977c192"),
    versions: &[Version(1, 1)],
    kind: kind::COPY,
};

/// Driver and daemon have so long for each piece; the driver of Linux gives up before.
const PATIENCE: Duration = Duration::from_secs(40);
/// Bytes of an operation and of two names of services, which nobody uses.
const HEAD: usize = 36;
/// Bytes of a name, its zero included.
const NAME: usize = 520;
/// Bytes of a piece.
const PIECE: usize = 6 * 1024;

/// Operations (enum hv_fcopy_op).
mod operation {
    pub const START: u32 = 0;
    pub const WRITE: u32 = 1;
    pub const COMPLETE: u32 = 2;
    pub const CANCEL: u32 = 3;
}

/// Where a file goes, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CopyTo {
    /// Its absolute path in the guest.
    pub path: String,
    /// In place of a file that is there.
    pub overwrite: bool,
    /// Folders that are not there are made.
    pub create_path: bool,
}

/// A file could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// By the guest's doing.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// It cannot be read.
    #[error("the file cannot be read: {0}")]
    Read(#[from] std::io::Error),
    /// It became shorter meanwhile.
    #[error("the file became shorter while it was copied: the guest has none of it")]
    Shorter,
    /// Whoever wanted it does not want it any more.
    #[error("the copy was cancelled")]
    Cancelled,
}

fn question(operation: u32) -> Vec<u8> {
    let mut body = operation.to_le_bytes().to_vec();
    body.resize(HEAD, 0);
    body
}

/// The question that begins a copy.
fn start(to: &CopyTo, size: u64) -> Result<Vec<u8>, ServiceError> {
    let wrong = || {
        let most = NAME / 2 - 1;
        ServiceError::Invalid(format!(
            "{}: it is an absolute path of a file in the guest, folder and name of at most {most} characters each",
            to.path
        ))
    };
    // Windows has paths of its own kind.
    let at = to.path.rfind(['/', '\\']).ok_or_else(wrong)?;
    // With its slash: the daemon of Linux makes folders that are followed by one.
    let (folder, name) = to.path.split_at(at + 1);
    if name.is_empty() || name == "." || name == ".." {
        return Err(wrong());
    }
    let mut body = question(operation::START);
    for text in [name, folder] {
        let end = body.len() + NAME;
        body.extend(utf16(text, NAME).ok_or_else(wrong)?);
        body.resize(end, 0);
    }
    let flags = u32::from(to.overwrite) | u32::from(to.create_path) << 1;
    body.extend(flags.to_le_bytes());
    body.extend(size.to_le_bytes());
    Ok(body)
}

/// A piece of the file.
fn piece(offset: u64, data: &[u8]) -> Vec<u8> {
    let mut body = question(operation::WRITE);
    body.extend([0; 4]);
    body.extend(offset.to_le_bytes());
    body.extend((data.len() as u32).to_le_bytes());
    body.extend(data);
    // Drivers hand on a whole piece.
    body.resize(HEAD + 16 + PIECE, 0);
    body
}

impl Services {
    /// Copies `size` bytes to a file in the guest. `progress` is told how many are there, and says whether to go on.
    ///
    /// # Errors
    /// It was not copied; the guest has been asked to remove what it has of it.
    pub fn copy_file(
        &self,
        from: &mut dyn Read,
        size: u64,
        to: &CopyTo,
        progress: &mut dyn FnMut(u64) -> bool,
    ) -> Result<(), CopyError> {
        self.copy_within(PATIENCE, from, size, to, progress)
    }

    /// The same, of a guest that has so long for each piece.
    pub(crate) fn copy_within(
        &self,
        patience: Duration,
        from: &mut dyn Read,
        size: u64,
        to: &CopyTo,
        progress: &mut dyn FnMut(u64) -> bool,
    ) -> Result<(), CopyError> {
        let _turn = self.copy_turn()?;
        let begin = start(to, size)?;
        let folder =
            if to.create_path { "" } else { " (its folder has to be there, unless it is to be made, too)" };
        let begun = self.ask_for(Asked::Copy, begin, patience, &format!("to make {}{folder}", to.path));
        if let Err(refused @ ServiceError::Refused { .. }) = begun {
            // There is nothing to cancel; daemons might take a file away that was there before.
            return Err(refused.into());
        }
        let copied = begun.map_err(CopyError::from).and_then(|_| {
            self.copy_pieces(patience, from, size, progress)?;
            Ok(self.ask_for(Asked::Copy, question(operation::COMPLETE), patience, "to complete the copy")?)
        });
        if copied.is_err() {
            // Also of a guest that has not answered: it may have begun.
            _ = self.ask(Asked::Copy, question(operation::CANCEL), patience);
        }
        copied.map(|_| ())
    }

    /// One copy at a time: the guest has one file open.
    fn copy_turn(&self) -> Result<MutexGuard<'_, ()>, ServiceError> {
        match self.copies().try_lock() {
            Ok(turn) => Ok(turn),
            Err(TryLockError::Poisoned(turn)) => Ok(turn.into_inner()),
            Err(TryLockError::WouldBlock) => Err(ServiceError::Busy(SERVICE.name)),
        }
    }

    fn copy_pieces(
        &self,
        patience: Duration,
        from: &mut dyn Read,
        size: u64,
        progress: &mut dyn FnMut(u64) -> bool,
    ) -> Result<(), CopyError> {
        let mut offset = 0;
        let mut buffer = [0; PIECE];
        while offset < size {
            let len = usize::try_from(size - offset).unwrap_or(PIECE).min(PIECE);
            from.read_exact(&mut buffer[..len]).map_err(|e| match e.kind() {
                std::io::ErrorKind::UnexpectedEof => CopyError::Shorter,
                _ => CopyError::Read(e),
            })?;
            let piece = piece(offset, &buffer[..len]);
            self.ask_for(Asked::Copy, piece, patience, "to write a piece of the file")?;
            offset += len as u64;
            if !progress(offset) {
                return Err(CopyError::Cancelled);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::from_utf16;

    fn to(path: &str) -> CopyTo {
        CopyTo { path: path.into(), overwrite: true, create_path: false }
    }

    /// Golden: drivers read it so (struct hv_start_fcopy, hv_do_fcopy).
    #[test]
    fn messages_are_as_drivers_read_them() {
        let body = start(&CopyTo { create_path: true, ..to("/srv/a/b.txt") }, 0x1_0000_0005).unwrap();
        assert_eq!(body.len(), 36 + 520 + 520 + 12);
        assert_eq!(from_utf16(&body[36..]), "b.txt");
        assert_eq!(from_utf16(&body[36 + 520..]), "/srv/a/");
        assert_eq!(body[1076..], [3, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0, 0]);
        let body = piece(0x1800, b"data");
        assert_eq!((body.len(), body[0]), (6196, 1));
        assert_eq!(body[36..56], [0, 0, 0, 0, 0, 0x18, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, b'd', b'a', b't', b'a']);
    }

    #[test]
    fn a_file_has_a_folder_and_a_name() {
        assert_eq!(from_utf16(&start(&to("/x"), 0).unwrap()[36 + 520..]), "/");
        assert_eq!(from_utf16(&start(&to("C:\\a\\x"), 0).unwrap()[36 + 520..]), "C:\\a\\");
        for wrong in ["x", "/a/", "", "/a/..", &format!("/{}", "x".repeat(260)), "/a\0b"] {
            assert!(matches!(start(&to(wrong), 0), Err(ServiceError::Invalid(_))), "{wrong:?}");
        }
    }
}
