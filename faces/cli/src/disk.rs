//! `vireo disk`.

mod tell;
mod watch;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use vireo_chain::{Backing, DiskError, Format, Kind, NewDisk, Shrink};
use vireo_worker::parse_bytes;

use crate::output::{Format as Output, print};
use crate::size::Size;
use tell::{print_fact, print_info, print_reports};
use watch::Watch;

/// Subcommands of `vireo disk`. A file's format is found by its content, which must not go against its name.
#[derive(Subcommand)]
pub enum DiskCommand {
    /// Makes a new disk.
    Create {
        /// The file, which must not be there yet.
        path: PathBuf,
        /// Size: 20G, 512M; a bare number is in bytes. A child has its parent's.
        #[arg(long, value_parser = parse_bytes, required_unless_present = "parent", conflicts_with = "parent")]
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
        /// Its format: raw, vhd, vhdx, qcow2 or vmdk.
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
    /// Tells what the structures of a VHD or VHDX say, right or wrong, as they are in the file.
    Dump {
        /// The file.
        path: PathBuf,
        /// Its format: vhd or vhdx.
        #[arg(long)]
        format: Option<Format>,
        /// Tells of each block, too.
        #[arg(long)]
        table: bool,
        /// How to print it.
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Makes a disk larger, or with --shrink smaller. A machine that uses it must be off.
    Resize {
        /// The file.
        path: PathBuf,
        /// The new size: 20G, 512M; a bare number is in bytes.
        #[arg(value_parser = parse_bytes)]
        size: u64,
        /// Its format: raw, vhd or vhdx.
        #[arg(long)]
        format: Option<Format>,
        /// The disk may become smaller, if what is beyond is zero.
        #[arg(long)]
        shrink: bool,
        /// Of a raw disk, what is beyond may be lost.
        #[arg(long, requires = "shrink")]
        lose_data: bool,
    },
    /// Gives back to the host what is zero of a disk, and what its file does not use. Ctrl-C leaves the disk whole; the
    /// next time goes on.
    Compact {
        /// The file.
        path: PathBuf,
        /// Its format: raw, vhd or vhdx.
        #[arg(long)]
        format: Option<Format>,
        /// How to print what came of it.
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Writes what a differencing disk has of its own to its parent, and removes it. Ctrl-C loses nothing; the next
    /// time goes on.
    Merge {
        /// The child. No other disk may be made on it or on its parent.
        path: PathBuf,
        /// Makes a new disk of both instead, and leaves them as they are.
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
        /// Its format: vhd or vhdx.
        #[arg(long)]
        format: Option<Format>,
    },
    /// Copies a disk, with what its parents have of it, to a file of any format. Ctrl-C leaves nothing of it.
    Convert {
        /// The disk.
        from: PathBuf,
        /// The new file, which must not be there yet.
        to: PathBuf,
        /// Format of the disk: raw, vhd, vhdx, qcow2 or vmdk.
        #[arg(long)]
        from_format: Option<Format>,
        /// Reads the files that a qcow2 or VMDK names as parts of its disk. Any file can be named there: only for
        /// images of people you trust.
        #[arg(long)]
        follow_backing: bool,
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
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    block: Option<u64>,
}

/// How a disk is stored.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KindChoice {
    /// All of it: the space is taken now, where the file system can do that.
    Fixed,
    /// What has been written.
    Dynamic,
}

impl NewArgs {
    fn disk(&self, path: &Path) -> Result<NewDisk, DiskError> {
        let format = self.format.or(Format::of_name(path)).unwrap_or(Format::Raw);
        let block = self.block.map(u32::try_from).transpose();
        let Ok(block) = block else {
            return Err(DiskError::Contradiction("blocks have at most 256 MiB".into()));
        };
        let kind = match (self.kind, format) {
            (Some(KindChoice::Fixed), _) | (None, Format::Raw) => Kind::Fixed,
            _ => Kind::Dynamic,
        };
        // A raw disk that nobody called fixed may have holes.
        let allocate = self.kind == Some(KindChoice::Fixed);
        Ok(NewDisk { format, kind, size: None, block, sector: None, allocate })
    }
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
        DiskCommand::Dump { path, format, table, output } => {
            vireo_chain::dump(path, *format, *table).map(|fact| print(*output, &fact, print_fact))
        }
        DiskCommand::Resize { path, size, format, shrink, lose_data } => {
            let shrink = match (shrink, lose_data) {
                (false, _) => Shrink::Never,
                (true, false) => Shrink::Zeros,
                (true, true) => Shrink::Data,
            };
            vireo_chain::resize(path, *format, *size, shrink).map(|_| ExitCode::SUCCESS)
        }
        DiskCommand::Compact { path, format, output } => compact(path, *format, *output),
        DiskCommand::Merge { path, to, format } => {
            merge(path, *format, to.as_deref()).map(|()| ExitCode::SUCCESS)
        }
        DiskCommand::Convert { from, to, from_format, follow_backing, new } => new
            .disk(to)
            .and_then(|new| convert(from, *from_format, *follow_backing, to, &new))
            .map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|e| {
        let formats =
            e.sayable().into_iter().filter_map(|f| Some(format!("{} {f}", command.format_option()?)));
        let formats = formats.collect::<Vec<_>>().join(" or ");
        match formats.is_empty() {
            true => crate::complain(&e),
            false => crate::complain(&format_args!("{e}: {formats}")),
        }
        ExitCode::FAILURE
    })
}

impl DiskCommand {
    /// By which its user says of what format a disk is that is there.
    fn format_option(&self) -> Option<&'static str> {
        match self {
            // Its --format is of the new one.
            Self::Create { .. } => None,
            Self::Convert { .. } => Some("--from-format"),
            _ => Some("--format"),
        }
    }
}

fn convert(
    from: &Path,
    format: Option<Format>,
    follow: bool,
    to: &Path,
    new: &NewDisk,
) -> Result<(), DiskError> {
    let mut watch = Watch::new();
    let backing = if follow { Backing::Follow } else { Backing::Refuse };
    let mut disk = vireo_chain::open_source(from, format, backing)?;
    vireo_chain::convert(&mut *disk, to, new, &mut |p| watch.step(p))
}

fn merge(path: &Path, format: Option<Format>, to: Option<&Path>) -> Result<(), DiskError> {
    let mut watch = Watch::new();
    match to {
        Some(to) => vireo_chain::merge_to(path, format, to, &mut |p| watch.step(p)),
        None => vireo_chain::merge(path, format, &mut |p| watch.step(p)),
    }
}

fn compact(path: &Path, format: Option<Format>, output: Output) -> Result<ExitCode, DiskError> {
    let mut watch = Watch::new();
    let compacted = vireo_chain::compact(path, format, &mut |p| watch.step(p))?;
    drop(watch);
    Ok(print(output, &compacted, |c, out| {
        writeln!(out, "{}: {} on the host, before {}", path.display(), Size(c.after), Size(c.before))
    }))
}
