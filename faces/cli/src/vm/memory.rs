//! `vireo vm memory`.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;
use vireo_services::MemoryStatus;
use vireo_worker::control::{Answer, Request};
use vireo_worker::parse_memory;

use super::{Target, refused, unexpected};
use crate::output::print;
use crate::size::Size;

/// Options of `vireo vm memory`.
#[derive(Args)]
pub struct MemoryArgs {
    #[command(flatten)]
    target: Target,
    /// What the guest is to have: 512M, 2G, a bare number is in MiB; or auto: what it needs.
    #[arg(value_name = "SIZE", value_parser = parse_wanted)]
    wanted: Option<Wanted>,
}

/// What a guest is to have.
#[derive(Clone, Copy)]
enum Wanted {
    Auto,
    Bytes(u64),
}

fn parse_wanted(text: &str) -> Result<Wanted, String> {
    if text == "auto" { Ok(Wanted::Auto) } else { parse_memory(text).map(Wanted::Bytes) }
}

/// How far from what it is to have a guest may be: it gives and takes in pieces of 2 MiB, or of 128 MiB what is new to it.
const CLOSE: u64 = 2 << 20;

/// Runs it.
pub fn run(args: &MemoryArgs) -> ExitCode {
    let request = match args.wanted {
        None => Request::Memory,
        Some(Wanted::Auto) => Request::MemorySet { target: None },
        Some(Wanted::Bytes(bytes)) => Request::MemorySet { target: Some(bytes) },
    };
    let memory = match args.target.machine.ask(&request) {
        Ok(Answer::Memory { memory }) => memory,
        Ok(_) => return unexpected(),
        Err(e) => return refused(&e),
    };
    let printed = print(args.target.output, &memory, |m, out| table(m, out));
    if args.wanted.is_some() && memory.assigned.abs_diff(memory.target) > CLOSE {
        let (has, target) = (Size(memory.assigned), Size(memory.target));
        crate::complain(&format_args!("the guest has {has}, and could not be brought to {target} for now"));
        return ExitCode::FAILURE;
    }
    printed
}

/// For people.
pub fn table(m: &MemoryStatus, out: &mut dyn Write) -> io::Result<()> {
    let told = |n: Option<u64>| n.map_or("not told yet".into(), |n| Size(n).to_string());
    let target = if m.manual { "set" } else { "as the guest needs" };
    writeln!(out, "{:<12} {}", "assigned", Size(m.assigned))?;
    writeln!(out, "{:<12} {} ({target})", "target", Size(m.target))?;
    writeln!(out, "{:<12} {}", "demand", told(m.demand))?;
    writeln!(out, "{:<12} {}", "available", told(m.available))?;
    writeln!(out, "{:<12} {}", "given back", Size(m.given_back))?;
    writeln!(out, "{:<12} {}", "added", Size(m.added))?;
    let (least, start, most) = (Size(m.minimum), Size(m.startup), Size(m.maximum));
    writeln!(out, "{:<12} {least} to {most}, {start} at the start", "limits")
}
