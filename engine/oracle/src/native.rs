//! The real CPU as a [`Subject`]: batches of cases in a forked sandbox.

use crate::case::{Case, CpuImage, End, Outcome};
use crate::layout::{self, BYTES};
use crate::record::Record;
use crate::sandbox::{self, Plan};
use crate::trampoline::{self, Stubs};
use crate::{Mode, Subject};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// Cases per forked child: enough to make the fork cheap.
pub const BATCH: usize = 256;

/// Why the real CPU cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum NativeError {
    /// A system call for memory failed.
    #[error("cannot {what} for the CPU oracle: {source}")]
    Memory {
        /// The call's purpose.
        what: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The entry code does not assemble.
    #[error("cannot assemble the entry code: {0}")]
    Stubs(#[from] iced_x86::IcedError),
    /// The sandbox process did not start.
    #[error("cannot start the sandbox process: {0}")]
    Fork(std::io::Error),
    /// The sandbox cannot map its windows at their fixed addresses, or cannot take signals.
    #[error(
        "the sandbox process cannot be set up: are addresses {:#x} to {:#x} free?",
        layout::CODE,
        trampoline::STUB_STACK
    )]
    Sandbox,
}

/// Header of the shared memory; the records follow it.
#[repr(C, align(64))]
struct Shared {
    next: AtomicU32,
    records: [Record; BATCH],
}

/// The real CPU.
pub struct Native {
    stubs: Stubs,
    memory: OwnedFd,
    shared: NonNull<Shared>,
    scratch: Box<[u8; BYTES]>,
    lost: u64,
}

// SAFETY: the shared mapping belongs to this value alone; only `&mut self` reaches it.
unsafe impl Send for Native {}

fn failed(what: &'static str) -> NativeError {
    NativeError::Memory { what, source: std::io::Error::last_os_error() }
}

impl Native {
    /// Prepares the oracle.
    ///
    /// # Errors
    /// When memory or the entry code cannot be had.
    pub fn new() -> Result<Native, NativeError> {
        let stubs = trampoline::assemble()?;
        // SAFETY: plain system calls; the results are checked, and the descriptor is owned from here on.
        let memory = unsafe {
            let fd = libc::memfd_create(c"oracle".as_ptr(), libc::MFD_CLOEXEC);
            if fd < 0 {
                return Err(failed("create a memory file"));
            }
            let fd = OwnedFd::from_raw_fd(fd);
            if libc::ftruncate(fd.as_raw_fd(), BYTES as i64) != 0 {
                return Err(failed("size a memory file"));
            }
            fd
        };
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a fresh anonymous mapping of the size of `Shared`; zeroes are a valid `Shared`.
        let shared = unsafe { libc::mmap(std::ptr::null_mut(), size_of::<Shared>(), prot, flags, -1, 0) };
        if shared == libc::MAP_FAILED {
            return Err(failed("map shared memory"));
        }
        let shared = NonNull::new(shared.cast()).ok_or_else(|| failed("map shared memory"))?;
        Ok(Native { stubs, memory, shared, scratch: Box::new([0; BYTES]), lost: 0 })
    }

    /// Cases that killed the sandbox or ran forever, so far.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Whether this host runs code of a mode: kernels can be built without 32-bit or 16-bit segments.
    pub fn runs(&mut self, mode: Mode) -> bool {
        let case = Case {
            bytes: vec![0xff, 0xc0], // INC EAX, or AX
            mode,
            cpu: CpuImage::initial(mode),
            memory: crate::MemImage::default(),
        };
        self.run_batch(&[case]).is_ok_and(|o| o[0].end == End::Done && o[0].cpu.gpr[0] == 1)
    }

    /// Runs cases, in order. Those the sandbox does not survive end as [`End::Lost`].
    ///
    /// # Errors
    /// When no sandbox can be started.
    pub fn run_batch(&mut self, cases: &[Case]) -> Result<Vec<Outcome>, NativeError> {
        let mut outcomes = Vec::with_capacity(cases.len());
        for chunk in cases.chunks(BATCH) {
            self.run_chunk(chunk, &mut outcomes)?;
        }
        Ok(outcomes)
    }

    fn run_chunk(&mut self, cases: &[Case], outcomes: &mut Vec<Outcome>) -> Result<(), NativeError> {
        let first = outcomes.len();
        outcomes.extend(cases.iter().map(|c| Outcome { end: End::Lost, cpu: c.cpu.clone(), memory: vec![] }));
        // SAFETY: no child runs now, so this is the only access to the mapping.
        let shared = unsafe { self.shared.as_mut() };
        let mut placed = Vec::with_capacity(cases.len());
        for (i, case) in cases.iter().enumerate() {
            if shared.records[placed.len()].set(case) {
                placed.push(first + i);
            }
        }
        shared.next.store(0, Ordering::Relaxed);
        while (shared.next.load(Ordering::Acquire) as usize) < placed.len() {
            let status = self.fork_and_wait(placed.len())?;
            let next = shared.next.load(Ordering::Acquire) as usize;
            if libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == sandbox::SETUP_FAILED {
                return Err(NativeError::Sandbox);
            }
            if next < placed.len() {
                // The case at `next` ended the sandbox; go on behind it.
                shared.records[next].status = crate::record::PENDING;
                shared.next.store(next as u32 + 1, Ordering::Release);
            }
        }
        for (record, &at) in shared.records.iter().zip(&placed) {
            outcomes[at] = record.outcome();
        }
        let lost = outcomes[first..].iter().filter(|o| o.end == End::Lost).count();
        self.lost += lost as u64;
        Ok(())
    }

    fn fork_and_wait(&mut self, count: usize) -> Result<libc::c_int, NativeError> {
        let background = layout::background();
        // SAFETY: the child calls only `sandbox::run`, which allocates nothing, takes no lock and never
        // returns. The parent waits for it, so the mapping has one user at a time.
        unsafe {
            let pid = libc::fork();
            if pid == 0 {
                let _end = EndProcess;
                let shared = self.shared.as_mut();
                let plan = Plan {
                    stubs: &self.stubs,
                    memory: self.memory.as_raw_fd(),
                    background,
                    scratch: &mut self.scratch,
                };
                sandbox::run(plan, &mut shared.records[..count], &shared.next);
            }
            if pid < 0 {
                return Err(NativeError::Fork(std::io::Error::last_os_error()));
            }
            let mut status = 0;
            while libc::waitpid(pid, &mut status, 0) < 0 {
                let error = std::io::Error::last_os_error();
                if error.kind() != std::io::ErrorKind::Interrupted {
                    return Err(NativeError::Fork(error));
                }
            }
            Ok(status)
        }
    }
}

/// Ends the child should anything in it panic: it must never return into the caller's code.
struct EndProcess;

impl Drop for EndProcess {
    fn drop(&mut self) {
        // SAFETY: ends the process.
        unsafe { libc::_exit(sandbox::PANICKED) };
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this size, and unused from here on.
        unsafe { libc::munmap(self.shared.as_ptr().cast(), size_of::<Shared>()) };
    }
}

impl Subject for Native {
    fn run(&mut self, case: &Case, _mode: Mode) -> Outcome {
        let lost = || Outcome { end: End::Lost, cpu: case.cpu.clone(), memory: vec![] };
        match self.run_batch(std::slice::from_ref(case)) {
            Ok(mut outcomes) => outcomes.pop().unwrap_or_else(lost),
            Err(_) => lost(),
        }
    }
}
