//! CPU models against their golden files, and rules that hold for every model.

use std::fmt::Write;
use std::sync::Arc;

use proptest::prelude::*;
use vireo_core::CpuModel;
use vireo_core::model::{CpuidContext, Vendor};
use vireo_isa::{Feature, FeatureSet};

const CONTEXT: CpuidContext =
    CpuidContext { apic_id: 2, vcpus: 4, osxsave: true, xcr0: 3, apic_enabled: true, tsc_hz: 2_600_000_000 };

fn all_models() -> Vec<Arc<CpuModel>> {
    let pairs = CpuModel::names().iter().flat_map(|n| [(n, Vendor::Intel), (n, Vendor::Amd)]);
    pairs.map(|(n, v)| CpuModel::for_vendor(n, v).expect("listed models exist")).collect()
}

/// Every leaf and subleaf that is not zero, and every MSR.
fn describe(model: &CpuModel) -> String {
    let mut text = String::new();
    writeln!(text, "[{} version {} {:?}]", model.name(), model.version(), model.vendor()).unwrap();
    let ranges = [0..0x40, 0x4000_0000..0x4000_0020, 0x8000_0000..0x8000_0040];
    for leaf in ranges.into_iter().flatten() {
        let mut last = [0; 4];
        for sub in 0..64 {
            let out = model.cpuid(leaf, sub, &CONTEXT);
            // A leaf without subleaves answers the same to each.
            if out != [0; 4] && out != last && !(leaf == 0xb && sub > 2) {
                let [a, b, c, d] = out;
                writeln!(text, "cpuid {leaf:08x}.{sub:x}: {a:08x} {b:08x} {c:08x} {d:08x}").unwrap();
            }
            last = out;
        }
    }
    for m in model.msrs() {
        let plain = if m.plain { "" } else { " engine" };
        writeln!(
            text,
            "msr {:08x}: reset {:016x} writable {:016x} ignored {:016x} {:?}{plain}",
            m.index, m.reset, m.writable, m.ignored, m.access
        )
        .unwrap();
    }
    text
}

#[test]
fn models_are_what_they_were() {
    for name in CpuModel::names() {
        let models =
            [Vendor::Intel, Vendor::Amd].map(|v| CpuModel::for_vendor(name, v).expect("listed models exist"));
        let now: String = models.iter().map(|m| describe(m) + "\n").collect();
        let path = format!("{}/tests/golden/{name}.{}.txt", env!("CARGO_MANIFEST_DIR"), models[0].version());
        // A published version never changes: write a new version instead. This is for the first time only.
        if std::env::var_os("VIREO_WRITE_GOLDEN").is_some() && !std::path::Path::new(&path).exists() {
            std::fs::write(&path, &now).expect("the golden file can be written");
        }
        let golden = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
        assert_eq!(golden, now, "{path}: a published model changed");
    }
}

#[test]
fn each_listed_feature_has_its_bit_and_no_other_has() {
    for model in all_models() {
        let seen = FeatureSet::from_cpuid(|leaf, sub| model.cpuid(leaf, sub, &CONTEXT));
        assert_eq!(seen, model.features(), "{} {:?}", model.name(), model.vendor());
    }
}

#[test]
fn x86_64_v2_is_complete() {
    use Feature::*;
    // The psABI's list for the micro-architecture level.
    let v2 = [Cmov, Cx8, Fpu, Fxsr, Mmx, Syscall, Sse, Sse2, Cx16, LahfLm, Popcnt, Sse3, Sse41, Sse42, Ssse3];
    for model in all_models() {
        assert!(v2.into_iter().all(|f| model.has(f)));
        assert!(!model.has(Monitor));
    }
}

#[test]
fn context_decides_what_follows_the_state() {
    let m = CpuModel::for_vendor("vireo-v2", Vendor::Amd).expect("exists");
    let off = CpuidContext { osxsave: false, apic_enabled: false, ..CONTEXT };
    assert_eq!(m.cpuid(1, 0, &CONTEXT)[2] >> 27 & 1, 1);
    assert_eq!(m.cpuid(1, 0, &off)[2] >> 27 & 1, 0);
    assert_eq!(m.cpuid(1, 0, &off)[3] >> 9 & 1, 0);
    assert_eq!(m.cpuid(0x8000_0001, 0, &off)[3] >> 9 & 1, 0);
    assert_eq!(m.cpuid(1, 0, &CONTEXT)[1] >> 24, 2);
    assert_eq!(m.cpuid(0xb, 1, &CONTEXT), [2, 4, 0x201, 2]);
}

#[test]
fn a_host_without_a_feature_is_named() {
    let m = CpuModel::for_vendor("vireo-v2", Vendor::Intel).expect("exists");
    assert_eq!(m.missing_on(m.features()), Vec::<String>::new());
    assert_eq!(m.missing_on(m.features().without(Feature::Sse42).without(Feature::Bmi1)), ["sse42", "bmi1"]);
    // What the engine does itself does not need the host.
    assert_eq!(m.missing_on(m.features().without(Feature::X2apic)), Vec::<String>::new());
    assert!(CpuModel::named("no-such-model").is_none());
}

proptest! {
    #[test]
    fn no_question_panics(
        leaf in prop_oneof![any::<u32>(), 0_u32..0x40, 0x4000_0000_u32..0x4000_0040, 0x8000_0000_u32..0x8000_0040],
        subleaf in prop_oneof![any::<u32>(), 0_u32..8],
        apic_id: u32, vcpus: u32, xcr0: u64, tsc_hz: u64, msr: u32, old: u64, new: u64,
    ) {
        let c = CpuidContext { apic_id, vcpus, osxsave: false, xcr0, apic_enabled: true, tsc_hz };
        for model in all_models() {
            model.cpuid(leaf, subleaf, &c);
            if let Some(m) = model.msr(msr) {
                let _ = m.write(old, new);
            }
        }
    }
}
