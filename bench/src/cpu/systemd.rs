//! The boot of a Debian with systemd, from the start of the process until its target is reached and the guest has said
//! so; the guest then powers off.

use std::time::Duration;

use vireo_tests::{Guest, GuestRun, Process};

use crate::Measured;
use crate::cpu::Options;
use crate::cpu::reply::{Program, Reply};
use crate::cpu::side::{Side, Start};

/// Its name among the programs.
pub const NAME: &str = "systemd-boot";
/// Far beyond what a boot takes: what hangs is killed.
const LIMIT: Duration = Duration::from_secs(300);
/// What the guest says when its target is reached; its seconds since the boot follow, then what it has come to.
const MARK: &str = "VIREO-SYSTEMD-OK ";
/// What `Process` shall wait for: the mark's line has ended.
const MARK_END: &str = "VIREO-SYSTEMD-END";

/// A guest with systemd.
pub struct Systemd(GuestRun);

impl Systemd {
    /// That of the options, where they have one. Its initial RAM disk is its system: more than 512 MiB with its copy.
    pub fn of(options: &Options) -> Option<Self> {
        let guest = Guest::at(options.systemd.as_ref()?);
        Some(Self(guest.run("systemd").memory_mib(1024).parameter("quiet")))
    }

    /// As one of the programs.
    pub fn program() -> Program {
        Program { name: NAME.into(), group: "real".into() }
    }

    /// Boots once on one side.
    pub fn boot(&self, side: Side, options: &Options) -> Result<Reply, String> {
        let start = Start::guest(side, self.0.clone(), options).ok_or("no guest runs natively")?;
        let (seconds, output) = run(&start).map_err(|e| e.to_string())?;
        Ok(Reply { seconds, check: check_of(&output)? })
    }
}

/// Runs the guest to its end. Returns the seconds until the mark, and what the guest said.
fn run(start: &Start) -> Measured<(f64, String)> {
    let mut process = Process::start(start.command(), LIMIT)?;
    let time = process.wait_for(MARK_END)?;
    match process.wait()? {
        0 => Ok((time.as_secs_f64(), process.output())),
        code => Err(process.failure(&format!("exit code {code}"))),
    }
}

/// A value that depends on what the mark says after its time; units that failed are an error.
fn check_of(output: &str) -> Result<u64, String> {
    let mark = output.split_once(MARK).and_then(|(_, rest)| rest.split_once(MARK_END));
    let state = mark.and_then(|(mark, _)| mark.split_once(' ')).map(|(_, state)| state.trim());
    let state = state.ok_or_else(|| format!("no mark in {output:?}"))?;
    if !state.ends_with("failed=[]") {
        return Err(format!("units failed: {state}"));
    }
    // FNV-1a.
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    Ok(state.bytes().fold(0xcbf2_9ce4_8422_2325, step))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_value_is_of_what_the_guest_has_come_to() {
        let mark = |time, targets| format!("login: \n{MARK}{time} targets={targets} failed=[]\n{MARK_END}\n");
        let check = check_of(&mark("25.1", 15)).unwrap();
        assert_eq!(check_of(&mark("31.9", 15)), Ok(check));
        assert_ne!(check_of(&mark("25.1", 14)), Ok(check));
    }

    #[test]
    fn failed_units_and_a_missing_mark_are_errors() {
        let failed = format!("{MARK}25.1 targets=15 failed=[dbus.service]\n{MARK_END}\n");
        assert!(check_of(&failed).unwrap_err().contains("dbus.service"));
        assert!(check_of("Kernel panic").unwrap_err().contains("no mark"));
    }
}
