//! How fast guests are sent to: when to send again (RFC 6298), and how much at a time once something was lost (RFC 5681, 6582).
//!
//! Where nothing is lost there is no limit but the guest's window: a link that is full says so.

use crate::slots::{MILLISECOND, Nanos, SECOND};

const FIRST: Nanos = SECOND;
const LEAST: Nanos = 200 * MILLISECOND;
const MOST: Nanos = 60 * SECOND;
/// A window that is none.
pub const NO_LIMIT: u32 = 4 << 20;
/// Acknowledgements of the same number that say that something was lost.
const DUPLICATES: u32 = 3;

/// The time that answers take.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    smooth: Option<(Nanos, Nanos)>,
    backoff: u32,
    /// A number whose acknowledgement is waited for, and when it was sent.
    timed: Option<(u32, Nanos)>,
}

impl Clock {
    pub fn new() -> Self {
        Self { smooth: None, backoff: 0, timed: None }
    }

    /// How long to wait for an answer.
    pub fn patience(&self) -> Nanos {
        let once = self.smooth.map_or(FIRST, |(rtt, var)| (rtt + 4 * var).max(LEAST));
        once.checked_shl(self.backoff).unwrap_or(MOST).clamp(LEAST, MOST)
    }

    /// Something was sent for the first time, up to this number.
    pub fn sent(&mut self, up_to: u32, now: Nanos) {
        self.timed.get_or_insert((up_to, now));
    }

    /// Something is sent again: answers tell no time any more (Karn).
    pub fn again(&mut self) {
        self.timed = None;
    }

    /// No answer came in time.
    pub fn late(&mut self) {
        self.timed = None;
        self.backoff = (self.backoff + 1).min(16);
    }

    /// Everything up to this number has arrived.
    pub fn answered(&mut self, up_to: u32, now: Nanos) {
        self.backoff = 0;
        if let Some((number, when)) = self.timed
            && up_to.wrapping_sub(number) as i32 >= 0
        {
            self.timed = None;
            let rtt = now.saturating_sub(when);
            self.smooth = Some(match self.smooth {
                None => (rtt, rtt / 2),
                Some((smooth, var)) => ((smooth * 7 + rtt) / 8, (var * 3 + smooth.abs_diff(rtt)) / 4),
            });
        }
    }
}

/// How much may be under way.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    window: u32,
    threshold: u32,
    duplicates: u32,
    /// Something was lost: what was sent up to this number has to arrive first.
    recover: Option<u32>,
}

impl Pace {
    pub fn new() -> Self {
        Self { window: NO_LIMIT, threshold: NO_LIMIT, duplicates: 0, recover: None }
    }

    /// Bytes that may be under way.
    pub fn window(&self) -> u32 {
        self.window
    }

    fn slow(&mut self, flight: u32, mss: u32) {
        self.threshold = (flight / 2).max(2 * mss);
    }

    /// So many bytes have arrived, up to a number; whether the first that has not is to be sent again.
    pub fn arrived(&mut self, bytes: u32, up_to: u32, mss: u32) -> bool {
        self.duplicates = 0;
        if let Some(recover) = self.recover {
            if (up_to.wrapping_sub(recover) as i32) < 0 {
                return true;
            }
            self.recover = None;
            self.window = self.threshold;
        } else if self.window < NO_LIMIT {
            let more = match self.window < self.threshold {
                true => bytes,
                false => (u64::from(mss) * u64::from(bytes) / u64::from(self.window)).max(1) as u32,
            };
            self.window = self.window.saturating_add(more).min(NO_LIMIT);
        }
        false
    }

    /// The same number was acknowledged again; whether the first byte that has not arrived is to be sent again.
    pub fn duplicate(&mut self, flight: u32, high: u32, mss: u32) -> bool {
        self.duplicates = self.duplicates.saturating_add(1);
        if self.duplicates != DUPLICATES || self.recover.is_some() {
            return false;
        }
        self.slow(flight, mss);
        self.window = self.threshold;
        self.recover = Some(high);
        true
    }

    /// No answer came: all is sent again, slowly.
    pub fn late(&mut self, flight: u32, mss: u32) {
        self.slow(flight, mss);
        self.window = 2 * mss;
        (self.duplicates, self.recover) = (0, None);
    }
}
