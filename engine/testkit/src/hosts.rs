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
        Probe::Discouraged(_, why) if why.contains("emulates it") => Beneath::Emulation,
        _ if host_is_tcg() => Beneath::Tcg,
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

/// Why a case cannot hold on what is beneath an engine, if that is known. Each was found by comparing with a
/// processor's manual; none is a property of the engine.
pub fn deviation(beneath: Beneath, case: &str) -> Option<&'static str> {
    let list: &[(&str, &str)] = match beneath {
        Beneath::Processor => &[],
        Beneath::Tcg => &[
            ("segment-limit", "TCG does not check segment limits"),
            ("page-fault-reserved-bit", "TCG leaves bit 0 of the error code clear"),
        ],
        Beneath::Emulation => EMULATION,
    };
    list.iter().find(|(name, _)| *name == case).map(|(_, why)| *why)
}

const PAGING: &str = "it ignores 32-bit and PAE page tables";
const RINGS: &str = "it does not deliver exceptions from user mode as a processor does";
const SHADOW: &str = "it does not take a pending interrupt directly after STI";
const INSTRUCTION: &str = "its emulator does not know an instruction of the guest";
const TSC: &str = "the guest reads the host's TSC whatever the offset";

const EMULATION: &[(&str, &str)] = &[
    ("paging-32", PAGING),
    ("paging-pae", PAGING),
    ("page-fault-pae", PAGING),
    ("page-fault-32", PAGING),
    ("save-and-continue-elsewhere-pae", PAGING),
    ("transfer-pae", PAGING),
    ("transfer-paging-32", PAGING),
    ("cpuid", "the guest reads the host's CPUID"),
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
    ("dirty-log-many-pages", "it does not log writes to pages that were not mapped when the log began"),
    ("clock-stands-still", TSC),
    ("clock-import", TSC),
];
