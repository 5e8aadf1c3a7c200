//! What an idle guest costs its host beyond the memory that the guest itself has touched.

use std::time::Duration;

use serde::Serialize;
use vireo_tests::Process;

use crate::peer::{Machines, Pair, Peer};
use crate::{Measured, progress};

/// The guest settles: it frees what it booted with, timers slow down.
const SETTLE: Duration = Duration::from_secs(5);
/// Guest RAM of either side is a memfd of this name (as `/proc/PID/smaps` shows it).
const GUEST_RAM: [&str; 2] = ["/memfd:vireo-guest-ram", "/memfd:memory-backend-memfd"];

/// Memory of the processes of an idle guest with 1 processor and 512 MiB.
#[derive(Serialize)]
pub struct Idle {
    /// Proportional set size of all that is not guest RAM, in KiB.
    pub overhead_kib: Pair<u64>,
    /// Guest RAM that has been touched, in KiB.
    pub guest_ram_kib: Pair<u64>,
}

/// Boots an idle guest on each side and reads its process's memory map.
pub fn measure(machines: &Machines) -> Measured<Idle> {
    let both = Pair::measure(|peer| idle(machines, peer))?;
    Ok(Idle { overhead_kib: both.map(|m| m.other_kib), guest_ram_kib: both.map(|m| m.guest_kib) })
}

fn idle(machines: &Machines, peer: Peer) -> Measured<Memory> {
    progress(if peer == Peer::Vireo {
        "memory of an idle guest"
    } else {
        "memory of an idle guest under TCG"
    });
    let mut process = machines.start(peer, &machines.guest.run("idle"))?;
    process.wait_for("VIREO-IDLE")?;
    std::thread::sleep(SETTLE);
    memory_of(&process)
}

fn memory_of(process: &Process) -> Measured<Memory> {
    let path = format!("/proc/{}/smaps", process.id());
    let map = std::fs::read_to_string(&path).map_err(|e| process.failure(&format!("{path}: {e}")))?;
    let memory = Memory::of(&map);
    // Without it, what is counted as overhead would be guest RAM.
    if memory.guest_kib == 0 {
        Err(process.failure(&format!("{path} shows no guest RAM")))
    } else {
        Ok(memory)
    }
}

/// Proportional set sizes in KiB.
#[derive(Debug, Default, PartialEq)]
struct Memory {
    guest_kib: u64,
    other_kib: u64,
}

impl Memory {
    /// Adds up a `/proc/PID/smaps` (proc_pid_smaps(5)): for each mapping a line with its addresses and name, then
    /// lines of `Key: value`.
    fn of(smaps: &str) -> Self {
        let mut memory = Self::default();
        let mut guest = false;
        for line in smaps.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("Pss:") => {
                    let kib: u64 = words.next().and_then(|w| w.parse().ok()).unwrap_or(0);
                    *(if guest { &mut memory.guest_kib } else { &mut memory.other_kib }) += kib;
                }
                Some(word) if word.ends_with(':') => {}
                _ => guest = words.nth(4).is_some_and(|name| GUEST_RAM.contains(&name)),
            }
        }
        memory
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_ram_is_told_from_the_rest() {
        let smaps = "55d0c0000000-55d0c0100000 r-xp 00000000 08:01 42    /usr/bin/some program\n\
                     Size:               1024 kB\nPss:                 300 kB\nPss_Dirty:            50 kB\n\
                     VmFlags: rd ex mr mw me\n\
                     7f0000000000-7f0020000000 rw-s 00000000 00:01 77  /memfd:vireo-guest-ram (deleted)\n\
                     Pss:               90000 kB\n\
                     7f1000000000-7f1000001000 rw-p 00000000 00:00 0\nPss:                   4 kB\n";
        assert_eq!(Memory::of(smaps), Memory { guest_kib: 90_000, other_kib: 304 });
    }
}
