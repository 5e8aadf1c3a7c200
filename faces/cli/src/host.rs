//! `vireo host`.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Subcommand;
use serde::Serialize;
use vireo_core::{Capabilities, Probe};
use vireo_worker::engines;

use crate::output::{Format, print};

/// Subcommands of `vireo host`.
#[derive(Subcommand)]
pub enum HostCommand {
    /// Engines, CPU models, limits and virtualization capabilities of this host, with the reason for each absence.
    Info {
        /// How to print it.
        #[arg(short, long, value_enum, default_value_t = Format::Table)]
        output: Format,
    },
}

#[derive(Serialize)]
struct EngineInfo {
    engine: String,
    usable: bool,
    /// What `--engine auto` takes.
    chosen: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    capabilities: Option<Capabilities>,
}

#[derive(Serialize)]
struct HostInfo {
    processor: String,
    processors: usize,
    memory_mib: u64,
    hardware: Vec<Feature>,
    engines: Vec<EngineInfo>,
}

/// A virtualization feature of the host's processor.
#[derive(Serialize)]
struct Feature {
    name: &'static str,
    present: bool,
}

/// Runs a subcommand.
pub fn run(command: &HostCommand) -> ExitCode {
    let HostCommand::Info { output } = command;
    print(*output, &gather(), print_table)
}

fn gather() -> HostInfo {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        cpuinfo
            .lines()
            .filter_map(|l| l.split_once(':'))
            .find(|(k, _)| k.trim() == name)
            .map_or_else(String::new, |(_, v)| v.trim().to_string())
    };
    let flags = field("flags");
    let has = |f: &str| flags.split(' ').any(|x| x == f);
    let feature = |name, present| Feature { name, present };
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory_kib: u64 = meminfo
        .lines()
        .find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.trim().parse().ok())
        .unwrap_or(0);
    HostInfo {
        processor: field("model name"),
        processors: std::thread::available_parallelism().map_or(1, usize::from),
        memory_mib: memory_kib / 1024,
        hardware: vec![
            feature("hardware virtualization (VMX or SVM)", has("vmx") || has("svm")),
            feature("second-level address translation (EPT or NPT)", has("ept") || has("npt")),
            feature("running under a hypervisor", has("hypervisor")),
        ],
        engines: engines(),
    }
}

fn engines() -> Vec<EngineInfo> {
    let mut chosen = false;
    engines::all()
        .iter()
        .map(|e| {
            let engine = e.kind().to_string();
            match e.probe() {
                Probe::Usable(c) => {
                    let first = !std::mem::replace(&mut chosen, true);
                    EngineInfo { engine, usable: true, chosen: first, reason: None, capabilities: Some(c) }
                }
                Probe::Discouraged(c, why) => EngineInfo {
                    engine,
                    usable: true,
                    chosen: false,
                    reason: Some(why),
                    capabilities: Some(c),
                },
                Probe::Unusable(why) => {
                    EngineInfo { engine, usable: false, chosen: false, reason: Some(why), capabilities: None }
                }
            }
        })
        .collect()
}

fn print_table(info: &HostInfo, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "processor        {} ({} logical)", info.processor, info.processors)?;
    writeln!(out, "memory           {} MiB", info.memory_mib)?;
    for f in &info.hardware {
        writeln!(out, "{:<48} {}", f.name, if f.present { "yes" } else { "no" })?;
    }
    for e in &info.engines {
        writeln!(out)?;
        let state = match (e.usable, e.chosen) {
            (false, _) => "not usable",
            (true, true) => "usable, chosen by --engine auto",
            (true, false) => "usable",
        };
        writeln!(out, "engine {:<9} {state}", e.engine)?;
        if let Some(reason) = &e.reason {
            writeln!(out, "  reason         {reason}")?;
        }
        let Some(c) = &e.capabilities else { continue };
        writeln!(out, "  vCPUs          1 to {} per machine", c.max_vcpus)?;
        writeln!(out, "  addresses      {} bits guest-physical", c.physical_bits)?;
        writeln!(out, "  CPU models     {}", c.cpu_models.join(", "))?;
        for a in &c.abilities {
            match &a.absent {
                None => writeln!(out, "  {:<24} yes", a.name)?,
                Some(why) => writeln!(out, "  {:<24} no: {why}", a.name)?,
            }
        }
    }
    Ok(())
}
