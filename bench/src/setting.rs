//! Where a measurement is made, and with what.

use std::fmt;
use std::path::Path;
use std::process::Command;

use serde::Serialize;

/// The host and the versions of all that is compared.
#[derive(Serialize)]
pub struct Setting {
    /// Version of ours.
    pub vireo: String,
    /// Version of the peer.
    pub qemu: String,
    /// Package and version of the guest's kernel.
    pub kernel: String,
    /// What the guest's machine has on both sides.
    pub machine: String,
    /// The host's processor, and how many.
    pub host: String,
    /// Load average of the host over the minute before the measurement: a busy host makes noise.
    pub load_before: f64,
}

impl Setting {
    /// That of this host, for guests with such a machine.
    pub fn of_this_host(vireo: &Path, guest: &Path, machine: &str) -> Result<Self, String> {
        let read =
            |path: &Path| std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()));
        let cpuinfo = read(Path::new("/proc/cpuinfo"))?;
        let model = cpuinfo.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": "));
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let load = read(Path::new("/proc/loadavg"))?;
        Ok(Self {
            vireo: version(vireo)?,
            qemu: version(Path::new("qemu-system-x86_64"))?,
            kernel: read(&guest.join("version"))?.trim().into(),
            machine: machine.into(),
            host: format!("{} processor(s), {}", processors, model.map_or("unknown", |(_, m)| m)),
            load_before: load.split(' ').next().and_then(|w| w.parse().ok()).unwrap_or(f64::NAN),
        })
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "ours      {}", self.vireo)?;
        writeln!(f, "peer      {}, software emulation (tcg, one thread per processor)", self.qemu)?;
        writeln!(f, "guest     {}, {}", self.kernel, self.machine)?;
        writeln!(f, "host      {}, load {} before", self.host, self.load_before)
    }
}

/// The first line that a program says about its version.
fn version(program: &Path) -> Result<String, String> {
    let out = Command::new(program).arg("--version").output();
    let out = out.map_err(|e| format!("{} does not start: {e}", program.display()))?;
    let text = String::from_utf8_lossy(&out.stdout);
    text.lines().next().map(str::to_string).ok_or_else(|| format!("{} tells no version", program.display()))
}
