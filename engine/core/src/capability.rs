//! What an engine can do on this host, with the reason for each absence.

use std::fmt;

/// The engines there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// Hardware virtualization by Linux's /dev/kvm.
    Kvm,
    /// The software engine.
    Soft,
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Soft => "soft",
        })
    }
}

/// One ability and whether it is there.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Ability {
    /// Short name, e.g. `dirty-ring`.
    pub name: &'static str,
    /// `None`: present. `Some(why)`: absent, with the reason and what stands in for it.
    pub absent: Option<String>,
}

impl Ability {
    /// An ability that is there.
    pub fn present(name: &'static str) -> Self {
        Self { name, absent: None }
    }
    /// An ability that is missing, with the reason.
    pub fn absent(name: &'static str, why: impl Into<String>) -> Self {
        Self { name, absent: Some(why.into()) }
    }
}

/// What a usable engine offers.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Capabilities {
    /// Which engine this is about.
    pub engine: EngineKind,
    /// Largest number of vCPUs of one partition.
    pub max_vcpus: u32,
    /// Largest guest-physical address width in bits.
    pub physical_bits: u32,
    /// Names of the CPU models that it can offer, best first.
    pub cpu_models: Vec<String>,
    /// Optional abilities, present and absent.
    pub abilities: Vec<Ability>,
}

impl Capabilities {
    /// Whether the named ability is present.
    pub fn has(&self, name: &str) -> bool {
        self.abilities.iter().any(|a| a.name == name && a.absent.is_none())
    }
}

/// The outcome of [`crate::Engine::probe`].
#[derive(Clone, Debug)]
pub enum Probe {
    /// Usable at full speed.
    Usable(Capabilities),
    /// It works, but `--engine auto` passes over it; the reason says why (e.g. a nested KVM that emulates
    /// guest kernel code).
    Discouraged(Capabilities, String),
    /// Not usable, with the reason.
    Unusable(String),
}
