//! The engine itself: what it can do on this host.

use std::sync::Arc;

use vireo_core::{
    Ability, Capabilities, CpuModel, Engine, EngineError, EngineKind, Partition, PartitionSpec, Probe,
};

use crate::partition::SoftPartition;

/// Most vCPUs of a partition: xAPIC ids are 8 bits, and 255 is broadcast.
pub const MAX_VCPUS: u32 = 64;

/// The software engine.
#[derive(Default)]
pub struct SoftEngine;

impl SoftEngine {
    /// The engine; it needs nothing from the host.
    pub fn new() -> Self {
        Self
    }
}

impl Engine for SoftEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Soft
    }

    fn probe(&self) -> Probe {
        let mut models = Vec::new();
        let mut reasons = Vec::new();
        for name in CpuModel::names() {
            let Some(model) = CpuModel::named(name) else { continue };
            let missing = model.missing_on_host();
            if missing.is_empty() {
                models.push((*name).to_string());
            } else {
                reasons.push(format!("{name}: this host's processor has no {}", missing.join(", ")));
            }
        }
        if models.is_empty() {
            return Probe::Unusable(format!("no CPU model can be offered ({})", reasons.join("; ")));
        }
        Probe::Usable(Capabilities {
            engine: EngineKind::Soft,
            max_vcpus: MAX_VCPUS,
            physical_bits: 40,
            cpu_models: models,
            abilities: vec![
                Ability::present("dirty-log"),
                Ability::present("throttle"),
                Ability::present("clock-import"),
                Ability::present("translator"),
                Ability::present("tlb-flush"),
                Ability::absent("nested-virtualization", "the CPU models have neither VMX nor SVM"),
            ],
        })
    }

    fn new_partition(&self, spec: &PartitionSpec) -> Result<Arc<dyn Partition>, EngineError> {
        if !(1..=MAX_VCPUS).contains(&spec.vcpus) {
            return Err(EngineError::VcpuCount { engine: "soft", asked: spec.vcpus, max: MAX_VCPUS });
        }
        Ok(Arc::new(SoftPartition::new(spec)?))
    }
}
