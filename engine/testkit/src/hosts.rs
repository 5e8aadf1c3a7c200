//! Engines of this host, and what processors are known to do otherwise.

use std::sync::Arc;

use vireo_core::{CpuModel, Engine, EngineError, Probe};
use vireo_isa::Feature;
use vireo_kvm::{DirtyMethod, KvmEngine};
use vireo_soft::SoftEngine;

/// An engine under test.
pub struct Candidate {
    /// Its name on the command line.
    pub name: &'static str,
    /// The engine.
    pub engine: Box<dyn Engine>,
    /// What runs the guests beneath it.
    pub beneath: Beneath,
    /// Features of the CPU model that it cannot offer here.
    pub missing: Vec<Feature>,
}

/// What executes guest instructions for an engine, as far as it decides which cases can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beneath {
    /// A processor, or an engine that has to be one in every respect.
    Processor,
    /// QEMU's TCG as the host's processor: the host lab.
    Tcg,
    /// A KVM that emulates guest kernel code (see [`KvmEngine`]'s probe).
    Emulation,
}

/// Names on the command line.
pub const NAMES: [&str; 3] = ["kvm", "kvm-bitmap", "soft"];

/// The engine of a name, or why it cannot be tested here.
pub fn candidate(name: &'static str, model: &CpuModel) -> Result<Candidate, String> {
    let kvm = match name {
        "kvm" => KvmEngine::new(),
        "kvm-bitmap" => KvmEngine::new().with_dirty_method(DirtyMethod::Bitmap),
        "soft" => return soft(model),
        other => return Err(format!("there is no engine {other}; there are {}", NAMES.join(", "))),
    };
    let beneath = match kvm.probe() {
        Probe::Unusable(why) => return Err(why),
        // By name first: on a loaded lab host a measured speed says little, and a wrong verdict would hide cases.
        _ if host_is_tcg() => Beneath::Tcg,
        Probe::Discouraged(_, why) if why.contains("emulates it") => Beneath::Emulation,
        _ => Beneath::Processor,
    };
    let missing = kvm.missing_features(model).map_err(|e: EngineError| e.to_string())?;
    Ok(Candidate { name, engine: Box::new(kvm), beneath, missing })
}

fn soft(_: &CpuModel) -> Result<Candidate, String> {
    let engine = SoftEngine::new();
    if let Probe::Unusable(why) = engine.probe() {
        return Err(why);
    }
    Ok(Candidate { name: "soft", engine: Box::new(engine), beneath: Beneath::Processor, missing: Vec::new() })
}

/// The model without what some candidate cannot offer, for all of them.
pub fn common_model(model: &CpuModel, candidates: &[Candidate]) -> Arc<CpuModel> {
    let missing: Vec<_> = candidates.iter().flat_map(|c| c.missing.iter().copied()).collect();
    Arc::new(model.without(&missing))
}

/// TCG names itself in the hypervisor leaves of CPUID.
fn host_is_tcg() -> bool {
    let leaf = core::arch::x86_64::__cpuid(0x4000_0000);
    let name: Vec<u8> = [leaf.ebx, leaf.ecx, leaf.edx].into_iter().flat_map(u32::to_le_bytes).collect();
    name == b"TCGTCGTCGTCG"
}

/// What a case was seen to do on what is beneath an engine. The lists hold symptoms, not proven causes. Those of an
/// emulating KVM hold with the same engine on kvm-amd in the host lab, unless TCG's list has them too; TCG's two hold
/// on the software engine. `--all` runs them all the same, to see whether they still are so.
pub fn deviation(beneath: Beneath, engine: &str, case: &str) -> Option<&'static str> {
    let list: &[(&str, &str)] = match beneath {
        Beneath::Processor => &[],
        Beneath::Tcg => &[
            ("segment-limit", "an access beyond a segment's limit did not fault"),
            ("page-fault-reserved-bit", "the error code had bit 0 (P) clear"),
        ],
        Beneath::Emulation => EMULATION,
    };
    let found = list.iter().find(|(name, _)| *name == case).map(|(_, why)| *why);
    // Bitmaps cannot be overrun.
    found.filter(|why| *why != OVERRUN || engine == "kvm")
}

const PAGING: &str = "accesses through 32-bit and PAE page tables did not reach the pages mapped there";
const RINGS: &str = "exceptions and interrupts from user mode arrived with a wrong frame or not at all";
const SHADOW: &str = "a pending interrupt was not taken within two instructions after STI";
const INSTRUCTION: &str = "KVM gave up with an emulation failure (internal error, suberror 1)";
/// Measured: kvm-amd left at 4032 of 4096 entries each time, this one at 4084 and then not before all were full.
const OVERRUN: &str = "it filled a dirty ring beyond the limit at which KVM has to stop the guest";
const TSC: &str = "the TSC offset that was set had no effect on what was read";

const EMULATION: &[(&str, &str)] = &[
    ("paging-32", PAGING),
    ("paging-pae", PAGING),
    ("page-fault-pae", PAGING),
    ("page-fault-32", PAGING),
    ("save-and-continue-elsewhere-pae", PAGING),
    ("transfer-pae", PAGING),
    ("transfer-paging-32", PAGING),
    ("cpuid", "the guest saw feature bits that were not set for it"),
    ("breakpoint", INSTRUCTION),
    ("segment-not-present", INSTRUCTION),
    ("segment-limit", INSTRUCTION),
    ("save-and-continue-elsewhere", INSTRUCTION),
    ("transfer-long", INSTRUCTION),
    ("page-fault-user", RINGS),
    ("interrupt-from-user-mode", RINGS),
    ("syscall-sysret", RINGS),
    ("privileged-in-user-mode", RINGS),
    ("sti-shadow", SHADOW),
    ("msi-waits-for-sti", SHADOW),
    ("msi-priorities", SHADOW),
    ("xapic-mmio", SHADOW),
    ("self-ipi", SHADOW),
    ("dirty-log-while-rewriting", OVERRUN),
    ("dirty-log-overfull", OVERRUN),
    ("clock-stands-still", TSC),
    ("clock-import", TSC),
];
