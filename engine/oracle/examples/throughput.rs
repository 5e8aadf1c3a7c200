//! Cases per second of the sandbox alone: `cargo run --release -p vireo-oracle --example throughput`.

use std::time::{Duration, Instant};
use vireo_oracle::{BATCH, Case, End, Generator, Mode, Native};

fn main() -> Result<(), vireo_oracle::NativeError> {
    let mut native = Native::new()?;
    for mode in [Mode::Long, Mode::Protected, Mode::Protected16] {
        let mut generator = Generator::new(1, mode, &|_| true);
        let (mut cases, mut lost) = (0_u64, 0);
        let (mut making, mut running) = (Duration::ZERO, Duration::ZERO);
        while cases < 100_000 {
            let start = Instant::now();
            let batch: Vec<Case> = (0..BATCH).filter_map(|_| generator.next_case()).map(|c| c.1).collect();
            making += start.elapsed();
            let start = Instant::now();
            let outcomes = native.run_batch(&batch)?;
            running += start.elapsed();
            cases += outcomes.len() as u64;
            lost += outcomes.iter().filter(|o| o.end == End::Lost).count();
        }
        let per_second = |time: Duration| cases as f64 / time.as_secs_f64();
        println!(
            "{mode:?}: {cases} cases, {lost} lost: {:.0}/s generated, {:.0}/s run, {:.0}/s both",
            per_second(making),
            per_second(running),
            per_second(making + running)
        );
    }
    Ok(())
}
