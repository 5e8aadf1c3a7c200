//! `vireo vm kvp`.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Subcommand, ValueEnum};
use vireo_worker::control::{Answer, Pair, PairPool, Request};

use super::{Machine, Target, refused, unexpected};
use crate::output::{print, printable_text};

/// Subcommands of `vireo vm kvp`.
#[derive(Subcommand)]
pub enum KvpCommand {
    /// Prints the value of a key.
    Get {
        #[command(flatten)]
        target: Target,
        /// Which pairs.
        #[arg(long, value_enum, default_value_t = Which::System)]
        from: Which,
        /// Its name.
        key: String,
    },
    /// Leaves a pair for the guest, in place of one of its name.
    Set {
        #[command(flatten)]
        machine: Machine,
        /// Its name.
        key: String,
        /// What it holds.
        value: String,
    },
    /// Takes a pair of the host's away.
    Delete {
        #[command(flatten)]
        machine: Machine,
        /// Its name.
        key: String,
    },
    /// Says which pairs there are.
    List {
        #[command(flatten)]
        target: Target,
        /// Which pairs.
        #[arg(long, value_enum, default_value_t = Which::System)]
        from: Which,
    },
}

/// Whose pairs.
#[derive(Clone, Copy, ValueEnum)]
pub enum Which {
    /// What the host left for the guest.
    Host,
    /// What the guest left for the host.
    Guest,
    /// What the guest finds out about itself.
    System,
}

impl From<Which> for PairPool {
    fn from(which: Which) -> Self {
        match which {
            Which::Host => Self::Host,
            Which::Guest => Self::Guest,
            Which::System => Self::System,
        }
    }
}

/// Runs a subcommand.
pub fn run(command: &KvpCommand) -> ExitCode {
    let (target, request, value_alone) = match command {
        KvpCommand::Get { target, from, key } => {
            (target, Request::KvpGet { pool: (*from).into(), key: key.clone() }, true)
        }
        KvpCommand::List { target, from } => (target, Request::KvpList { pool: (*from).into() }, false),
        KvpCommand::Set { machine, key, value } => {
            return machine.have(&Request::KvpSet { key: key.clone(), value: value.clone() });
        }
        KvpCommand::Delete { machine, key } => {
            return machine.have(&Request::KvpDelete { key: key.clone() });
        }
    };
    match target.machine.ask(&request) {
        Ok(Answer::Pairs { pairs }) => {
            print(target.output, &pairs, |pairs, out| print_pairs(pairs, value_alone, out))
        }
        Ok(_) => unexpected(),
        Err(e) => refused(&e),
    }
}

fn print_pairs(pairs: &[Pair], value_alone: bool, out: &mut dyn Write) -> io::Result<()> {
    if value_alone {
        return pairs.iter().try_for_each(|p| writeln!(out, "{}", printable_text(&p.value)));
    }
    writeln!(out, "{:<32}  VALUE", "KEY")?;
    pairs
        .iter()
        .try_for_each(|p| writeln!(out, "{:<32}  {}", printable_text(&p.key), printable_text(&p.value)))
}
