//! The probe and its reasons.

use vireo_core::{Engine, Probe};
use vireo_kvm::KvmEngine;

fn refusal(device: &str) -> String {
    match KvmEngine::at(device).probe() {
        Probe::Unusable(why) => why,
        other => panic!("{device} passed for KVM: {other:?}"),
    }
}

#[test]
fn a_missing_device_says_what_to_look_for() {
    let why = refusal("/nonexistent/kvm");
    assert!(why.contains("/nonexistent/kvm does not exist") && why.contains("module"), "{why}");
}

#[test]
fn another_device_is_not_taken_for_kvm() {
    let why = refusal("/dev/null");
    assert!(why.contains("/dev/null is not a KVM device"), "{why}");
}

#[test]
fn the_probe_of_this_host_gives_a_verdict_with_reasons() {
    match KvmEngine::new().probe() {
        Probe::Usable(c) => assert!(c.has("dirty-log") && !c.cpu_models.is_empty(), "{c:?}"),
        Probe::Discouraged(c, why) => {
            println!("discouraged: {why}");
            let slow = why.contains("million instructions a second");
            assert!(slow || c.cpu_models.is_empty() && why.contains("offers no CPU model"), "{why}");
        }
        Probe::Unusable(why) => {
            println!("unusable: {why}");
            assert!(!why.is_empty());
        }
    }
}
