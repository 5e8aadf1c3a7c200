//! One counter of the 8254, as a function of time.
//!
//! Source: Intel 8254 datasheet (231164). A counter is not ticked: it keeps when and from what it started to
//! count, and everything it shows follows from the number of the present input cycle.

use serde::{Deserialize, Serialize};

/// How a counter counts (control word bits 3:1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Mode {
    /// 0: output rises at terminal count.
    TerminalCount,
    /// 1: a trigger starts a low pulse of the count's length.
    OneShot,
    /// 2: low for one cycle in each period.
    RateGenerator,
    /// 3: high for one half of each period.
    SquareWave,
    /// 4: low for one cycle at terminal count.
    SoftwareStrobe,
    /// 5: as 4, started by a trigger.
    HardwareStrobe,
}

/// Which bytes of a count the port moves (control word bits 5:4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Access {
    Low,
    High,
    Both,
}

/// Saved state of one counter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counter {
    mode: Mode,
    access: Access,
    bcd: bool,
    /// The count register: what the next start loads (0 stands for the largest count).
    reload: u16,
    /// The count in use: 1 to 65536.
    initial: u32,
    /// Input cycle at which `initial` began to count; `None` before a count is written or a trigger comes.
    started: Option<u64>,
    /// Cycles counted before the gate stopped counting.
    counted: u64,
    gate: bool,
    /// A count is written and not yet shown as loaded (status bit 6).
    null_count: bool,
    /// Low byte of a two-byte write, once it is there.
    write_low: Option<u8>,
    /// The next read of a two-byte count gives the high byte.
    read_high: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
}

impl Counter {
    pub(crate) fn new(gate: bool) -> Self {
        Self {
            mode: Mode::TerminalCount,
            access: Access::Both,
            bcd: false,
            reload: 0,
            initial: 0x1_0000,
            started: None,
            counted: 0,
            gate,
            null_count: true,
            write_low: None,
            read_high: false,
            latched_count: None,
            latched_status: None,
        }
    }

    fn modulus(&self) -> u64 {
        if self.bcd { 10_000 } else { 0x1_0000 }
    }

    const fn periodic(&self) -> bool {
        matches!(self.mode, Mode::RateGenerator | Mode::SquareWave)
    }

    const fn triggered(&self) -> bool {
        matches!(self.mode, Mode::OneShot | Mode::HardwareStrobe)
    }

    /// The count register as a number of cycles.
    fn reload_cycles(&self) -> u32 {
        let digits = u32::from(self.reload);
        let value = if self.bcd {
            (0..4).rev().fold(0, |sum, digit| sum * 10 + (digits >> (4 * digit) & 0xF))
        } else {
            digits
        };
        match value {
            0 => self.modulus() as u32,
            // Modes 2 and 3 have no period of 1 (datasheet, "Minimum and maximum initial counts").
            1 if self.periodic() => 2,
            value => value,
        }
    }

    /// Cycles counted since the start.
    fn elapsed(&self, now: u64) -> Option<u64> {
        let started = self.started?;
        let counting = self.gate || self.triggered();
        Some(if counting { self.counted.saturating_add(now.saturating_sub(started)) } else { self.counted })
    }

    fn start(&mut self, now: u64) {
        self.initial = self.reload_cycles();
        self.started = Some(now);
        self.counted = 0;
        self.null_count = false;
    }

    pub(crate) fn write_control(&mut self, value: u8) {
        self.access = match value >> 4 & 3 {
            1 => Access::Low,
            2 => Access::High,
            _ => Access::Both,
        };
        self.mode = match value >> 1 & 7 {
            0 => Mode::TerminalCount,
            1 => Mode::OneShot,
            2 | 6 => Mode::RateGenerator,
            3 | 7 => Mode::SquareWave,
            4 => Mode::SoftwareStrobe,
            _ => Mode::HardwareStrobe,
        };
        self.bcd = value & 1 != 0;
        *self = Self {
            started: None,
            counted: 0,
            null_count: true,
            write_low: None,
            read_high: false,
            latched_count: None,
            latched_status: None,
            ..self.clone()
        };
    }

    pub(crate) fn write(&mut self, value: u8, now: u64) {
        let count = match (self.access, self.write_low.take()) {
            (Access::Low, _) => value.into(),
            (Access::High, _) => u16::from(value) << 8,
            (Access::Both, Some(low)) => u16::from_le_bytes([low, value]),
            (Access::Both, None) => {
                self.write_low = Some(value);
                // In mode 0 the first byte stops the count (datasheet, "Mode 0").
                if self.mode == Mode::TerminalCount {
                    self.started = None;
                }
                return;
            }
        };
        self.reload = count;
        self.null_count = true;
        match self.mode {
            Mode::OneShot | Mode::HardwareStrobe => {}
            Mode::TerminalCount | Mode::SoftwareStrobe => self.start(now),
            // A running periodic counter takes a new count at the end of its period; see `advance`.
            Mode::RateGenerator | Mode::SquareWave => match self.elapsed(now) {
                Some(elapsed) => {
                    self.counted = elapsed % u64::from(self.initial);
                    self.started = Some(now);
                }
                None => self.start(now),
            },
        }
    }

    /// Loads a new count of a periodic counter if its period has ended. Returns the number of the cycle at
    /// which it did.
    pub(crate) fn advance(&mut self, now: u64) -> Option<u64> {
        let elapsed = self.elapsed(now)?;
        if !self.periodic() || !self.null_count || elapsed < self.initial.into() {
            return None;
        }
        let into_next = elapsed - u64::from(self.initial);
        let boundary = now.saturating_sub(into_next);
        self.start(boundary);
        Some(boundary)
    }

    pub(crate) fn set_gate(&mut self, gate: bool, now: u64) {
        if gate == self.gate {
            return;
        }
        if self.triggered() {
            self.gate = gate;
            if gate {
                self.start(now);
            }
            return;
        }
        self.counted = self.elapsed(now).unwrap_or(0);
        self.gate = gate;
        if self.started.is_some() {
            if gate && self.periodic() {
                self.start(now);
            } else {
                self.started = Some(now);
            }
        }
    }

    /// The output at cycle `now`.
    pub(crate) fn output(&self, now: u64) -> bool {
        let Some(elapsed) = self.elapsed(now) else { return self.mode != Mode::TerminalCount };
        let initial = u64::from(self.initial);
        match self.mode {
            Mode::TerminalCount | Mode::OneShot => elapsed >= initial,
            Mode::RateGenerator => !self.gate || elapsed % initial != initial - 1,
            Mode::SquareWave => !self.gate || elapsed % initial < initial.div_ceil(2),
            Mode::SoftwareStrobe | Mode::HardwareStrobe => elapsed != initial,
        }
    }

    /// The level for an edge-sensitive input. The low part of a period is left to the pulse that ends it, so
    /// that a tick which comes late is not taken back at once.
    pub(crate) fn line(&self, now: u64) -> bool {
        self.periodic() || self.output(now)
    }

    /// The cycle of the first rising edge of the output after `after`, if the gate and the count stay.
    pub(crate) fn next_rise(&self, after: u64) -> Option<u64> {
        let started = self.started?;
        if !self.gate && !self.triggered() {
            return None;
        }
        let initial = u64::from(self.initial);
        let elapsed = self.elapsed(after)?;
        let rise = match self.mode {
            Mode::TerminalCount | Mode::OneShot => initial,
            Mode::RateGenerator | Mode::SquareWave => {
                (elapsed / initial).saturating_add(1).saturating_mul(initial)
            }
            Mode::SoftwareStrobe | Mode::HardwareStrobe => initial + 1,
        };
        (rise > elapsed).then(|| started.saturating_add(rise - self.counted))
    }

    /// The counting element as the port shows it.
    fn count(&self, now: u64) -> u16 {
        let Some(elapsed) = self.elapsed(now) else { return self.reload };
        let initial = u64::from(self.initial);
        let value = match self.mode {
            Mode::RateGenerator => initial - elapsed % initial,
            // Counts down by two in each half (datasheet, "Mode 3").
            Mode::SquareWave => {
                let phase = elapsed % initial;
                let half = initial.div_ceil(2);
                let even = initial & !1;
                even.saturating_sub(2 * if phase < half { phase } else { phase - half })
            }
            // After terminal count these wrap around and go on.
            _ => (initial + self.modulus() - elapsed % self.modulus()) % self.modulus(),
        };
        let value = (value % self.modulus()) as u16;
        if self.bcd {
            (0..4).fold(0, |digits, digit| digits | (value / 10u16.pow(digit) % 10) << (4 * digit))
        } else {
            value
        }
    }

    pub(crate) fn latch_count(&mut self, now: u64) {
        if self.latched_count.is_none() {
            self.latched_count = Some(self.count(now));
        }
    }

    pub(crate) fn latch_status(&mut self, now: u64) {
        if self.latched_status.is_some() {
            return;
        }
        let access = match self.access {
            Access::Low => 1,
            Access::High => 2,
            Access::Both => 3,
        };
        let status = u8::from(self.output(now)) << 7
            | u8::from(self.null_count) << 6
            | access << 4
            | (self.mode as u8) << 1
            | u8::from(self.bcd);
        self.latched_status = Some(status);
    }

    pub(crate) fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = self.latched_count.unwrap_or_else(|| self.count(now)).to_le_bytes();
        let (byte, done) = match self.access {
            Access::Low => (low, true),
            Access::High => (high, true),
            Access::Both => {
                self.read_high = !self.read_high;
                if self.read_high { (low, false) } else { (high, true) }
            }
        };
        if done {
            self.latched_count = None;
        }
        byte
    }

    pub(crate) const fn gate(&self) -> bool {
        self.gate
    }

    /// Whether the state is one a counter can be in.
    pub(crate) fn is_valid(&self) -> bool {
        (1..=0x1_0000).contains(&self.initial)
            && !(self.periodic() && self.initial == 1)
            && self.counted <= u64::MAX / 4
            && self.started.is_none_or(|started| started <= u64::MAX / 4)
    }
}
