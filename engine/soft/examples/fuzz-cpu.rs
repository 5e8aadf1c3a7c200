//! Long runs of the CPU oracle: `fuzz-cpu [CASES [SEED]]` compares the software engine with the real CPU in each mode.

#[path = "../tests/subject/mod.rs"]
mod subject;

use std::process::ExitCode;
use std::time::Instant;

use subject::SoftSubject;
use vireo_oracle::{Mode, Native, fuzz};

/// Cases between two lines of progress.
const CHUNK: u64 = 200_000;

fn main() -> ExitCode {
    let number = |n: usize, default| std::env::args().nth(n).map_or(Ok(default), |a| a.parse::<u64>());
    let (Ok(cases), Ok(seed)) = (number(1, 1_000_000), number(2, 1)) else {
        eprintln!("usage: fuzz-cpu [CASES [SEED]]");
        return ExitCode::from(2);
    };
    let model = subject::model();
    let mut native = match Native::new() {
        Ok(native) => native,
        Err(e) => {
            eprintln!("fuzz-cpu: {e}");
            return ExitCode::FAILURE;
        }
    };
    // Each mode in the interpreter, and what there is of it in the translator.
    let subjects: Vec<(Mode, bool)> = [Mode::Long, Mode::Protected, Mode::Protected16]
        .into_iter()
        .flat_map(|m| [(m, false), (m, true)])
        .filter(|s| *s != (Mode::Protected16, true))
        .filter(|(m, _)| native.runs(*m))
        .collect();
    let (start, mut done, mut failed) = (Instant::now(), 0, 0);
    let mut round = seed;
    while done < cases {
        for (mode, translated) in &subjects {
            let new = if *translated { SoftSubject::translating } else { SoftSubject::new };
            let mut engine = new(model.clone());
            let known = model.clone();
            let n = CHUNK.min(cases - done);
            let report = match fuzz(&mut engine, *mode, round, n, &|d| known.has(d.feature)) {
                Ok(report) => report,
                Err(e) => {
                    eprintln!("fuzz-cpu: {e}");
                    return ExitCode::FAILURE;
                }
            };
            done += report.cases;
            failed += report.failed();
            if !report.clean() {
                println!("{report}");
            }
            let rate = done as f64 / start.elapsed().as_secs_f64();
            let by = if *translated { "translator" } else { "interpreter" };
            println!("{done} cases, {failed} differ ({mode:?}, {by}, seed {round}, {rate:.0} a second)");
            if done >= cases {
                break;
            }
        }
        round += 1;
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
