//! Networks for tests of this room and of higher ones: namespaces that nobody else is in.

use std::fs::File;
use std::os::fd::AsFd;
use std::process::Command;

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// A network of its own, with nothing in it but a loopback interface that is down. It is gone when it, and all sockets and
/// devices in it, are.
pub struct Namespace(File);

impl Namespace {
    /// A new one. `None`, with a line on standard error: this process may not make one.
    #[expect(unsafe_code, reason = "what a thread may not leave alone")]
    pub fn new() -> Option<Self> {
        let made = std::thread::spawn(|| {
            // SAFETY: of file descriptors, which is where it could harm others, nothing is unshared.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
            File::open("/proc/thread-self/ns/net")
        });
        match made.join().expect("no panic") {
            Ok(file) => Some(Self(file)),
            Err(e) => {
                eprintln!("SKIPPED: this test makes networks of its own, and needs root for it: {e}");
                None
            }
        }
    }

    /// Runs something on a thread in it: what is opened there stays in it.
    ///
    /// # Panics
    /// The thread cannot enter it, or panics.
    pub fn run<R: Send>(&self, run: impl FnOnce() -> R + Send) -> R {
        let enter = || {
            move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network)).expect("a network");
            run()
        };
        std::thread::scope(|scope| scope.spawn(enter).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Runs `ip` with these words in it.
    ///
    /// # Panics
    /// It fails.
    pub fn ip(&self, words: &str) {
        let run = || Command::new("ip").args(words.split_whitespace()).output();
        let out = self.run(run).expect("ip, of iproute2");
        assert!(out.status.success(), "ip {words}: {}", String::from_utf8_lossy(&out.stderr));
    }
}

/// So many bytes, in an order that no other place has.
pub fn payload(len: usize) -> Vec<u8> {
    let mut n = 0x2545_f491_4f6c_dd1d_u64;
    let mut byte = || {
        n ^= n << 13;
        n ^= n >> 7;
        n ^= n << 17;
        n as u8
    };
    (0..len).map(|_| byte()).collect()
}
