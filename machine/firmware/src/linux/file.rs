//! Kernel and initrd files, read whole each time that the machine boots: they are larger than all else that a machine
//! needs beside its memory.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

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

/// An open file of the machine. One that takes its place under its name later is not seen; one that is changed in place is
/// not booted again, since nobody knows whether it was meant for this machine, or is whole.
#[derive(Debug)]
pub struct BootFile {
    what: &'static str,
    path: PathBuf,
    file: std::fs::File,
    size: usize,
    changed: SystemTime,
}

impl BootFile {
    /// Opens a regular file of at most `max` bytes (the machine's memory: a longer one cannot be loaded anyway). `what`
    /// is the file's part in the machine, "kernel" or "initrd", for errors.
    pub fn open(what: &'static str, path: &Path, max: u64) -> Result<Self, LoadError> {
        let failed = |e: std::io::Error| unreadable(what, path, e.to_string());
        // Asked before it is opened: to open a FIFO waits for a writer.
        let kind = std::fs::metadata(path).map_err(failed)?;
        if kind.is_dir() {
            return Err(unreadable(what, path, "it is a directory".into()));
        }
        if !kind.is_file() {
            return Err(unreadable(what, path, "it is not a regular file".into()));
        }
        let file = std::fs::File::open(path).map_err(failed)?;
        let (size, changed) = file.metadata().and_then(|m| Ok((m.len(), m.modified()?))).map_err(failed)?;
        if size > max {
            let mib = max >> 20;
            return Err(unreadable(what, path, format!("it is larger than the machine's memory, {mib} MiB")));
        }
        Ok(Self { what, path: path.into(), file, size: size as usize, changed })
    }

    /// Its content, if that is still what it was.
    pub fn read(&self) -> Result<Vec<u8>, LoadError> {
        self.check_unchanged()?;
        let mut bytes = Vec::new();
        let refused =
            |_| self.unreadable(format!("the host has no {} MiB of memory to read it", self.size >> 20));
        bytes.try_reserve_exact(self.size).map_err(refused)?;
        bytes.resize(self.size, 0);
        let read = self.file.read_exact_at(&mut bytes, 0);
        self.check_unchanged()?;
        read.map_err(|e| self.unreadable(e.to_string()))?;
        Ok(bytes)
    }

    /// Its path, as the user gave it.
    pub fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn check_unchanged(&self) -> Result<(), LoadError> {
        let now = self.file.metadata().and_then(|m| Ok((m.len(), m.modified()?)));
        let now = now.map_err(|e| self.unreadable(e.to_string()))?;
        if now != (self.size as u64, self.changed) {
            let what = "it was changed since the machine was started; start the machine anew with it";
            return Err(self.unreadable(what.into()));
        }
        Ok(())
    }

    fn unreadable(&self, reason: String) -> LoadError {
        unreadable(self.what, &self.path, reason)
    }
}

fn unreadable(what: &'static str, path: &Path, reason: String) -> LoadError {
    LoadError::Unreadable { what, name: path.display().to_string(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_named_with_its_reason() {
        let refused =
            |path: &str, max| BootFile::open("initrd", Path::new(path), max).unwrap_err().to_string();
        assert_eq!(refused("/", 1), "initrd /: it is a directory");
        assert_eq!(refused("/dev/zero", 1), "initrd /dev/zero: it is not a regular file");
        assert!(refused("/no/such/file", 1).starts_with("initrd /no/such/file: No such file or directory"));
        let me = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        assert!(refused(me, 4).ends_with("it is larger than the machine's memory, 0 MiB"));
    }

    #[test]
    fn a_file_is_the_one_that_was_opened() {
        let dir = std::env::temp_dir().join(format!("vireo-boot-file-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let (path, other) = (dir.join("kernel"), dir.join("other"));
        std::fs::write(&path, b"first").unwrap();
        let file = BootFile::open("kernel", &path, 5).unwrap();
        assert_eq!(file.read().unwrap(), b"first");
        std::fs::write(&other, b"second").unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert_eq!(file.read().unwrap(), b"first", "its name means another file now");
        let changed = BootFile::open("kernel", &path, 6).unwrap();
        std::fs::write(&path, b"sec").unwrap();
        assert!(changed.read().unwrap_err().to_string().contains("it was changed since"));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
