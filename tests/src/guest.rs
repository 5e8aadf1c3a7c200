//! Guests of `guests/`, and the command lines that run them.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::source_root;

/// A guest that is built.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Its kernel, as Debian ships it.
    pub kernel: PathBuf,
    /// Its initial RAM disk.
    pub initrd: PathBuf,
    /// A disk to boot from, of a `-disk` guest: not to be written.
    pub root: PathBuf,
}

impl Guest {
    /// Builds a guest by its recipe; instant when it is up to date.
    ///
    /// # Panics
    /// When the recipe fails: no test can do without its guest.
    pub fn build(name: &str) -> Self {
        let script = source_root().join("guests/build.sh");
        let out = Command::new(&script).arg(name).output().expect("guests/build.sh runs");
        assert!(out.status.success(), "guests/build.sh {name}: {}", String::from_utf8_lossy(&out.stderr));
        // Empty is unset, as for the scripts.
        let cache = std::env::var_os("VIREO_GUEST_CACHE")
            .filter(|v| !v.is_empty())
            .map_or_else(|| source_root().join("guests/cache"), PathBuf::from);
        Self::at(&cache.join(name))
    }

    /// The guest in a folder that a recipe made.
    pub fn at(folder: &Path) -> Self {
        Self {
            kernel: folder.join("vmlinuz"),
            initrd: folder.join("initrd.img"),
            root: folder.join("root.img"),
        }
    }

    /// One run of the system on its disk, with a test of `guests/disk/tests`; the machine has the disk from whoever runs it.
    pub fn run_from_disk(&self, test: &str) -> GuestRun {
        let run = self.run("none").parameter("root=LABEL=vireo-root");
        if test.is_empty() { run } else { run.parameter(&format!("vireo.run={test}")) }
    }

    /// One run of it, with 1 processor and 512 MiB.
    pub fn run(&self, mode: &str) -> GuestRun {
        GuestRun {
            guest: self.clone(),
            append: format!("console=ttyS0 panic=-1 vireo.mode={mode}"),
            cpus: 1,
            memory_mib: 512,
        }
    }
}

/// A guest and the machine it runs in.
#[derive(Clone, Debug)]
pub struct GuestRun {
    guest: Guest,
    append: String,
    cpus: u32,
    memory_mib: u32,
}

impl GuestRun {
    /// With so many processors.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// With so much memory, in MiB.
    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    /// With a further word on the kernel command line.
    pub fn parameter(mut self, word: &str) -> Self {
        self.append.push(' ');
        self.append.push_str(word);
        self
    }

    /// The command line for a `vireo` binary.
    pub fn vireo(&self, binary: &Path) -> Command {
        let mut command = Command::new(binary);
        command.arg("run").arg("--kernel").arg(&self.guest.kernel).arg("--initrd").arg(&self.guest.initrd);
        command.args(["--append", &self.append, "--memory", &format!("{}M", self.memory_mib)]);
        command.args(["--cpus", &self.cpus.to_string()]);
        command
    }

    /// The command line for QEMU's software emulation, the peer. Memory is a memfd, as ours is, so that both can be
    /// told from the process's own memory.
    pub fn qemu(&self) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-machine", "pc,memory-backend=ram", "-accel", "tcg,thread=multi", "-cpu", "max"]);
        command.args(["-object", &format!("memory-backend-memfd,id=ram,size={}M", self.memory_mib)]);
        command.args(["-m", &self.memory_mib.to_string(), "-smp", &self.cpus.to_string()]);
        command.arg("-kernel").arg(&self.guest.kernel).arg("-initrd").arg(&self.guest.initrd);
        command.args(["-append", &self.append]);
        command.args(["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"]);
        command
    }
}
