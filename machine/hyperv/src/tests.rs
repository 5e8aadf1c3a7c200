//! The interface as a guest's kernel uses it.

mod processors;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use vireo_chipset::simulated::SimulatedTime;
use vireo_core::model::Vendor;
use vireo_core::partition::HypercallInstruction;
use vireo_core::partition::{ClockState, PartitionStats};
use vireo_core::{
    EngineError, EngineKind, HypercallRegs, MsiMessage, Partition, RamRange, TlbFlusher, TlbScope, Vcpu,
    VcpuSet,
};
use vireo_memory::{GuestMemory, Holes, RamLayout};

use crate::{
    CrashSink, Enlightenments, EventPort, GuestCrash, Hyperv, Message, MessagePort, Seams, Status, msr,
};

const TSC_HZ: u64 = 2_000_000_000;
const MESSAGES: u64 = 0x20_0000;
const EVENTS: u64 = 0x20_1000;
pub const INPUT: u64 = 0x20_2000;
const VECTOR: u8 = 0xf3;
const SINT: usize = 2;

/// A partition that notes interrupts and whose TSC follows simulated time.
pub struct Recorder {
    time: SimulatedTime,
    interrupts: Mutex<Vec<MsiMessage>>,
    /// Who wanted what flushed where.
    pub flushes: Mutex<Vec<(u32, VcpuSet, TlbScope)>>,
}

impl TlbFlusher for Recorder {
    fn flush_tlbs(&self, by: u32, of: &VcpuSet, scope: &TlbScope) {
        self.flushes.lock().unwrap().push((by, *of, scope.clone()));
    }
}

impl Partition for Recorder {
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
        self.interrupts.lock().unwrap().push(message);
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
        use vireo_chipset::clock::Clock;
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

#[derive(Default)]
struct Crashes(Mutex<Vec<GuestCrash>>);
impl CrashSink for Crashes {
    fn crashed(&self, crash: GuestCrash) {
        self.0.lock().unwrap().push(crash);
    }
}

/// Takes messages and events and notes them.
#[derive(Default)]
struct Inbox {
    messages: Mutex<Vec<(u32, Message)>>,
    events: Mutex<Vec<u16>>,
}
impl MessagePort for Inbox {
    fn post(&self, vp: u32, message: &Message) -> Status {
        let mut messages = self.messages.lock().unwrap();
        if messages.len() == 3 {
            return Status::InsufficientBuffers;
        }
        messages.push((vp, message.clone()));
        Status::Success
    }
}
impl EventPort for Inbox {
    fn signal(&self, flag: u16) {
        self.events.lock().unwrap().push(flag);
    }
}

pub struct Rig {
    pub hv: Hyperv,
    pub memory: Arc<GuestMemory>,
    pub partition: Arc<Recorder>,
    time: SimulatedTime,
    crashes: Arc<Crashes>,
}

impl Rig {
    fn new() -> Self {
        Self::with("hyperv-1", 2)
    }

    pub fn with(enlightenments: &str, vcpus: u32) -> Self {
        let holes = Holes { legacy: 0xa_0000..0xc_0000, pci: 0xc000_0000..0x1_0000_0000 };
        let memory = GuestMemory::new(RamLayout::new(16 << 20, &holes).unwrap()).unwrap();
        let time = SimulatedTime::new(Duration::ZERO);
        let partition = Arc::new(Recorder {
            time: time.clone(),
            interrupts: Mutex::default(),
            flushes: Mutex::default(),
        });
        let crashes = Arc::new(Crashes::default());
        let hv = Hyperv::new(Seams {
            memory: Arc::clone(&memory),
            partition: Arc::clone(&partition) as _,
            vendor: Vendor::Intel,
            clock: Arc::new(time.clone()),
            timers: Arc::new(time.clone()),
            enlightenments: Enlightenments::named(enlightenments).unwrap(),
            crashes: Arc::clone(&crashes) as _,
            vcpus,
        });
        Self { hv, memory, partition, time, crashes }
    }

    /// What Linux does on each CPU.
    pub fn set_up(&self) {
        self.wrmsr(msr::GUEST_OS_ID, 0x8100_0601_0000_0000);
        self.wrmsr(msr::HYPERCALL, 0x20_3001);
        for vp in 0..2 {
            let page = u64::from(vp) * 0x1_0000;
            let write = |i, v| self.hv.msr_write(vp, i, v).unwrap();
            write(msr::SIMP, MESSAGES + page + 1);
            write(msr::SIEFP, EVENTS + page + 1);
            write(msr::SINT0 + SINT as u32, VECTOR.into());
            write(msr::SCONTROL, 1);
        }
    }

    fn wrmsr(&self, index: u32, value: u64) {
        self.hv.msr_write(0, index, value).unwrap();
    }

    fn rdmsr(&self, index: u32) -> u64 {
        self.hv.msr_read(0, index).unwrap()
    }

    pub fn interrupts(&self) -> Vec<(u64, u32)> {
        std::mem::take(&mut *self.partition.interrupts.lock().unwrap())
            .iter()
            .map(|m| (m.address, m.data))
            .collect()
    }

    pub fn call(&self, control: u64, input: u64) -> u64 {
        let mut regs = HypercallRegs { long_mode: true, ..Default::default() };
        regs.gpr[1] = control;
        regs.gpr[2] = input;
        self.hv.hypercall(0, &regs).expect("the interface is set up").gpr[0]
    }

    /// Takes the message in the slot of the SINT, as a guest does: type, payload, whether more wait.
    fn take_message(&self, vp: u32) -> Option<(u32, Vec<u8>, bool)> {
        let slot = MESSAGES + u64::from(vp) * 0x1_0000 + SINT as u64 * 256;
        let kind: u32 = self.memory.read_obj(slot).unwrap();
        let head: u32 = self.memory.read_obj(slot + 4).unwrap();
        if kind == 0 {
            return None;
        }
        let mut payload = vec![0; (head & 0xff) as usize];
        self.memory.read(slot + 16, &mut payload).unwrap();
        self.memory.write_obj(slot, 0_u32).unwrap();
        let pending = self.memory.read_obj::<u32>(slot + 4).unwrap() >> 8 & 1 != 0;
        Some((kind, payload, pending))
    }
}

#[test]
fn a_guest_that_says_who_it_is_gets_its_hypercall_page() {
    let rig = Rig::new();
    rig.wrmsr(msr::HYPERCALL, 0x20_3001);
    assert_eq!(rig.rdmsr(msr::HYPERCALL) & 1, 0, "nobody said who it is");
    rig.set_up();
    assert_eq!(rig.rdmsr(msr::HYPERCALL), 0x20_3001);
    assert_eq!(rig.memory.read_obj::<u32>(0x20_3000).unwrap(), 0xc3c1_010f);
    assert_eq!(crate::hypercall::page(HypercallInstruction::Out(0xea)), [0xe6, 0xea, 0xc3]);
    assert_eq!(rig.call(0x7fff, 0), Status::InvalidCode as u64);
    let user = HypercallRegs { cpl: 3, long_mode: true, ..Default::default() };
    assert!(rig.hv.hypercall(0, &user).is_none());
    rig.wrmsr(msr::GUEST_OS_ID, 0);
    assert!(rig.hv.hypercall(0, &HypercallRegs::default()).is_none());
}

#[test]
fn messages_wait_for_the_slot_and_keep_their_order() {
    let rig = Rig::new();
    rig.set_up();
    for n in 1..=3_u8 {
        rig.hv.post_message(1, SINT, Message::new(1, 0, &[n]).unwrap()).unwrap();
    }
    assert_eq!(rig.interrupts(), [(0xfee0_1000, VECTOR.into())], "one slot, one message, one interrupt");
    assert_eq!(rig.take_message(1), Some((1, vec![1], true)));
    assert_eq!(rig.take_message(1), None, "the next one comes at EOM");
    rig.hv.msr_write(1, msr::EOM, 0).unwrap();
    assert_eq!(rig.take_message(1), Some((1, vec![2], true)));
    rig.hv.msr_write(1, msr::EOM, 0).unwrap();
    assert_eq!(rig.take_message(1), Some((1, vec![3], false)));
    assert_eq!(rig.interrupts().len(), 2);
}

#[test]
fn messages_of_one_who_takes_none_are_bounded() {
    let rig = Rig::new();
    let message = || Message::new(1, 0, &[0; Message::MAX]).unwrap();
    let taken = (0..5000).take_while(|_| rig.hv.post_message(0, SINT, message()).is_ok()).count();
    assert_eq!(taken, 1024);
    // Who listens late gets them.
    rig.set_up();
    assert!(rig.take_message(0).is_some());
    assert!(Message::new(1, 0, &[0; 241]).is_none() && Message::new(0, 0, &[]).is_none());
}

#[test]
fn an_event_interrupts_once_until_it_is_seen() {
    let rig = Rig::new();
    rig.hv.signal_event(0, SINT, 7);
    rig.set_up();
    rig.interrupts();
    for _ in 0..3 {
        rig.hv.signal_event(0, SINT, 37);
    }
    assert_eq!(rig.interrupts(), [(0xfee0_0000, VECTOR.into())]);
    let word = EVENTS + SINT as u64 * 256 + 4;
    assert_eq!(rig.memory.read_obj::<u32>(word).unwrap(), 1 << 5);
    rig.memory.write_obj(word, 0_u32).unwrap();
    rig.hv.signal_event(0, SINT, 37);
    assert_eq!(rig.interrupts().len(), 1);
    rig.wrmsr(msr::SINT0 + SINT as u32, u64::from(VECTOR) | 1 << 16);
    rig.hv.signal_event(0, SINT, 38);
    assert_eq!(rig.interrupts(), [], "masked");
    rig.wrmsr(msr::SINT0 + SINT as u32, u64::from(VECTOR));
    assert_eq!(rig.interrupts().len(), 1, "it is there, and now somebody listens");
    rig.hv.signal_event(0, SINT, 2048);
    rig.hv.signal_event(9, SINT, 1);
}

#[test]
fn what_a_guest_posts_and_signals_reaches_its_ports() {
    let rig = Rig::new();
    rig.set_up();
    let inbox = Arc::new(Inbox::default());
    rig.hv.connect_messages(4, Arc::clone(&inbox) as _);
    rig.hv.connect_events(0x1_2345, Arc::clone(&inbox) as _);
    let post = |connection: u32, kind: u32, size: u32| {
        for (at, value) in [(0, connection), (8, kind), (12, size), (16, 0x6c6c_6568)] {
            rig.memory.write_obj(INPUT + at, value).unwrap();
        }
        rig.call(0x5c, INPUT)
    };
    assert_eq!(post(4, 1, 4), 0);
    assert_eq!(post(5, 1, 4), Status::InvalidConnectionId as u64);
    assert_eq!(post(4, 1, 241), Status::InvalidParameter as u64);
    assert_eq!(post(4, 0x8000_0001, 4), Status::InvalidParameter as u64);
    assert_eq!(rig.call(0x5c, INPUT + 4), Status::InvalidAlignment as u64);
    assert_eq!(rig.call(0x5c, !7), Status::InvalidInput as u64);
    assert_eq!(rig.call(0x1_005c, INPUT), Status::InvalidInput as u64, "a message is never in registers");
    assert_eq!([post(4, 1, 4), post(4, 1, 4), post(4, 1, 4)], [0, 0, Status::InsufficientBuffers as u64]);
    assert_eq!(inbox.messages.lock().unwrap()[0], (0, Message::new(1, 0, b"hell").unwrap()));

    assert_eq!(rig.call(0x1_005d, 3 << 32 | 0x1_2345), 0);
    rig.memory.write_obj(INPUT, 0x1_2345_u64).unwrap();
    assert_eq!(rig.call(0x5d, INPUT), 0);
    assert_eq!(*inbox.events.lock().unwrap(), [3, 0]);
    rig.hv.disconnect_events(0x1_2345);
    assert_eq!(rig.call(0x1_005d, 0x1_2345), Status::InvalidConnectionId as u64);
    // The same of 32-bit code: EDX:EAX and EBX:ECX.
    let mut regs = HypercallRegs::default();
    (regs.gpr[0], regs.gpr[1], regs.gpr[2]) = (0x1_005d, 0x1_2345, 0xffff_ffff_0000_0000);
    let after = rig.hv.hypercall(0, &regs).unwrap();
    assert_eq!((after.gpr[0], after.gpr[2]), (Status::InvalidConnectionId as u64, 0));
}

#[test]
fn time_is_told_in_three_ways_that_agree() {
    let rig = Rig::new();
    rig.time.advance(1_000_000_000);
    assert!(rig.rdmsr(msr::TIME_REF_COUNT).abs_diff(10_000_000) < 2);
    assert_eq!(rig.rdmsr(msr::TSC_FREQUENCY), TSC_HZ);
    rig.wrmsr(msr::REFERENCE_TSC, 0x20_4001);
    let scale = u128::from(rig.memory.read_obj::<u64>(0x20_4008).unwrap());
    let tsc = u128::from(rig.partition.clock().tsc);
    assert_eq!(((tsc * scale) >> 64) as u64, rig.rdmsr(msr::TIME_REF_COUNT));
    assert_eq!(rig.memory.read_obj::<u32>(0x20_4000).unwrap(), 1);
    // Addresses that are no RAM do no harm.
    rig.wrmsr(msr::REFERENCE_TSC, !0);
}

#[test]
fn timers_expire_once_or_again_and_again() {
    let rig = Rig::new();
    rig.set_up();
    rig.wrmsr(msr::STIMER0_CONFIG, 1 | 1 << 3 | 1 << 12 | 0xed << 4);
    rig.wrmsr(msr::STIMER0_CONFIG + 1, 10_000);
    rig.time.advance(999_000);
    assert_eq!(rig.interrupts(), []);
    rig.time.advance(2_000);
    assert_eq!(rig.interrupts(), [(0xfee0_0000, 0xed)]);
    rig.wrmsr(msr::STIMER0_CONFIG + 1, 5);
    assert_eq!(rig.interrupts(), [(0xfee0_0000, 0xed)], "already past");

    rig.wrmsr(msr::STIMER0_CONFIG + 3, 10_000);
    rig.wrmsr(msr::STIMER0_CONFIG + 2, 1 | 1 << 1 | (SINT as u64) << 16);
    rig.time.advance(10_000_000);
    let (kind, payload, _) = rig.take_message(0).expect("the timer's message");
    assert_eq!((kind, payload[0]), (0x8000_0010, 1));
    rig.wrmsr(msr::EOM, 0);
    assert!(rig.take_message(0).is_some(), "one waited");
    rig.wrmsr(msr::EOM, 0);
    assert!(rig.take_message(0).is_none(), "and no more than one");
    rig.wrmsr(msr::STIMER0_CONFIG + 2, 0);
    rig.time.advance(10_000_000);
    assert!(rig.take_message(0).is_none() && rig.time.next_deadline().is_none());
}

#[test]
fn last_words_are_heard() {
    let rig = Rig::new();
    rig.memory.write(INPUT, b"Kernel panic\x07\n\xff").unwrap();
    for (i, value) in [(0, 7), (3, INPUT), (4, 15)] {
        rig.wrmsr(msr::CRASH_P0 + i, value);
    }
    rig.wrmsr(msr::CRASH_CTL, 1);
    rig.wrmsr(msr::CRASH_CTL, rig.rdmsr(msr::CRASH_CTL));
    rig.wrmsr(msr::CRASH_P4, u64::MAX);
    rig.wrmsr(msr::CRASH_P0 + 3, !0);
    rig.wrmsr(msr::CRASH_CTL, rig.rdmsr(msr::CRASH_CTL));
    let heard = rig.crashes.0.lock().unwrap();
    assert_eq!(heard.len(), 2);
    assert_eq!(
        heard[0],
        GuestCrash { parameters: [7, 0, 0, INPUT, 15], text: Some("Kernel panic\n\u{fffd}".into()) }
    );
    assert_eq!(heard[1].text, None);
}

#[test]
fn state_moves_to_another_machine_and_reset_forgets_it() {
    let rig = Rig::new();
    rig.set_up();
    rig.time.advance(5_000_000);
    rig.wrmsr(msr::STIMER0_CONFIG, 1 | 1 << 3 | 1 << 12 | 0xed << 4);
    rig.wrmsr(msr::STIMER0_CONFIG + 1, 60_000);
    for n in 1..=2_u8 {
        rig.hv.post_message(0, SINT, Message::new(1, 0, &[n]).unwrap()).unwrap();
    }
    let state = rig.hv.save();

    let other = Rig::new();
    other.time.advance(77_000_000);
    other.hv.restore(&state).unwrap();
    assert!(other.rdmsr(msr::TIME_REF_COUNT).abs_diff(50_000) < 2, "reference time goes on");
    assert_eq!(other.rdmsr(msr::HYPERCALL), 0x20_3001);
    other.time.advance(1_001_000);
    assert_eq!(other.interrupts(), [(0xfee0_0000, 0xed)]);
    other.wrmsr(msr::EOM, 0);
    assert_eq!(other.take_message(0), Some((1, vec![2], false)), "the one that waited");
    let mut damaged = state.clone();
    damaged.vps[0].sints[3] = 5;
    assert!(other.hv.restore(&damaged).is_err());
    damaged = state;
    damaged.vps.pop();
    assert!(other.hv.restore(&damaged).is_err());

    other.hv.reset();
    assert_eq!(other.hv.save().global, Default::default());
    assert_eq!(other.rdmsr(msr::SINT0), 1 << 16);
    assert_eq!(other.time.next_deadline(), None);
}

proptest! {
    #[test]
    fn no_register_and_no_call_does_harm(
        writes in prop::collection::vec((0..2_u32, prop_oneof![0..0x200_u32, 0x80..0x100_u32], any::<u64>()), 1..80),
        calls in prop::collection::vec((prop_oneof![Just(8_u64), Just(0x5c), Just(0x5d), any::<u64>()], any::<u64>(), any::<bool>()), 1..20),
    ) {
        let rig = Rig::new();
        rig.set_up();
        rig.hv.connect_messages(0, Arc::new(Inbox::default()));
        for (vp, index, value) in writes {
            _ = rig.hv.msr_write(vp, msr::RANGE.start() + index, value);
            _ = rig.hv.msr_read(vp, msr::RANGE.start() + index);
            rig.hv.signal_event(vp, (value % 16) as usize, value as u16);
            _ = rig.hv.post_message(vp, (value % 16) as usize, Message::new(1, 0, &[1; 240]).unwrap());
        }
        for (control, input, long_mode) in calls {
            let mut regs = HypercallRegs { long_mode, ..Default::default() };
            (regs.gpr[0], regs.gpr[1], regs.gpr[2]) = (control, if long_mode { control } else { input }, input);
            _ = rig.hv.hypercall(0, &regs);
        }
        // A periodic timer with a period of one unit is the worst.
        rig.time.advance(1_000_000);
        let state = rig.hv.save();
        prop_assert!(rig.hv.restore(&state).is_ok());
    }
}
