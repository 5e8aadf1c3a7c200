//! Guest time: the TSC of the guest as KVM derives it from the host's, and the timers that hang on it.

use kvm_bindings::{Msrs, kvm_lapic_state, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use vireo_core::EngineError;
use vireo_core::partition::ClockState;
use vireo_core::state::{ApicState, msr};

use crate::sys;

/// LAPIC register offsets (SDM vol. 3A, table 11-1).
const LVT_TIMER: usize = 0x320;
const CURRENT_COUNT: usize = 0x390;

/// What is left of a vCPU's APIC timer while time stands still.
#[derive(Clone, Copy, Debug)]
pub struct FrozenTimer {
    /// Current count, 0 when it does not count.
    pub count: u32,
    /// IA32_TSC_DEADLINE, 0 when disarmed.
    pub deadline: u64,
}

/// Guest time of a partition.
#[derive(Debug)]
pub struct Clock {
    /// Rate of the guest's TSC in Hz.
    pub hz: u64,
    /// Rate of the host's TSC in Hz, as KVM knows it.
    pub host_hz: u64,
    /// The two counters at the same moment.
    sample: (u64, u64),
    /// While time stands still: guest TSC and each vCPU's timer.
    pub frozen: Option<(u64, Vec<FrozenTimer>)>,
}

fn host_tsc() -> u64 {
    // SAFETY: RDTSC is unprivileged on Linux unless a process asks otherwise for itself.
    unsafe { core::arch::x86_64::_rdtsc() }
}

impl Clock {
    /// A clock that runs at the host's rate.
    pub fn new(hz: u64) -> Self {
        Self { hz, host_hz: hz, sample: (host_tsc(), 0), frozen: None }
    }

    /// Notes the guest's TSC as of now.
    pub fn note(&mut self, guest_tsc: u64) {
        self.sample = (host_tsc(), guest_tsc);
    }

    /// Time now, reckoned from the last note while the guest runs.
    pub fn now(&self) -> ClockState {
        let tsc = match &self.frozen {
            Some((tsc, _)) => *tsc,
            None => {
                let elapsed = u128::from(host_tsc().saturating_sub(self.sample.0));
                let scaled = elapsed * u128::from(self.hz) / u128::from(self.host_hz.max(1));
                self.sample.1.wrapping_add(scaled as u64)
            }
        };
        ClockState { tsc, tsc_hz: self.hz }
    }
}

impl Clock {
    /// Makes a saved APIC say what its timer has left, rather than what KVM counted down meanwhile.
    pub fn freeze_saved(&self, vcpu: u32, apic: &mut ApicState) {
        if let Some(left) = self.frozen.as_ref().and_then(|(_, t)| t.get(vcpu as usize)) {
            apic.set_register(CURRENT_COUNT, left.count);
            apic.tsc_deadline = left.deadline;
        }
    }

    /// A vCPU got new state while time stands still: its timer starts with that.
    pub fn freeze_loaded(&mut self, vcpu: u32, apic: &ApicState) {
        if let Some(left) = self.frozen.as_mut().and_then(|(_, t)| t.get_mut(vcpu as usize)) {
            *left = FrozenTimer { count: apic.register(CURRENT_COUNT), deadline: apic.tsc_deadline };
        }
    }
}

/// Whether two rates are the same for a guest: within 250 parts per million, which is what KVM and NTP tolerate.
pub fn same_rate(a: u64, b: u64) -> bool {
    u128::from(a.abs_diff(b)) * 1_000_000 <= u128::from(b) * 250
}

/// The guest's TSC. The vCPU must not be running.
pub fn read_tsc(vcpu: &VcpuFd) -> Result<u64, EngineError> {
    read_msr(vcpu, msr::TSC)
}

/// An MSR that KVM has.
pub fn read_msr(vcpu: &VcpuFd, index: u32) -> Result<u64, EngineError> {
    let mut msrs = Msrs::from_entries(&[kvm_msr_entry { index, ..Default::default() }])
        .map_err(|e| EngineError::Internal(format!("an MSR list of one: {e:?}")))?;
    match vcpu.get_msrs(&mut msrs).map_err(sys::os("reading an MSR of a vCPU"))? {
        1 => Ok(msrs.as_slice()[0].data),
        _ => Err(EngineError::Internal(format!("KVM does not know MSR {index:#x}"))),
    }
}

/// Sets an MSR that KVM has.
pub fn write_msr(vcpu: &VcpuFd, index: u32, data: u64) -> Result<(), EngineError> {
    let msrs = Msrs::from_entries(&[kvm_msr_entry { index, data, ..Default::default() }])
        .map_err(|e| EngineError::Internal(format!("an MSR list of one: {e:?}")))?;
    match vcpu.set_msrs(&msrs).map_err(sys::os("setting an MSR of a vCPU"))? {
        1 => Ok(()),
        _ => Err(EngineError::BadState(format!("MSR {index:#x} does not take the value {data:#x}"))),
    }
}

/// A 32-bit register of the APIC page.
pub fn apic_register(page: &kvm_lapic_state, offset: usize) -> u32 {
    let byte = |i: usize| page.regs[offset + i] as u8;
    u32::from_le_bytes([byte(0), byte(1), byte(2), byte(3)])
}

/// Reads what the timer has left. The vCPU must not be running.
pub fn read_timer(vcpu: &VcpuFd, has_deadline: bool) -> Result<FrozenTimer, EngineError> {
    let page = vcpu.get_lapic().map_err(sys::os("reading a local APIC"))?;
    let deadline = if has_deadline { read_msr(vcpu, msr::TSC_DEADLINE)? } else { 0 };
    Ok(FrozenTimer { count: apic_register(&page, CURRENT_COUNT), deadline })
}

/// Starts the timer again with what it had left. A timer that did not run is left alone: an expiry that KVM has
/// still to deliver stays with it.
pub fn restart_timer(vcpu: &VcpuFd, left: FrozenTimer) -> Result<(), EngineError> {
    let mut page = vcpu.get_lapic().map_err(sys::os("reading a local APIC"))?;
    let deadline_mode = apic_register(&page, LVT_TIMER) >> 17 & 3 == 2;
    if deadline_mode && left.deadline != 0 {
        write_msr(vcpu, msr::TSC_DEADLINE, left.deadline)
    } else if !deadline_mode && left.count != 0 {
        for (i, b) in left.count.to_le_bytes().into_iter().enumerate() {
            page.regs[CURRENT_COUNT + i] = b as _;
        }
        vcpu.set_lapic(&page).map_err(sys::os("restarting an APIC timer"))
    } else {
        Ok(())
    }
}
