//! A partition: one KVM virtual machine.

use std::sync::atomic::{AtomicU64, Ordering::*};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::kvm_msi;
use kvm_ioctls::VmFd;
use vireo_core::model::Vendor;
use vireo_core::partition::{ClockState, HypercallInstruction, PartitionStats};
use vireo_core::{
    CpuModel, DirtyBitmap, EngineError, EngineKind, MsiMessage, Partition, PartitionSpec, RamRange, Vcpu,
};
use vireo_isa::Feature;

use crate::clock::{self, Clock};
use crate::dirty::{self, DirtyMethod, Ring};
use crate::msrs::KnownMsrs;
use crate::routes::EoiRoutes;
use crate::slots::Slots;
use crate::vcpu::{Counters, KvmVcpu, VcpuSlot};
use crate::{hypercall, sys};

/// What the partition and its vCPUs share.
///
/// Locks are taken in this order: a vCPU's core, clock, slots, rings.
pub struct Shared {
    /// The virtual machine.
    pub vm: VmFd,
    /// The CPU the guest sees.
    pub model: Arc<CpuModel>,
    /// Those of its MSRs that KVM keeps.
    pub msrs: KnownMsrs,
    /// The vCPUs.
    pub vcpus: Vec<VcpuSlot>,
    slots: Mutex<Slots>,
    routes: Mutex<EoiRoutes>,
    bitmap: DirtyBitmap,
    rings: Mutex<Vec<Ring>>,
    method: DirtyMethod,
    clock: Mutex<Clock>,
    rate_scales: bool,
    /// Hypercalls come by [`hypercall::PORT`].
    pub by_port: bool,
    lost_messages: AtomicU64,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Guest time.
    pub fn clock(&self) -> MutexGuard<'_, Clock> {
        lock(&self.clock)
    }

    /// Moves what vCPUs wrote from their rings to the bitmap.
    pub fn collect_rings(&self) -> Result<(), EngineError> {
        let slots = lock(&self.slots);
        dirty::collect_rings(&self.vm, &mut lock(&self.rings), &slots, &self.bitmap)
    }

    /// Moves every vCPU's TSC by the same amount.
    fn shift_tsc(&self, delta: u64) -> Result<(), EngineError> {
        for slot in &self.vcpus {
            let core = slot.core();
            sys::set_tsc_offset(&core.fd, sys::tsc_offset(&core.fd)?.wrapping_add(delta))?;
        }
        Ok(())
    }

    /// Makes the TSC of vCPU 0 read `tsc` now, and moves the others with it.
    fn set_tsc(&self, tsc: u64) -> Result<(), EngineError> {
        let now = clock::read_tsc(&self.vcpus[0].core().fd)?;
        self.shift_tsc(tsc.wrapping_sub(now))?;
        self.clock().note(tsc);
        Ok(())
    }

    fn set_rate(&self, hz: u64) -> Result<(), EngineError> {
        let have = self.clock().hz;
        if clock::same_rate(hz, have) {
            return Ok(());
        }
        if !self.rate_scales {
            let reason = format!("this host's processor cannot scale its TSC, which runs at {have} Hz");
            return Err(EngineError::Unsupported {
                engine: "kvm",
                what: "run a TSC of another rate",
                reason,
            });
        }
        let khz = u32::try_from(hz / 1000).map_err(|_| EngineError::BadState(format!("a TSC of {hz} Hz")))?;
        for slot in &self.vcpus {
            slot.core().fd.set_tsc_khz(khz).map_err(sys::os("setting the rate of a TSC"))?;
        }
        self.clock().hz = hz;
        Ok(())
    }

    fn freeze(&self) -> Result<(), EngineError> {
        if self.clock().frozen.is_some() {
            return Ok(());
        }
        let has_deadline = self.model.has(Feature::TscDeadline);
        let tsc = clock::read_tsc(&self.vcpus[0].core().fd)?;
        let timers: Result<Vec<_>, _> =
            self.vcpus.iter().map(|v| clock::read_timer(&v.core().fd, has_deadline)).collect();
        self.clock().frozen = Some((tsc, timers?));
        Ok(())
    }

    fn thaw(&self) -> Result<(), EngineError> {
        let Some((tsc, timers)) = self.clock().frozen.take() else { return Ok(()) };
        self.set_tsc(tsc)?;
        self.vcpus.iter().zip(timers).try_for_each(|(v, left)| clock::restart_timer(&v.core().fd, left))
    }

    fn sum(&self, of: impl Fn(&Counters) -> &AtomicU64) -> u64 {
        self.vcpus.iter().map(|v| of(&v.counters).load(Relaxed)).sum()
    }
}

/// A partition of the KVM engine.
pub struct KvmPartition(Arc<Shared>);

/// What the engine found out about this host and built for a partition.
pub struct Parts {
    /// The virtual machine, with its capabilities enabled.
    pub vm: VmFd,
    /// The CPU model as it holds on this host.
    pub model: Arc<CpuModel>,
    /// Those of its MSRs that KVM keeps.
    pub msrs: KnownMsrs,
    /// The vCPUs, each with its CPU model and at reset.
    pub vcpus: Vec<VcpuSlot>,
    /// The rings of the vCPUs, if the method is that.
    pub rings: Vec<Ring>,
    /// How to find written pages.
    pub method: DirtyMethod,
    /// Rate of the TSC.
    pub tsc_hz: u64,
    /// Whether the TSC can run at another rate.
    pub rate_scales: bool,
    /// Hypercalls come by a port.
    pub by_port: bool,
}

impl KvmPartition {
    /// Puts a partition together; guest time starts at zero.
    pub fn new(spec: &PartitionSpec, parts: Parts) -> Result<Self, EngineError> {
        let shared = Arc::new(Shared {
            vm: parts.vm,
            model: parts.model,
            msrs: parts.msrs,
            vcpus: parts.vcpus,
            slots: Mutex::default(),
            routes: Mutex::default(),
            bitmap: DirtyBitmap::new(spec.ram_limit),
            rings: Mutex::new(parts.rings),
            method: parts.method,
            clock: Mutex::new(Clock::new(parts.tsc_hz)),
            rate_scales: parts.rate_scales,
            by_port: parts.by_port,
            lost_messages: AtomicU64::new(0),
        });
        // KVM tries to give all vCPUs the same offset by guessing; make it so.
        let first = sys::tsc_offset(&shared.vcpus[0].core().fd)?;
        shared.vcpus[1..].iter().try_for_each(|v| sys::set_tsc_offset(&v.core().fd, first))?;
        shared.set_tsc(0)?;
        Ok(Self(shared))
    }
}

impl Partition for KvmPartition {
    fn kind(&self) -> EngineKind {
        EngineKind::Kvm
    }

    fn map_ram(&self, range: RamRange) -> Result<(), EngineError> {
        range.validate(self.0.model.physical_bits())?;
        lock(&self.0.slots).insert(&self.0.vm, range)
    }

    fn unmap_ram(&self, gpa: u64, len: u64) -> Result<(), EngineError> {
        let (vm, bitmap, mut slots) = (&self.0.vm, &self.0.bitmap, lock(&self.0.slots));
        // What KVM has logged of the slot has to be read while the slot still stands for these addresses.
        match self.0.method {
            DirtyMethod::Ring => dirty::collect_rings(vm, &mut lock(&self.0.rings), &slots, bitmap)?,
            DirtyMethod::Bitmap if slots.logging() => dirty::collect_bitmaps(vm, &slots, bitmap)?,
            DirtyMethod::Bitmap => {}
        }
        slots.remove(vm, gpa, len)
    }

    fn take_vcpu(self: Arc<Self>, index: u32) -> Result<Box<dyn Vcpu>, EngineError> {
        match self.0.vcpus.get(index as usize) {
            Some(slot) if slot.take() => Ok(Box::new(KvmVcpu::new(Arc::clone(&self.0), index))),
            _ => Err(EngineError::NoVcpu(index)),
        }
    }

    fn kick(&self, vcpu: u32) {
        if let Some(slot) = self.0.vcpus.get(vcpu as usize) {
            slot.bell.kick();
        }
    }

    fn hypercall_instruction(&self, vendor: Vendor) -> HypercallInstruction {
        if self.0.by_port {
            HypercallInstruction::Out(hypercall::PORT)
        } else {
            HypercallInstruction::of(vendor)
        }
    }

    fn deliver_msi(&self, message: MsiMessage) {
        let msi = kvm_msi {
            address_lo: message.address as u32,
            address_hi: (message.address >> 32) as u32,
            data: message.data,
            ..Default::default()
        };
        let covered = lock(&self.0.routes).cover(&self.0.vm, message).is_ok();
        // A message that no APIC takes is lost on hardware too.
        if !covered || self.0.vm.signal_msi(msi).is_err() {
            self.0.lost_messages.fetch_add(1, Relaxed);
        }
    }

    fn set_extint(&self, asserted: bool) {
        self.0.vcpus[0].set_extint(asserted);
    }

    fn inject_nmi(&self, vcpu: u32) {
        if let Some(slot) = self.0.vcpus.get(vcpu as usize) {
            slot.raise_nmi();
        }
    }

    fn host_wrote(&self, gpa: u64, len: u64) {
        self.0.bitmap.mark(gpa, len);
    }

    fn dirty_start(&self) -> Result<(), EngineError> {
        let mut slots = lock(&self.0.slots);
        if slots.logging() {
            slots.set_logging(&self.0.vm, false)?;
        }
        if self.0.method == DirtyMethod::Ring {
            // Left over from the last time; the bitmap is cleared next.
            dirty::collect_rings(&self.0.vm, &mut lock(&self.0.rings), &slots, &self.0.bitmap)?;
        }
        self.0.bitmap.start();
        slots.set_logging(&self.0.vm, true)
    }

    fn dirty_harvest(&self) -> Result<Vec<u64>, EngineError> {
        match self.0.method {
            DirtyMethod::Ring => {
                self.0.vcpus.iter().for_each(VcpuSlot::flush);
                self.0.collect_rings()?;
            }
            DirtyMethod::Bitmap => {
                let slots = lock(&self.0.slots);
                if slots.logging() {
                    dirty::collect_bitmaps(&self.0.vm, &slots, &self.0.bitmap)?;
                }
            }
        }
        Ok(self.0.bitmap.harvest())
    }

    fn dirty_put_back(&self, bits: &[u64]) {
        self.0.bitmap.put_back(bits);
    }

    fn dirty_stop(&self) -> Result<(), EngineError> {
        self.0.bitmap.stop();
        lock(&self.0.slots).set_logging(&self.0.vm, false)
    }

    fn clock(&self) -> ClockState {
        if let Some(core) = self.0.vcpus[0].idle_core() {
            let mut clock = self.0.clock();
            if let (None, Ok(tsc)) = (&clock.frozen, clock::read_tsc(&core.fd)) {
                clock.note(tsc);
            }
        }
        self.0.clock().now()
    }

    fn set_clock(&self, state: &ClockState) -> Result<(), EngineError> {
        self.0.set_rate(state.tsc_hz)?;
        if let Some((tsc, _)) = &mut self.0.clock().frozen {
            *tsc = state.tsc;
            return Ok(());
        }
        self.0.set_tsc(state.tsc)
    }

    fn freeze_clock(&self) {
        // Both can fail only on a vCPU that KVM has given up, which cannot run again either.
        self.0.freeze().ok();
    }

    fn thaw_clock(&self) {
        self.0.thaw().ok();
    }

    fn stats(&self) -> PartitionStats {
        PartitionStats {
            exits: Some(self.0.sum(|c| &c.exits)),
            other: vec![
                ("port-io-exits", self.0.sum(|c| &c.port_io)),
                ("mmio-exits", self.0.sum(|c| &c.mmio)),
                ("msr-exits", self.0.sum(|c| &c.msr)),
                ("pic-interrupts", self.0.sum(|c| &c.pic_interrupts)),
                ("lost-messages", self.0.lost_messages.load(Relaxed)),
            ],
            ..Default::default()
        }
    }
}
