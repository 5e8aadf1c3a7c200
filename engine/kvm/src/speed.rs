//! How fast this host's KVM runs guest kernel code: at the processor's speed, or by emulation as some nested set-ups
//! do.

use std::ptr::NonNull;
use std::time::{Duration, Instant};

use kvm_bindings::{kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use rustix::mm::{MapFlags, ProtFlags};
use rustix::time::{ClockId, clock_gettime};
use vireo_core::EngineError;
use vireo_core::state::{cr0, cr4, efer};

use crate::kick::Doorbell;
use crate::sys::os;

/// Instructions a second that tell execution from emulation. Processors do 10^9 and more, a KVM under another
/// emulator some 10^8, KVM's own instruction emulator 10^6.
pub const FULL_SPEED: u64 = 20_000_000;

/// Most time that the first exit takes, for which KVM builds its page tables.
const WARM_UP: Duration = Duration::from_millis(100);
/// Most time that the measurement takes.
const BUDGET: Duration = Duration::from_millis(5);
/// Rounds of the loop between two exits; two instructions each.
const ROUNDS: u32 = 5_000;
/// Exits, of which the fastest interval counts: the others may have been disturbed.
const LAPS: u32 = 10;

/// Long mode, privilege level 0: `lap: out 0x80, al; mov ecx, ROUNDS; round: dec ecx; jnz round; jmp lap`.
const GUEST: [u8; 13] = {
    let r = ROUNDS.to_le_bytes();
    [0xe6, 0x80, 0xb9, r[0], r[1], r[2], r[3], 0xff, 0xc9, 0x75, 0xfc, 0xeb, 0xf3]
};

const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const CODE: u64 = 0x4000;
const MEMORY: usize = 0x5000;

struct Memory(NonNull<u8>);

impl Memory {
    fn new() -> Result<Self, EngineError> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing.
        let start = unsafe {
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), MEMORY, protection, MapFlags::PRIVATE)
        };
        let start = start.map_err(|e| EngineError::os("mapping the memory of a first guest", e))?;
        let start =
            NonNull::new(start.cast()).ok_or_else(|| EngineError::Internal("mmap gave null".into()))?;
        Ok(Self(start))
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        let at = at as usize;
        assert!(at + bytes.len() <= MEMORY);
        // SAFETY: the range is inside the mapping, and no reference covers it.
        unsafe { self.0.as_ptr().add(at).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`; the virtual machine that used it is gone before (see `measure`).
        unsafe { rustix::mm::munmap(self.0.as_ptr().cast(), MEMORY).ok() };
    }
}

/// Whether the processor has VMX (SDM vol. 2, CPUID.1:ECX[5]) or SVM (AMD APM vol. 3, CPUID.8000_0001h:ECX[2]).
pub fn processor_virtualizes() -> bool {
    use core::arch::x86_64::__cpuid;
    __cpuid(1).ecx >> 5 & 1 != 0
        || __cpuid(0x8000_0000).eax > 0x8000_0000 && __cpuid(0x8000_0001).ecx >> 2 & 1 != 0
}

/// Instructions that a guest's kernel executes in a second.
pub fn measure(kvm: &Kvm) -> Result<u64, EngineError> {
    let memory = Memory::new()?;
    for (at, entry) in [(PML4, PDPT | 3), (PDPT, PD | 3), (PD, 0x83)] {
        memory.write(at, &u64::to_le_bytes(entry));
    }
    memory.write(CODE, &GUEST);
    let vm = kvm.create_vm().map_err(os("creating a virtual machine"))?;
    vm.set_identity_map_address(0xfeff_c000).map_err(os("placing KVM's identity map"))?;
    vm.set_tss_address(0xfeff_d000).map_err(os("placing KVM's task state"))?;
    let region = kvm_userspace_memory_region {
        memory_size: MEMORY as u64,
        userspace_addr: memory.0.as_ptr().expose_provenance() as u64,
        ..Default::default()
    };
    // SAFETY: the memory is dropped after `vm`, since it was declared before.
    unsafe { vm.set_user_memory_region(region) }.map_err(os("mapping guest RAM"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(os("creating a vCPU"))?;
    let cpuid = kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES).map_err(os("reading CPUID"))?;
    vcpu.set_cpuid2(&cpuid).map_err(os("setting CPUID"))?;
    enter_long_mode(&vcpu)?;
    let bell = Doorbell::new(&vcpu)?;
    match within(WARM_UP, &bell, || vcpu.run().map(|exit| format!("{exit:?}"))) {
        Ok(_) => {
            // A first attempt may be spent on what the host does only once; a second one tells.
            let first = within(BUDGET, &bell, || run(&mut vcpu))?;
            if first >= FULL_SPEED {
                return Ok(first);
            }
            bell.answer();
            within(BUDGET, &bell, || run(&mut vcpu)).map(|second| first.max(second))
        }
        Err(e) if e.errno() == libc::EINTR => Ok(0),
        Err(e) => Err(os("running a vCPU")(e)),
    }
}

/// Runs something that runs a vCPU, and rings the vCPU's bell if it takes longer.
fn within<T>(limit: Duration, bell: &Doorbell, what: impl FnOnce() -> T) -> T {
    let (done, wait) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || wait.recv_timeout(limit).is_err().then(|| bell.kick()));
        let _running = bell.enter();
        let result = what();
        done.send(()).ok();
        result
    })
}

/// The best of several laps, or what was done of a first one that did not end in time.
fn run(vcpu: &mut VcpuFd) -> Result<u64, EngineError> {
    let started = Instant::now();
    let mut best = 0;
    for _ in 0..LAPS {
        let before = thread_time();
        let rounds = match vcpu.run() {
            Ok(VcpuExit::IoOut(0x80, _)) => ROUNDS,
            Ok(exit) => return Err(EngineError::Internal(format!("it left with {exit:?}"))),
            Err(e) if e.errno() == libc::EINTR => {
                let left = vcpu.get_regs().map_err(os("reading general registers"))?.rcx as u32;
                ROUNDS.saturating_sub(left)
            }
            Err(e) => return Err(os("running a vCPU")(e)),
        };
        let took = thread_time().saturating_sub(before).as_nanos().max(1);
        let rate = u128::from(rounds) * 2 * 1_000_000_000 / took;
        best = best.max(rate as u64);
        if started.elapsed() >= BUDGET {
            break;
        }
    }
    Ok(best)
}

/// Time of the processor on this thread, guest code included.
fn thread_time() -> Duration {
    let t = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
}

fn enter_long_mode(vcpu: &VcpuFd) -> Result<(), EngineError> {
    let mut sregs = vcpu.get_sregs().map_err(os("reading segment and control registers"))?;
    let data = kvm_segment { limit: u32::MAX, type_: 3, present: 1, s: 1, db: 1, g: 1, ..Default::default() };
    sregs.cs = kvm_segment { selector: 8, type_: 11, l: 1, db: 0, ..data };
    for s in [&mut sregs.ds, &mut sregs.es, &mut sregs.ss, &mut sregs.fs, &mut sregs.gs] {
        *s = kvm_segment { selector: 16, ..data };
    }
    sregs.cr0 = cr0::PE | cr0::ET | cr0::NE | cr0::PG;
    sregs.cr3 = PML4;
    sregs.cr4 = cr4::PAE;
    sregs.efer = efer::LME | efer::LMA;
    vcpu.set_sregs(&sregs).map_err(os("entering long mode"))?;
    let regs = kvm_regs { rip: CODE, rflags: 2, ..Default::default() };
    vcpu.set_regs(&regs).map_err(os("setting general registers"))
}
