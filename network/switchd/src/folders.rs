//! Where switches keep their files: settings where they survive, sockets where they need not; and who may change them.
//!
//! A switch is served, made, started and deleted by who has its lock, and by nobody else at that time. Settings that are read, and files
//! that are removed, without it may be another's a moment later.

use std::fs::{DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use vireo_port::wire::is_name;

/// Who looks whether a switch is running has its lock for less than this.
const GLANCE: Duration = Duration::from_millis(1);

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
            _ => {
                Err("neither HOME nor XDG_RUNTIME_DIR says where a switch's files go: set VIREO_FOLDER"
                    .into())
            }
        }
    }

    /// Whether there is such a switch. What is no name is none: it may be the path of anything.
    pub fn has(&self, name: &str) -> bool {
        is_name(name) && self.config(name).exists()
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
            names.extend(name.filter(|n| is_name(n)).map(ToString::to_string));
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

    fn lock_file(&self) -> PathBuf {
        self.folder.join("lock")
    }

    /// Whether a process serves it, or somebody else has its [`Lock`].
    pub fn is_running(&self) -> bool {
        // Held for a moment where nobody has it; whoever wants it then knows us from who keeps it ([`Self::lock`]).
        File::open(self.lock_file()).is_ok_and(|lock| lock.try_lock_shared().is_err())
    }

    /// Takes the lock of the switch; makes its folder. `None`: another process has it.
    ///
    /// # Errors
    /// The file system refuses, or the folder is another user's.
    pub fn lock(&self) -> io::Result<Option<Lock>> {
        loop {
            make_private(&self.folder)?;
            match File::options().create(true).truncate(false).write(true).open(self.lock_file()) {
                // Whoever had it has removed the folder just now.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                file => match self.keep(file?)? {
                    Taken::Ours(lock) => return Ok(Some(lock)),
                    Taken::Others => return Ok(None),
                    Taken::Removed => {}
                },
            }
        }
    }

    /// The lock of the switch by a file that was inherited from who took it. `None`: it is not that lock.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn inherit(&self, file: File) -> io::Result<Option<Lock>> {
        Ok(match self.keep(file)? {
            Taken::Ours(lock) => Some(lock),
            Taken::Others | Taken::Removed => None,
        })
    }

    fn keep(&self, file: File) -> io::Result<Taken> {
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(e)) => return Err(e),
                Err(TryLockError::WouldBlock) => {}
            }
            // Who serves it shares it with nobody; who looks whether somebody does shares it, for a moment.
            match file.try_lock_shared() {
                Ok(()) => file.unlock()?,
                Err(TryLockError::Error(e)) => return Err(e),
                Err(TryLockError::WouldBlock) => return Ok(Taken::Others),
            }
            std::thread::sleep(GLANCE);
        }
        // A lock on a file that is nowhere any more keeps nobody out.
        let ours = file.metadata()?;
        let there = std::fs::metadata(self.lock_file()).ok();
        match there.is_some_and(|m| (m.dev(), m.ino()) == (ours.dev(), ours.ino())) {
            true => Ok(Taken::Ours(Lock { file, folder: self.folder.clone() })),
            false => Ok(Taken::Removed),
        }
    }
}

enum Taken {
    Ours(Lock),
    Others,
    Removed,
}

/// The right to serve a switch and to change its files. Given up when it is dropped, and by each process that has inherited it.
#[derive(Debug)]
pub struct Lock {
    file: File,
    folder: PathBuf,
}

impl Lock {
    /// For a process that is to have it as well ([`Sockets::inherit`]).
    ///
    /// # Errors
    /// There is no file descriptor left.
    pub fn share(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Removes all files of a switch that does not run, and the lock's: it keeps nobody out any more.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn remove(&self) -> io::Result<()> {
        match std::fs::remove_dir_all(&self.folder) {
            // Who comes after us makes the next lock there already, or has removed that as well.
            Err(e) if matches!(e.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound) => {
                Ok(())
            }
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

    use super::*;

    /// The files of a switch in a folder that is gone at the end.
    struct Home(PathBuf);

    impl Home {
        fn new(name: &str) -> (Self, Sockets) {
            let path = std::env::temp_dir().join(format!("vireo-folders-{name}-{}", std::process::id()));
            (Self(path.clone()), Folders::under(&path).sockets("lab"))
        }
    }

    impl Drop for Home {
        fn drop(&mut self) {
            _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn one_has_the_lock_and_shares_it_with_whom_it_starts() {
        let (_home, sockets) = Home::new("lock");
        assert!(!sockets.is_running());
        let lock = sockets.lock().unwrap().expect("nobody has it");
        assert!(sockets.is_running() && sockets.lock().unwrap().is_none());
        let inherited = sockets.inherit(lock.share().unwrap()).unwrap().expect("it is the lock");
        drop(lock);
        assert!(sockets.is_running() && sockets.lock().unwrap().is_none());
        assert!(sockets.inherit(File::open("/dev/null").unwrap()).unwrap().is_none());
        drop(inherited);
        assert!(!sockets.is_running() && sockets.lock().unwrap().is_some());
    }

    #[test]
    fn a_lock_whose_file_was_removed_is_none() {
        let (_home, sockets) = Home::new("removed");
        let lock = sockets.lock().unwrap().expect("nobody has it");
        let old = lock.share().unwrap();
        lock.remove().unwrap();
        drop(lock);
        assert!(sockets.inherit(old).unwrap().is_none());
        let new = sockets.lock().unwrap().expect("nobody has the new one");
        assert!(sockets.lock().unwrap().is_none());
        drop(new);
    }

    #[test]
    fn who_looks_keeps_nobody_from_taking_the_lock() {
        let (_home, sockets) = Home::new("glance");
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !over.load(SeqCst) {
                        sockets.is_running();
                    }
                });
            }
            let taken = (0..500).filter(|_| sockets.lock().unwrap().is_some()).count();
            over.store(true, SeqCst);
            assert_eq!(taken, 500);
        });
    }

    #[test]
    fn a_path_is_no_switch() {
        let (home, _) = Home::new("path");
        let folders = Folders::under(&home.0);
        folders.make().unwrap();
        std::fs::write(home.0.join("pkg.json"), "{}").unwrap();
        std::fs::write(home.0.join("switch/lab.json"), "{}").unwrap();
        let absolute = home.0.join("pkg");
        for (name, is) in [("lab", true), ("../pkg", false), (absolute.to_str().unwrap(), false), ("", false)]
        {
            assert_eq!(folders.has(name), is, "{name}");
        }
    }
}
