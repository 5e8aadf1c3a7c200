//! The `vireo` binary under test.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::source_root;

/// The `vireo` binary: `VIREO_BIN` if that is set, otherwise what the source tree builds to.
///
/// # Panics
/// When it cannot be built: without it there is nothing to test.
pub fn vireo() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match std::env::var_os("VIREO_BIN") {
        Some(path) => {
            std::fs::canonicalize(&path).unwrap_or_else(|e| panic!("VIREO_BIN={}: {e}", path.display()))
        }
        None => build(),
    })
}

/// Cargo knows best whether it is up to date, and where it is.
fn build() -> PathBuf {
    let out = Command::new(option_env!("CARGO").unwrap_or("cargo"))
        .args(["build", "--release", "--package", "vireo-cli", "--message-format", "json"])
        .current_dir(source_root())
        .stderr(Stdio::inherit())
        .output()
        .expect("cargo runs");
    assert!(out.status.success(), "the vireo binary cannot be built");
    let executable = |line: &str| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let path = message["executable"].as_str()?;
        (message["target"]["name"] == "vireo").then(|| PathBuf::from(path))
    };
    let messages = String::from_utf8_lossy(&out.stdout);
    messages.lines().find_map(executable).expect("cargo names the binary")
}
