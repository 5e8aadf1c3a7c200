//! The engines of this host, and which one to take.

use vireo_core::{Capabilities, Engine, Probe};

use crate::{EngineChoice, RunError};

/// All engines, best first.
pub fn all() -> Vec<Box<dyn Engine>> {
    vec![Box::new(vireo_kvm::KvmEngine::new()), Box::new(vireo_soft::SoftEngine::new())]
}

/// An engine that was chosen.
pub struct Chosen {
    /// The engine.
    pub engine: Box<dyn Engine>,
    /// What it can do here.
    pub capabilities: Capabilities,
    /// Engines that were passed over, with the reason.
    pub passed_over: Vec<String>,
}

/// Chooses an engine.
pub fn choose(choice: EngineChoice) -> Result<Chosen, RunError> {
    let mut passed_over = Vec::new();
    for engine in all() {
        let name = engine.kind().to_string();
        let wanted = match choice {
            EngineChoice::Auto => true,
            EngineChoice::Kvm => name == "kvm",
            EngineChoice::Soft => name == "soft",
        };
        if !wanted {
            continue;
        }
        match engine.probe() {
            Probe::Usable(capabilities) => return Ok(Chosen { engine, capabilities, passed_over }),
            Probe::Discouraged(capabilities, _) if choice != EngineChoice::Auto => {
                return Ok(Chosen { engine, capabilities, passed_over });
            }
            Probe::Discouraged(_, why) | Probe::Unusable(why) => {
                passed_over.push(format!("engine {name} is not used: {why}"));
            }
        }
    }
    Err(RunError::Engine(passed_over.join("; ")))
}
