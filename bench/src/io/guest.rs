//! fio in a guest, and on the host: the very same jobs on the very same file.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use vireo_tests::{Guest, Process};

use crate::AnyResult;
use crate::io::Options;
use crate::io::table::Table;

/// Far beyond what all jobs take: a guest that hangs is killed.
const LIMIT: Duration = Duration::from_secs(900);
/// The line of a job in the guest's test `fio-bench`.
const LINE: &str = "vireo: fio-bench kind=";
/// The jobs, as the guest's test has them.
const KINDS: [&str; 4] = ["randread", "randwrite", "read", "write"];
const BLOCKS: [&str; 2] = ["4k", "1m"];
const DEPTHS: [u32; 3] = [1, 4, 32];
/// MiB of the disk that are used, at most.
const SIZE_MAX: u32 = 256;

/// Where fio runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Beside the machines.
    Host,
    /// Ours, the disk on SCSI behind VMBus.
    Scsi,
    /// Ours, the disk on virtio.
    Virtio,
    /// QEMU's software emulation, the disk on virtio.
    Tcg,
}

impl Side {
    /// All, in the order in which they are measured.
    pub const ALL: [Self; 4] = [Self::Host, Self::Scsi, Self::Virtio, Self::Tcg];

    /// Its name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Scsi => "scsi",
            Self::Virtio => "virtio",
            Self::Tcg => "TCG",
        }
    }
}

/// Runs all jobs on one side.
pub fn measure(side: Side, options: &Options, disk: &Path, table: &mut Table) -> AnyResult<()> {
    if side == Side::Host {
        return on_the_host(options, disk, table);
    }
    let text = in_a_guest(side, options, disk)?;
    let mut jobs = 0;
    for line in text.lines().filter(|l| l.starts_with(LINE)) {
        let job = Job::parse(line).ok_or_else(|| format!("a line of fio-bench that is none: {line}"))?;
        table.guest(&job.name, side, job.rate);
        jobs += 1;
    }
    let all = KINDS.len() * BLOCKS.len() * DEPTHS.len();
    if jobs == all {
        Ok(())
    } else {
        Err(format!("{jobs} of {all} jobs in the guest of {}", side.name()).into())
    }
}

/// What the guest said.
fn in_a_guest(side: Side, options: &Options, disk: &Path) -> AnyResult<String> {
    // The root file system is on virtio everywhere, and only read.
    let (root, place) =
        (options.guest.join("root.img"), if side == Side::Scsi { "/dev/sda" } else { "/dev/vdb" });
    let run = Guest::at(&options.guest).run("fio-bench").parameter("quiet root=LABEL=vireo-root ro");
    let run = run.parameter(&format!("vireo.run=fio-bench vireo.fill=no vireo.disk={place}"));
    let run = run.parameter(&format!(
        "vireo.seconds={} vireo.size={}",
        options.seconds,
        options.size.min(SIZE_MAX)
    ));
    let command = if side == Side::Tcg {
        let mut command = run.qemu();
        let drive = |path: &Path, rest: &str| format!("file={},format=raw,if=virtio,{rest}", path.display());
        command.args(["-drive", &drive(&root, "readonly=on")]);
        command.args(["-drive", &drive(disk, "cache=none,aio=io_uring")]);
        command
    } else {
        let mut command = run.vireo(&options.vireo);
        command.args(["--engine", &options.engine, "--no-reboot"]);
        let bus = if side == Side::Scsi { "scsi" } else { "virtio" };
        command.args(["--disk", &format!("{},format=raw,bus=virtio,readonly", root.display())]);
        command.args(["--disk", &format!("{},format=raw,bus={bus}", disk.display())]);
        command
    };
    let mut process = Process::start(command, LIMIT)?;
    process.wait_for("vireo: fio-bench ended 0")?;
    Ok(process.output())
}

fn on_the_host(options: &Options, disk: &Path, table: &mut Table) -> AnyResult<()> {
    for kind in KINDS {
        for block in BLOCKS {
            for depth in DEPTHS {
                let out = Command::new("fio")
                    .args([
                        "--name=bench",
                        "--direct=1",
                        "--norandommap",
                        "--ioengine=libaio",
                        "--time_based",
                    ])
                    .args(["--output-format=terse", "--terse-version=3", "--allow_file_create=0"])
                    .arg(format!("--filename={}", disk.display()))
                    .arg(format!("--size={}M", options.size.min(SIZE_MAX)))
                    .args([format!("--rw={kind}"), format!("--bs={block}"), format!("--iodepth={depth}")])
                    .arg(format!("--runtime={}", options.seconds))
                    .output()?;
                let text = String::from_utf8_lossy(&out.stdout);
                let rate = terse_rate(&text, kind.contains("write")).filter(|_| out.status.success());
                let rate = rate.ok_or_else(|| format!("fio: {}", String::from_utf8_lossy(&out.stderr)))?;
                table.guest(&name(kind, block, &depth.to_string()), Side::Host, rate);
            }
        }
    }
    Ok(())
}

/// Requests per second, of fio's terse format, version 3: the eighth field for reads, the 49th for writes.
fn terse_rate(text: &str, write: bool) -> Option<f64> {
    let field = if write { 48 } else { 7 };
    text.lines().find(|l| l.starts_with("3;"))?.split(';').nth(field)?.parse().ok()
}

fn name(kind: &str, block: &str, depth: &str) -> String {
    format!("{block} {kind}, depth {depth}")
}

/// A job that a guest has told of.
#[derive(Debug, PartialEq)]
struct Job {
    name: String,
    rate: f64,
}

impl Job {
    /// From its line; `None` if it is none, or had errors.
    fn parse(line: &str) -> Option<Self> {
        let value = |name: &str| line.split(' ').find_map(|w| w.strip_prefix(name)?.strip_prefix('='));
        let rate = value("iops")?.parse().ok().filter(|_| value("error") == Some("0"))?;
        Some(Self { name: name(value("kind")?, value("block")?, value("depth")?), rate })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_read_from_its_line() {
        let line =
            "vireo: fio-bench kind=randread block=4k depth=32 iops=571 kib_per_s=2285 guest_user=1% error=0";
        assert_eq!(Job::parse(line), Some(Job { name: "4k randread, depth 32".into(), rate: 571.0 }));
        assert_eq!(Job::parse(&line.replace("error=0", "error=5")), None);
        assert_eq!(Job::parse("vireo: fio-bench kind=randread block=4k"), None);
    }

    #[test]
    fn a_rate_is_found_in_fios_terse_line() {
        let fields: Vec<String> = (0..100).map(|n| if n == 0 { "3".into() } else { n.to_string() }).collect();
        let text = format!("note\n{}\n", fields.join(";"));
        assert_eq!((terse_rate(&text, false), terse_rate(&text, true)), (Some(7.0), Some(48.0)));
        assert_eq!(terse_rate("nothing", false), None);
    }
}
