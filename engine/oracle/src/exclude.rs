//! The forms that a user-mode run on this host cannot reproduce, each with its reason.

use crate::Mode;
use iced_x86::Mnemonic;
use vireo_isa::{Class, Desc, FeatureSet, Fp, Modes, Privilege};

/// Why a form is not generated for a mode; `None` when it is.
#[must_use]
pub fn excluded(desc: &Desc, mode: Mode, host: FeatureSet) -> Option<&'static str> {
    use Mnemonic as M;
    let info = desc.code.op_code();
    let (bit, both_vendors) = match mode {
        Mode::Long => (Modes::M64, info.intel_decoder64() && info.amd_decoder64()),
        Mode::Protected => (Modes::M32, info.intel_decoder32() && info.amd_decoder32()),
        Mode::Protected16 => (Modes::M16, info.intel_decoder16() && info.amd_decoder16()),
    };
    if !desc.known {
        return Some("not known to the engines");
    }
    if !desc.modes.contains(bit) {
        return Some("does not exist in this mode");
    }
    if !both_vendors {
        return Some("vendors decode it differently");
    }
    if !host.has(desc.feature) {
        return Some("this host does not have it");
    }
    match (desc.class, desc.code.mnemonic()) {
        (Class::FarBranch, _) => Some("enters the host's kernel or uses its descriptor tables"),
        (Class::Segment, _) => Some("loads or shows the host's selectors"),
        (_, M::Lar | M::Lsl | M::Verr | M::Verw) => Some("shows the host's descriptor tables"),
        (_, M::Cpuid | M::Xgetbv | M::Rdpid | M::Rdpmc) => {
            Some("shows the host's processor, not the model's")
        }
        (_, M::Rdtsc | M::Rdtscp | M::Rdrand | M::Rdseed) => Some("has another result each time"),
        (_, M::Vmcall | M::Vmmcall) => Some("reaches the hypervisor below the host"),
        (_, M::Monitor | M::Mwait) => Some("is a choice of the host's kernel"),
        _ if desc.privilege == Privilege::Umip => Some("the host's kernel emulates it"),
        _ if desc.privilege == Privilege::Fsgsbase => Some("changes the sandbox's own segment bases"),
        _ if desc.fp == Fp::Xsave => Some("its image depends on the host's XCR0"),
        _ => None,
    }
}
