//! What only root can set up. Without root the tests that need it say so, loudly, and do nothing.

use std::path::{Path, PathBuf};
use std::process::Command;

use vireo_vdisk::trial::peer::text;

/// Runs a program; what it prints. `None`: it failed, which is told.
fn run(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output();
    let why = match output {
        Ok(o) if o.status.success() => return Some(String::from_utf8_lossy(&o.stdout).trim().to_owned()),
        Ok(o) => String::from_utf8_lossy(&o.stderr).trim().to_owned(),
        Err(e) => e.to_string(),
    };
    eprintln!("SKIPPED: {program} {arguments:?} is not possible here (it takes root): {why}");
    None
}

/// A loop device.
pub struct Loop(pub PathBuf);

impl Loop {
    /// On a new file of so many bytes, with sectors of so many.
    pub fn new(file: &Path, size: u64, sector: u32) -> Option<Self> {
        std::fs::File::create(file).and_then(|f| f.set_len(size)).expect("a file");
        let sector = sector.to_string();
        let device = run("losetup", &["--find", "--show", "--sector-size", &sector, text(file)])?;
        Some(Self(device.into()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        run("losetup", &["--detach", text(&self.0)]);
    }
}

/// A file system.
pub struct Mounted {
    /// Where it is.
    pub path: PathBuf,
    /// Goes after it.
    pub device: Option<Loop>,
}

impl Mounted {
    /// In memory, of so many bytes.
    pub fn small(folder: &Path, size: u64) -> Option<Self> {
        let path = folder.join("small");
        std::fs::create_dir(&path).expect("a folder");
        run("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs", text(&path)])?;
        Some(Self { path, device: None })
    }

    /// An ext4 that makes direct transfers in units of 4096 bytes only.
    pub fn ext4_on_large_sectors(folder: &Path) -> Option<Self> {
        let device = Loop::new(&folder.join("ext4.img"), 256 << 20, 4096)?;
        let path = folder.join("ext4");
        std::fs::create_dir(&path).expect("a folder");
        run("mkfs.ext4", &["-q", text(&device.0)])?;
        run("mount", &[text(&device.0), text(&path)])?;
        Some(Self { path, device: Some(device) })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run("umount", &[text(&self.path)]);
    }
}
