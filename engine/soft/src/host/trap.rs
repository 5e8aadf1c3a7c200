//! Host exceptions inside generated code: turned into the return value of a stub, or into a jump within translated code.
//!
//! A stub keeps the stack pointer it was called with, so leaving it from anywhere is a plain `ret`: the handler sends
//! the context to the `ret` at the start of the arena, with the vector in RAX. Faults elsewhere go to whoever
//! handled the signal before.

use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering::*};

use vireo_core::EngineError;

/// MXCSR of host code: all exceptions masked, round to nearest.
pub const HOST_MXCSR: u32 = 0x1f80;

/// How a stub ended, as its return value: zero, or vector + 1 in bits 0 to 7 and MXCSR in bits 32 to 63.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Ending(u64);

impl Ending {
    /// Vector of the host exception, and MXCSR at that moment. `None`: the instruction completed.
    #[inline(always)]
    pub fn exception(self) -> Option<(u8, u32)> {
        (self.0 != 0).then(|| (self.0.wrapping_sub(1) as u8, (self.0 >> 32) as u32))
    }
}

/// What happens after a host exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The stub returns an [`Ending`].
    Stub,
    /// Translated code goes on where its translator says ([`crate::translate::after_exception`]).
    Translated,
}

/// The executable range of generated code. A list that only grows, because signal handlers walk it without a lock; ranges
/// of dropped arenas are used again.
struct Range {
    start: AtomicUsize,
    size: AtomicUsize,
    translated: AtomicBool,
    next: Option<&'static Range>,
}

static RANGES: AtomicPtr<Range> = AtomicPtr::new(std::ptr::null_mut());

fn ranges() -> impl Iterator<Item = &'static Range> {
    // SAFETY: null, or a leaked `Range`.
    let first = unsafe { RANGES.load(Acquire).as_ref::<'static>() };
    std::iter::successors(first, |r| r.next)
}

/// Has faults in `size` bytes at `start` answered.
pub fn watch(start: usize, size: usize, answer: Answer) -> Result<(), EngineError> {
    install()?;
    for r in ranges() {
        if r.start.compare_exchange(0, start, AcqRel, Relaxed).is_ok() {
            // Nothing runs in the range before this function returns, so nobody needs the pair at once.
            r.translated.store(answer == Answer::Translated, Relaxed);
            r.size.store(size, Release);
            return Ok(());
        }
    }
    let mut head = RANGES.load(Acquire);
    let translated = (answer == Answer::Translated).into();
    let new = Box::leak(Box::new(Range { start: start.into(), size: size.into(), translated, next: None }));
    loop {
        // SAFETY: null, or a leaked `Range`.
        new.next = unsafe { head.as_ref() };
        match RANGES.compare_exchange(head, new, AcqRel, Acquire) {
            Ok(_) => return Ok(()),
            Err(now) => head = now,
        }
    }
}

/// The range at `start` is about to be unmapped.
pub fn forget(start: usize) {
    if let Some(r) = ranges().find(|r| r.start.load(Relaxed) == start) {
        r.size.store(0, Release);
        r.start.store(0, Release);
    }
}

/// The signals that exceptions of unprivileged instructions become.
const SIGNALS: [libc::c_int; 4] = [libc::SIGFPE, libc::SIGSEGV, libc::SIGILL, libc::SIGBUS];

/// What handled each signal before.
static PREVIOUS: OnceLock<[libc::sigaction; 4]> = OnceLock::new();

/// Page faults are never a guest's: host memory under a stub is mapped.
const PAGE_FAULT: i64 = 14;

fn install() -> Result<(), EngineError> {
    static DONE: OnceLock<Result<(), i32>> = OnceLock::new();
    let done = DONE.get_or_init(|| {
        // SAFETY: zeroes are a valid `sigaction`.
        let mut previous: [libc::sigaction; 4] = unsafe { MaybeUninit::zeroed().assume_init() };
        for (old, signal) in previous.iter_mut().zip(SIGNALS) {
            // SAFETY: only reads the current action.
            unsafe { libc::sigaction(signal, std::ptr::null(), old) };
        }
        let _ = PREVIOUS.set(previous);
        // SAFETY: as above.
        let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        action.sa_sigaction = on_signal as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        for signal in SIGNALS {
            // SAFETY: the handler is async-signal-safe: it reads atomics and the context it is given.
            if unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) } != 0 {
                return Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0));
            }
        }
        Ok(())
    });
    done.map_err(|e| {
        EngineError::os("installing handlers of host exceptions", std::io::Error::from_raw_os_error(e))
    })
}

extern "C" fn on_signal(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel gives a valid context to SA_SIGINFO handlers; its floating-point part is present on x86-64.
    let (regs, fp) = unsafe {
        let c = &mut *context.cast::<libc::ucontext_t>();
        (&mut c.uc_mcontext.gregs, c.uc_mcontext.fpregs.as_mut())
    };
    let rip = regs[libc::REG_RIP as usize] as usize;
    let vector = regs[libc::REG_TRAPNO as usize];
    let inside = |r: &&Range| rip.wrapping_sub(r.start.load(Acquire)) < r.size.load(Acquire);
    // A signal that somebody sent (positive codes are the kernel's own) has nothing to do with the instruction.
    // SAFETY: the kernel gives a valid siginfo.
    let raised = unsafe { (*info).si_code } > 0;
    match (ranges().find(inside), fp) {
        (Some(range), Some(_)) if raised && vector != PAGE_FAULT && range.translated.load(Relaxed) => {
            match crate::translate::after_exception(rip) {
                Some(to) => regs[libc::REG_RIP as usize] = to as i64,
                None => chain(signal, info, context),
            }
        }
        (Some(range), Some(fp)) if raised && vector != PAGE_FAULT => {
            regs[libc::REG_RAX as usize] = ((vector & 0xff) + 1) | (i64::from(fp.mxcsr) << 32);
            regs[libc::REG_RIP as usize] = range.start.load(Acquire) as i64;
            fp.mxcsr = HOST_MXCSR;
        }
        _ => chain(signal, info, context),
    }
}

/// Has a foreign fault handled as if this module did not exist.
fn chain(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let at = SIGNALS.iter().position(|s| *s == signal);
    let Some(old) = at.and_then(|i| PREVIOUS.get().map(|p| &p[i])) else { return };
    match old.sa_sigaction {
        libc::SIG_IGN => {}
        libc::SIG_DFL => {
            // The instruction is executed again, and the default action taken.
            // SAFETY: restores the action that was there.
            unsafe { libc::sigaction(signal, old, std::ptr::null_mut()) };
        }
        handler if old.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: a SA_SIGINFO handler has this type.
            let f: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { std::mem::transmute(handler) };
            f(signal, info, context);
        }
        handler => {
            // SAFETY: a handler without SA_SIGINFO has this type.
            let f: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(handler) };
            f(signal);
        }
    }
}
