//! Disks: what a request costs on its way from a driver to a file and back, and what a guest gets of its host's disk beside
//! TCG's.
//!
//! Four subjects, each a group of lines whose sides are measured in turn, round after round; the best of each side counts:
//!
//! * `null`: storvsc's side of a channel in this process, our controller, a disk that does nothing.
//! * `file`: the same on a raw file, and a loop around io_uring that does nothing else on the same file.
//! * `vhdx`: the same on a dynamic VHDX that is fully written, and on the raw file.
//! * `guest`: fio in a guest, over SCSI and virtio in ours and over virtio in TCG, and on the host.

mod guest;
mod initiator;
mod local;
mod plain;
mod table;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::io::table::Table;
use crate::setting::Setting;
use crate::{AnyResult, Format};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Subject {
    /// Our path alone.
    Null,
    /// Our path on a raw file, and io_uring's.
    File,
    /// A dynamic VHDX and the raw file.
    Vhdx,
    /// fio in guests.
    Guest,
}

/// Options of the measurement.
#[derive(Args)]
pub struct Options {
    /// The `vireo` binary.
    #[arg(long, value_name = "FILE")]
    vireo: PathBuf,
    /// Folder of a guest with a disk, as built by guests/build.sh.
    #[arg(long, value_name = "FOLDER")]
    guest: PathBuf,
    /// What executes our guest, as in `vireo run`.
    #[arg(long, value_name = "ENGINE", default_value = "soft")]
    engine: String,
    /// How often all is measured.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long each figure is measured, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
    /// Where the files are made, on the disk that is measured.
    #[arg(long, value_name = "FOLDER", default_value = "target/bench-io")]
    folder: PathBuf,
    /// Size of each file in MiB; the guest uses at most 256 MiB.
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u32).range(16..=65536))]
    size: u32,
    /// Only these subjects.
    #[arg(long, value_enum, value_name = "SUBJECT,…", value_delimiter = ',')]
    only: Vec<Subject>,
    /// How to print the results.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

impl Options {
    fn wants(&self, subject: Subject) -> bool {
        self.only.is_empty() || self.only.contains(&subject)
    }

    fn time(&self) -> Duration {
        Duration::from_secs(self.seconds.into())
    }
}

/// Measures and prints the results.
pub fn measure(options: &Options) -> AnyResult<()> {
    let setting = Setting::of_this_host(&options.vireo, &options.guest, "1 processor, 512 MiB")?;
    std::fs::create_dir_all(&options.folder)?;
    let files = local::Files::make(&options.folder, u64::from(options.size) << 20)?;
    let mut table = Table::new(setting);
    for round in 1..=options.rounds {
        let progress = |what: &str| crate::progress(&format!("{what}, {round} of {}", options.rounds));
        if options.wants(Subject::Null) {
            progress("the path alone");
            local::null(options.time(), &mut table);
        }
        if options.wants(Subject::File) || options.wants(Subject::Vhdx) {
            progress("files");
            let (plain, vhdx) = (options.wants(Subject::File), options.wants(Subject::Vhdx));
            local::files(&files, options.time(), plain, vhdx, &mut table)?;
        }
        if options.wants(Subject::Guest) {
            for side in guest::Side::ALL {
                progress(&format!("fio, {}", side.name()));
                guest::measure(side, options, &files.raw, &mut table)?;
            }
        }
    }
    match options.output {
        Format::Json => println!("{}", serde_json::to_string_pretty(&table)?),
        Format::Table => print!("{table}"),
    }
    Ok(())
}
