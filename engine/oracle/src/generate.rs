//! Makes random cases of known forms.

use crate::case::{Case, CpuImage, MemImage, Mode, Patch};
use crate::exclude::excluded;
use crate::{Rng, layout, operands, special, state};
use iced_x86::{Code, Decoder, Encoder, FlowControl, Instruction, OpKind};
use vireo_isa::{Class, Desc, Feature, FeatureSet, Modes, decoder_options, describe};

/// The features of the processor this runs on.
#[must_use]
pub fn host_features() -> FeatureSet {
    use std::arch::x86_64::__cpuid_count;
    let limits = [__cpuid_count(0, 0).eax, __cpuid_count(0x8000_0000, 0).eax];
    FeatureSet::from_cpuid(|leaf, subleaf| {
        if leaf > limits[(leaf >> 31) as usize] {
            return [0; 4];
        }
        let r = __cpuid_count(leaf, subleaf);
        [r.eax, r.ebx, r.ecx, r.edx]
    })
}

/// Whether this processor is AMD's, as Hygon's are too.
#[must_use]
pub fn host_is_amd() -> bool {
    let r = std::arch::x86_64::__cpuid(0);
    let id = [r.ebx, r.edx, r.ecx].map(u32::to_le_bytes);
    matches!(id.as_flattened(), b"AuthenticAMD" | b"HygonGenuine")
}

/// Whether this processor, and its kernel, have YMM registers.
#[must_use]
pub fn has_avx() -> bool {
    std::arch::is_x86_feature_detected!("avx")
}

/// A deterministic stream of cases: every form in turn.
pub struct Generator {
    rng: Rng,
    mode: Mode,
    host: FeatureSet,
    forms: Vec<Code>,
    turn: usize,
}

/// Attempts at a form before it is given up for this turn: some register choices have no encoding.
const ATTEMPTS: usize = 16;

impl Generator {
    /// Cases of all forms that can be reproduced in `mode` on this host and that `filter` lets pass.
    #[must_use]
    pub fn new(seed: u64, mode: Mode, filter: &dyn Fn(&Desc) -> bool) -> Generator {
        let host = host_features();
        let forms = Code::values()
            .filter(|&code| excluded(describe(code), mode, host).is_none() && filter(describe(code)))
            .collect();
        Generator { rng: Rng::new(seed), mode, host, forms, turn: 0 }
    }

    /// The forms it makes.
    #[must_use]
    pub fn forms(&self) -> &[Code] {
        &self.forms
    }

    /// The known forms of the mode that it never makes, with the reason.
    #[must_use]
    pub fn not_made(mode: Mode) -> Vec<(Code, &'static str)> {
        let host = host_features();
        let bit = match mode {
            Mode::Long => Modes::M64,
            Mode::Protected => Modes::M32,
            Mode::Protected16 => Modes::M16,
        };
        vireo_isa::known()
            .filter(|d| d.modes.contains(bit))
            .filter_map(|d| Some((d.code, excluded(d, mode, host)?)))
            .collect()
    }

    /// The next case, with the form it was made for. `None` if there are no forms, or the form of this turn
    /// could not be encoded.
    pub fn next_case(&mut self) -> Option<(Code, Case)> {
        let code = *self.forms.get(self.turn % self.forms.len().max(1))?;
        self.turn += 1;
        (0..ATTEMPTS).find_map(|_| self.make(code)).map(|case| (code, case))
    }

    fn make(&mut self, code: Code) -> Option<Case> {
        let (mode, desc) = (self.mode, describe(code));
        let rng = &mut self.rng;
        let mut instruction = Instruction::new();
        instruction.set_code(code);
        instruction.set_code_size(match mode {
            Mode::Long => iced_x86::CodeSize::Code64,
            Mode::Protected => iced_x86::CodeSize::Code32,
            Mode::Protected16 => iced_x86::CodeSize::Code16,
        });
        operands::fill(&mut instruction, mode, rng)?;
        let mut cpu = state::cpu(rng, mode);
        let mut memory = MemImage::default();
        special::registers(&mut instruction, desc, mode, &mut cpu, &mut memory, rng);
        if modrm_memory(&instruction) {
            let target = self.aim_at(&mut instruction, desc, &mut cpu)?;
            let rng = &mut self.rng;
            special::operand_memory(&instruction, desc, mode, &cpu, &mut memory, target, rng);
        }
        let rng = &mut self.rng;
        if mode != Mode::Long {
            cpu.gpr.iter_mut().for_each(|r| *r &= 0xffff_ffff);
        }
        if desc.lockable && instruction.op0_kind() == OpKind::Memory && rng.one_in(3) {
            instruction.set_has_lock_prefix(true);
        }
        let mut encoder = Encoder::try_new(mode.bitness()).ok()?;
        encoder.encode(&instruction, layout::ENTRY - mode.base()).ok()?;
        let mut bytes = encoder.take_buffer();
        self.add_prefix(&mut bytes, desc);
        self.cut_off(&bytes, desc, &mut cpu);
        self.acceptable(&bytes).then_some(Case { bytes, mode, cpu, memory })
    }

    /// Chooses where the memory operand shall be.
    fn aim_at(&mut self, instruction: &mut Instruction, desc: &Desc, cpu: &mut CpuImage) -> Option<u64> {
        let (mode, rng) = (self.mode, &mut self.rng);
        let size = desc.code.op_code().memory_size().size() as u64;
        let wide = instruction.memory_base().is_gpr64() && desc.class != Class::Branch;
        let target = if wide && rng.one_in(100) {
            // Not canonical: #GP, or #SS when RSP or RBP is the base.
            rng.pick(&[1 << 63, 0x0000_8000_0000_0000, 0xffff_7fff_ffff_f000]) | rng.below(4096)
        } else {
            let aligned = desc.aligned && !rng.one_in(10);
            state::target(rng, size, aligned)
        };
        operands::aim(instruction, cpu, target, mode, rng);
        Some(target)
    }

    /// Rarely a prefix that should be ignored, change the size, or raise #UD.
    fn add_prefix(&mut self, bytes: &mut Vec<u8>, desc: &Desc) {
        // With REP, an arbitrary count would walk through all windows; VEX forbids most prefixes.
        let counted = matches!(desc.class, Class::String | Class::Io | Class::Branch | Class::Stack);
        if counted || bytes.len() > 13 || !self.rng.one_in(16) {
            return;
        }
        let prefix = self.rng.pick(&[0x26, 0x2e, 0x36, 0x3e, 0x66, 0xf2, 0xf3, 0xf0]);
        bytes.insert(0, prefix);
    }

    /// Rarely the code page ends within or right after the instruction; the next page cannot be fetched.
    fn cut_off(&mut self, bytes: &[u8], desc: &Desc, cpu: &mut CpuImage) {
        // Processors differ in how much of an undefined instruction they fetch.
        let undefined = desc.code.flow_control() == FlowControl::Exception || bytes[0] == 0xf0;
        if self.rng.one_in(64) && !undefined {
            cpu.rip = layout::CODE + layout::PAGE - 1 - self.rng.below(bytes.len() as u64) - self.mode.base();
        }
    }

    /// A prefix may have made another form of it: that one must be fit for a comparison as well.
    fn acceptable(&self, bytes: &[u8]) -> bool {
        let options = decoder_options(model());
        let mut decoder =
            Decoder::with_ip(self.mode.bitness(), bytes, layout::ENTRY - self.mode.base(), options);
        let decoded = decoder.decode();
        if decoded.is_invalid() {
            return bytes[0] == 0xf0;
        }
        decoded.len() == bytes.len() && excluded(describe(decoded.code()), self.mode, self.host).is_none()
    }
}

/// A model with everything the engines know: what the engine under test should be given, as far as the host
/// has it.
#[must_use]
pub fn model() -> FeatureSet {
    Feature::ALL.iter().fold(FeatureSet::BASE, |set, &feature| set.with(feature))
}

/// It has a memory operand whose address the generator may choose freely.
fn modrm_memory(instruction: &Instruction) -> bool {
    let absolute = |kind: &iced_x86::OpCodeOperandKind| {
        matches!(kind, iced_x86::OpCodeOperandKind::mem_offs | iced_x86::OpCodeOperandKind::seg_rBX_al)
    };
    let kinds = instruction.code().op_code().op_kinds();
    !kinds.iter().any(absolute)
        && (0..instruction.op_count()).any(|i| instruction.op_kind(i) == OpKind::Memory)
}

/// A patch, cut off where its window ends. Nothing happens if it starts in no data window.
pub fn patch(memory: &mut MemImage, address: u64, bytes: &[u8]) {
    let window = layout::WINDOWS.into_iter().find(|w| w.range().contains(&address) && !w.executable);
    if let Some(window) = window {
        let fits = bytes.len().min((window.range().end - address) as usize);
        memory.patches.push(Patch { address, bytes: bytes[..fits].to_vec() });
    }
}
