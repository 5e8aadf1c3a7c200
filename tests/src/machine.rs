//! A guest that boots from a disk, and the disks of its machine while it runs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::{Failure, Process, vireo};

/// What a command of `vireo`, other than a machine, may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// Runs `vireo` with arguments to its end; gives exit code, output and errors.
///
/// # Panics
/// It does not start, or does not end.
pub fn vireo_says<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> (i32, String, String) {
    let mut command = Command::new(vireo());
    command.args(arguments);
    let mut process = Process::start(command, COMMAND_LIMIT).expect("it starts");
    let code = process.wait().expect("it ends");
    (code, process.output(), process.errors())
}

/// The same, of what has to succeed without complaints; gives what it prints.
///
/// # Panics
/// As well when it fails, or complains.
pub fn vireo_does<S: AsRef<std::ffi::OsStr> + std::fmt::Debug>(arguments: &[S]) -> String {
    let (code, output, errors) = vireo_says(arguments);
    assert_eq!((code, errors.as_str()), (0, ""), "{arguments:?}");
    output
}

/// A machine with a control socket.
pub struct Machine {
    /// Its process.
    pub process: Process,
    socket: PathBuf,
}

impl Machine {
    /// Starts a machine by its command line, to which the control socket is added; it may run for at most `limit`.
    pub fn start(mut command: Command, socket: &Path, limit: Duration) -> Result<Self, Failure> {
        command.arg("--control").arg(socket);
        Ok(Self { process: Process::start(command, limit)?, socket: socket.into() })
    }

    /// Runs `vireo vm`; gives exit code, output and errors.
    pub fn vm(&self, arguments: &[&str]) -> (i32, String, String) {
        let socket = self.socket.to_string_lossy();
        vireo_says(&[&["vm"], arguments, &["--control", &socket]].concat())
    }

    /// The same, of what has to succeed; gives what it prints.
    ///
    /// # Panics
    /// It does not.
    pub fn does(&self, arguments: &[&str]) -> String {
        let (code, output, errors) = self.vm(arguments);
        assert_eq!((code, errors.as_str()), (0, ""), "{}", self.process.failure(&arguments.join(" ")));
        output
    }

    /// The same, as JSON.
    ///
    /// # Panics
    /// As well when it prints none.
    pub fn tells(&self, arguments: &[&str]) -> serde_json::Value {
        let output = self.does(&[arguments, &["-o", "json"]].concat());
        serde_json::from_str(&output).unwrap_or_else(|e| panic!("{arguments:?}: {e}: {output}"))
    }

    /// Runs `vireo vm disk`; gives exit code, output and errors.
    pub fn disk(&self, command: &str, arguments: &[&str]) -> (i32, String, String) {
        let socket = self.socket.to_string_lossy();
        vireo_says(&[&["vm", "disk", command, "--control", &socket], arguments].concat())
    }

    /// The same, of what has to succeed.
    ///
    /// # Panics
    /// It does not.
    pub fn change(&self, command: &str, arguments: &[&str]) -> String {
        let (code, output, errors) = self.disk(command, arguments);
        assert_eq!((code, errors.as_str()), (0, ""), "{}", self.process.failure(command));
        output
    }

    /// Types a command into the guest's shell and waits for its end; gives what it printed.
    pub fn shell(&mut self, command: &str) -> Result<String, Failure> {
        self.process.shell(command)
    }
}
