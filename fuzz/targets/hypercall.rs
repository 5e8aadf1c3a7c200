//! Any registers of the hypervisor interface, and any calls, of several vCPUs, with timers that expire and messages and events
//! of the host. What a guest has not asked for is not written, and a call that fails does nothing.
#![no_main]

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use vireo_chipset::clock::Clock;
use vireo_chipset::simulated::SimulatedTime;
use vireo_core::model::Vendor;
use vireo_core::partition::{ClockState, PartitionStats};
use vireo_core::{
    EngineError, EngineKind, HypercallRegs, MsiMessage, PageRange, Partition, RamRange, TlbFlusher, TlbScope,
    Vcpu, VcpuSet,
};
use vireo_fuzz::{Input, Rig, Witness, guest};
use vireo_hyperv::{
    CrashSink, EVENTS, Enlightenments, EventPort, GuestCrash, Hyperv, Message, MessagePort, SINTS, Seams,
    Status, msr,
};
use vireo_memory::GuestMemory;

const VCPUS: u32 = 70;
const PAGE: u64 = 4096;
/// Where a guest puts the pages that the interface writes, and the input of its calls.
const PAGES: u64 = 0x20_0000;
const INPUT: u64 = 0x30_0000;
/// What messages and events are sent to.
const CONNECTION: u32 = 4;
const TSC_HZ: u64 = 2_000_000_000;

/// Calls that there are: flushes, a spin, interrupts, a message, an event.
const CODES: [u16; 9] = [0x2, 0x3, 0x8, 0xb, 0x13, 0x14, 0x15, 0x5c, 0x5d];
/// Those that take a list, and a header of variable size.
const LISTS: [u16; 2] = [0x3, 0x14];
const VARIABLE: [u16; 3] = [0x13, 0x14, 0x15];
/// How a call may end.
const STATUSES: [Status; 8] = [
    Status::Success,
    Status::InvalidCode,
    Status::InvalidInput,
    Status::InvalidAlignment,
    Status::InvalidParameter,
    Status::InvalidPortId,
    Status::InvalidConnectionId,
    Status::InsufficientBuffers,
];

/// Registers that do something.
const REGISTERS: [u32; 16] = [
    msr::GUEST_OS_ID,
    msr::HYPERCALL,
    msr::REFERENCE_TSC,
    msr::VP_ASSIST_PAGE,
    msr::SCONTROL,
    msr::SIEFP,
    msr::SIMP,
    msr::EOM,
    msr::SINT0 + 1,
    msr::SINT0 + 2,
    msr::STIMER0_CONFIG,
    msr::STIMER0_CONFIG + 1,
    msr::STIMER0_CONFIG + 2,
    msr::STIMER0_CONFIG + 3,
    msr::CRASH_P4,
    msr::CRASH_CTL,
];

/// All that leaves the interface but by guest memory.
#[derive(Default)]
struct Seen {
    interrupts: usize,
    flushes: usize,
    messages: usize,
    events: usize,
}

/// A partition, and whoever else there is: they note what they are told.
struct World {
    time: SimulatedTime,
    seen: Mutex<Seen>,
}

impl World {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How much was seen since it was last asked.
    fn take(&self) -> Seen {
        std::mem::take(&mut *self.seen())
    }
}

impl TlbFlusher for World {
    fn flush_tlbs(&self, by: u32, of: &VcpuSet, scope: &TlbScope) {
        assert!(by < VCPUS && of.iter_below(VCPUS).all(|vp| vp < VCPUS));
        if let TlbScope::Pages(pages) = scope {
            // As many as an input page holds behind its header.
            assert!((1..(PAGE / 8) as usize).contains(&pages.len()), "{} ranges", pages.len());
            let whole =
                |pages: &PageRange| pages.first().is_multiple_of(PAGE) && pages.first() <= pages.last();
            assert!(pages.iter().all(whole));
        }
        self.seen().flushes += 1;
    }
}

impl MessagePort for World {
    fn post(&self, vp: u32, message: &Message) -> Status {
        assert!(vp < VCPUS && message.payload().len() <= Message::MAX);
        assert!(message.kind != 0 && message.kind >> 31 == 0, "no message of the hypervisor's own");
        // It has room for two of three.
        let mut seen = self.seen();
        if message.payload().len() % 3 == 2 {
            return Status::InsufficientBuffers;
        }
        seen.messages += 1;
        Status::Success
    }
}

impl EventPort for World {
    fn signal(&self, _: u16) {
        self.seen().events += 1;
    }
}

impl CrashSink for World {
    fn crashed(&self, crash: GuestCrash) {
        assert!(crash.text.is_none_or(|text| text.len() <= 3 * 4096), "a text of a page");
    }
}

impl Partition for World {
    fn kind(&self) -> EngineKind {
        EngineKind::Soft
    }
    fn map_ram(&self, _: RamRange) -> Result<(), EngineError> {
        Ok(())
    }
    fn unmap_ram(&self, _: u64, _: u64) -> Result<(), EngineError> {
        Ok(())
    }
    fn take_vcpu(self: Arc<Self>, index: u32) -> Result<Box<dyn Vcpu>, EngineError> {
        Err(EngineError::NoVcpu(index))
    }
    fn kick(&self, _: u32) {}
    fn tlb_flusher(&self) -> Option<&dyn TlbFlusher> {
        Some(self)
    }
    fn deliver_msi(&self, message: MsiMessage) {
        let vp = message.address >> 12 & 0xff;
        assert_eq!(message.address, 0xfee0_0000 | vp << 12);
        assert!(vp < u64::from(VCPUS) && message.data <= 0xff, "a fixed interrupt of a vCPU that there is");
        self.seen().interrupts += 1;
    }
    fn set_extint(&self, _: bool) {}
    fn inject_nmi(&self, _: u32) {}
    fn host_wrote(&self, _: u64, _: u64) {}
    fn dirty_start(&self) -> Result<(), EngineError> {
        Ok(())
    }
    fn dirty_harvest(&self) -> Result<Vec<u64>, EngineError> {
        Ok(Vec::new())
    }
    fn dirty_put_back(&self, _: &[u64]) {}
    fn dirty_stop(&self) -> Result<(), EngineError> {
        Ok(())
    }
    fn clock(&self) -> ClockState {
        ClockState { tsc: self.time.now_ns() * (TSC_HZ / 1_000_000_000), tsc_hz: TSC_HZ }
    }
    fn set_clock(&self, _: &ClockState) -> Result<(), EngineError> {
        Ok(())
    }
    fn freeze_clock(&self) {}
    fn thaw_clock(&self) {}
    fn stats(&self) -> PartitionStats {
        PartitionStats::default()
    }
}

/// A guest with the interface.
struct Machine {
    hv: Hyperv,
    memory: Arc<GuestMemory>,
    witness: Arc<Witness>,
    world: Arc<World>,
    /// It was told of calls about other processors.
    flushes: bool,
}

impl Machine {
    fn new(flushes: bool) -> Self {
        let memory = Rig::memory();
        let witness = Witness::of(&memory);
        let time = SimulatedTime::new(Duration::ZERO);
        let world = Arc::new(World { time: time.clone(), seen: Mutex::default() });
        let hv = Hyperv::new(Seams {
            memory: Arc::clone(&memory),
            partition: Arc::clone(&world) as _,
            vendor: Vendor::Amd,
            clock: Arc::new(time.clone()),
            timers: Arc::new(time),
            enlightenments: Enlightenments::best(flushes),
            crashes: Arc::clone(&world) as _,
            vcpus: VCPUS,
        });
        hv.connect_messages(CONNECTION, Arc::clone(&world) as _);
        hv.connect_events(CONNECTION, Arc::clone(&world) as _);
        Self { hv, memory, witness, world, flushes }
    }

    /// What Linux does on each of its processors.
    fn set_up(&self) {
        self.write(0, msr::GUEST_OS_ID, 0x8100_0601_0000_0000);
        self.write(0, msr::HYPERCALL, PAGES + 1);
        for vp in 0..2 {
            let page = PAGES + u64::from(vp) * 2 * PAGE;
            self.write(vp, msr::SIMP, page + PAGE + 1);
            self.write(vp, msr::SIEFP, page + 2 * PAGE + 1);
            self.write(vp, msr::SINT0 + 2, 0xf3);
            self.write(vp, msr::SCONTROL, 1);
        }
    }

    /// A register is written: it may name a page, and whatever is written later is on one that a register names.
    fn write(&self, vp: u32, index: u32, value: u64) {
        if matches!(index, msr::HYPERCALL | msr::REFERENCE_TSC | msr::SIEFP | msr::SIMP) && value & 1 != 0 {
            self.witness.allow([value / PAGE]);
        }
        let taken = self.hv.msr_write(vp, index, value).is_ok();
        let read = self.hv.msr_read(vp, index);
        if vp >= VCPUS {
            assert!(!taken && read.is_err(), "a vCPU that is none has no registers");
        } else if matches!(index, msr::SIEFP | msr::SIMP | msr::VP_ASSIST_PAGE | msr::GUEST_OS_ID) {
            assert_eq!(read.ok(), Some(value));
        }
    }

    /// What must not change: a call's input is read, and no call has output.
    fn call(&self, vp: u32, regs: &HypercallRegs, control: u64) {
        self.world.take();
        self.witness.keep_still(true);
        let after = self.hv.hypercall(vp, regs);
        self.witness.keep_still(false);
        let seen = self.world.take();
        let Some(after) = after else {
            assert!(seen.interrupts + seen.flushes + seen.messages + seen.events == 0, "#UD does nothing");
            return;
        };
        let mut unchanged = *regs;
        let result = if regs.long_mode {
            unchanged.gpr[0] = after.gpr[0];
            after.gpr[0]
        } else {
            assert!(after.gpr[0] >> 32 == 0 && after.gpr[2] >> 32 == 0, "EAX and EDX");
            (unchanged.gpr[0], unchanged.gpr[2]) = (after.gpr[0], after.gpr[2]);
            after.gpr[2] << 32 | after.gpr[0]
        };
        assert_eq!(after, unchanged, "but for its result, registers stay as they are");
        assert_eq!(result & 0xffff_f000_ffff_0000, 0, "reserved bits");
        let (code, list, first) = (control as u16, control >> 32 & 0xfff, control >> 48 & 0xfff);
        let status = STATUSES.into_iter().find(|s| *s as u64 == result & 0xffff).expect("a status");
        let done = result >> 32;
        assert!(done <= list, "{done} of {list} were done");
        if !CODES.contains(&code) || !self.flushes && !matches!(code, 0x8 | 0x5c | 0x5d) {
            assert!(matches!(status, Status::InvalidCode | Status::InvalidInput), "{code:#x}: {status:?}");
        }
        let listed = LISTS.contains(&code);
        if status == Status::Success {
            assert_eq!(done, list);
            assert!(if listed { first < list } else { list == 0 && first == 0 });
            assert!(control >> 17 & 0x3ff == 0 || VARIABLE.contains(&code));
            let told = (seen.flushes, seen.messages, seen.events);
            assert_eq!(told, [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)][kind(code)], "{code:#x}");
        } else {
            assert_eq!(done, 0, "a list is done whole or not at all");
            assert!(seen.interrupts + seen.flushes + seen.messages + seen.events == 0, "{status:?}");
        }
    }
}

/// What a call brings about: nothing that is counted (or interrupts), a flush, a message, an event.
fn kind(code: u16) -> usize {
    match code {
        0x2 | 0x3 | 0x13 | 0x14 => 1,
        0x5c => 2,
        0x5d => 3,
        _ => 0,
    }
}

/// A value that means something now and then.
fn value(input: &mut Input<'_>) -> u64 {
    match input.u8() {
        n @ 0..32 => PAGES + u64::from(n) * PAGE + 1,
        n @ 32..64 => u64::from(n) - 32,
        n @ 64..96 => 1 << (n - 64 + 4),
        // A timer with a vector, or with a message by SINT 2; an interrupt source.
        96..112 => 1 << 12 | 0xed << 4 | u64::from(input.u8() % 16),
        112..128 => 2 << 16 | u64::from(input.u8() % 16),
        128..144 => u64::from(input.u8()),
        144..176 => input.u32().into(),
        _ => input.u64(),
    }
}

fn vcpu(input: &mut Input<'_>) -> u32 {
    let n = u32::from(input.u8());
    if n < 192 { n % 2 } else { n - 192 + 10 }
}

/// A call that may be right: its control word, and what is in memory for it.
fn call(machine: &Machine, input: &mut Input<'_>) {
    let (vp, what, form) = (vcpu(input) % VCPUS, input.u8(), input.u8());
    let code = if what % 16 < 9 { CODES[usize::from(what % 16)] } else { input.u16() };
    let mut control = u64::from(code);
    if what & 0x20 != 0 {
        control |= input.u64() & !0xffff;
    } else {
        let list = u64::from(form % 8);
        if LISTS.contains(&code) {
            control |= (list + 1) << 32 | (list / 3) << 48;
        }
        if VARIABLE.contains(&code) {
            control |= u64::from(form >> 3 & 3) << 17;
        }
        control |= u64::from(what >> 6 & 1) << 16;
    }
    let fixed = usize::from(form >> 5) + 1;
    let mut at = INPUT;
    if what & 0x80 != 0 {
        at =
            if input.u8().is_multiple_of(4) { value(input) } else { INPUT + u64::from(input.u16() % 0x2000) };
    }
    // Words: small ones, as most are, or any; and a message's head.
    if code == 0x5c {
        let head = [CONNECTION + u32::from(input.u8() == 255), 0, u32::from(input.u8()), input.u8().into()];
        let head: Vec<u8> = head.iter().flat_map(|word| word.to_le_bytes()).collect();
        _ = guest(|| machine.memory.write(at, &head));
    } else {
        for n in 0..fixed as u64 {
            let word = value(input);
            _ = guest(|| machine.memory.write_obj(at.wrapping_add(n * 8), word));
        }
    }
    let second = if form & 4 == 0 { u64::from(CONNECTION) } else { value(input) };
    let fast = control >> 16 & 1 != 0;
    let words = if fast { [second, value(input)] } else { [at, second] };
    let mut regs = HypercallRegs { long_mode: form & 3 != 3, ..Default::default() };
    regs.cpl = if input.u8() == 255 { 3 } else { 0 };
    regs.xmm[0] = 7;
    if regs.long_mode {
        (regs.gpr[1], regs.gpr[2], regs.gpr[8]) = (control, words[0], words[1]);
    } else {
        // The upper halves mean nothing.
        let noise = u64::from(what) << 32;
        (regs.gpr[0], regs.gpr[2]) = (control & 0xffff_ffff | noise, control >> 32 | noise);
        (regs.gpr[1], regs.gpr[3]) = (words[0] & 0xffff_ffff | noise, words[0] >> 32);
        (regs.gpr[6], regs.gpr[7]) = (words[1] & 0xffff_ffff, words[1] >> 32 | noise);
    }
    machine.call(vp, &regs, control);
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let start = input.u8();
    let machine = Machine::new(start & 1 == 0);
    if start & 2 == 0 {
        machine.set_up();
    }
    while !input.is_empty() {
        let act = input.u8();
        match act % 16 {
            0..3 => {
                let index = if act & 0x80 == 0 {
                    REGISTERS[usize::from(input.u8() % 16)]
                } else {
                    msr::RANGE.start() + u32::from(input.u16() % 0x220)
                };
                machine.write(vcpu(&mut input), index, value(&mut input));
            }
            3 => _ = machine.hv.msr_read(vcpu(&mut input), msr::RANGE.start() + u32::from(input.u16())),
            4..10 => call(&machine, &mut input),
            10 => {
                let (vp, sint) = (vcpu(&mut input), usize::from(input.u8()) % (SINTS + 1));
                let len = usize::from(input.u8());
                let message = Message::new(input.u32(), 0, input.bytes(len));
                // So many that there is no room for all, now and then.
                let count = if act & 0xf0 == 0xf0 { 1100 } else { 1 };
                let posted = message.map_or(0, |m| {
                    (0..count).filter(|_| machine.hv.post_message(vp, sint, m.clone()).is_ok()).count()
                });
                assert!(posted <= 1026 || vp >= VCPUS || sint >= SINTS, "{posted} messages wait");
            }
            11 => {
                let event = input.u16() % (EVENTS + 16);
                let (vp, sint) = (vcpu(&mut input), usize::from(input.u8()) % (SINTS + 1));
                let nowhere = vp >= VCPUS || sint >= SINTS || event >= EVENTS;
                machine.witness.keep_still(nowhere);
                machine.hv.signal_event(vp, sint, event);
                machine.witness.keep_still(false);
            }
            12 => machine.world.time.advance(u64::from(input.u16()) * 100),
            13 => machine.world.time.advance_late(u64::from(input.u16()) * 100),
            // The guest takes its messages and events, or writes anything where they are.
            14 => {
                let at = PAGES + PAGE + u64::from(input.u16() % 0x4000);
                let word = if act & 0x10 == 0 { 0 } else { input.u64() };
                guest(|| machine.memory.write_obj(at & !7, word)).expect("RAM");
            }
            _ if act & 0xf0 == 0xf0 => machine.hv.reset(),
            _ => {
                let state = machine.hv.save();
                machine.hv.restore(&state).expect("what was saved can be restored");
                assert_eq!(machine.hv.save(), state, "it is what was saved");
            }
        }
    }
});
