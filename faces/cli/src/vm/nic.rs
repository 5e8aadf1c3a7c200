//! `vireo vm nic`.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Subcommand;
use vireo_worker::control::{Answer, Request};
use vireo_worker::{NicSpec, NicStatus};

use super::{Target, tell};
use crate::output::{print, printable};
use crate::size::Size;

/// Subcommands of `vireo vm nic`.
#[derive(Subcommand)]
pub enum VmNicCommand {
    /// Adds a network adapter, which the guest finds at once. Prints what it is called.
    Add {
        #[command(flatten)]
        target: Target,
        /// As for `vireo run --nic`.
        #[arg(value_name = "NETWORK[,OPTION…]")]
        nic: String,
    },
    /// Takes a network adapter away, as when a cable is pulled and the adapter with it.
    Remove {
        #[command(flatten)]
        target: Target,
        /// What `list` calls it.
        name: String,
    },
    /// Says which network adapters there are, and what passed them.
    List {
        #[command(flatten)]
        target: Target,
    },
}

/// Runs a subcommand.
pub fn run(command: &VmNicCommand) -> ExitCode {
    let (target, request) = match command {
        VmNicCommand::Add { target, nic } => {
            (target, nic.parse::<NicSpec>().map(|_| Request::NicAdd { nic: nic.clone() }))
        }
        VmNicCommand::Remove { target, name } => (target, Ok(Request::NicRemove { name: name.clone() })),
        VmNicCommand::List { target } => (target, Ok(Request::NicList)),
    };
    tell(target.ask(request), |answer| match answer {
        Answer::Nics { nics } => print(target.output, &nics, |n, out| print_nics(n, out)),
        _ => ExitCode::SUCCESS,
    })
}

fn print_nics(nics: &[NicStatus], out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "{:<6} {:<7} {:<17}  {:>6}  {:>10} {:>10}  {:>10} {:>10}  {:>8}  NETWORK",
        "NAME", "MODEL", "ADDRESS", "MTU", "SENT", "BYTES", "RECEIVED", "BYTES", "LOST"
    )?;
    for n in nics {
        writeln!(
            out,
            "{:<6} {:<7} {:<17}  {:>6}  {:>10} {:>10}  {:>10} {:>10}  {:>8}  {}{}",
            n.name,
            n.model.name(),
            n.address,
            n.mtu,
            n.sent,
            Size(n.sent_bytes).to_string(),
            n.received,
            Size(n.received_bytes).to_string(),
            n.lost,
            printable(n.network.as_ref()),
            if n.carrier { "" } else { " (no carrier)" }
        )?;
    }
    Ok(())
}
