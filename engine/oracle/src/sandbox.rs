//! The child process in which the instructions run. Nothing here allocates, locks or panics: the parent may
//! have had other threads when it forked.

use crate::layout::{self, BYTES, PAGE, WINDOWS};
use crate::record::{self, Record};
use crate::trampoline::{self, CONTROL, CS32, CS64, Control, DS, FAULTED, STUB_STACK, Stubs, TRAMPOLINE};
use std::sync::atomic::{AtomicU32, Ordering};

/// CPU time a batch may take: an endless case is killed by SIGPROF.
const BATCH_CPU_MICROSECONDS: libc::suseconds_t = 500_000;
/// The kernel's signal frame holds the whole extended state, up to 11 KiB with AMX.
const SIGNAL_STACK: usize = 64 * 1024;
/// Exit code of a sandbox that could not be set up.
pub const SETUP_FAILED: i32 = 70;
/// Exit code after a panic.
pub const PANICKED: i32 = 72;
/// Exit code after a signal that belongs to no case.
const STRAY_SIGNAL: i32 = 71;

/// What the parent prepares before it forks.
pub struct Plan<'a> {
    pub stubs: &'a Stubs,
    /// Memory file of [`BYTES`] bytes behind all windows.
    pub memory: libc::c_int,
    /// The content of the windows between cases.
    pub background: &'a [u8; BYTES],
    /// As large as `background`; its content does not matter.
    pub scratch: &'a mut [u8; BYTES],
}

/// Runs the records from `next` on and ends the process.
///
/// # Safety
/// To be called in a freshly forked child only; `records` must be the shared records.
pub unsafe fn run(plan: Plan<'_>, records: &mut [Record], next: &AtomicU32) -> ! {
    // SAFETY: we are the only thread of this process and own its address space; the addresses mapped are
    // ours by convention, and MAP_FIXED_NOREPLACE refuses if they are not.
    unsafe {
        let Some(live) = set_up(&plan) else { libc::_exit(SETUP_FAILED) };
        live.copy_from_slice(plan.background);
        plan.scratch.copy_from_slice(plan.background);
        let mut windows = Memory { live, before: plan.scratch, background: plan.background };
        let first = next.load(Ordering::Relaxed) as usize;
        for (i, record) in records.iter_mut().enumerate().skip(first) {
            next.store(i as u32, Ordering::Release);
            run_record(record, &mut windows, plan.stubs);
        }
        next.store(records.len() as u32, Ordering::Release);
        libc::_exit(0)
    }
}

/// Maps memory at an address, or anywhere if that is zero; null if it cannot.
///
/// # Safety
/// The caller owns the address space: what is mapped there is nobody else's.
unsafe fn map(at: u64, len: usize, prot: libc::c_int, flags: libc::c_int, fd: i32, off: i64) -> *mut u8 {
    let fixed = if at == 0 { 0 } else { libc::MAP_FIXED_NOREPLACE };
    // SAFETY: the caller owns the address space; nothing is replaced.
    let got = unsafe { libc::mmap(at as *mut _, len, prot, flags | fixed | libc::MAP_POPULATE, fd, off) };
    if got == libc::MAP_FAILED || (at != 0 && got as u64 != at) {
        return std::ptr::null_mut();
    }
    got.cast()
}

/// Maps windows, stubs and their data, and takes the signals. Returns a writable view of all windows.
///
/// # Safety
/// As [`map`]; signals and segments of the process are the caller's too, and nobody else has the view.
unsafe fn set_up<'a>(plan: &Plan<'_>) -> Option<&'a mut [u8; BYTES]> {
    const READ: libc::c_int = libc::PROT_READ;
    const WRITE: libc::c_int = libc::PROT_WRITE;
    let (private, shared) = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, libc::MAP_SHARED);
    // SAFETY: plain system calls on memory and signals of this process, see `run`.
    unsafe {
        let mut file_at = 0;
        for window in WINDOWS {
            let mut prot = READ;
            prot |= if window.writable { WRITE } else { 0 };
            prot |= if window.executable { libc::PROT_EXEC } else { 0 };
            let len = window.pages * PAGE;
            if map(window.start, len as usize, prot, shared, plan.memory, file_at).is_null() {
                return None;
            }
            file_at += len as i64;
        }
        let live = map(0, BYTES, READ | WRITE, shared, plan.memory, 0);
        let stubs = map(TRAMPOLINE, PAGE as usize, READ | WRITE, private, -1, 0);
        let control = map(CONTROL, PAGE as usize, READ | WRITE, private, -1, 0);
        let stack = map(STUB_STACK, PAGE as usize, READ | WRITE, private, -1, 0);
        if live.is_null() || stubs.is_null() || control.is_null() || stack.is_null() {
            return None;
        }
        std::ptr::copy_nonoverlapping(plan.stubs.code.as_ptr(), stubs, PAGE as usize);
        if libc::mprotect(stubs.cast(), PAGE as usize, READ | libc::PROT_EXEC) != 0 {
            return None;
        }
        take_signals(plan.stubs.abandon).then_some(())?;
        // Where the kernel has no 16-bit segments, 16-bit cases fault; see `Native::runs`.
        set_ldt(0, layout::BASE16, true);
        set_ldt(1, layout::BASE16, false);
        Some(&mut *live.cast())
    }
}

/// Selectors of 16-bit code and data, entries 0 and 1 of the local descriptor table.
const LDT_CODE: u64 = 0x07;
const LDT_DATA: u64 = 0x0f;

/// Makes a 16-bit segment of 64 KiB (`struct user_desc` of modify_ldt(2)).
///
/// # Safety
/// Nobody uses the entry of the descriptor table for anything else.
unsafe fn set_ldt(entry: u32, base: u64, code: bool) {
    let contents = if code { 2 } else { 0 };
    let descriptor: [u32; 4] = [entry, base as u32, 0xffff, contents << 1];
    // SAFETY: function 1 reads one descriptor.
    unsafe { libc::syscall(libc::SYS_modify_ldt, 1, descriptor.as_ptr(), size_of_val(&descriptor)) };
}

/// A 64-bit process starts with null data segments, with which other code cannot access memory.
unsafe fn load_data_segments(selector: u64) {
    // SAFETY: the caller knows the selector to be valid.
    unsafe {
        std::arch::asm!("mov ds, {0:x}", "mov es, {0:x}", in(reg) selector, options(nostack, preserves_flags));
    }
}

unsafe fn take_signals(abandon: u64) -> bool {
    ABANDON.store(abandon as u32, Ordering::Relaxed);
    // SAFETY: system calls on this process's signals; all structures are fully initialised.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        let core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        libc::setrlimit(libc::RLIMIT_CORE, &core);
        let stack = map(
            0,
            SIGNAL_STACK,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        if stack.is_null() {
            return false;
        }
        let alternate = libc::stack_t { ss_sp: stack.cast(), ss_flags: 0, ss_size: SIGNAL_STACK };
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_fault as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        let mut ok = libc::sigaltstack(&alternate, std::ptr::null_mut()) == 0;
        for signal in [libc::SIGSEGV, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGBUS] {
            ok &= libc::sigaction(signal, &action, std::ptr::null_mut()) == 0;
        }
        libc::signal(libc::SIGPROF, libc::SIG_DFL);
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &all, std::ptr::null_mut());
        let never = libc::timeval { tv_sec: 0, tv_usec: 0 };
        let limit = libc::timeval { tv_sec: 0, tv_usec: BATCH_CPU_MICROSECONDS };
        let timer = libc::itimerval { it_interval: never, it_value: limit };
        ok && libc::setitimer(libc::ITIMER_PROF, &timer, std::ptr::null_mut()) == 0
    }
}

/// Where the handler resumes; the trampoline page is below 4 GiB.
static ABANDON: AtomicU32 = AtomicU32::new(0);

/// The kernel's numbers of general registers in a signal frame, in encoding order.
const GREGS: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

extern "C" fn on_fault(_signal: libc::c_int, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel hands a valid ucontext; the control page is mapped before signals are taken.
    let (context, control) = unsafe { (&mut *context.cast::<libc::ucontext_t>(), &mut *control()) };
    let gregs = &mut context.uc_mcontext.gregs;
    let greg = |i: i32| gregs[i as usize] as u64;
    let rip = greg(libc::REG_RIP);
    if control.armed == 0 || (TRAMPOLINE..TRAMPOLINE + PAGE).contains(&rip) {
        // SAFETY: ends the process.
        unsafe { libc::_exit(STRAY_SIGNAL) };
    }
    for (slot, number) in control.gpr_out.iter_mut().zip(GREGS) {
        *slot = gregs[number as usize] as u64;
    }
    let greg = |i: i32| gregs[i as usize] as u64;
    control.rflags_out = greg(libc::REG_EFL);
    control.fault = [rip, greg(libc::REG_TRAPNO), greg(libc::REG_ERR), greg(libc::REG_CR2)];
    control.pad = FAULTED;
    let fx = context.uc_mcontext.fpregs.cast::<[u8; 512]>();
    if !fx.is_null() {
        // SAFETY: the frame's FPU state starts with an FXSAVE image.
        control.fx_out = unsafe { *fx };
        // SAFETY: as above; what follows it is as long as the image itself says.
        control.high_out = unsafe { high_halves(fx.cast()) };
    }
    gregs[libc::REG_RIP as usize] = i64::from(ABANDON.load(Ordering::Relaxed));
    gregs[libc::REG_EFL as usize] = 0x202;
    // CS in the low, SS in the high 16 bits; GS and FS stay.
    let middle = gregs[libc::REG_CSGSFS as usize] & 0x0000_ffff_ffff_0000;
    gregs[libc::REG_CSGSFS as usize] = middle | CS64 as i64 | (DS as i64) << 48;
}

/// Upper halves of the YMM registers in the FPU state of a signal frame: an XSAVE image, if the kernel's part of the
/// legacy area begins with its magic number (Linux, `struct _fpx_sw_bytes`).
///
/// # Safety
/// `state` is the FPU state of a signal frame.
unsafe fn high_halves(state: *const u8) -> [u128; 16] {
    const KERNELS_PART: usize = 464;
    const MAGIC: u32 = 0x4650_5853;
    const HEADER: usize = 512;
    const COMPONENT: usize = 576;
    const AVX: u8 = 4;
    // SAFETY: within the legacy area.
    let whole = unsafe { state.add(KERNELS_PART).cast::<u32>().read_unaligned() } == MAGIC;
    // SAFETY: with the magic number, a header follows.
    if !whole || unsafe { state.add(HEADER).read() } & AVX == 0 {
        return [0; 16];
    }
    // SAFETY: the header says that the component is there, which has this place on every processor.
    unsafe { state.add(COMPONENT).cast::<[u128; 16]>().read_unaligned() }
}

fn control() -> *mut Control {
    CONTROL as *mut Control
}

struct Memory<'a> {
    /// The windows the case sees.
    live: &'a mut [u8; BYTES],
    /// What they held at its start.
    before: &'a mut [u8; BYTES],
    /// What they hold between cases.
    background: &'a [u8; BYTES],
}

/// # Safety
/// After `set_up`.
unsafe fn run_record(record: &mut Record, memory: &mut Memory<'_>, stubs: &Stubs) {
    for slot in &record.patches[..record.patch_count as usize] {
        let (at, start, len) = (slot.offset as usize, slot.start as usize, slot.len as usize);
        let bytes = &record.patch_bytes[start..start + len];
        memory.live[at..at + len].copy_from_slice(bytes);
        memory.before[at..at + len].copy_from_slice(bytes);
    }
    place_code(record, memory.live, stubs);
    // SAFETY: the control page is mapped, and nobody else uses it outside `enter`.
    let control = unsafe { &mut *control() };
    let cpu = &record.cpu_in;
    control.fx_in = cpu.fx.0;
    control.high_in = cpu.high;
    control.gpr_in = cpu.gpr;
    let (rip, cs, data) = match record.bitness {
        16 => (stubs.enter16, CS64, LDT_DATA),
        32 => (cpu.rip, CS32, DS),
        _ => (cpu.rip, CS64, DS),
    };
    control.far16 = [cpu.rip & 0xffff_ffff | LDT_CODE << 32, LDT_DATA];
    control.frame = [rip, cs, cpu.rflags, cpu.gpr[4], DS];
    // SAFETY: both are data segments of this process; 64-bit code ignores them.
    unsafe { load_data_segments(data) };
    control.armed = 1;
    // SAFETY: the stub keeps the C calling convention, whatever the case does (see `on_fault`).
    unsafe {
        let enter: extern "sysv64" fn() = std::mem::transmute(stubs.enter);
        enter();
    }
    // SAFETY: as above; read again, for the stub wrote it behind the compiler's back.
    let control =
        unsafe { &mut *std::ptr::with_exposed_provenance_mut::<Control>(trampoline::CONTROL as usize) };
    control.armed = 0;
    classify(record, control, memory.live);
    collect_changes(record, memory);
    restore(record, memory);
}

fn code_offset(record: &Record) -> usize {
    layout::offset(record.base().wrapping_add(record.cpu_in.rip)).unwrap_or(0).min(PAGE as usize)
}

/// Puts the instruction in place, and jumps to the exit after it and at the landing. What would lie beyond
/// the code page is cut off.
fn place_code(record: &Record, live: &mut [u8; BYTES], stubs: &Stubs) {
    let at = code_offset(record);
    let len = record.code_len as usize;
    let landing = (layout::LANDING - layout::CODE) as usize;
    for (i, pad) in [at + len, landing].into_iter().enumerate() {
        if record.bitness == 16 {
            // A far jump with a 32-bit offset, straight to 64-bit code.
            let to = (stubs.exit64[i] as u32).to_le_bytes();
            put(live, pad, &[0x66, 0xea, to[0], to[1], to[2], to[3], CS64 as u8, 0]);
            continue;
        }
        let exit = if record.bitness == 32 { stubs.exit32[i] } else { stubs.exit64[i] };
        let next = layout::CODE.wrapping_add(pad as u64 + 5);
        let distance = (exit.wrapping_sub(next) as u32).to_le_bytes();
        put(live, pad, &[0xe9, distance[0], distance[1], distance[2], distance[3]]);
    }
    put(live, at, &record.code[..len]);
}

/// Writes into the code page, as far as it goes.
fn put(live: &mut [u8; BYTES], at: usize, bytes: &[u8]) {
    for (slot, byte) in live[..PAGE as usize].iter_mut().skip(at).zip(bytes) {
        *slot = *byte;
    }
}

/// Turns what the stub or the handler stored into an outcome.
fn classify(record: &mut Record, control: &Control, live: &[u8; BYTES]) {
    const RESUME: u64 = 1 << 16;
    const FETCH: u64 = 1 << 4;
    let start = record.cpu_in.rip;
    let [rip, vector, error, address] = control.fault;
    record.cpu_out.gpr = control.gpr_out;
    record.cpu_out.rflags = control.rflags_out & !RESUME;
    record.cpu_out.fx.0 = control.fx_out;
    record.cpu_out.high = control.high_out;
    record.status = record::DONE;
    record.cpu_out.rip = match control.pad {
        0 => start.wrapping_add(u64::from(record.code_len)),
        1 => layout::LANDING - record.base(),
        _ => rip,
    };
    if control.pad == FAULTED {
        // A branch to somewhere else completed, and its target then faulted: on the filler, or as absent.
        let target = record.base().wrapping_add(rip);
        let filler = layout::offset(target).is_some_and(|at| live[at] == layout::FILLER);
        let arrived = rip != start
            && ((vector == 13 && filler) || (vector == 14 && error & FETCH != 0 && address == target));
        if !arrived {
            record.status = record::FAULT;
        }
        (record.vector, record.error, record.address) = (vector as u32, error as u32, address);
    }
}

/// Compares the writable windows with what they held at the start.
fn collect_changes(record: &mut Record, memory: &mut Memory<'_>) {
    const CHUNK: usize = 64;
    let mut count = 0;
    let mut at = 0;
    for window in WINDOWS {
        let len = (window.pages * PAGE) as usize;
        if window.writable {
            for chunk in (at..at + len).step_by(CHUNK) {
                if memory.live[chunk..chunk + CHUNK] == memory.before[chunk..chunk + CHUNK] {
                    continue;
                }
                for word in (chunk..chunk + CHUNK).step_by(8) {
                    let new = u64::from_le_bytes(word_at(memory.live, word));
                    if new == u64::from_le_bytes(word_at(memory.before, word)) {
                        continue;
                    }
                    if let Some(slot) = record.changes.get_mut(count) {
                        slot.address = window.start + (word - at) as u64;
                        slot.value = new;
                        count += 1;
                    } else {
                        record.status = record::OVERFLOW;
                    }
                }
                memory.live[chunk..chunk + CHUNK].copy_from_slice(&memory.background[chunk..chunk + CHUNK]);
            }
        }
        at += len;
    }
    record.change_count = count as u32;
}

fn word_at(bytes: &[u8; BYTES], at: usize) -> [u8; 8] {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    word
}

/// Makes all windows equal to the background again.
fn restore(record: &Record, memory: &mut Memory<'_>) {
    for slot in &record.patches[..record.patch_count as usize] {
        let range = slot.offset as usize..(slot.offset + slot.len) as usize;
        memory.live[range.clone()].copy_from_slice(&memory.background[range.clone()]);
        memory.before[range.clone()].copy_from_slice(&memory.background[range]);
    }
    put(memory.live, code_offset(record), &[layout::FILLER; 15 + 8]);
}
