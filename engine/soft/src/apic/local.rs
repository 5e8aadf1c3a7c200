//! The registers of a local APIC.

use vireo_core::model::APIC_BUS_HZ;
use vireo_core::state::{ApicState, Element, msr};

use super::message::{DeliveryMode, Message};
use super::route::Routing;
use super::timer::{Mode, Timer};
use super::vectors::VectorSet;
use crate::clock::host_tsc_hz;

/// Register offsets in the page; x2APIC MSR = 0x800 + offset / 16 (SDM vol. 3A, tables 11-1 and 11-6).
#[allow(missing_docs)]
pub mod reg {
    pub const ID: u32 = 0x20;
    pub const VERSION: u32 = 0x30;
    pub const TPR: u32 = 0x80;
    pub const APR: u32 = 0x90;
    pub const PPR: u32 = 0xa0;
    pub const EOI: u32 = 0xb0;
    pub const LDR: u32 = 0xd0;
    pub const DFR: u32 = 0xe0;
    pub const SVR: u32 = 0xf0;
    pub const ISR: u32 = 0x100;
    pub const TMR: u32 = 0x180;
    pub const IRR: u32 = 0x200;
    pub const ESR: u32 = 0x280;
    pub const ICR: u32 = 0x300;
    pub const ICR_HIGH: u32 = 0x310;
    pub const LVT_TIMER: u32 = 0x320;
    pub const LVT_ERROR: u32 = 0x370;
    pub const TIMER_INITIAL: u32 = 0x380;
    pub const TIMER_CURRENT: u32 = 0x390;
    pub const TIMER_DIVIDE: u32 = 0x3e0;
    pub const SELF_IPI: u32 = 0x3f0;
}

/// Indices of [`Apic::lvt`].
const TIMER: usize = 0;
const LINT0: usize = 3;
const ERROR: usize = 5;

/// LVT bit: masked.
const MASKED: u32 = 1 << 16;
/// Bits of IA32_APIC_BASE.
const ENABLE: u64 = 1 << 11;
const X2APIC: u64 = 1 << 10;
const BSP: u64 = 1 << 8;
/// Bits of ESR (11.5.3).
const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
const ILLEGAL_REGISTER: u32 = 1 << 7;
/// Version 0x14, six LVT entries.
const VERSION: u32 = 0x0005_0014;

/// A write that the processor refuses with #GP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// What a register write asks of the rest of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// A level-triggered interrupt of this vector ended: tell the IOAPIC.
    Eoi(u8),
    /// Route this message.
    Send(Message),
}

/// The local APIC of one vCPU.
#[derive(Clone, Debug)]
pub struct Apic {
    base: u64,
    id: u32,
    tpr: u8,
    ldr: u32,
    dfr: u32,
    svr: u32,
    isr: VectorSet,
    tmr: VectorSet,
    irr: VectorSet,
    esr: u32,
    /// Errors since ESR was last written.
    errors: u32,
    icr: u64,
    /// Timer, thermal, performance, LINT0, LINT1, error.
    lvt: [u32; 6],
    timer: Timer,
}

impl Apic {
    /// At RESET.
    pub fn new(id: u32) -> Self {
        let mut apic = Self {
            base: 0,
            id,
            tpr: 0,
            ldr: 0,
            dfr: 0,
            svr: 0,
            isr: VectorSet::default(),
            tmr: VectorSet::default(),
            irr: VectorSet::default(),
            esr: 0,
            errors: 0,
            icr: 0,
            lvt: [0; 6],
            timer: Timer::new(host_tsc_hz(), APIC_BUS_HZ),
        };
        apic.load(&ApicState::at_reset(id), 0);
        apic
    }

    /// INIT: all registers as at RESET; base and id are kept.
    pub fn init(&mut self) {
        *self = Self { base: self.base, ..Self::new(self.id) };
    }

    /// Whether the register page is at this guest-physical address.
    #[inline(always)]
    pub fn owns(&self, gpa: u64) -> bool {
        self.base & (ENABLE | X2APIC) == ENABLE && gpa >> 12 == (self.base & 0x000f_ffff_ffff_f000) >> 12
    }

    /// IA32_APIC_BASE.
    pub fn base(&self) -> u64 {
        self.base
    }
    /// Globally enabled.
    pub fn enabled(&self) -> bool {
        self.base & ENABLE != 0
    }
    /// In x2APIC mode.
    pub fn x2apic(&self) -> bool {
        self.base & X2APIC != 0
    }
    /// Enabled by software (SVR bit 8) as well.
    fn accepts(&self) -> bool {
        self.enabled() && self.svr & 0x100 != 0
    }

    /// Writes IA32_APIC_BASE (11.4.3, 11.12.5: legal transitions).
    pub fn set_base(&mut self, value: u64, physical_bits: u32) -> Result<(), Refused> {
        let reserved = !((1u64 << physical_bits) - 1) | 0x2ff;
        let (was, now) = (self.base & (ENABLE | X2APIC), value & (ENABLE | X2APIC));
        let both = ENABLE | X2APIC;
        if value & reserved != 0 || now == X2APIC || was == both && now == ENABLE || was == 0 && now == both {
            return Err(Refused);
        }
        if was != 0 && now == 0 {
            self.init();
        }
        self.base = value & !BSP | self.base & BSP;
        Ok(())
    }

    /// Where it is to be found.
    pub fn routing(&self) -> Routing {
        Routing {
            id: self.id,
            logical: (self.ldr >> 24) as u8,
            flat: self.dfr >> 28 == 0xf,
            x2apic: self.x2apic(),
            enabled: self.enabled(),
            software_enabled: self.svr & 0x100 != 0,
            priority: self.tpr,
        }
    }

    /// An interrupt arrived.
    pub fn raise(&mut self, vector: u8, level: bool) {
        if vector < 16 {
            self.error(RECEIVE_ILLEGAL_VECTOR);
        } else if self.accepts() {
            self.irr.insert(vector);
            self.tmr.set(vector, level);
        }
    }

    fn error(&mut self, bit: u32) {
        self.errors |= bit;
        let lvt = self.lvt[ERROR];
        if lvt & MASKED == 0 && lvt as u8 >= 16 && self.accepts() {
            self.irr.insert(lvt as u8);
            self.tmr.remove(lvt as u8);
        }
    }

    /// Processor priority (11.8.3.1).
    fn ppr(&self) -> u8 {
        let isr = self.isr.highest().unwrap_or(0);
        if self.tpr >> 4 >= isr >> 4 { self.tpr } else { isr & 0xf0 }
    }

    /// The interrupt to deliver next, if its priority is above the processor's.
    pub fn deliverable(&self) -> Option<u8> {
        self.irr.highest().filter(|v| v >> 4 > self.ppr() >> 4)
    }

    /// The processor takes this interrupt: from IRR to ISR.
    pub fn accept(&mut self, vector: u8) {
        self.irr.remove(vector);
        self.isr.insert(vector);
    }

    fn end_of_interrupt(&mut self) -> Effect {
        let Some(v) = self.isr.highest() else { return Effect::None };
        self.isr.remove(v);
        if self.tmr.has(v) { Effect::Eoi(v) } else { Effect::None }
    }

    /// Task priority class, as CR8 shows it.
    pub fn cr8(&self) -> u64 {
        u64::from(self.tpr >> 4)
    }
    /// Sets the task priority class, 0 to 15.
    pub fn set_cr8(&mut self, v: u64) {
        self.tpr = (v as u8 & 15) << 4;
    }

    /// Whether LINT0 passes the PIC's interrupts (virtual wire mode, or the APIC is off).
    pub fn passes_extint(&self) -> bool {
        !self.enabled() || self.lvt[LINT0] & (MASKED | 0x700) == 0x700
    }

    /// Reads a register at guest time `now`. `None`: there is none.
    pub fn read(&self, offset: u32, now: u64) -> Option<u32> {
        let word = |set: &VectorSet| set.word((offset >> 4 & 7) as usize);
        Some(match offset {
            reg::ID if self.x2apic() => self.id,
            reg::ID => self.id << 24,
            reg::VERSION => VERSION,
            reg::TPR => u32::from(self.tpr),
            reg::APR => 0,
            reg::PPR => u32::from(self.ppr()),
            reg::LDR if self.x2apic() => Routing::x2apic_logical(self.id),
            reg::LDR => self.ldr,
            reg::DFR if !self.x2apic() => self.dfr,
            reg::SVR => self.svr,
            reg::ISR..=0x170 => word(&self.isr),
            reg::TMR..=0x1f0 => word(&self.tmr),
            reg::IRR..=0x270 => word(&self.irr),
            reg::ESR => self.esr,
            reg::ICR => self.icr as u32,
            reg::ICR_HIGH if !self.x2apic() => (self.icr >> 32) as u32,
            reg::LVT_TIMER..=reg::LVT_ERROR => self.lvt[((offset - reg::LVT_TIMER) >> 4) as usize],
            reg::TIMER_INITIAL => self.timer.initial(),
            reg::TIMER_CURRENT => self.timer.current(now),
            reg::TIMER_DIVIDE => self.timer.divide(),
            _ => return None,
        })
    }

    /// Writes a 32-bit register at guest time `now`. `None`: there is none.
    pub fn write(&mut self, offset: u32, v: u32, now: u64) -> Option<Effect> {
        match offset {
            reg::ID if !self.x2apic() => {}
            reg::TPR => self.tpr = v as u8,
            reg::EOI => return Some(self.end_of_interrupt()),
            reg::LDR if !self.x2apic() => self.ldr = v & 0xff00_0000,
            reg::DFR if !self.x2apic() => self.dfr = v | 0x0fff_ffff,
            reg::SVR => {
                self.svr = v & 0x1ff;
                if v & 0x100 == 0 {
                    self.lvt.iter_mut().for_each(|l| *l |= MASKED);
                }
            }
            reg::ESR => (self.esr, self.errors) = (self.errors, 0),
            reg::ICR => return Some(self.write_icr(self.icr & !0xffff_ffff | u64::from(v))),
            reg::ICR_HIGH if !self.x2apic() => self.icr = self.icr & 0xffff_ffff | u64::from(v) << 32,
            reg::LVT_TIMER..=reg::LVT_ERROR => self.write_lvt(((offset - reg::LVT_TIMER) >> 4) as usize, v),
            reg::TIMER_INITIAL => self.timer.set_initial(v, now),
            reg::TIMER_DIVIDE => self.timer.set_divide(v, now),
            reg::SELF_IPI if self.x2apic() => self.raise(v as u8, false),
            reg::VERSION | reg::APR | reg::PPR | reg::ISR..=0x270 | reg::TIMER_CURRENT => {
                self.error(ILLEGAL_REGISTER);
            }
            _ => {
                self.error(ILLEGAL_REGISTER);
                return None;
            }
        }
        Some(Effect::None)
    }

    fn write_lvt(&mut self, i: usize, v: u32) {
        // Delivery status (12) and remote IRR (14) are read-only; the timer has its mode in bits 17 and 18.
        const WRITABLE: [u32; 6] = [0x7_00ff, 0x1_07ff, 0x1_07ff, 0x1_a7ff, 0x1_a7ff, 0x1_00ff];
        self.lvt[i] = v & WRITABLE[i] | if self.svr & 0x100 == 0 { MASKED } else { 0 };
        if i == TIMER {
            self.timer.set_mode(Mode::of(v));
        }
    }

    /// Interrupt command register.
    pub fn icr(&self) -> u64 {
        self.icr
    }

    /// Writes the interrupt command register.
    pub fn write_icr(&mut self, v: u64) -> Effect {
        // Delivery status is always idle here: messages arrive at once.
        self.icr = v & !(1 << 12);
        match Message::from_icr(self.icr, self.x2apic()) {
            Some(m) if m.mode.has_vector() && m.vector < 16 => {
                self.error(SEND_ILLEGAL_VECTOR);
                Effect::None
            }
            // System-management mode does not exist here.
            Some(m) if m.mode != DeliveryMode::Smi => Effect::Send(m),
            _ => Effect::None,
        }
    }

    /// Guest TSC at which the timer fires next.
    pub fn deadline(&self) -> Option<u64> {
        self.timer.deadline()
    }
    /// IA32_TSC_DEADLINE; zero unless the timer is in that mode.
    pub fn tsc_deadline(&self) -> u64 {
        self.timer.tsc_deadline()
    }
    /// Writes IA32_TSC_DEADLINE; ignored unless the timer is in that mode.
    pub fn set_tsc_deadline(&mut self, v: u64) {
        self.timer.set_tsc_deadline(v);
    }
    /// Raises the timer's interrupt if its deadline has passed; whether it had.
    pub fn serve_timer(&mut self, now: u64) -> bool {
        let fired = self.timer.expire(now);
        let lvt = self.lvt[TIMER];
        if fired && lvt & MASKED == 0 {
            self.raise(lvt as u8, false);
        }
        fired
    }

    /// The guest's TSC jumped by `delta` (modulo 2^64).
    pub fn tsc_moved(&mut self, delta: u64) {
        self.timer.tsc_moved(delta);
    }

    /// As saved state, at guest time `now`.
    pub fn save(&self, now: u64) -> ApicState {
        let mut s =
            ApicState { base: self.base, page: vec![0; ApicState::PAGE], tsc_deadline: self.tsc_deadline() };
        for offset in (0..ApicState::PAGE as u32).step_by(16) {
            if let Some(v) = self.read(offset, now) {
                s.set_register(offset as usize, v);
            }
        }
        if self.x2apic() {
            s.set_register(reg::ICR_HIGH as usize, (self.icr >> 32) as u32);
        }
        s
    }

    /// From saved state, at guest time `now`. The id is the vCPU's own.
    pub fn load(&mut self, s: &ApicState, now: u64) {
        let r = |offset: u32| s.register(offset as usize);
        let set = |base: u32| {
            let mut all = VectorSet::default();
            (0..8).for_each(|i| all.set_word(i, r(base + 16 * i as u32)));
            all
        };
        self.base = s.base;
        (self.tpr, self.svr) = (r(reg::TPR) as u8, r(reg::SVR) & 0x1ff);
        (self.ldr, self.dfr) = (r(reg::LDR) & 0xff00_0000, r(reg::DFR) | 0x0fff_ffff);
        (self.isr, self.tmr, self.irr) = (set(reg::ISR), set(reg::TMR), set(reg::IRR));
        (self.esr, self.errors) = (r(reg::ESR), 0);
        self.icr = u64::from(r(reg::ICR)) | u64::from(r(reg::ICR_HIGH)) << 32;
        self.lvt = std::array::from_fn(|i| r(reg::LVT_TIMER + 16 * i as u32));
        self.timer.reset();
        self.timer.set_mode(Mode::of(self.lvt[TIMER]));
        self.timer.set_divide(r(reg::TIMER_DIVIDE), now);
        let (initial, current) = (r(reg::TIMER_INITIAL), r(reg::TIMER_CURRENT));
        self.timer.restore(initial, current, s.tsc_deadline, now);
    }
}

/// Register offset of an x2APIC MSR.
pub fn msr_offset(index: u32) -> Option<u32> {
    (msr::X2APIC_FIRST..=msr::X2APIC_LAST).contains(&index).then(|| (index - msr::X2APIC_FIRST) * 16)
}
