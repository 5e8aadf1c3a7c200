//! `vireo disk`.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand, ValueEnum};
use vireo_chain::{Disk, DiskError, Format, Info, Kind, NewDisk, Report};

use crate::output::{Format as Output, print};
use crate::size::Size;

/// Subcommands of `vireo disk`. A file's format is found by its content, which must not go against its name.
#[derive(Subcommand)]
pub enum DiskCommand {
    /// Makes a new disk.
    Create {
        /// The file, which must not be there yet.
        path: PathBuf,
        /// Size: 20G, 512M; a bare number is in bytes. A child has its parent's.
        #[arg(long, value_parser = parse_size, required_unless_present = "parent")]
        size: Option<u64>,
        #[command(flatten)]
        new: NewArgs,
        /// Stores only what is written from now on; the rest is this image's, which must not be written any more.
        #[arg(long, value_name = "FILE", conflicts_with = "kind")]
        parent: Option<PathBuf>,
        /// Size of a sector, in bytes: 512, or in a VHDX 4096.
        #[arg(long, value_name = "BYTES")]
        sector: Option<u32>,
    },
    /// Says what a disk is.
    Info {
        /// The file.
        path: PathBuf,
        /// Its format: raw, vhd or vhdx.
        #[arg(long)]
        format: Option<Format>,
        /// How to print it.
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Looks whether a disk and its parents are sound. Exit status 1: no.
    Check {
        /// The file.
        path: PathBuf,
        /// Its format: raw, vhd or vhdx.
        #[arg(long)]
        format: Option<Format>,
        /// How to print it.
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Copies a disk, with what its parents have of it, to a file of any format. Ctrl-C leaves nothing of it.
    Convert {
        /// The disk.
        from: PathBuf,
        /// The new file, which must not be there yet.
        to: PathBuf,
        /// Format of the disk: raw, vhd or vhdx.
        #[arg(long)]
        from_format: Option<Format>,
        #[command(flatten)]
        new: NewArgs,
    },
}

/// What a new disk is to be.
#[derive(Args)]
pub struct NewArgs {
    /// Its format: raw, vhd or vhdx; by default as it is named.
    #[arg(long)]
    format: Option<Format>,
    /// How it is stored; by default a raw disk is fixed and others are dynamic.
    #[arg(long, value_enum)]
    kind: Option<KindChoice>,
    /// Size of a block: 1M to 256M, in a VHD 4096 and up.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    block: Option<u64>,
}

/// How a disk is stored.
#[derive(Clone, Copy, ValueEnum)]
pub enum KindChoice {
    /// All of it.
    Fixed,
    /// What has been written.
    Dynamic,
}

impl NewArgs {
    fn disk(&self, path: &std::path::Path) -> Result<NewDisk, DiskError> {
        let format = self.format.or(Format::of_name(path)).unwrap_or(Format::Raw);
        let block = self.block.map(u32::try_from).transpose();
        let Ok(block) = block else {
            return Err(DiskError::Contradiction("blocks have at most 256 MiB".into()));
        };
        let kind = match (self.kind, format) {
            (Some(KindChoice::Fixed), _) | (None, Format::Raw) => Kind::Fixed,
            _ => Kind::Dynamic,
        };
        Ok(NewDisk { format, kind, size: None, block, sector: None })
    }
}

/// `20G`, `512M`, `4096`.
fn parse_size(text: &str) -> Result<u64, String> {
    let (number, shift) = match text.char_indices().next_back() {
        Some((at, unit)) if unit.is_ascii_alphabetic() => {
            let unit =
                "KMGT".find(unit.to_ascii_uppercase()).ok_or("sizes end in K, M, G or T, or in none")?;
            (&text[..at], 10 * (unit as u32 + 1))
        }
        _ => (text, 0),
    };
    let number: u64 = number.parse().map_err(|_| format!("'{text}' is no size, as 20G is"))?;
    number.checked_shl(shift).filter(|v| v >> shift == number).ok_or_else(|| format!("{text} is too much"))
}

/// Runs a subcommand.
pub fn run(command: &DiskCommand) -> ExitCode {
    let done = match command {
        DiskCommand::Create { path, size, new, parent, sector } => new.disk(path).and_then(|mut disk| {
            (disk.size, disk.sector) = (*size, *sector);
            if let Some(parent) = parent {
                disk.kind = Kind::Differencing(parent.clone());
            }
            vireo_chain::create(path, &disk).map(|()| ExitCode::SUCCESS)
        }),
        DiskCommand::Info { path, format, output } => {
            vireo_chain::info(path, *format).map(|info| print(*output, &info, print_info))
        }
        DiskCommand::Check { path, format, output } => vireo_chain::check(path, *format).map(|reports| {
            let printed = print(*output, &reports, |r, out| print_reports(r, out));
            if reports.iter().any(|r| r.harmful) { ExitCode::FAILURE } else { printed }
        }),
        DiskCommand::Convert { from, to, from_format, new } => {
            new.disk(to).and_then(|new| convert(from, *from_format, to, &new)).map(|()| ExitCode::SUCCESS)
        }
    };
    done.unwrap_or_else(|e| {
        crate::complain(&e);
        ExitCode::FAILURE
    })
}

fn convert(
    from: &std::path::Path,
    format: Option<Format>,
    to: &std::path::Path,
    new: &NewDisk,
) -> Result<(), DiskError> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // Without it the signal ends the process, and leaves a part.
        _ = signal_hook::flag::register(signal, Arc::clone(&stop));
    }
    let mut disk = Disk::open(from, format, false)?;
    let watched = io::stderr().is_terminal();
    let mut last: Option<Instant> = None;
    let converted = vireo_chain::convert(&mut disk, to, new, |done, all| {
        if watched && (done == all || last.is_none_or(|l| l.elapsed() > Duration::from_millis(200))) {
            last = Some(Instant::now());
            _ = write!(io::stderr(), "\r{:3} % of {}", done * 100 / all.max(1), Size(all));
        }
        !stop.load(Ordering::Relaxed)
    });
    if last.is_some() {
        _ = writeln!(io::stderr());
    }
    converted
}

fn print_info(info: &Info, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "disk       {}", info.path.display())?;
    writeln!(out, "format     {}, {}", info.format, info.kind)?;
    writeln!(out, "size       {} ({} bytes)", Size(info.size), info.size)?;
    writeln!(out, "allocated  {}", Size(info.allocated))?;
    writeln!(out, "sector     {} bytes", info.sector)?;
    if let Some(block) = info.block {
        writeln!(out, "block      {}", Size(block.into()))?;
    }
    if let Some(id) = &info.id {
        writeln!(out, "identity   {id}")?;
    }
    if let Some(parent) = &info.parent {
        writeln!(out, "parent     {}", parent.display())?;
    }
    Ok(())
}

fn print_reports(reports: &[Report], out: &mut dyn Write) -> io::Result<()> {
    for r in reports {
        let verdict = if r.harmful { "DAMAGED" } else { "sound" };
        writeln!(out, "{}: {verdict}", r.path.display())?;
        r.findings.iter().try_for_each(|f| writeln!(out, "  {f}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        let read = |t| parse_size(t).ok();
        assert_eq!(read("20G"), Some(20 << 30));
        assert_eq!(read("512m"), Some(512 << 20));
        assert_eq!(read("4096"), Some(4096));
        assert_eq!(["", "G", "-1", "1.5G", "5X", "99999999T", "ü"].map(read), [None; 7]);
    }
}
