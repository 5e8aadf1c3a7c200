//! `vireo vm disk`.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Subcommand;
use vireo_worker::control::{Answer, Request};
use vireo_worker::{DiskSpec, DiskStatus, parse_bytes};

use super::{Target, tell};
use crate::output::{print, printable};
use crate::size::Size;

/// Subcommands of `vireo vm disk`.
#[derive(Subcommand)]
pub enum VmDiskCommand {
    /// Adds a disk, which the guest finds at once. Prints what it is called.
    Add {
        #[command(flatten)]
        target: Target,
        /// As for `vireo run --disk`.
        #[arg(value_name = "FILE[,OPTION…]")]
        disk: String,
    },
    /// Takes a disk away. What the guest has not written by then is lost, as when a cable is pulled.
    Remove {
        #[command(flatten)]
        target: Target,
        /// What `list` calls it.
        name: String,
    },
    /// Makes a disk larger, which the guest notices at once.
    Grow {
        #[command(flatten)]
        target: Target,
        /// What `list` calls it.
        name: String,
        /// Its new size: 20G, 512M; a bare number is in bytes. Without: as large as its file or device has become.
        #[arg(value_parser = parse_bytes)]
        size: Option<u64>,
    },
    /// Says which disks there are.
    List {
        #[command(flatten)]
        target: Target,
    },
}

/// Runs a subcommand.
pub fn run(command: &VmDiskCommand) -> ExitCode {
    let (target, request) = match command {
        VmDiskCommand::Add { target, disk } => (target, absolute(disk).map(|disk| Request::DiskAdd { disk })),
        VmDiskCommand::Remove { target, name } => (target, Ok(Request::DiskRemove { name: name.clone() })),
        VmDiskCommand::Grow { target, name, size } => {
            (target, Ok(Request::DiskGrow { name: name.clone(), size: *size }))
        }
        VmDiskCommand::List { target } => (target, Ok(Request::DiskList)),
    };
    tell(target.ask(request), |answer| match answer {
        Answer::Disks { disks } => print(target.output, &disks, |d, out| print_disks(d, out)),
        _ => ExitCode::SUCCESS,
    })
}

/// The machine may run in another folder: it is told an absolute path.
fn absolute(disk: &str) -> Result<String, String> {
    let spec: DiskSpec = disk.parse()?;
    let path = std::path::absolute(&spec.path).map_err(|e| format!("{}: {e}", spec.path.display()))?;
    let options = disk.strip_prefix(&doubled(&spec.path)).unwrap_or_default();
    Ok(doubled(&path) + options)
}

/// A path as the text of a disk has it.
fn doubled(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

fn print_disks(disks: &[DiskStatus], out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "{:<10} {:>10}  {:<4} {:>8} {:>11}  {:<32}  FILE",
        "NAME", "SIZE", "MODE", "IOPS", "BANDWIDTH", "SERIAL"
    )?;
    for d in disks {
        let mode = match (d.cd, d.read_only) {
            (true, _) => "cd",
            (false, true) => "ro",
            (false, false) => "rw",
        };
        let iops = d.iops.map_or("-".into(), |n| n.to_string());
        let bandwidth = d.bandwidth.map_or("-".into(), |n| format!("{}/s", Size(n)));
        let size = Size(d.size).to_string();
        writeln!(
            out,
            "{:<10} {size:>10}  {mode:<4} {iops:>8} {bandwidth:>11}  {:<32}  {}",
            d.name,
            d.serial,
            printable(&d.path)
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_told_where_a_file_is_whatever_it_is_called() {
        let here = std::env::current_dir().expect("there is one");
        let here = doubled(&here);
        assert_eq!(absolute("a.vhdx,readonly"), Ok(format!("{here}/a.vhdx,readonly")));
        assert_eq!(absolute("/x,,y,iops=5"), Ok("/x,,y,iops=5".into()));
        assert!(absolute("a,cache=none").is_err());
    }

    #[test]
    fn a_disk_is_one_line_whatever_its_file_is_called() {
        let disk = DiskStatus {
            name: "scsi0:0".into(),
            path: "/a\nb\x1b[2J ü".into(),
            bus: vireo_worker::DiskBus::Scsi,
            cd: false,
            serial: "12".into(),
            size: 512,
            read_only: false,
            iops: None,
            bandwidth: None,
        };
        let mut out = Vec::new();
        print_disks(&[disk], &mut out).expect("memory");
        let text = String::from_utf8(out).expect("text");
        assert!(text.lines().count() == 2 && text.ends_with("/a\\nb\\u{1b}[2J ü\n"), "{text}");
    }
}
