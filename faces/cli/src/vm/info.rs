//! `vireo vm info`.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;
use vireo_services::{Pulse, ServiceState};
use vireo_worker::control::{Answer, GuestReport, MachineInfo, Request};

use super::{Target, memory, refused, unexpected};
use crate::output::{print, printable_text};

/// Options of `vireo vm info`.
#[derive(Args)]
pub struct InfoArgs {
    #[command(flatten)]
    target: Target,
}

/// Runs it.
pub fn run(args: &InfoArgs) -> ExitCode {
    match args.target.machine.ask(&Request::Info) {
        Ok(Answer::Info { info }) => print(args.target.output, &*info, table),
        Ok(_) => unexpected(),
        Err(e) => refused(&e),
    }
}

fn table(info: &MachineInfo, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{:<12} {}, {} CPUs", "engine", info.engine, info.cpus)?;
    writeln!(out, "{:<12} {:.0} s, {} resets", "up", info.uptime, info.resets)?;
    let age = info.heartbeat_age.map_or(String::new(), |age| format!(", last {age:.1} s ago"));
    let pulse = match info.heartbeat {
        Pulse::Absent => "none: the guest has no driver for it",
        Pulse::Waiting => "not yet",
        Pulse::Ok => "ok",
        Pulse::Lost => "lost: the guest does not answer",
    };
    writeln!(out, "{:<12} {pulse}{age}", "heartbeat")?;
    if let Some(seconds) = info.frozen {
        writeln!(out, "{:<12} file systems, for {seconds:.0} s more", "frozen")?;
    }
    match (&info.guest, &info.guest_unknown) {
        (Some(guest), _) => guest_table(guest, out)?,
        (None, why) => {
            let why = why.as_deref().unwrap_or("unknown");
            writeln!(out, "{:<12} tells nothing: {}", "guest", printable_text(why))?;
        }
    }
    if let Some(m) = &info.memory {
        writeln!(out, "\nMEMORY")?;
        memory::table(m, out)?;
    }
    if !info.services.is_empty() {
        writeln!(out, "\n{:<22} {:<12} VERSION", "SERVICE", "STATE")?;
    }
    for service in &info.services {
        let state = match service.state {
            ServiceState::Absent => "absent",
            ServiceState::Negotiating => "waiting",
            ServiceState::Ready => "ready",
            ServiceState::Refused => "refused",
        };
        writeln!(out, "{:<22} {state:<12} {}", service.name, service.version.as_deref().unwrap_or("-"))?;
    }
    Ok(())
}

/// What a guest says is its own: it must not steer a terminal.
fn guest_table(guest: &GuestReport, out: &mut dyn Write) -> io::Result<()> {
    let mut line = |name: &str, value: &str| writeln!(out, "{name:<12} {}", printable_text(value));
    let system: Vec<&str> =
        [&guest.os_name, &guest.os_release].into_iter().filter_map(|t| t.as_deref()).collect();
    line("system", &system.join(" "))?;
    let kernel: Vec<&str> =
        [&guest.os_build, &guest.architecture].into_iter().filter_map(|t| t.as_deref()).collect();
    line("kernel", &kernel.join(" "))?;
    line("name", guest.host_name.as_deref().unwrap_or("-"))?;
    line("addresses", &guest.ipv4.iter().chain(&guest.ipv6).map(String::as_str).collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_says_steers_no_terminal() {
        let guest = GuestReport { host_name: Some("a\x1b[2J\nb".into()), ..GuestReport::default() };
        let mut out = Vec::new();
        guest_table(&guest, &mut out).expect("memory");
        let text = String::from_utf8(out).expect("text");
        assert!(text.contains("a\\u{1b}[2J\\nb\n") && text.lines().count() == 4, "{text}");
    }
}
