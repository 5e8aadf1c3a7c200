//! What the structures of an image say: a tree for people and programs, whatever the format.

use serde::{Serialize, Serializer};

/// Something that an image says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// A number; sizes and offsets are in bytes.
    Number(u64),
    /// Yes or no.
    Flag(bool),
    /// A text.
    Text(String),
    /// Facts with names.
    Group(Vec<(&'static str, Fact)>),
    /// Facts of one kind.
    List(Vec<Fact>),
}

impl From<u64> for Fact {
    fn from(v: u64) -> Self {
        Self::Number(v)
    }
}

impl From<u32> for Fact {
    fn from(v: u32) -> Self {
        Self::Number(v.into())
    }
}

impl From<bool> for Fact {
    fn from(v: bool) -> Self {
        Self::Flag(v)
    }
}

impl From<&str> for Fact {
    fn from(v: &str) -> Self {
        Self::Text(v.into())
    }
}

impl From<String> for Fact {
    fn from(v: String) -> Self {
        Self::Text(v)
    }
}

impl Serialize for Fact {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Number(v) => s.serialize_u64(*v),
            Self::Flag(v) => s.serialize_bool(*v),
            Self::Text(v) => s.serialize_str(v),
            Self::Group(facts) => s.collect_map(facts.iter().map(|(name, fact)| (name, fact))),
            Self::List(facts) => s.collect_seq(facts),
        }
    }
}

/// Most runs that are told of.
const MOST_RUNS: usize = 1 << 20;

/// Entries of a block table as runs: blocks in the same state, and in a row if they have places.
#[derive(Debug, Default)]
pub struct Runs {
    runs: Vec<Run>,
    /// Bytes from one block's place to the next one's.
    step: u64,
    all: bool,
    counts: Vec<(&'static str, u64)>,
}

#[derive(Debug)]
struct Run {
    first: u64,
    count: u64,
    state: &'static str,
    place: Option<u64>,
}

impl Runs {
    /// None yet. `all`: tells each run, not only how many entries are in which state.
    pub fn new(step: u64, all: bool) -> Self {
        Self { step, all, ..Self::default() }
    }

    /// The next entry.
    pub fn add(&mut self, block: u64, state: &'static str, place: Option<u64>) {
        match self.counts.iter_mut().find(|(name, _)| *name == state) {
            Some((_, count)) => *count += 1,
            None => self.counts.push((state, 1)),
        }
        if !self.all {
            return;
        }
        let step = self.step;
        let goes_on = |r: &&mut Run| {
            let next = r.place.map(|p| p.wrapping_add(r.count.wrapping_mul(step)));
            r.state == state && r.first + r.count == block && next == place
        };
        if let Some(last) = self.runs.last_mut().filter(goes_on) {
            last.count += 1;
        } else if self.runs.len() < MOST_RUNS {
            self.runs.push(Run { first: block, count: 1, state, place });
        }
    }

    /// What they say: `states`, and `runs` if all were to be told.
    pub fn facts(self) -> Vec<(&'static str, Fact)> {
        let states = self.counts.iter().map(|(name, count)| (*name, Fact::Number(*count))).collect();
        let mut facts = vec![("states", Fact::Group(states))];
        if self.all {
            facts.push(("complete", (self.runs.len() < MOST_RUNS).into()));
            let run = |r: Run| {
                let mut facts =
                    vec![("first", r.first.into()), ("count", r.count.into()), ("state", r.state.into())];
                facts.extend(r.place.map(|place| ("place", place.into())));
                Fact::Group(facts)
            };
            facts.push(("runs", Fact::List(self.runs.into_iter().map(run).collect())));
        }
        facts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_in_a_row_are_one_run() {
        let mut runs = Runs::new(10, true);
        runs.add(0, "here", Some(100));
        runs.add(1, "here", Some(110));
        runs.add(2, "here", Some(130));
        runs.add(3, "zero", None);
        runs.add(4, "zero", None);
        let facts = runs.facts();
        assert_eq!(facts[0].1, Fact::Group(vec![("here", 3u64.into()), ("zero", 2u64.into())]));
        let Fact::List(runs) = &facts[2].1 else { panic!("{facts:?}") };
        assert_eq!(runs.len(), 3);
        assert_eq!(
            runs[2],
            Fact::Group(vec![("first", 3u64.into()), ("count", 2u64.into()), ("state", "zero".into())])
        );
    }
}
