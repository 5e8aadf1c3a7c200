//! Flows of a port whose answers are let pass. Guests make them, and so may others: there are not more than so many.

use std::net::IpAddr;
use std::time::Duration;

use ahash::AHashMap as HashMap;

use crate::rate::Nanos;

/// Flows of a port that wait for answers one way, at most. Each way has its own: others cannot take the room of the guest's.
const MOST: usize = 8192;
/// How often a full table is looked through for what is over: else each frame of a new flow would have it done.
const LOOK: Nanos = 1_000_000_000;

/// A flow, as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Flow {
    pub local: IpAddr,
    pub remote: IpAddr,
    pub protocol: u8,
    pub ports: Option<(u16, u16)>,
}

/// Flows whose answers go one way.
#[derive(Clone, Debug, Default)]
pub(crate) struct Flows {
    /// Until when, and for how long after each frame.
    all: HashMap<Flow, (Nanos, Nanos)>,
    /// When it is looked for those that are over, at the earliest.
    look: Nanos,
}

impl Flows {
    /// Whether a frame is an answer; that keeps its flow alive.
    pub fn has(&mut self, flow: &Flow, now: Nanos) -> bool {
        match self.all.get_mut(flow) {
            Some((until, idle)) if *until > now => {
                *until = now.saturating_add(*idle);
                true
            }
            _ => false,
        }
    }

    /// Answers may come from now on, until there was nothing for so long. When there is no room, they may not.
    pub fn expect(&mut self, flow: Flow, idle: Duration, now: Nanos) {
        let idle = idle.as_nanos().try_into().unwrap_or(Nanos::MAX);
        let value = (now.saturating_add(idle), idle);
        if let Some(known) = self.all.get_mut(&flow) {
            *known = value;
            return;
        }
        if self.all.len() >= MOST && now >= self.look {
            self.look = now.saturating_add(LOOK);
            self.all.retain(|_, (until, _)| *until > now);
        }
        if self.all.len() < MOST {
            self.all.insert(flow, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_table_is_looked_through_once_a_second() {
        let flow = |n: usize| Flow {
            local: [10, 0, 0, 1].into(),
            remote: [10, 0, 0, 2].into(),
            protocol: 17,
            ports: Some((n as u16, 53)),
        };
        let mut flows = Flows::default();
        let (short, long) = (Duration::from_millis(100), Duration::from_secs(60));
        for n in 0..MOST {
            flows.expect(flow(n), if n < 10 { short } else { long }, 0);
        }
        flows.expect(flow(MOST), long, 50_000_000);
        assert!(!flows.has(&flow(MOST), 50_000_000), "there is no room, and it was looked for");
        // Ten are over by now, which is not noticed before a second has passed.
        flows.expect(flow(MOST), long, 200_000_000);
        assert!(!flows.has(&flow(MOST), 200_000_000));
        flows.expect(flow(10), long, 200_000_000);
        assert!(flows.has(&flow(10), 60_100_000_000), "what is known needs no room");
        flows.expect(flow(MOST), long, 1_050_000_000);
        assert!(flows.has(&flow(MOST), 1_050_000_000));
    }
}
