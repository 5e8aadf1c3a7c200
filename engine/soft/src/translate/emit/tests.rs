//! Encodings, as a disassembler reads them.

use super::*;
use iced_x86::{Decoder, DecoderOptions, Formatter, NasmFormatter};

/// What the code says, in NASM's syntax.
fn text(build: impl FnOnce(&mut Emitter)) -> Vec<String> {
    let mut e = Emitter::new();
    build(&mut e);
    let (code, _) = e.finish(0);
    let mut formatter = NasmFormatter::new();
    Decoder::with_ip(64, &code, 0, DecoderOptions::NONE)
        .iter()
        .map(|i| {
            let mut s = String::new();
            formatter.format(&i, &mut s);
            s
        })
        .collect()
}

#[test]
fn every_base_and_index_is_encoded() {
    for base in 0..16 {
        for index in (0..16).filter(|i| *i != 4) {
            for disp in [0, 5, -128, 128, i32::MIN] {
                let mut e = Emitter::new();
                e.lea(Host(7), Mem::at(Host(base), disp).indexed(Host(index), 2));
                e.load(Host(base), Mem::at(Host(base), disp));
                let (code, _) = e.finish(0);
                let mut d = Decoder::with_ip(64, &code, 0, DecoderOptions::NONE);
                let i = d.decode();
                assert_eq!(
                    (i.memory_base().number(), i.memory_index().number()),
                    (base.into(), index.into())
                );
                assert_eq!((i.memory_index_scale(), i.memory_displacement64() as i32), (4, disp));
                let i = d.decode();
                assert_eq!((i.memory_base().number(), i.memory_displacement64() as i32), (base.into(), disp));
                assert_eq!(i.op0_register().number(), usize::from(base));
            }
        }
    }
}

#[test]
fn own_forms_are_what_they_say() {
    let code = text(|e| {
        e.load32(Host(9), Mem::vcpu(-128));
        e.store(Mem::vcpu(0x1000).indexed(Host::RSI, 0), Host::RBX);
        e.alu(Alu::Cmp, Host::RDI, Mem::vcpu(64).indexed(Host::R12, 3));
        e.alu_imm(Alu::And, Host::RDI, -4096);
        e.alu32_imm(Alu::Sub, Mem::vcpu(8), 1);
        e.shr(Host::R14, 7);
        e.rorx(Host::RSI, Host::R15, 7);
        e.rorx(Host::R14, Host::RBP, 12);
        e.push(Host(10));
        e.pop(Host::RBP);
        e.constant(Host::R11, 5);
        e.constant(Host::RDX, u64::MAX);
        e.constant(Host::R13, 0x1122_3344_5566_7788);
        e.call_to(Host(8));
        e.vmovaps(Mem::vcpu(0x40), 3, true);
        e.vmovaps(Mem::vcpu(0x4060), 12, false);
    });
    assert_eq!(
        code,
        [
            "mov r9d,[gs:0FFFFFFFFFFFFFF80h]",
            "mov [gs:rsi+1000h],rbx",
            "cmp rdi,[gs:r12*8+40h]",
            "and rdi,0FFFFFFFFFFFFF000h",
            "sub dword [gs:8],1",
            "shr r14,7",
            "rorx rsi,r15,7",
            "rorx r14,rbp,0Ch",
            "push r10",
            "pop rbp",
            "mov r11d,5",
            "mov rdx,0FFFFFFFFFFFFFFFFh",
            "mov r13,1122334455667788h",
            "call r8",
            "vmovaps [gs:40h],ymm3",
            "vmovaps ymm12,[gs:4060h]",
        ]
    );
}

#[test]
fn labels_reach_across_the_parts() {
    let code = text(|e| {
        let (cold, back) = (e.label(), e.label());
        e.jcc(cc::NE, cold);
        e.bind(back);
        e.ret();
        let hot = e.switch(Part::Cold);
        e.bind(cold);
        e.jmp(back);
        assert_eq!(hot, Part::Hot);
    });
    assert_eq!(code, ["jne near 7", "ret", "jmp 6"]);
}

#[test]
fn a_high_byte_register_allows_no_rex_prefix() {
    let mut e = Emitter::new();
    let mov = Op { high: true, ..Op::new(0x88) };
    assert_eq!(e.op(mov, 4, Mem::at(Host(8), 0).into(), &[]), Err(Unencodable));
    assert_eq!(e.op(mov, 4, Mem::at(Host::RDI, 0).into(), &[]), Ok(()));
}
