//! Where switches keep their files: settings where they survive, sockets where they need not.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The folders of a user's switches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folders {
    state: PathBuf,
    run: PathBuf,
}

impl Folders {
    /// All below one folder.
    pub fn under(folder: &Path) -> Self {
        let folder = folder.join("switch");
        Self { state: folder.clone(), run: folder }
    }

    /// Where they are by themselves: below the folder that `VIREO_FOLDER` names; else below `/var/lib/vireo` and `/run/vireo` for root;
    /// else where the XDG base directory specification has them.
    ///
    /// # Errors
    /// There is no such place: in one line that says what to do.
    pub fn usual() -> Result<Self, String> {
        if let Some(folder) = std::env::var_os("VIREO_FOLDER") {
            let folder = std::path::absolute(folder).map_err(|e| format!("VIREO_FOLDER: {e}"))?;
            return Ok(Self::under(&folder));
        }
        if rustix::process::geteuid().is_root() {
            return Ok(Self { state: "/var/lib/vireo/switch".into(), run: "/run/vireo/switch".into() });
        }
        let variable =
            |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let state =
            variable("XDG_STATE_HOME").or_else(|| variable("HOME").map(|home| home.join(".local/state")));
        match (state, variable("XDG_RUNTIME_DIR")) {
            (Some(state), Some(run)) => {
                Ok(Self { state: state.join("vireo/switch"), run: run.join("vireo/switch") })
            }
            _ => Err("neither HOME nor XDG_RUNTIME_DIR says where a switch's files go: use --folder".into()),
        }
    }

    /// The settings of a switch.
    pub fn config(&self, name: &str) -> PathBuf {
        self.state.join(format!("{name}.json"))
    }

    /// The sockets of a switch.
    pub fn sockets(&self, name: &str) -> Sockets {
        Sockets { folder: self.run.join(name) }
    }

    /// Names of all switches that there are settings of.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn names(&self) -> io::Result<Vec<String>> {
        let entries = match std::fs::read_dir(&self.state) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            let name = name.to_str().and_then(|n| n.strip_suffix(".json"));
            names.extend(name.filter(|n| vireo_port::wire::is_name(n)).map(ToString::to_string));
        }
        names.sort();
        Ok(names)
    }

    /// Makes the folder of settings.
    ///
    /// # Errors
    /// The file system refuses, or the folder is another user's.
    pub fn make(&self) -> io::Result<()> {
        make_private(&self.state)
    }
}

/// The files of a running switch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sockets {
    folder: PathBuf,
}

impl Sockets {
    /// Where workers connect.
    pub fn ports(&self) -> PathBuf {
        self.folder.join("ports")
    }

    /// Where users do.
    pub fn control(&self) -> PathBuf {
        self.folder.join("control")
    }

    /// What the process says, if it is in the background.
    pub fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// Locked while the process is there.
    pub(crate) fn lock(&self) -> PathBuf {
        self.folder.join("lock")
    }

    /// Whether a process serves the switch.
    pub fn is_running(&self) -> bool {
        File::open(self.lock()).is_ok_and(|lock| lock.try_lock_shared().is_err())
    }

    /// Makes the folder.
    ///
    /// # Errors
    /// The file system refuses, or the folder is another user's.
    pub fn make(&self) -> io::Result<()> {
        make_private(&self.folder)
    }

    /// Removes all of it.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn remove(&self) -> io::Result<()> {
        match std::fs::remove_dir_all(&self.folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }
}

/// Makes a folder of this user's alone. One that another user owns is not used: whoever owns it decides who answers in it.
fn make_private(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let owner = std::fs::metadata(folder)?.uid();
    match owner == rustix::process::geteuid().as_raw() {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::PermissionDenied, "the folder is another user's")),
    }
}
