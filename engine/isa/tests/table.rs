//! The table against facts of the Intel SDM, and against itself.

use iced_x86::{Code, Decoder, DecoderOptions, EncodingKind};
use vireo_isa::{
    Class, Desc, Feature, FeatureSet, Fp, Modes, Privilege, decoder_options, describe, flag, known,
};

/// x86-64-v2 and the extras of the first CPU model.
fn rich() -> FeatureSet {
    Feature::ALL.iter().fold(FeatureSet::BASE, |set, &f| set.with(f))
}

fn decode(bytes: &[u8], bitness: u32, features: FeatureSet) -> (&'static Desc, usize) {
    let i = Decoder::new(bitness, bytes, decoder_options(features)).decode();
    (describe(i.code()), i.len())
}

#[test]
fn every_form_has_a_decision() {
    let mut counts = std::collections::BTreeMap::new();
    for code in Code::values() {
        let d = describe(code);
        assert_eq!(d.code, code);
        if d.known {
            *counts.entry(format!("{:?}", d.class)).or_insert(0) += 1;
            assert!(!d.modes.is_empty(), "{code:?} exists in no mode");
            assert_eq!(d.flags_written & d.flags_undefined, 0, "{code:?}");
            assert!(rich().has(d.feature));
        } else {
            *counts.entry("unknown".into()).or_insert(0) += 1;
        }
    }
    println!("forms by class: {counts:?}");
    assert_eq!(known().count() + counts["unknown"], Code::values().len());
    // x86-64-v3 with the extras has about this many forms; a slip in a list shows here.
    assert!((2200..2300).contains(&known().count()), "{}", known().count());
}

#[test]
fn vex_encodings_are_those_of_bmi_and_of_avx_with_its_sisters() {
    use Feature::*;
    for d in known() {
        let vex = matches!(d.feature, Bmi1 | Bmi2 | Avx | Avx2 | Fma | F16c);
        let encoding = if vex { EncodingKind::VEX } else { EncodingKind::Legacy };
        assert!(d.code.op_code().encoding() == encoding || d.feature == Bmi1, "{:?}", d.code);
        let vector = vex && !matches!(d.feature, Bmi1 | Bmi2);
        assert_eq!(matches!(d.fp, Fp::Avx { .. }), vector, "{:?}", d.code);
        assert_eq!(d.class == Class::Avx, vector && d.class != Class::FpState, "{:?}", d.code);
    }
    assert!(!describe(Code::EVEX_Vaddps_zmm_k1z_zmm_zmmm512b32_er).known);
    assert!(
        !describe(Code::VEX_Vaesenc_ymm_ymm_ymmm256).known
            && describe(Code::VEX_Vaesenc_xmm_xmm_xmmm128).known
    );
}

#[test]
fn avx_has_the_rounding_of_what_it_widens_and_faults_on_alignment_where_it_moves_aligned_data() {
    let mxcsr = |code| describe(code).fp == Fp::Avx { mxcsr: true };
    assert!(mxcsr(Code::VEX_Vaddps_ymm_ymm_ymmm256) && mxcsr(Code::VEX_Vfmadd231sd_xmm_xmm_xmmm64));
    assert!(mxcsr(Code::VEX_Vcvtph2ps_ymm_xmmm128) && mxcsr(Code::VEX_Vcvtsi2sd_xmm_xmm_rm64));
    assert!(!mxcsr(Code::VEX_Vcvtsi2sd_xmm_xmm_rm32) && !mxcsr(Code::VEX_Vrsqrtps_ymm_ymmm256));
    assert!(!mxcsr(Code::VEX_Vpaddd_ymm_ymm_ymmm256) && !mxcsr(Code::VEX_Vmovaps_ymm_ymmm256));
    let alignment = |code| describe(code).alignment();
    assert_eq!(alignment(Code::VEX_Vmovaps_ymm_ymmm256), 32);
    assert_eq!(alignment(Code::VEX_Vmovntdqa_xmm_m128), 16);
    assert_eq!(alignment(Code::VEX_Vmovups_ymm_ymmm256), 1);
    assert_eq!(alignment(Code::VEX_Vaddps_ymm_ymm_ymmm256), 1);
}

#[test]
fn all_branches_end_blocks() {
    for d in known() {
        let diverts = d.code.flow_control() != iced_x86::FlowControl::Next;
        assert!(!diverts || d.ends_block, "{:?}", d.code);
    }
}

#[test]
fn integer_forms_touch_no_fpu_and_need_no_privilege() {
    for d in known().filter(|d| d.class == Class::Integer) {
        assert_eq!((d.fp, d.privilege, d.ends_block), (Fp::None, Privilege::Any, false), "{:?}", d.code);
    }
}

#[test]
fn spot_checks_against_the_sdm() {
    let add = describe(Code::Add_rm32_r32);
    assert!(add.lockable && add.feature == Feature::Base && add.class == Class::Integer);
    assert_eq!((add.flags_read, add.flags_written, add.flags_undefined), (0, flag::STATUS, 0));

    let inc = describe(Code::Inc_rm64);
    assert_eq!(inc.flags_written, flag::STATUS & !flag::CF);
    assert_eq!((inc.feature, inc.modes), (Feature::Lm, Modes::M64));

    let shl = describe(Code::Shl_rm32_imm8);
    assert_eq!(shl.flags_undefined, flag::OF | flag::AF);
    assert_eq!(describe(Code::Mul_rm8).flags_undefined, flag::SF | flag::ZF | flag::AF | flag::PF);
    assert_eq!(describe(Code::Adc_r8_rm8).flags_read, flag::CF);

    let movaps = describe(Code::Movaps_xmm_xmmm128);
    assert_eq!((movaps.fp, movaps.aligned, movaps.alignment()), (Fp::Sse { mxcsr: false }, true, 16));
    assert!(!describe(Code::Movups_xmm_xmmm128).aligned);
    assert!(!describe(Code::Pcmpistri_xmm_xmmm128_imm8).aligned);
    assert!(!describe(Code::Addsd_xmm_xmmm64).aligned);
    assert!(describe(Code::Cmpxchg16b_m128).aligned && describe(Code::Cmpxchg16b_m128).lockable);
    assert_eq!(describe(Code::Xrstor_mem).alignment(), 64);
    assert_eq!(describe(Code::Fxsave_m512byte).alignment(), 16);

    assert_eq!(describe(Code::Addsd_xmm_xmmm64).fp, Fp::Sse { mxcsr: true });
    assert_eq!(describe(Code::Cvtpi2ps_xmm_mmm64).fp, Fp::MmxSse { mxcsr: true });
    assert_eq!(describe(Code::Paddb_mm_mmm64).fp, Fp::Mmx);
    assert_eq!(describe(Code::Fnstsw_AX).fp, Fp::X87 { waiting: false });
    assert_eq!(describe(Code::Fldcw_m2byte).fp, Fp::X87 { waiting: true });
    assert_eq!(describe(Code::Wait).fp, Fp::Wait);
    assert_eq!(describe(Code::Pause).fp, Fp::None);
    assert_eq!(describe(Code::Fcmove_st0_sti).feature, Feature::Cmov);
    assert_eq!(describe(Code::Fisttp_m32int).feature, Feature::Sse3);

    assert_eq!(describe(Code::Cli).privilege, Privilege::Iopl);
    assert_eq!(describe(Code::In_AL_DX).privilege, Privilege::IoBitmap);
    assert_eq!(describe(Code::Sidt_m1632).privilege, Privilege::Umip);
    assert_eq!(describe(Code::Wrmsr).privilege, Privilege::Cpl0);
    assert_eq!(describe(Code::Stac).privilege, Privilege::Cpl0Ud);
    assert_eq!(describe(Code::Iretq).privilege, Privilege::Vm86Iopl);
    assert!(describe(Code::Popfq).ends_block && !describe(Code::Pushfq).ends_block);
    assert!(describe(Code::Mov_Sreg_rm16).ends_block && !describe(Code::Mov_rm16_Sreg).ends_block);
    assert!(describe(Code::Mov_cr_r64).ends_block && describe(Code::Mov_cr_r64).privilege == Privilege::Cpl0);
    assert!(describe(Code::Arpl_rm16_r16).protected_only && describe(Code::Lar_r32_r32m16).protected_only);
    assert!(!describe(Code::Lgdt_m1632).protected_only);

    assert!(!describe(Code::Rsm).known && !describe(Code::Xbegin_rel32).known);
    assert!(!describe(Code::Femms).known);
    assert!(!describe(Code::INVALID).known && !describe(Code::Fstenv_m14byte).known);
    assert!(
        describe(Code::Salc).known
            && describe(Code::Aaa).known
            && describe(Code::VEX_Andn_r32_r32_rm32).known
    );
}

#[test]
fn the_movsd_and_cmpsd_that_are_not_string_instructions() {
    assert_eq!(describe(Code::Movsd_m32_m32).class, Class::String);
    assert_eq!(describe(Code::Cmpsd_m32_m32).class, Class::String);
    assert_eq!(describe(Code::Movsd_xmm_xmmm64).class, Class::Sse);
    assert_eq!(describe(Code::Cmpsd_xmm_xmmm64_imm8).class, Class::Sse);
}

#[test]
fn encodings_that_older_processors_take_for_something_else() {
    let v1 = FeatureSet::of(&[Feature::Fpu, Feature::Sse2, Feature::Lm]);
    // F3 0F BD C1: LZCNT EAX, ECX, or BSR with an ignored prefix. F3 0F BC: TZCNT or BSF.
    assert_eq!(decode(&[0xf3, 0x0f, 0xbd, 0xc1], 64, rich()).0.code, Code::Lzcnt_r32_rm32);
    assert_eq!(decode(&[0xf3, 0x0f, 0xbd, 0xc1], 64, v1).0.code, Code::Bsr_r32_rm32);
    assert_eq!(decode(&[0xf3, 0x0f, 0xbc, 0xc1], 64, rich()).0.code, Code::Tzcnt_r32_rm32);
    assert_eq!(decode(&[0xf3, 0x0f, 0xbc, 0xc1], 64, v1).0.code, Code::Bsf_r32_rm32);
    // ENDBR64, RDSSPQ, PREFETCHW, CLDEMOTE, BNDMK, PREFETCHNTA, multi-byte NOP, and a register form of
    // 0F 0D: all NOPs, with the length of their operands.
    let nops: [&[u8]; 8] = [
        &[0xf3, 0x0f, 0x1e, 0xfa],
        &[0xf3, 0x48, 0x0f, 0x1e, 0xc8],
        &[0x0f, 0x0d, 0x4c, 0x24, 0x08],
        &[0x0f, 0x1c, 0x00],
        &[0xf3, 0x0f, 0x1b, 0x00],
        &[0x0f, 0x18, 0x04, 0x24],
        &[0x66, 0x0f, 0x1f, 0x84, 0x00, 0, 0, 0, 0],
        &[0x0f, 0x0d, 0xc0],
    ];
    for bytes in nops {
        for features in [rich(), v1] {
            let (d, len) = decode(bytes, 64, features);
            assert!(d.known && d.class == Class::Nop && d.feature == Feature::Base, "{bytes:x?} {d:?}");
            assert_eq!(len, bytes.len());
        }
    }
    // PAUSE stays PAUSE; WBNOINVD without the feature is WBINVD.
    assert_eq!(decode(&[0xf3, 0x90], 64, v1).0.code, Code::Pause);
    assert_eq!(decode(&[0xf3, 0x0f, 0x09], 64, v1).0.code, Code::Wbinvd);
    // UD0, UD1, UD2 are described, and end the block.
    for bytes in [[0x0f, 0xff, 0xc0], [0x0f, 0xb9, 0xc0], [0x0f, 0x0b, 0x90]] {
        let (d, _) = decode(&bytes, 64, rich());
        assert!(d.known && d.ends_block && d.class == Class::System, "{d:?}");
    }
    // LAHF in 64-bit mode only with its feature; without, #UD.
    assert_eq!(decode(&[0x9f], 64, rich()).0.code, Code::Lahf);
    assert!(!decode(&[0x9f], 64, v1).0.known);
    assert_ne!(decoder_options(v1), DecoderOptions::NONE);
}

#[test]
fn cpuid_bits_round_trip() {
    let leaves = |leaf, subleaf| rich().cpuid_bits(leaf, subleaf);
    assert_eq!(FeatureSet::from_cpuid(leaves), rich());
    let sse2 = FeatureSet::of(&[Feature::Sse2]);
    assert_eq!(sse2.cpuid_bits(1, 0), [0, 0, 0, 1 << 26]);
    assert_eq!(FeatureSet::from_cpuid(|_, _| [0; 4]), FeatureSet::BASE);
    assert!(sse2.has(Feature::Base) && sse2.without(Feature::Base).has(Feature::Base));
    assert!(!sse2.without(Feature::Sse2).has(Feature::Sse2));
}

#[test]
fn no_two_features_share_a_cpuid_bit() {
    let mut seen = std::collections::HashSet::new();
    for &f in Feature::ALL {
        assert!((f as u32) < 128);
        if let Some(bit) = f.cpuid() {
            assert!(seen.insert(bit), "{f:?}");
        }
    }
}
