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
}

/// Names on the command line.
pub const NAMES: [&str; 3] = ["kvm", "kvm-least", "soft"];

/// The engine of a name, or why it cannot be tested here: a KVM that emulates guest kernel code is not the KVM that
/// guests will run on, and does much otherwise. The host lab has a genuine one.
pub fn candidate(name: &'static str, model: &CpuModel) -> Result<Candidate, String> {
    let kvm = match name {
        "kvm" => KvmEngine::at("/dev/kvm"),
        "kvm-least" => KvmEngine::new().with_dirty_method(DirtyMethod::Bitmap).with_hypercalls_by_port(),
        "soft" => return soft(model),
        other => return Err(format!("there is no engine {other}; there are {}", NAMES.join(", "))),
    };
    let beneath = match kvm.probe() {
        Probe::Unusable(why) => return Err(why),
        // By name first: on a loaded lab host a measured speed says little, and a wrong verdict would hide cases.
        _ if host_is_tcg() => Beneath::Tcg,
        Probe::Discouraged(_, why) if why.contains("emulates it") => {
            return Err(format!("{why}; `make lab` tests it on a genuine KVM"));
        }
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

/// What a case was seen to do on what is beneath an engine: symptoms, not proven causes. TCG's two hold on the software
/// engine. `--all` runs them all the same, to see whether they still are so.
pub fn deviation(beneath: Beneath, case: &str) -> Option<&'static str> {
    let list: &[(&str, &str)] = match beneath {
        Beneath::Processor => &[],
        Beneath::Tcg => &[
            ("segment-limit", "an access beyond a segment's limit did not fault"),
            ("page-fault-reserved-bit", "the error code had bit 0 (P) clear"),
        ],
    };
    // Translated code is the host's own instructions, and TCG executes some of them otherwise: error codes of
    // read-modify-write accesses, undefined flags, misaligned SSE, returns to addresses that are not canonical. What KVM
    // executes is never translated.
    if case.starts_with("hot-") && host_is_tcg() {
        return Some("it is about translated code, and this host's processor is TCG");
    }
    list.iter().find(|(name, _)| *name == case).map(|(_, why)| *why)
}
