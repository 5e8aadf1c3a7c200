//! Builds the table from the decoder's facts and the short lists below.

use crate::{Class, Desc, Feature, FeatureSet, Fp, Modes, Privilege, flag};
use iced_x86::{
    Code, CpuidFeature, DecoderOptions, EncodingKind, FlowControl, Instruction, Mnemonic, OpCodeInfo,
    OpCodeOperandKind as Op, RflagsBits,
};
use std::collections::HashSet;
use std::sync::LazyLock;

static TABLE: LazyLock<Vec<Desc>> = LazyLock::new(|| Code::values().map(derive).collect());

/// The description of a form. Total: a form the engines do not know has `known == false`.
#[must_use]
pub fn describe(code: Code) -> &'static Desc {
    &TABLE[code as usize]
}

/// All known forms, in the order of [`Code`].
pub fn known() -> impl Iterator<Item = &'static Desc> {
    TABLE.iter().filter(|d| d.known)
}

/// The [`DecoderOptions`] with which guest code of a CPU model has to be decoded.
///
/// Some encodings have another, older meaning on a CPU without the feature, instead of #UD.
#[must_use]
pub fn decoder_options(features: FeatureSet) -> u32 {
    // 0F 0D and 0F 18-1F are hints or CET and MPX instructions on some processors and NOPs on all others. No
    // model has CET or MPX, and no hint has an effect here, so all of them are NOPs; but for 0F 0D with a register on
    // processors of AMD, which is the engine's to know.
    let mut options = DecoderOptions::FORCE_RESERVED_NOP;
    for (feature, option) in [
        (Feature::Bmi1, DecoderOptions::NO_MPFX_0FBC),
        (Feature::Lzcnt, DecoderOptions::NO_MPFX_0FBD),
        (Feature::Wbnoinvd, DecoderOptions::NO_WBNOINVD),
        (Feature::LahfLm, DecoderOptions::NO_LAHF_SAHF_64),
    ] {
        if !features.has(feature) {
            options |= option;
        }
    }
    options
}

fn derive(code: Code) -> Desc {
    let info = code.op_code();
    let feature = if code == Code::INVALID { None } else { feature_of(code, info) };
    let fp = fp_of(code, info);
    let class = class_of(code, info, fp);
    let (read, written, undefined) = flags_of(code);
    let modes = [(info.mode16(), Modes::M16), (info.mode32(), Modes::M32), (info.mode64(), Modes::M64)];
    Desc {
        code,
        known: feature.is_some(),
        feature: feature.unwrap_or(Feature::Base),
        class,
        privilege: privilege_of(code, info),
        protected_only: protected_only(code, info),
        ends_block: ends_block(code, class),
        aligned: aligned(code, info, class),
        fp,
        lockable: info.can_use_lock_prefix(),
        flags_read: read,
        flags_written: written,
        flags_undefined: undefined,
        modes: modes.iter().filter(|m| m.0).map(|m| m.1).collect(),
    }
}

/// The feature that brings the form, or `None` when the engines do not know the form.
fn feature_of(code: Code, info: &OpCodeInfo) -> Option<Feature> {
    use Mnemonic as M;
    // The decoder reports the waiting control forms (9B D9 /6 …) as WAIT and FNSTENV, and old instructions
    // only when it is asked to.
    if !info.is_instruction() || info.fwait() || (info.decoder_option() != 0 && !info.is_reserved_nop()) {
        return None;
    }
    if is_hint(code, info) {
        return Some(Feature::Base);
    }
    match code.mnemonic() {
        // Hypercalls: the one thing of VMX and SVM a guest meets without nested virtualization.
        M::Vmcall | M::Vmmcall => return Some(Feature::Hypervisor),
        // UD0, UD1, UD2 are known to raise #UD: they fetch their ModRM byte first. 0F B9 is UD1.
        M::Ud0 | M::Ud1 | M::Ud2 => return Some(Feature::Base),
        _ => {}
    }
    let features = code.cpuid_features();
    let mut brought_by = features.iter().map(|&f| feature_for(f)).collect::<Option<Vec<_>>>()?;
    // Two features (FCMOV: FPU and CMOV; FISTTP: FPU and SSE3): the later one implies the other.
    brought_by.sort();
    let feature = brought_by.last().copied()?;
    let vex = matches!(
        feature,
        Feature::Bmi1 | Feature::Bmi2 | Feature::Avx | Feature::Avx2 | Feature::Fma | Feature::F16c
    );
    match info.encoding() {
        EncodingKind::Legacy => Some(feature),
        EncodingKind::VEX if vex => Some(feature),
        _ => None,
    }
}

fn feature_for(id: CpuidFeature) -> Option<Feature> {
    use CpuidFeature as C;
    Some(match id {
        C::INTEL8086 | C::INTEL186 | C::INTEL286 | C::INTEL386 | C::INTEL486 | C::CPUID | C::RDPMC => {
            Feature::Base
        }
        C::MULTIBYTENOP | C::PAUSE | C::PREFETCHW | C::PREFETCHWT1 => Feature::Base,
        C::FPU | C::FPU287 | C::FPU387 => Feature::Fpu,
        C::X64 => Feature::Lm,
        C::TSC => Feature::Tsc,
        C::MSR => Feature::Msr,
        C::CX8 => Feature::Cx8,
        C::SEP => Feature::Sysenter,
        C::CMOV => Feature::Cmov,
        C::CLFSH => Feature::Clflush,
        C::MMX => Feature::Mmx,
        C::FXSR => Feature::Fxsr,
        C::SSE => Feature::Sse,
        C::SSE2 => Feature::Sse2,
        C::SSE3 => Feature::Sse3,
        C::SSSE3 => Feature::Ssse3,
        C::SSE4_1 => Feature::Sse41,
        C::SSE4_2 => Feature::Sse42,
        C::PCLMULQDQ => Feature::Pclmul,
        C::MONITOR => Feature::Monitor,
        C::CMPXCHG16B => Feature::Cx16,
        C::MOVBE => Feature::Movbe,
        C::POPCNT => Feature::Popcnt,
        C::AES => Feature::Aes,
        C::AVX => Feature::Avx,
        C::AVX2 => Feature::Avx2,
        C::FMA => Feature::Fma,
        C::F16C => Feature::F16c,
        C::XSAVE => Feature::Xsave,
        C::XSAVEOPT => Feature::Xsaveopt,
        C::XSAVEC => Feature::Xsavec,
        C::XSAVES => Feature::Xsaves,
        C::RDRAND => Feature::Rdrand,
        C::RDSEED => Feature::Rdseed,
        C::FSGSBASE => Feature::Fsgsbase,
        C::BMI1 => Feature::Bmi1,
        C::BMI2 => Feature::Bmi2,
        C::LZCNT => Feature::Lzcnt,
        C::ADX => Feature::Adx,
        C::INVPCID => Feature::Invpcid,
        C::SMAP => Feature::Smap,
        C::CLFLUSHOPT => Feature::Clflushopt,
        C::CLWB => Feature::Clwb,
        C::SHA => Feature::Sha,
        C::RDPID => Feature::Rdpid,
        C::RDTSCP => Feature::Rdtscp,
        C::SYSCALL => Feature::Syscall,
        C::WBNOINVD => Feature::Wbnoinvd,
        _ => return None,
    })
}

fn is_mm(op: &Op) -> bool {
    matches!(op, Op::mm_reg | Op::mm_rm | Op::mm_or_mem)
}

fn is_xmm(op: &Op) -> bool {
    matches!(op, Op::xmm_reg | Op::xmm_rm | Op::xmm_or_mem)
}

/// Works on vector registers by a VEX encoding. (The VEX forms of BMI work on general ones.)
fn is_avx(code: Code, info: &OpCodeInfo) -> bool {
    let vector = |f: &CpuidFeature| {
        matches!(f, CpuidFeature::AVX | CpuidFeature::AVX2 | CpuidFeature::FMA | CpuidFeature::F16C)
    };
    info.encoding() == EncodingKind::VEX && code.cpuid_features().iter().any(vector)
}

fn fp_of(code: Code, info: &OpCodeInfo) -> Fp {
    use Mnemonic as M;
    let x87 = code
        .cpuid_features()
        .iter()
        .any(|f| matches!(f, CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387));
    match code.mnemonic() {
        M::Wait => return Fp::Wait,
        M::Emms => return Fp::Mmx,
        M::Ldmxcsr | M::Stmxcsr => return Fp::Sse { mxcsr: false },
        M::Fxsave | M::Fxsave64 | M::Fxrstor | M::Fxrstor64 => return Fp::Fxsave,
        M::Xsave | M::Xsave64 | M::Xsaveopt | M::Xsaveopt64 | M::Xsavec | M::Xsavec64 => return Fp::Xsave,
        M::Xsaves | M::Xsaves64 | M::Xrstor | M::Xrstor64 | M::Xrstors | M::Xrstors64 => return Fp::Xsave,
        _ if x87 => return Fp::X87 { waiting: !info.is_fpu_no_wait() },
        _ => {}
    }
    if is_avx(code, info) {
        return Fp::Avx { mxcsr: avx_uses_mxcsr(code) };
    }
    let mm = info.op_kinds().iter().any(is_mm);
    let xmm = info.op_kinds().iter().any(is_xmm);
    // A 32-bit integer is exact as a double.
    let mxcsr = uses_mxcsr(code.mnemonic()) && code != Code::Cvtsi2sd_xmm_rm32;
    match (mm, xmm) {
        (true, true) => Fp::MmxSse { mxcsr },
        (true, false) => Fp::Mmx,
        (false, true) => Fp::Sse { mxcsr },
        (false, false) => Fp::None,
    }
}

/// The same for VEX encodings: the counterpart of a legacy instruction, fused multiply-add, or half precision.
fn avx_uses_mxcsr(code: Code) -> bool {
    static ARITHMETIC: LazyLock<HashSet<String>> = LazyLock::new(|| {
        Mnemonic::values().filter(|m| uses_mxcsr(*m)).map(|m| format!("v{m:?}").to_lowercase()).collect()
    });
    let name = format!("{:?}", code.mnemonic()).to_lowercase();
    let exact = matches!(code, Code::VEX_Vcvtsi2sd_xmm_xmm_rm32);
    let other = ["vfm", "vfnm", "vcvtph2ps", "vcvtps2ph"].iter().any(|p| name.starts_with(p));
    !exact && (other || ARITHMETIC.contains(&name))
}

/// Floating-point arithmetic that MXCSR governs (SDM vol. 1, tables E-1 to E-3 and 11-1). Moves, logic,
/// shuffles, RCP, RSQRT and exact conversions are not in it.
fn uses_mxcsr(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Addps
            | M::Addss
            | M::Addpd
            | M::Addsd
            | M::Subps
            | M::Subss
            | M::Subpd
            | M::Subsd
            | M::Mulps
            | M::Mulss
            | M::Mulpd
            | M::Mulsd
            | M::Divps
            | M::Divss
            | M::Divpd
            | M::Divsd
            | M::Sqrtps
            | M::Sqrtss
            | M::Sqrtpd
            | M::Sqrtsd
            | M::Minps
            | M::Minss
            | M::Minpd
            | M::Minsd
            | M::Maxps
            | M::Maxss
            | M::Maxpd
            | M::Maxsd
            | M::Cmpps
            | M::Cmpss
            | M::Cmppd
            | M::Cmpsd
            | M::Comiss
            | M::Comisd
            | M::Ucomiss
            | M::Ucomisd
            | M::Addsubps
            | M::Addsubpd
            | M::Haddps
            | M::Haddpd
            | M::Hsubps
            | M::Hsubpd
            | M::Dpps
            | M::Dppd
            | M::Roundps
            | M::Roundss
            | M::Roundpd
            | M::Roundsd
            | M::Cvtpi2ps
            | M::Cvtps2pi
            | M::Cvttps2pi
            | M::Cvtpd2pi
            | M::Cvttpd2pi
            | M::Cvtsi2ss
            | M::Cvtsi2sd
            | M::Cvtss2si
            | M::Cvttss2si
            | M::Cvtsd2si
            | M::Cvttsd2si
            | M::Cvtdq2ps
            | M::Cvtps2dq
            | M::Cvttps2dq
            | M::Cvtpd2dq
            | M::Cvttpd2dq
            | M::Cvtps2pd
            | M::Cvtss2sd
            | M::Cvtpd2ps
            | M::Cvtsd2ss
    )
}

fn class_of(code: Code, info: &OpCodeInfo, fp: Fp) -> Class {
    use Mnemonic as M;
    let mnemonic = code.mnemonic();
    match mnemonic {
        _ if is_hint(code, info) => Class::Nop,
        M::Movsb | M::Movsw | M::Movsq | M::Cmpsb | M::Cmpsw | M::Cmpsq | M::Stosb | M::Stosw => {
            Class::String
        }
        M::Stosd | M::Stosq | M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq | M::Scasb | M::Scasw => {
            Class::String
        }
        M::Scasd | M::Scasq => Class::String,
        // These two mnemonics are scalar double moves and compares as well.
        M::Movsd | M::Cmpsd if fp == Fp::None => Class::String,
        M::In | M::Out | M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd => Class::Io,
        M::Lds | M::Les | M::Lfs | M::Lgs | M::Lss => Class::Segment,
        M::Mov | M::Push | M::Pop if info.op_kinds().iter().any(is_segment) => Class::Segment,
        M::Mov if info.op_kinds().iter().any(|k| matches!(k, Op::cr_reg | Op::dr_reg | Op::tr_reg)) => {
            Class::System
        }
        M::Push | M::Pop | M::Enter | M::Leave | M::Pusha | M::Pushad | M::Popa | M::Popad => Class::Stack,
        M::Pushf | M::Pushfd | M::Pushfq | M::Popf | M::Popfd | M::Popfq => Class::Stack,
        M::Lfence | M::Mfence | M::Sfence | M::Clflush | M::Clflushopt | M::Clwb => Class::Fence,
        M::Ldmxcsr | M::Stmxcsr | M::Vldmxcsr | M::Vstmxcsr => Class::FpState,
        _ if matches!(fp, Fp::Fxsave | Fp::Xsave) => Class::FpState,
        _ if is_system(mnemonic) => Class::System,
        _ if is_far(code) => Class::FarBranch,
        _ if is_near(code) => Class::Branch,
        _ => match fp {
            Fp::X87 { .. } | Fp::Wait => Class::X87,
            Fp::Mmx | Fp::MmxSse { .. } => Class::Mmx,
            Fp::Sse { .. } => Class::Sse,
            Fp::Avx { .. } => Class::Avx,
            Fp::None | Fp::Fxsave | Fp::Xsave => Class::Integer,
        },
    }
}

fn is_hint(code: Code, info: &OpCodeInfo) -> bool {
    use Mnemonic as M;
    info.is_nop()
        || info.is_reserved_nop()
        || matches!(
            code.mnemonic(),
            M::Nop
                | M::Pause
                | M::Prefetch
                | M::Prefetchw
                | M::Prefetchwt1
                | M::Prefetchnta
                | M::Prefetcht0
                | M::Prefetcht1
                | M::Prefetcht2
                | M::Prefetchit0
                | M::Prefetchit1
                | M::Cldemote
                | M::Endbr32
                | M::Endbr64
                | M::Rdsspd
                | M::Rdsspq
        )
}

fn is_segment(op: &Op) -> bool {
    matches!(op, Op::seg_reg | Op::es | Op::cs | Op::ss | Op::ds | Op::fs | Op::gs)
}

fn is_system(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Cli
            | M::Sti
            | M::Hlt
            | M::Clts
            | M::Lmsw
            | M::Smsw
            | M::Lgdt
            | M::Lidt
            | M::Lldt
            | M::Ltr
            | M::Sgdt
            | M::Sidt
            | M::Sldt
            | M::Str
            | M::Lar
            | M::Lsl
            | M::Verr
            | M::Verw
            | M::Arpl
            | M::Invlpg
            | M::Invpcid
            | M::Invd
            | M::Wbinvd
            | M::Wbnoinvd
            | M::Rdmsr
            | M::Wrmsr
            | M::Rdpmc
            | M::Rdtsc
            | M::Rdtscp
            | M::Rdpid
            | M::Cpuid
            | M::Rdrand
            | M::Rdseed
            | M::Swapgs
            | M::Stac
            | M::Clac
            | M::Rdfsbase
            | M::Rdgsbase
            | M::Wrfsbase
            | M::Wrgsbase
            | M::Xgetbv
            | M::Xsetbv
            | M::Monitor
            | M::Mwait
            | M::Vmcall
            | M::Vmmcall
            | M::Ud0
            | M::Ud1
            | M::Ud2
    )
}

fn is_far(code: Code) -> bool {
    use Mnemonic as M;
    code.is_jmp_far()
        || code.is_jmp_far_indirect()
        || code.is_call_far()
        || code.is_call_far_indirect()
        || matches!(
            code.mnemonic(),
            M::Retf
                | M::Int
                | M::Int1
                | M::Int3
                | M::Into
                | M::Iret
                | M::Iretd
                | M::Iretq
                | M::Syscall
                | M::Sysret
                | M::Sysretq
                | M::Sysenter
                | M::Sysexit
                | M::Sysexitq
        )
}

fn is_near(code: Code) -> bool {
    use FlowControl as F;
    matches!(
        code.flow_control(),
        F::UnconditionalBranch
            | F::IndirectBranch
            | F::ConditionalBranch
            | F::Return
            | F::Call
            | F::IndirectCall
    )
}

fn privilege_of(code: Code, info: &OpCodeInfo) -> Privilege {
    use Mnemonic as M;
    match code.mnemonic() {
        M::Cli | M::Sti => Privilege::Iopl,
        M::In | M::Out | M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd => Privilege::IoBitmap,
        M::Pushf | M::Pushfd | M::Pushfq | M::Popf | M::Popfd | M::Popfq => Privilege::Vm86Iopl,
        M::Int | M::Iret | M::Iretd | M::Iretq => Privilege::Vm86Iopl,
        M::Sgdt | M::Sidt | M::Sldt | M::Str | M::Smsw => Privilege::Umip,
        M::Rdtsc | M::Rdtscp => Privilege::Tsd,
        M::Rdpmc => Privilege::Pce,
        // Above CPL 0 a Hyper-V host answers hypercall instructions with #UD (TLFS, "Hypercall interface").
        M::Stac | M::Clac | M::Vmcall | M::Vmmcall => Privilege::Cpl0Ud,
        M::Rdfsbase | M::Rdgsbase | M::Wrfsbase | M::Wrgsbase => Privilege::Fsgsbase,
        // Outside VMX operation MONITOR and MWAIT raise #UD above CPL 0.
        M::Monitor | M::Mwait => Privilege::Cpl0Ud,
        _ if info.must_be_cpl0() => Privilege::Cpl0,
        _ => Privilege::Any,
    }
}

/// Instructions on segment descriptors, and VEX encodings, do not exist outside protected mode.
fn protected_only(code: Code, info: &OpCodeInfo) -> bool {
    use Mnemonic as M;
    info.encoding() == EncodingKind::VEX
        || matches!(
            code.mnemonic(),
            M::Arpl | M::Lar | M::Lsl | M::Verr | M::Verw | M::Sldt | M::Str | M::Lldt | M::Ltr
        )
}

fn ends_block(code: Code, class: Class) -> bool {
    use Mnemonic as M;
    match class {
        Class::Branch | Class::FarBranch | Class::Io => true,
        // A segment load changes bases and, through SS and MOV SS, stack size and interrupt shadow.
        Class::Segment => match code.mnemonic() {
            M::Mov => is_segment(&code.op_code().op0_kind()),
            M::Push => false,
            _ => true,
        },
        Class::Stack => matches!(code.mnemonic(), M::Popf | M::Popfd | M::Popfq),
        Class::System => matches!(
            code.mnemonic(),
            M::Cli
                | M::Sti
                | M::Hlt
                | M::Clts
                | M::Lmsw
                | M::Lgdt
                | M::Lidt
                | M::Lldt
                | M::Ltr
                | M::Mov
                | M::Invlpg
                | M::Invpcid
                | M::Wrmsr
                | M::Swapgs
                | M::Stac
                | M::Clac
                | M::Wrfsbase
                | M::Wrgsbase
                | M::Xsetbv
                | M::Mwait
                | M::Vmcall
                | M::Vmmcall
                | M::Ud0
                | M::Ud1
                | M::Ud2
        ),
        _ => false,
    }
}

/// VEX moves of that name, and legacy SSE operands of 16 bytes, must be aligned, the latter but for the moves made for unaligned data and the string
/// compares (SDM vol. 1, 4.1.1 and 12.7); CMPXCHG16B, FXSAVE and XSAVE areas always.
fn aligned(code: Code, info: &OpCodeInfo, class: Class) -> bool {
    use Mnemonic as M;
    match code.mnemonic() {
        M::Movups | M::Movupd | M::Movdqu | M::Lddqu => false,
        M::Pcmpestri | M::Pcmpestrm | M::Pcmpistri | M::Pcmpistrm | M::Maskmovdqu => false,
        M::Pcmpestri64 | M::Pcmpestrm64 => false,
        M::Cmpxchg16b => true,
        M::Ldmxcsr | M::Stmxcsr | M::Vldmxcsr | M::Vstmxcsr => false,
        M::Vmovaps | M::Vmovapd | M::Vmovdqa | M::Vmovntps | M::Vmovntpd | M::Vmovntdq | M::Vmovntdqa => true,
        _ if class == Class::FpState => true,
        _ => {
            matches!(class, Class::Sse | Class::Mmx)
                && info.encoding() == EncodingKind::Legacy
                && info.memory_size().size() == 16
        }
    }
}

/// (read, written, undefined) in architectural positions.
fn flags_of(code: Code) -> (u32, u32, u32) {
    let mut sample = Instruction::new();
    sample.set_code(code);
    // Shifts and rotates by an immediate: the decoder answers for the count it sees; 2 is the general case.
    for (i, kind) in code.op_code().op_kinds().iter().enumerate() {
        if matches!(kind, Op::imm8) {
            sample.set_op_kind(i as u32, iced_x86::OpKind::Immediate8);
            sample.set_immediate8(2);
        }
    }
    let undefined = architectural(sample.rflags_undefined());
    let written = architectural(sample.rflags_modified()) & !undefined;
    let system = match code.mnemonic() {
        Mnemonic::Popf
        | Mnemonic::Popfd
        | Mnemonic::Popfq
        | Mnemonic::Iret
        | Mnemonic::Iretd
        | Mnemonic::Iretq => flag::TF | flag::IOPL | flag::NT | flag::AC | flag::ID | flag::RF,
        _ => 0,
    };
    (architectural(sample.rflags_read()), written | system, undefined)
}

/// The decoder numbers the flags its own way, and counts x87 condition codes among them.
fn architectural(bits: u32) -> u32 {
    [
        (RflagsBits::CF, flag::CF),
        (RflagsBits::PF, flag::PF),
        (RflagsBits::AF, flag::AF),
        (RflagsBits::ZF, flag::ZF),
        (RflagsBits::SF, flag::SF),
        (RflagsBits::OF, flag::OF),
        (RflagsBits::IF, flag::IF),
        (RflagsBits::DF, flag::DF),
        (RflagsBits::AC, flag::AC),
    ]
    .iter()
    .filter(|(theirs, _)| bits & theirs != 0)
    .fold(0, |all, (_, ours)| all | ours)
}
