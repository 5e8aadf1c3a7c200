//! Getting a vCPU out of KVM_RUN from another thread, without a race.
//!
//! KVM_RUN looks at `immediate_exit` after signals could have been taken, and a signal ends a KVM_RUN in progress:
//! whoever sets the byte and then sends the signal wins in either order (api.rst, "immediate_exit").

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::*};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use vireo_core::EngineError;

use crate::sys::VcpuMapping;

/// The doorbell of one vCPU.
pub struct Doorbell {
    kicked: AtomicBool,
    /// Our own mapping of the page with `immediate_exit`, so that it lives as long as this value.
    page: VcpuMapping,
    /// The thread inside `run`, if any.
    thread: Mutex<Option<libc::pid_t>>,
}

/// While it lives, signals reach the thread that made it.
pub struct Running<'a>(&'a Doorbell);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        *self.0.thread() = None;
    }
}

impl Doorbell {
    /// A doorbell for a vCPU.
    pub fn new(vcpu: &VcpuFd) -> Result<Self, EngineError> {
        install_handler();
        let page = VcpuMapping::new(vcpu, 0, 4096)?;
        Ok(Self { kicked: AtomicBool::new(false), page, thread: Mutex::new(None) })
    }

    fn thread(&self) -> MutexGuard<'_, Option<libc::pid_t>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        const OFFSET: usize = std::mem::offset_of!(kvm_run, immediate_exit);
        // SAFETY: the byte lies inside the mapping, which lives as long as self; all in this process that
        // access it while the vCPU may run do so through this atomic.
        unsafe { AtomicU8::from_ptr(self.page.start().as_ptr().add(OFFSET)) }
    }

    /// Registers the calling thread as the one that runs the vCPU.
    pub fn enter(&self) -> Running<'_> {
        unblock_signal();
        // SAFETY: gettid has no preconditions.
        *self.thread() = Some(unsafe { libc::gettid() });
        Running(self)
    }

    /// Makes `run` return `Kicked`, now or at its next call.
    pub fn kick(&self) {
        self.kicked.store(true, SeqCst);
        self.poke();
    }

    /// Makes KVM_RUN return, so that the vCPU's thread looks at its requests; no kick is reported.
    pub fn poke(&self) {
        self.immediate_exit().store(1, SeqCst);
        if let Some(tid) = *self.thread() {
            // SAFETY: the thread cannot leave `run`, let alone end, while we hold the lock; the signal has a handler.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, signal()) };
        }
    }

    /// Takes note that KVM_RUN was interrupted: was it by a kick? The byte is cleared first: a kick that comes in
    /// between is either seen here, or leaves the byte set for the next KVM_RUN.
    pub fn answer(&self) -> bool {
        self.immediate_exit().store(0, SeqCst);
        self.kicked.swap(false, SeqCst)
    }

    /// Makes the next KVM_RUN return at once (after completing the last exit).
    pub fn arm(&self) {
        self.immediate_exit().store(1, SeqCst);
    }
}

fn signal() -> libc::c_int {
    libc::SIGRTMIN()
}

extern "C" fn ignore(_: libc::c_int) {}

fn install_handler() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: an all-zero sigaction is valid; the handler does nothing and so is async-signal-safe. Without
        // SA_RESTART, since the interruption is the purpose.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = ignore as *const () as usize;
            libc::sigaction(signal(), &action, std::ptr::null_mut());
        }
    });
}

fn unblock_signal() {
    // SAFETY: the set is initialised by sigemptyset before use and lives through the calls.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, signal());
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
    }
}
