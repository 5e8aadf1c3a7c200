//! Kernel and initrd files, read whole.

use std::io::Read;
use std::path::Path;

use super::LoadError;

/// A file in memory, with the name that error messages call it by.
#[derive(Clone, Copy)]
pub struct File<'a> {
    /// Its path, as the user gave it.
    pub name: &'a str,
    /// Its content.
    pub bytes: &'a [u8],
}

impl std::fmt::Debug for File<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({} bytes)", self.name, self.bytes.len())
    }
}

/// Reads a regular file of at most `max` bytes (the machine's memory: a longer one cannot be loaded anyway). `what` is
/// the file's part in the machine, "kernel" or "initrd", for the error.
pub fn read_file(what: &'static str, path: &Path, max: u64) -> Result<Vec<u8>, LoadError> {
    let unreadable =
        |reason: String| LoadError::Unreadable { what, name: path.display().to_string(), reason };
    // Asked before it is opened: to open a FIFO waits for a writer.
    let kind = std::fs::metadata(path).map_err(|e| unreadable(e.to_string()))?;
    if kind.is_dir() {
        return Err(unreadable("it is a directory".into()));
    }
    if !kind.is_file() {
        return Err(unreadable("it is not a regular file".into()));
    }
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|e| unreadable(e.to_string()))?;
    file.take(max.saturating_add(1)).read_to_end(&mut bytes).map_err(|e| unreadable(e.to_string()))?;
    if bytes.len() as u64 > max {
        return Err(unreadable(format!("it is larger than the machine's memory, {} MiB", max >> 20)));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_named_with_its_reason() {
        let refused = |path: &str, max| read_file("initrd", Path::new(path), max).unwrap_err().to_string();
        assert_eq!(refused("/", 1), "initrd /: it is a directory");
        assert_eq!(refused("/dev/zero", 1), "initrd /dev/zero: it is not a regular file");
        assert!(refused("/no/such/file", 1).starts_with("initrd /no/such/file: No such file or directory"));
        let me = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        assert!(refused(me, 4).ends_with("it is larger than the machine's memory, 0 MiB"));
        assert_eq!(read_file("kernel", Path::new(me), 1 << 20).unwrap(), std::fs::read(me).unwrap());
    }
}
