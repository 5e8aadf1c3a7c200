//! Memory as guest code sees it: segment offsets to linear addresses, those through the software TLB to host memory;
//! page walks and faults.
//!
//! The TLB is architecturally a TLB: entries stay until the guest flushes them. Each vCPU has its own. There is one
//! table per *view* (who is asking), so that privilege and SMAP need no check on a hit.
//!
//! Stores look at one *attention* byte a page after the store: it is non-zero while code was decoded from the page or
//! while the dirty log wants to know of the first write. So neither needs a TLB flush; see [`watch`].

mod access;
mod code_pages;
mod ram;
mod segment;
mod spaces;
mod tlb;
mod walk;
pub mod watch;

pub use access::Value;
pub use code_pages::{CodePages, Mapped};
pub use ram::RamMap;
pub use tlb::{ENTRIES, Entry, Mmu, StackPage, Table, View, slot_of};
pub use walk::Access;
pub use watch::Places;
