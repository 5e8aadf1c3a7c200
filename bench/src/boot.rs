//! Time to boot: from the start of the process to the guest's first program, and to the end of the process.

use serde::Serialize;

use crate::peer::{Machines, Pair, Peer};
use crate::{Measured, progress};

/// Boots with one number of processors; times in seconds.
#[derive(Serialize)]
pub struct Boots {
    /// Processors of the guest.
    pub cpus: u32,
    /// To the guest's first program.
    pub to_userland: Times,
    /// To the end of the process, after the guest has switched the machine off.
    pub to_end: Times,
}

/// Times of both sides, in seconds.
#[derive(Serialize)]
pub struct Times {
    /// Each run, in order.
    pub runs: Pair<Vec<f64>>,
    /// The best run.
    pub best: Pair<f64>,
    /// The middle run.
    pub median: Pair<f64>,
    /// Best of ours by best of the peer.
    pub ratio_of_best: f64,
    /// Median of ours by median of the peer.
    pub ratio_of_median: f64,
}

impl Times {
    fn of(runs: Pair<Vec<f64>>) -> Self {
        let best = runs.map(|r| r.iter().copied().fold(f64::INFINITY, f64::min));
        let median = runs.map(|r| median(r));
        let (ratio_of_best, ratio_of_median) = (best.vireo / best.tcg, median.vireo / median.tcg);
        Self { runs, best, median, ratio_of_best, ratio_of_median }
    }
}

/// The middle value; the mean of the middle two of an even number. Of nothing, NaN.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// Boots both sides in turn, so that a disturbance of the host hits both.
pub fn measure(machines: &Machines, cpus: u32, runs: u32) -> Measured<Boots> {
    let (mut userland, mut end) = (Pair::<Vec<f64>>::default(), Pair::<Vec<f64>>::default());
    for run in 1..=runs {
        progress(&format!("boot with {cpus} CPU(s), {run} of {runs}"));
        let times = Pair::measure(|peer| boot(machines, peer, cpus))?;
        userland.vireo.push(times.vireo.0);
        userland.tcg.push(times.tcg.0);
        end.vireo.push(times.vireo.1);
        end.tcg.push(times.tcg.1);
    }
    Ok(Boots { cpus, to_userland: Times::of(userland), to_end: Times::of(end) })
}

/// Boots once: seconds to the guest's first program and to the end of the process.
fn boot(machines: &Machines, peer: Peer, cpus: u32) -> Measured<(f64, f64)> {
    let run = machines.guest.run("boot").cpus(cpus);
    let mut process = machines.start(peer, &run)?;
    let userland = process.wait_for("VIREO-BOOT-OK ")?;
    let code = process.wait()?;
    let end = process.elapsed();
    if code != 0 {
        return Err(process.failure(&format!("exit code {code}")));
    }
    Ok((userland.as_secs_f64(), end.as_secs_f64()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn ratios() {
        let times = Times::of(Pair { vireo: vec![6.0, 4.0, 9.0], tcg: vec![2.0, 3.0, 4.0] });
        assert_eq!((times.best.vireo, times.ratio_of_best, times.ratio_of_median), (4.0, 2.0, 2.0));
    }
}
