//! Other programs that know a format, for a second opinion.

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A folder of a test, which goes with it.
pub struct Folder(PathBuf);

impl Folder {
    /// An empty one, with a name that no other test of the program has.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("vireo-{}-{name}", std::process::id()));
        _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }
}

impl Deref for Folder {
    type Target = Path;
    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A path as an argument.
///
/// # Panics
/// It is no text.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("a path of text")
}

/// Runs one of QEMU's tools, which `scripts/install-deps.sh test` installs; gives what it prints.
///
/// # Panics
/// It is not there, or fails.
pub fn qemu(tool: &str, arguments: &[&str]) -> String {
    let output = run(tool, "qemu-utils", arguments);
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Runs another program of a Debian package, which `scripts/install-deps.sh test` installs; gives what it prints.
///
/// # Panics
/// It is not there, or fails.
pub fn run(tool: &str, package: &str, arguments: &[&str]) -> Output {
    let output = Command::new(tool).args(arguments).output();
    let output = output.unwrap_or_else(|e| panic!("{tool} is needed for this test (package {package}): {e}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{tool} {arguments:?}: {errors}");
    output
}
