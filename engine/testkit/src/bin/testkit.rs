//! `vireo-testkit --engine kvm`: runs the cases on engines of this host, prints what came of each and compares the
//! engines. For hosts where there is no toolchain.

use std::process::ExitCode;

use clap::Parser;
use vireo_testkit::report;

/// Runs tiny guests on the engines of this host and checks what they do.
#[derive(Parser)]
#[command(name = "vireo-testkit")]
struct Arguments {
    /// Engines to run and compare: kvm, kvm-least (KVM with dirty bitmaps rather than rings,
    /// and with hypercalls by a port), soft.
    #[arg(long, value_delimiter = ',', default_value = "kvm,kvm-least,soft")]
    engine: Vec<String>,
    /// Runs only the cases whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Runs also the cases that are known not to hold on what is beneath an engine.
    #[arg(long)]
    all: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let names: Vec<_> = arguments.engine.iter().map(String::as_str).collect();
    match report::run(&names, &arguments.only, arguments.all) {
        Ok(summary) if summary.failed == 0 && summary.passed > 0 => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("vireo-testkit: {why}");
            ExitCode::from(2)
        }
    }
}
