//! The best figures.

use serde::Serialize;

use crate::guests::Way;
use crate::pair::Figures;
use crate::{AnyResult, Format};

/// What is wanted of one processor: frames in a second of the shortest, Gbit/s of the others.
const WANTED: [(usize, f64); 3] = [(64, 5.0), (1514, 20.0), (65_226, 30.0)];

#[derive(Serialize)]
struct Alone {
    length: usize,
    /// Nanoseconds of a processor for a frame.
    cost: f64,
}

#[derive(Serialize)]
struct Policy {
    name: &'static str,
    cost: f64,
}

#[derive(Serialize)]
struct Pair {
    length: usize,
    way: &'static str,
    frames: f64,
    gigabits: f64,
    cost: f64,
}

#[derive(Serialize)]
struct GuestLine {
    way: &'static str,
    what: String,
    /// Gbit/s, or turns in a second, of each side.
    sides: Vec<(&'static str, f64)>,
}

impl GuestLine {
    fn of(&self, side: &str) -> Option<f64> {
        self.sides.iter().find(|s| s.0 == side).map(|s| s.1)
    }
}

/// All that was measured, the best of all rounds.
#[derive(Default, Serialize)]
pub struct Table {
    alone: Vec<Alone>,
    policy: Vec<Policy>,
    pair: Vec<Pair>,
    guests: Vec<GuestLine>,
}

impl Table {
    /// The data plane alone.
    pub fn add_alone(&mut self, length: usize, cost: f64) {
        match self.alone.iter_mut().find(|l| l.length == length) {
            Some(line) => line.cost = line.cost.min(cost),
            None => self.alone.push(Alone { length, cost }),
        }
    }

    /// With policy.
    pub fn add_policy(&mut self, name: &'static str, cost: f64) {
        match self.policy.iter_mut().find(|l| l.name == name) {
            Some(line) => line.cost = line.cost.min(cost),
            None => self.policy.push(Policy { name, cost }),
        }
    }

    /// From worker to worker.
    pub fn add_pair(&mut self, length: usize, way: &'static str, figures: &Figures) {
        let gigabits = figures.bytes * 8.0 / 1e9;
        match self.pair.iter_mut().find(|l| l.length == length && l.way == way) {
            Some(line) => {
                line.frames = line.frames.max(figures.frames);
                line.gigabits = line.gigabits.max(gigabits);
                line.cost = line.cost.min(figures.cost);
            }
            None => {
                self.pair.push(Pair { length, way, frames: figures.frames, gigabits, cost: figures.cost })
            }
        }
    }

    /// With a guest.
    pub fn add_guest(&mut self, way: Way, side: &'static str, what: &str, rate: f64) {
        let at = self.guests.iter().position(|l| l.way == way.name() && l.what == what);
        let at = at.unwrap_or_else(|| {
            self.guests.push(GuestLine { way: way.name(), what: what.into(), sides: Vec::new() });
            self.guests.len() - 1
        });
        let sides = &mut self.guests[at].sides;
        match sides.iter_mut().find(|s| s.0 == side) {
            Some(best) => best.1 = best.1.max(rate),
            None => sides.push((side, rate)),
        }
    }

    /// Prints it.
    pub fn print(&self, format: Format) -> AnyResult<()> {
        if format == Format::Json {
            println!("{}", serde_json::to_string_pretty(self)?);
            return Ok(());
        }
        self.print_alone();
        self.print_policy();
        self.print_pair();
        self.print_guests();
        Ok(())
    }

    fn print_alone(&self) {
        if self.alone.is_empty() {
            return;
        }
        println!("| the switch alone, one processor | ns a frame | Mpps | Gbit/s | to what is wanted |");
        println!("|---|---|---|---|---|");
        for Alone { length, cost } in &self.alone {
            let (rate, gigabits) = (1e3 / cost, *length as f64 * 8.0 / cost);
            let wanted = WANTED.iter().find(|(l, _)| l == length).map_or(f64::NAN, |w| w.1);
            let figure = if *length == WANTED[0].0 { rate } else { gigabits };
            println!("| {length} B | {cost:.0} | {rate:.2} | {gigabits:.1} | {:.1} |", figure / wanted);
        }
    }

    fn print_policy(&self) {
        let Some(none) = self.policy.first().map(|l| l.cost) else { return };
        println!("\n| policy, 64 B | ns a frame | more than none |\n|---|---|---|");
        for Policy { name, cost } in &self.policy {
            println!("| {name} | {cost:.0} | {:.0} |", cost - none);
        }
    }

    fn print_pair(&self) {
        if self.pair.is_empty() {
            return;
        }
        println!(
            "\n| worker to worker | way | kpps | Gbit/s | ns of processors a frame | switch to bridge |"
        );
        println!("|---|---|---|---|---|---|");
        for line in &self.pair {
            let peer = self.pair.iter().find(|l| l.length == line.length && l.way == "bridge");
            let ratio = peer
                .filter(|_| line.way == "switch")
                .map_or("-".into(), |p| format!("{:.1}", line.frames / p.frames));
            let (kpps, gigabits) = (line.frames / 1e3, line.gigabits);
            println!(
                "| {} B | {} | {kpps:.0} | {gigabits:.1} | {:.0} | {ratio} |",
                line.length, line.way, line.cost
            );
        }
    }

    /// Gbit/s, or turns in a second.
    fn print_guests(&self) {
        if self.guests.is_empty() {
            return;
        }
        println!("\n| guest | Gbit/s, turns/s | netvsc | virtio | TCG | netvsc to TCG | virtio to TCG |");
        println!("|---|---|---|---|---|---|---|");
        for line in &self.guests {
            let of = |side| line.of(side).unwrap_or(f64::NAN);
            let (netvsc, virtio, tcg) = (of("netvsc"), of("virtio"), of("TCG"));
            let digits = if netvsc < 100.0 { 2 } else { 0 };
            println!(
                "| {} | {} | {netvsc:.digits$} | {virtio:.digits$} | {tcg:.digits$} | {:.2} | {:.2} |",
                line.way,
                line.what,
                netvsc / tcg,
                virtio / tcg
            );
        }
        let off = |l: &GuestLine| Some((l.of("netvsc")?, l.of("offloads off")?));
        if let Some((on, off)) = self.guests.iter().find_map(off) {
            println!("\nnetvsc with offloads off: {off:.2} Gbit/s; with them {:.1} times that", on / off);
        }
    }
}
