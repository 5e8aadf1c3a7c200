//! Why a kernel cannot be loaded, in the user's words.

use std::ops::Range;

use vireo_memory::MemoryError;

/// A failed [`super::load`].
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Neither of the known formats.
    #[error("kernel {name}: not a bzImage or ELF kernel ({found})")]
    NotAKernel {
        /// The file.
        name: String,
        /// What it looks like.
        found: &'static str,
    },
    /// A known format, but damaged, too old or for another machine.
    #[error("kernel {name}: {reason}")]
    BadKernel {
        /// The file.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file that cannot be read.
    #[error("{what} {name}: {reason}")]
    Unreadable {
        /// "kernel" or "initrd".
        what: &'static str,
        /// The file.
        name: String,
        /// Why not.
        reason: String,
    },
    /// The kernel's place is not in RAM.
    #[error(
        "kernel {name} needs {} at {}, but memory for kernels goes from {} to {}: give the machine more memory",
        Size(*size), Size(*start), Size(free.start), Size(free.end)
    )]
    KernelDoesNotFit {
        /// The file.
        name: String,
        /// First address it needs.
        start: u64,
        /// Bytes it needs from there.
        size: u64,
        /// Where it could be.
        free: Range<u64>,
    },
    /// The initrd has no place between the kernel and the end of the memory the kernel can reach.
    #[error(
        "initrd {name} ({}) does not fit in {} of memory below {}: give the machine more memory",
        Size(*size), Size(free.end - free.start), Size(free.end)
    )]
    InitrdDoesNotFit {
        /// The file.
        name: String,
        /// Its length in bytes.
        size: u64,
        /// The memory it could be in.
        free: Range<u64>,
    },
    /// The initrd file has no bytes.
    #[error("initrd {name}: it is empty")]
    EmptyInitrd {
        /// The file.
        name: String,
    },
    /// The kernel would cut the command line.
    #[error("command line is {len} bytes, this kernel takes {max}")]
    CommandLineTooLong {
        /// Its length in bytes.
        len: u64,
        /// The most the kernel takes.
        max: u64,
    },
    /// A zero byte would end the command line early.
    #[error("command line has a zero byte in it")]
    CommandLineHasZero,
    /// Guest memory refused a write.
    #[error("cannot write the kernel to guest memory: {0}")]
    Memory(#[from] MemoryError),
}

/// A size or address, in MiB if that says it (rounded up), else in bytes.
struct Size(u64);

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0 < 1 << 20 {
            write!(f, "{} bytes", self.0)
        } else {
            write!(f, "{} MiB", self.0.div_ceil(1 << 20))
        }
    }
}
