//! CPU models as data: a named, versioned contract of what the guest's CPUID and MSRs say.
//!
//! A model is the processor compatibility mode of a virtual machine: two hosts that offer the same model in the
//! same version show a guest the same processor. A published version never changes its answers; a golden file
//! of all leaves holds it to that.
//!
//! # Vendor
//! The guest's vendor is the host's, because what instructions do with undefined flags and with SYSCALL,
//! SYSENTER and far pointers differs between vendors, and the software engine lets the host compute.
//!
//! # Where guests learn the rate of the TSC
//! On Intel, Linux takes TSC and APIC-timer rates from leaf 15h, exactly and without a delay. On AMD it has no such
//! leaf: Linux measures the TSC against PIT channel 2, some 10 to 50 ms of boot, and refines that later in
//! the background against the ACPI PM timer. The APIC timer is not measured on either, since the models have
//! TSC-deadline mode.

mod catalogue;
mod cpuid;
mod host;
mod msr;
mod speculation;

use std::sync::Arc;

use vireo_isa::{Feature, FeatureSet};

pub use cpuid::{APIC_BUS_HZ, CpuidContext};
pub use msr::{MsrAccess, MsrContract};
pub use speculation::Speculation;

/// Who the guest's processor says it is made by; instruction details follow it (SYSCALL in compatibility mode,
/// SYSENTER in long mode).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Vendor {
    /// GenuineIntel.
    Intel,
    /// AuthenticAMD.
    Amd,
}

impl Vendor {
    /// The vendor string of leaf 0, in the order EBX, EDX, ECX.
    pub fn id(self) -> &'static [u8; 12] {
        match self {
            Self::Intel => b"GenuineIntel",
            Self::Amd => b"AuthenticAMD",
        }
    }
}

/// A processor as the guest sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuModel {
    name: &'static str,
    version: u32,
    description: &'static str,
    vendor: Vendor,
    /// Leaf 1 EAX: family, model, stepping.
    signature: u32,
    brand: &'static str,
    features: FeatureSet,
    physical_bits: u32,
    virtual_bits: u32,
    speculation: Speculation,
    /// Leaves from 4000_0000h on that a board has put there.
    hypervisor: Option<Arc<[[u32; 4]]>>,
}

impl CpuModel {
    /// The newest version of a model, with the vendor of this host. `None`: no such model.
    pub fn named(name: &str) -> Option<Arc<Self>> {
        Self::for_vendor(name, host::vendor())
    }

    /// The newest version of a model, with a chosen vendor.
    pub fn for_vendor(name: &str, vendor: Vendor) -> Option<Arc<Self>> {
        catalogue::find(name).map(|definition| Arc::new(definition.build(vendor)))
    }

    /// Names of all models, best first.
    pub fn names() -> &'static [&'static str] {
        catalogue::NAMES
    }

    /// Name, e.g. `vireo-v2`.
    pub fn name(&self) -> &'static str {
        self.name
    }
    /// Version of the contract, from 1.
    pub fn version(&self) -> u32 {
        self.version
    }
    /// One line for a listing.
    pub fn description(&self) -> &'static str {
        self.description
    }
    /// Vendor the guest sees.
    pub fn vendor(&self) -> Vendor {
        self.vendor
    }
    /// Family, model and stepping in the form of leaf 1 EAX; also EDX after RESET.
    pub fn signature(&self) -> u32 {
        self.signature
    }
    /// All features.
    pub fn features(&self) -> FeatureSet {
        self.features
    }
    /// Whether the model has a feature.
    pub fn has(&self, feature: Feature) -> bool {
        self.features.has(feature)
    }
    /// Width of guest-physical addresses in bits.
    pub fn physical_bits(&self) -> u32 {
        self.physical_bits
    }
    /// Width of linear addresses in bits.
    pub fn virtual_bits(&self) -> u32 {
        self.virtual_bits
    }
    /// What the model says about side channels of speculative execution.
    pub fn speculation(&self) -> &Speculation {
        &self.speculation
    }

    /// XSAVE components that XCR0 may enable: bit 0 x87, 1 SSE, 2 AVX (SDM vol. 1, 13.1).
    pub fn xcr0_mask(&self) -> u64 {
        match (self.has(Feature::Xsave), self.has(Feature::Avx)) {
            (false, _) => 0,
            (true, false) => 0b011,
            (true, true) => 0b111,
        }
    }

    /// The same model with the speculation bits that hold on a host whose hardware executes the guest's own
    /// instructions (KVM): what the host cannot promise is withdrawn, what it warns of is added.
    #[must_use]
    pub fn on_hardware(&self, host: &Speculation) -> Self {
        Self { speculation: self.speculation.narrowed_to(host), ..self.clone() }
    }

    /// The same model below a hypervisor's interface: what CPUID says from leaf 4000_0000h on. The board knows what that
    /// means; the first leaf's EAX is the last one's number.
    #[must_use]
    pub fn with_hypervisor(&self, leaves: &[[u32; 4]]) -> Self {
        Self { hypervisor: Some(leaves.into()), ..self.clone() }
    }

    /// The same model with fewer features, for a host that cannot keep all of it: a contract of its own, which no
    /// other host offers by name.
    #[must_use]
    pub fn without(&self, features: &[Feature]) -> Self {
        let fewer = features.iter().fold(self.features, |set, &f| set.without(f));
        Self { features: fewer, ..self.clone() }
    }

    /// Features whose instructions the software engine has the host execute, and which this host's processor does
    /// not have; the names are those of [`Feature`] in lower case. Empty: the model can be offered.
    pub fn missing_on_host(&self) -> Vec<String> {
        self.missing_on(host::features())
    }

    /// The same, for a host with the given features.
    pub fn missing_on(&self, host: FeatureSet) -> Vec<String> {
        let missing = |&f: &Feature| self.has(f) && !host.has(f);
        catalogue::EXECUTED_BY_HOST.iter().copied().filter(missing).map(feature_name).collect()
    }
}

/// The name of a feature in messages, e.g. `sse42`.
fn feature_name(feature: Feature) -> String {
    format!("{feature:?}").to_lowercase()
}
