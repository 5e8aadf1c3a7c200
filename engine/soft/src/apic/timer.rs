//! The local APIC's timer (SDM vol. 3A, 11.5.4): counts down a divided bus clock, or waits for a TSC value.

/// What the LVT timer entry's bits 18:17 say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    OneShot,
    Periodic,
    TscDeadline,
    /// Encoding 3: the timer stands.
    Reserved,
}

impl Mode {
    pub fn of(lvt: u32) -> Self {
        match lvt >> 17 & 3 {
            0 => Self::OneShot,
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::Reserved,
        }
    }
}

/// The timer. Times are guest TSC values.
#[derive(Clone, Debug)]
pub struct Timer {
    tsc_hz: u64,
    bus_hz: u64,
    mode: Mode,
    /// Divide configuration register, bits 3, 1 and 0.
    divide: u32,
    /// Initial count register.
    initial: u32,
    /// The count runs: it was `count` (not 0) at `start`.
    running: Option<Running>,
    /// IA32_TSC_DEADLINE; 0: disarmed.
    tsc_deadline: u64,
}

#[derive(Clone, Copy, Debug)]
struct Running {
    start: u64,
    count: u32,
}

impl Timer {
    /// A timer at reset. Rates are in Hz and not zero.
    pub fn new(tsc_hz: u64, bus_hz: u64) -> Self {
        let rate = |hz: u64| hz.max(1);
        Self {
            tsc_hz: rate(tsc_hz),
            bus_hz: rate(bus_hz),
            mode: Mode::OneShot,
            divide: 0,
            initial: 0,
            running: None,
            tsc_deadline: 0,
        }
    }

    /// Back to reset.
    pub fn reset(&mut self) {
        *self = Self::new(self.tsc_hz, self.bus_hz);
    }

    /// Bus clocks per count: 2, 4, … 128, 1.
    fn divisor(&self) -> u64 {
        let field = self.divide >> 1 & 4 | self.divide & 3;
        1 << ((field + 1) & 7)
    }

    /// TSC ticks that so many counts last, rounded up.
    fn ticks(&self, count: u32) -> u64 {
        let bus = u128::from(count) * u128::from(self.divisor());
        let ticks = (bus * u128::from(self.tsc_hz)).div_ceil(u128::from(self.bus_hz));
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }

    /// Whole counts that so many TSC ticks last.
    fn counts(&self, ticks: u64) -> u64 {
        let counts = u128::from(ticks) * u128::from(self.bus_hz)
            / (u128::from(self.tsc_hz) * u128::from(self.divisor()));
        u64::try_from(counts).unwrap_or(u64::MAX)
    }

    /// When it fires, if it runs.
    pub fn deadline(&self) -> Option<u64> {
        match self.mode {
            Mode::TscDeadline => Some(self.tsc_deadline).filter(|&d| d != 0),
            Mode::Reserved => None,
            Mode::OneShot | Mode::Periodic => {
                self.running.map(|r| r.start.saturating_add(self.ticks(r.count)))
            }
        }
    }

    /// Whether it has fired by now. A periodic timer goes on; periods that were missed altogether are lost, as they
    /// are while an interrupt is pending already.
    pub fn expire(&mut self, now: u64) -> bool {
        let Some(deadline) = self.deadline().filter(|&d| now >= d) else { return false };
        match self.mode {
            Mode::Periodic if self.initial != 0 => {
                let period = self.ticks(self.initial).max(1);
                let start = now - (now - deadline) % period;
                self.running = Some(Running { start, count: self.initial });
            }
            _ => {
                self.running = None;
                self.tsc_deadline = 0;
            }
        }
        true
    }

    /// Current count register. Call [`Timer::expire`] first.
    pub fn current(&self, now: u64) -> u32 {
        let Some(r) = self.running.filter(|_| matches!(self.mode, Mode::OneShot | Mode::Periodic)) else {
            return 0;
        };
        let gone = self.counts(now.saturating_sub(r.start));
        u64::from(r.count).saturating_sub(gone) as u32
    }

    pub fn initial(&self) -> u32 {
        self.initial
    }

    /// Writes the initial count register: the count starts over; 0 stops it. Ignored in TSC-deadline mode.
    pub fn set_initial(&mut self, value: u32, now: u64) {
        if self.mode != Mode::TscDeadline {
            self.initial = value;
            self.run(value, now);
        }
    }

    fn run(&mut self, count: u32, now: u64) {
        self.running = (count != 0).then_some(Running { start: now, count });
    }

    pub fn divide(&self) -> u32 {
        self.divide
    }

    /// Writes the divide configuration register; a running count goes on at the new pace.
    pub fn set_divide(&mut self, value: u32, now: u64) {
        if value & 0b1011 != self.divide {
            let left = self.current(now);
            self.divide = value & 0b1011;
            self.run(left, now);
        }
    }

    /// The mode changed with the LVT entry. Changing to or from TSC-deadline mode disarms the timer (11.5.4.1).
    pub fn set_mode(&mut self, mode: Mode) {
        if mode != self.mode && (mode == Mode::TscDeadline || self.mode == Mode::TscDeadline) {
            self.running = None;
            self.initial = 0;
            self.tsc_deadline = 0;
        }
        self.mode = mode;
    }

    /// IA32_TSC_DEADLINE; zero in other modes.
    pub fn tsc_deadline(&self) -> u64 {
        self.tsc_deadline
    }

    /// Writes IA32_TSC_DEADLINE; ignored in other modes.
    pub fn set_tsc_deadline(&mut self, value: u64) {
        if self.mode == Mode::TscDeadline {
            self.tsc_deadline = value;
        }
    }

    /// The TSC jumped by `delta` (modulo 2^64): a count goes on as if it had not; a TSC deadline stays where it is.
    pub fn tsc_moved(&mut self, delta: u64) {
        if let Some(r) = &mut self.running {
            r.start = r.start.wrapping_add(delta);
        }
    }

    /// Sets the registers as they were saved at `now`. Mode and divider are set before.
    pub fn restore(&mut self, initial: u32, current: u32, tsc_deadline: u64, now: u64) {
        self.running = None;
        if self.mode == Mode::TscDeadline {
            (self.initial, self.tsc_deadline) = (initial, tsc_deadline);
        } else {
            (self.initial, self.tsc_deadline) = (initial, 0);
            self.run(current, now);
        }
    }
}
