//! Runs everything on several engines, says what came of it, and compares.

use std::collections::BTreeMap;

use vireo_core::CpuModel;

use crate::cases::{cases, transfers};
use crate::hosts::{Candidate, NAMES, candidate, common_model, deviation};
use crate::machine::Bench;
use crate::record::{Failure, Record};

/// How many cases ended how, over all engines.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    /// As they have to.
    pub passed: u32,
    /// Otherwise.
    pub failed: u32,
    /// Not run: the case does not apply, or what is beneath the engine is known not to be a processor there.
    pub skipped: u32,
    /// Engines that were run.
    pub engines: u32,
}

/// Runs the cases whose names contain `only` on the named engines, printing as it goes. `all`: those too that are known
/// not to hold on what is beneath an engine.
pub fn run(names: &[&str], only: &str, all: bool) -> Result<Summary, String> {
    let model = CpuModel::named("vireo-v2").ok_or("there is no CPU model vireo-v2")?;
    let mut candidates = Vec::new();
    for name in names {
        let known = NAMES.iter().find(|n| *n == name);
        let name =
            known.ok_or_else(|| format!("there is no engine {name}; there are {}", NAMES.join(", ")))?;
        match candidate(name, &model) {
            Ok(c) => {
                println!("ENGINE   {name} on {:?}, without {:?}", c.beneath, c.missing);
                candidates.push(c);
            }
            Err(why) => println!("SKIPPED  engine {name}: {why}"),
        }
    }
    let mut run =
        Run { summary: Summary { engines: candidates.len() as u32, ..Summary::default() }, only, all };
    let mut seen: BTreeMap<&'static str, (&'static str, Record)> = BTreeMap::new();
    for c in &candidates {
        // Each engine with the most that it has; two engines are compared with what both have.
        let bench = Bench { engine: c.engine.as_ref(), model: common_model(&model, std::slice::from_ref(c)) };
        for case in cases() {
            let Some(record) = run.case(c, case.name, || case.run(&bench)) else { continue };
            let (first, reference) = seen.entry(case.name).or_insert_with(|| (c.name, record.clone()));
            if case.name != "cpuid" && *reference != record {
                run.summary.failed += 1;
                println!(
                    "DIFFERS  {:10} {} from {first}: {}",
                    c.name,
                    case.name,
                    difference(reference, &record)
                );
            }
        }
    }
    for from in &candidates {
        for to in &candidates {
            run.transfers(&model, from, to);
        }
    }
    let s = run.summary;
    println!("{} engines: {} passed, {} failed, {} skipped", s.engines, s.passed, s.failed, s.skipped);
    Ok(s)
}

fn difference(a: &Record, b: &Record) -> String {
    let at = a.0.iter().zip(&b.0).find(|(x, y)| x != y);
    at.map_or("one record is longer".into(), |(x, y)| format!("{x:?} and {y:?}"))
}

struct Run<'a> {
    summary: Summary,
    only: &'a str,
    all: bool,
}

impl Run<'_> {
    fn case(
        &mut self,
        on: &Candidate,
        name: &str,
        body: impl FnOnce() -> Result<Record, Failure>,
    ) -> Option<Record> {
        if !name.contains(self.only) {
            return None;
        }
        if let Some(why) = deviation(on.beneath, name).filter(|_| !self.all) {
            self.summary.skipped += 1;
            println!("SKIPPED  {:10} {name}: {:?} beneath: {why}", on.name, on.beneath);
            return None;
        }
        self.outcome(on.name, name, body())
    }

    fn outcome(&mut self, on: &str, name: &str, outcome: Result<Record, Failure>) -> Option<Record> {
        match outcome {
            Ok(record) => {
                self.summary.passed += 1;
                println!("ok       {on:10} {name}");
                Some(record)
            }
            Err(Failure::Skipped(why)) => {
                self.summary.skipped += 1;
                println!("SKIPPED  {on:10} {name}: {why}");
                None
            }
            Err(e) => {
                self.summary.failed += 1;
                println!("FAILED   {on:10} {name}: {e}");
                None
            }
        }
    }

    /// Moves guests from one engine to the other mid-run.
    fn transfers(&mut self, model: &CpuModel, from: &Candidate, to: &Candidate) {
        let missing: Vec<_> = from.missing.iter().chain(&to.missing).copied().collect();
        let model = std::sync::Arc::new(model.without(&missing));
        let way = format!("{}->{}", from.name, to.name);
        for (name, body) in transfers() {
            if !name.contains(self.only) {
                continue;
            }
            if let Some(why) =
                deviation(from.beneath, name).or(deviation(to.beneath, name)).filter(|_| !self.all)
            {
                self.summary.skipped += 1;
                println!("SKIPPED  {way:10} {name}: {why}");
                continue;
            }
            let source = Bench { engine: from.engine.as_ref(), model: std::sync::Arc::clone(&model) };
            let target = Bench { engine: to.engine.as_ref(), model: std::sync::Arc::clone(&model) };
            let outcome = body(&source, &target);
            self.outcome(&way, name, outcome);
        }
    }
}
