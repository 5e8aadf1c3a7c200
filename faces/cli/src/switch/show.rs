//! `vireo switch list` and `show`.

use std::io::{self, Write};
use std::process::ExitCode;

use serde::Serialize;
use vireo_switchd::control::{PortStatus, Status};
use vireo_switchd::{Config, Folders, Policy};

use crate::output::{Format, print};

/// A switch in the list.
#[derive(Serialize)]
struct Entry {
    name: String,
    kind: String,
    uplink: Option<String>,
    running: bool,
    ports: String,
}

/// Prints which switches there are.
pub fn list(folders: &Folders, output: Format) -> Result<ExitCode, String> {
    let mut entries = Vec::new();
    for name in folders.names().map_err(|e| format!("the folder of switches: {e}"))? {
        let config = match Config::load(&folders.config(&name)) {
            Ok(config) => config,
            // The others are there all the same; and one may have been deleted just now.
            Err(e) => {
                if folders.has(&name) {
                    crate::complain(&e.to_string());
                }
                continue;
            }
        };
        let sockets = folders.sockets(&name);
        entries.push(Entry {
            kind: config.kind.to_string(),
            uplink: config.uplink.as_ref().map(ToString::to_string),
            running: sockets.is_running(),
            ports: sockets.ports().display().to_string(),
            name,
        });
    }
    Ok(print(output, &entries, |entries, out| {
        writeln!(out, "{:<16} {:<9} {:<20} {:<8} SOCKET FOR MACHINES", "NAME", "KIND", "UPLINK", "STATE")?;
        for e in entries {
            let state = if e.running { "running" } else { "stopped" };
            let uplink = e.uplink.as_deref().unwrap_or("-");
            writeln!(out, "{:<16} {:<9} {uplink:<20} {state:<8} {}", e.name, e.kind, e.ports)?;
        }
        Ok(())
    }))
}

/// Prints what a switch does.
pub fn print_status(status: &Status, output: Format) -> ExitCode {
    print(output, status, print_table)
}

fn print_table(status: &Status, out: &mut dyn Write) -> io::Result<()> {
    let on = |on: bool| if on { "on" } else { "off" };
    writeln!(
        out,
        "{}: {}, uplink {}{}, MTU {}, snooping {}, querier {}, strangers {}\n",
        status.name,
        status.kind,
        status.uplink.as_deref().unwrap_or("none"),
        if status.carrier == Some(false) { " (no carrier)" } else { "" },
        status.mtu,
        on(status.snooping),
        on(status.querier),
        on(status.strangers),
    )?;
    writeln!(
        out,
        "{:<16} {:<17} {:<10} {:>12} {:>10} {:>12} {:>10} {:>8} {:>8}  DROPPED",
        "PORT", "MAC", "VLAN", "FROM IT", "BYTES", "TO IT", "BYTES", "LOST", "REFUSED"
    )?;
    status.ports.iter().try_for_each(|port| print_port(port, out))?;
    for (name, settings) in &status.absent {
        let vlan = settings.vlan.as_ref().map_or("-".into(), ToString::to_string);
        let mac = settings.mac.map_or("-".into(), |m| m.to_string());
        writeln!(out, "{name:<16} {mac:<17} {vlan:<10} not connected")?;
    }
    let connected = status.ports.iter().map(|p| (&p.report.name, &p.settings));
    let settings = connected.chain(&status.absent).map(|(name, settings)| (name, describe(settings)));
    let default = ("others".to_string(), describe(&status.default));
    let settings = settings.map(|(name, settings)| (name.clone(), settings)).chain([default]);
    let mut settings = settings.filter(|(_, settings)| !settings.is_empty()).peekable();
    if settings.peek().is_some() {
        writeln!(out, "\n{:<16} SETTINGS", "PORT")?;
    }
    settings.try_for_each(|(name, settings)| writeln!(out, "{name:<16} {settings}"))?;
    if !status.stations.is_empty() {
        writeln!(out, "\n{:<6} {:<17} {:<16} HEARD", "VLAN", "STATION", "PORT")?;
        for s in &status.stations {
            writeln!(out, "{:<6} {:<17} {:<16} {} s ago", s.vlan, s.mac, s.port, s.age)?;
        }
    }
    if !status.members.is_empty() {
        writeln!(out, "\n{:<6} {:<24} PORT", "VLAN", "GROUP")?;
        for m in &status.members {
            writeln!(out, "{:<6} {:<24} {}", m.vlan, m.group, m.port)?;
        }
    }
    Ok(())
}

fn print_port(port: &PortStatus, out: &mut dyn Write) -> io::Result<()> {
    let r = &port.report;
    let dropped: Vec<_> = r.dropped.iter().map(|(why, count)| format!("{why} {count}")).collect();
    let dropped = if dropped.is_empty() { "-".into() } else { dropped.join(", ") };
    writeln!(
        out,
        "{:<16} {:<17} {:<10} {:>12} {:>10} {:>12} {:>10} {:>8} {:>8}  {dropped}",
        r.name,
        r.mac.as_deref().unwrap_or("-"),
        r.vlan,
        r.sent.0,
        bytes(r.sent.1),
        r.received.0,
        bytes(r.received.1),
        r.lost,
        r.refused,
    )
}

/// So many bytes, short.
fn bytes(count: u64) -> String {
    match count {
        0..10_000 => count.to_string(),
        10_000..10_000_000 => format!("{}K", count / 1000),
        10_000_000..10_000_000_000 => format!("{}M", count / 1_000_000),
        _ => format!("{}G", count / 1_000_000_000),
    }
}

/// What is set of a port beyond what is by itself.
fn describe(policy: &Policy) -> String {
    let mut all = Vec::new();
    for (name, is_on) in [
        ("spoofing", policy.spoofing),
        ("dhcp-guard", policy.dhcp_guard),
        ("router-guard", policy.router_guard),
    ] {
        if is_on {
            all.push(format!("{name} on"));
        }
    }
    if let Some(addresses) = &policy.addresses {
        let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        all.push(format!("addresses {}", addresses.join(",")));
    }
    for (name, value) in [("bandwidth", policy.bandwidth), ("storm", policy.storm)] {
        all.extend(value.map(|value| format!("{name} {value}")));
    }
    if policy.weight != 1 {
        all.push(format!("weight {}", policy.weight));
    }
    match policy.mirror {
        vireo_switchd::MirrorText::None => {}
        vireo_switchd::MirrorText::Source => all.push("mirror source".into()),
        vireo_switchd::MirrorText::Destination => all.push("mirror destination".into()),
    }
    all.extend(policy.acl.iter().map(|rule| format!("acl \"{}\"", rule.0)));
    all.join(", ")
}
