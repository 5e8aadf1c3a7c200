//! Synthetic timers: four of each vCPU, in reference time (TLFS 12.3).

use serde::{Deserialize, Serialize};

/// Timers of a vCPU.
pub const TIMERS: usize = 4;

const ENABLED: u64 = 1 << 0;
const PERIODIC: u64 = 1 << 1;
const AUTO_ENABLE: u64 = 1 << 3;
/// Interrupts the vCPU with a vector (bits 11:4) instead of a message by a SINT (bits 19:16).
const DIRECT: u64 = 1 << 12;
/// All of them, and "lazy", which allows to be late, as we never are on purpose.
const WRITABLE: u64 = 0xf_1fff;

/// Shortest period, in reference time: a guest that asks for less shall not keep the host busy. 100 us, as Hyper-V has it.
const PERIOD_MIN: u64 = 1000;

/// Message of a timer that has expired (TLFS 12.3.4).
pub const EXPIRED: u32 = 0x8000_0010;

/// How a timer tells the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// By an interrupt with this vector.
    Direct(u8),
    /// By a message with this payload, from this SINT.
    Message {
        /// Which.
        sint: usize,
        /// When it was to expire, in reference time.
        due: u64,
    },
}

/// The registers of one timer, and when it is due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stimer {
    config: u64,
    count: u64,
    /// In reference time.
    due: Option<u64>,
}

impl Stimer {
    pub fn config(&self) -> u64 {
        self.config
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    /// When it is due, in reference time.
    pub fn due(&self) -> Option<u64> {
        self.due
    }

    pub fn set_config(&mut self, value: u64, now: u64) {
        self.config = value & WRITABLE;
        if self.config & DIRECT == 0 && self.sint() == 0 {
            // SINT 0 is the hypervisor's own.
            self.config &= !ENABLED;
        }
        self.start(now);
    }

    pub fn set_count(&mut self, value: u64, now: u64) {
        self.count = value;
        if value == 0 {
            self.config &= !ENABLED;
        } else if self.config & AUTO_ENABLE != 0 {
            self.config |= ENABLED;
        }
        self.start(now);
    }

    fn sint(&self) -> usize {
        (self.config >> 16 & 0xf) as usize
    }

    fn period(&self) -> u64 {
        self.count.max(PERIOD_MIN)
    }

    fn start(&mut self, now: u64) {
        let due = if self.config & PERIODIC != 0 { now.saturating_add(self.period()) } else { self.count };
        self.due = (self.config & ENABLED != 0 && self.count != 0).then_some(due);
    }

    /// If it is due by now: what to do. A periodic timer goes on; what it missed meanwhile it does not make up for.
    pub fn expire(&mut self, now: u64) -> Option<Expiry> {
        let due = self.due.filter(|&due| due <= now)?;
        self.due = None;
        if self.config & PERIODIC != 0 {
            let missed = (now - due) / self.period();
            self.due = Some(due.saturating_add(self.period().saturating_mul(missed + 1)));
        } else {
            self.config &= !ENABLED;
        }
        Some(match self.config & DIRECT {
            0 => Expiry::Message { sint: self.sint(), due },
            _ => Expiry::Direct((self.config >> 4) as u8),
        })
    }

    /// Whether a timer can be so.
    pub fn is_sane(&self) -> bool {
        self.config & !WRITABLE == 0 && (self.due.is_none() || self.count != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_and_again_and_again() {
        let mut t = Stimer::default();
        t.set_config(ENABLED | AUTO_ENABLE | DIRECT | 0xed << 4, 5);
        assert_eq!(t.due(), None, "there is no count yet");
        t.set_count(100, 5);
        assert_eq!((t.due(), t.expire(99)), (Some(100), None));
        assert_eq!(t.expire(100), Some(Expiry::Direct(0xed)));
        assert_eq!((t.config() & ENABLED, t.expire(200)), (0, None));
        t.set_count(300, 200);
        assert_eq!((t.config() & ENABLED, t.due()), (ENABLED, Some(300)));
        t.set_count(0, 200);
        assert_eq!((t.config() & ENABLED, t.due()), (0, None));

        t.set_config(ENABLED | PERIODIC | 3 << 16, 0);
        t.set_count(2000, 1000);
        t.set_config(ENABLED | PERIODIC | 3 << 16, 1000);
        assert_eq!(t.expire(7500), Some(Expiry::Message { sint: 3, due: 3000 }));
        assert_eq!(t.due(), Some(9000));
        t.set_count(1, 0);
        assert_eq!(t.due(), Some(PERIOD_MIN));
        t.set_config(ENABLED, 0);
        assert_eq!(t.config() & ENABLED, 0, "messages by SINT 0 there are none");
    }
}
