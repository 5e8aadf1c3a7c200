//! How right the guest's clock runs while all of its processors are busy.

use serde::Serialize;
use vireo_tests::Process;

use crate::peer::{Machines, Pair, Peer};
use crate::{Measured, progress};

/// Drift with one number of processors.
#[derive(Serialize)]
pub struct Clock {
    /// Processors of the guest.
    pub cpus: u32,
    /// Milliseconds that the guest's clock gains on the host's in each second; negative when it loses.
    pub drift_ms_per_s: Pair<f64>,
}

/// Compares the clock of each side's guest with the host's for so many seconds.
pub fn measure(machines: &Machines, cpus: u32, seconds: u32) -> Measured<Clock> {
    let drift_ms_per_s = Pair::measure(|peer| {
        let side = if peer == Peer::Vireo { "" } else { " under TCG" };
        progress(&format!("clock with {cpus} busy CPU(s){side}, {seconds} s"));
        let run = machines.guest.run("clock").cpus(cpus).parameter(&format!("vireo.seconds={seconds}"));
        let mut process = machines.start(peer, &run)?;
        process.wait()?;
        drift_of(&process)
    })?;
    Ok(Clock { cpus, drift_ms_per_s })
}

fn drift_of(process: &Process) -> Measured<f64> {
    // "VIREO-CLOCK <uptime> <seconds since 1970>": the second is finer.
    let lines = process.lines_with("VIREO-CLOCK ");
    let sample = |(host, line): &(std::time::Duration, String)| {
        Some((host.as_secs_f64(), line.split(' ').nth(2)?.parse::<f64>().ok()?))
    };
    let samples: Vec<_> = lines.iter().filter_map(sample).collect();
    let slope = slope(&samples).ok_or_else(|| process.failure("too few VIREO-CLOCK lines"))?;
    Ok((slope - 1.0) * 1000.0)
}

/// Guest seconds per host second, from (host, guest) samples in order. A line can only arrive late, never early: the
/// punctual ones are those where the host is least ahead. One of the first third and one of the last are compared.
fn slope(samples: &[(f64, f64)]) -> Option<f64> {
    let third = samples.len() / 3;
    let ahead = |s: &&(f64, f64)| s.0 - s.1;
    let punctual = |part: &[(f64, f64)]| part.iter().min_by(|a, b| ahead(a).total_cmp(&ahead(b))).copied();
    let first = punctual(&samples[..third])?;
    let last = punctual(&samples[samples.len() - third..])?;
    Some((last.1 - first.1) / (last.0 - first.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_lines_do_not_disturb() {
        let mut samples: Vec<_> = (0..20).map(|i| (f64::from(i), 1000.0 + f64::from(i) * 1.002)).collect();
        samples[3].0 += 0.4;
        samples[12].0 += 0.7;
        assert!((slope(&samples).unwrap() - 1.002).abs() < 1e-9);
        assert_eq!(slope(&samples[..2]), None);
    }
}
