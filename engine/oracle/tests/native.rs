//! The sandbox against results that the SDM fixes.

use vireo_oracle::windows::{BASE16, CODE, DATA, ENTRY, GUARD, LANDING, PAGE, READ_ONLY, STACK, offset};
use vireo_oracle::{
    Case, Change, CpuImage, End, Generator, MemImage, Mode, Native, Outcome, Patch, Subject, changes,
};

const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RBX: usize = 3;
const RSP: usize = 4;

fn case(bytes: &[u8]) -> Case {
    case_in(Mode::Long, bytes)
}

fn case_in(mode: Mode, bytes: &[u8]) -> Case {
    Case { bytes: bytes.to_vec(), mode, cpu: CpuImage::initial(mode), memory: MemImage::default() }
}

fn run(case: &Case) -> Outcome {
    Native::new().expect("native").run(case, case.mode)
}

#[test]
fn arithmetic_with_flags() {
    let mut c = case(&[0x48, 0x01, 0xc8]); // add rax, rcx
    c.cpu.gpr[RAX] = u64::MAX;
    c.cpu.gpr[RCX] = 1;
    let o = run(&c);
    assert_eq!(o.end, End::Done);
    assert_eq!(o.cpu.gpr[RAX], 0);
    assert_eq!(o.cpu.rflags, 0x202 | 0x55); // CF PF AF ZF
    assert_eq!(o.cpu.rip, ENTRY + 3);
    assert_eq!(o.memory, []);
    // Everything else is as it was.
    assert_eq!(
        o.cpu.fx.0[..416],
        c.cpu.fx.0[..28]
            .iter()
            .chain(&o.cpu.fx.0[28..32])
            .chain(&c.cpu.fx.0[32..416])
            .copied()
            .collect::<Vec<_>>()[..]
    );
}

#[test]
fn all_registers_travel() {
    let mut c = case(&[0x90]);
    for (i, r) in c.cpu.gpr.iter_mut().enumerate() {
        *r = 0x0123_4567_89ab_cd00 + i as u64;
    }
    for i in 0..16 {
        c.cpu.fx.set_xmm(i, 0xfeed_0000_0000_0000_0000_0000_0000_0000 + i as u128);
    }
    c.cpu.rflags = 0x202 | 0xcd5; // with DF
    c.cpu.fx.set_mxcsr(0x7f80);
    let o = run(&c);
    assert_eq!((o.end, o.cpu.gpr, o.cpu.rflags), (End::Done, c.cpu.gpr, c.cpu.rflags));
    for i in 0..16 {
        assert_eq!(o.cpu.fx.xmm(i), c.cpu.fx.xmm(i));
    }
    assert_eq!(o.cpu.fx.mxcsr(), 0x7f80);
}

#[test]
fn memory_is_patched_changed_and_reported() {
    let mut c = case(&[0x01, 0x0b]); // add [rbx], ecx
    c.cpu.gpr[RBX] = DATA + 4;
    c.cpu.gpr[RCX] = 2;
    c.memory.patches.push(Patch { address: DATA, bytes: vec![1, 0, 0, 0, 5, 0, 0, 0] });
    let o = run(&c);
    assert_eq!(o.memory, [Change { address: DATA, value: 7 << 32 | 1 }]);
    // The next case of the same sandbox starts from the background again.
    let mut native = Native::new().expect("native");
    let twice = native.run_batch(&[c.clone(), c.clone()]).expect("runs");
    assert!(twice[0] == twice[1] && twice[0].memory == o.memory);
}

#[test]
fn faults_with_their_codes() {
    let fault = |c: &Case| {
        let o = run(c);
        assert_eq!(o.cpu.rip, c.cpu.rip, "{c:?}");
        assert_eq!(o.cpu.gpr, c.cpu.gpr, "{c:?}");
        assert_eq!(o.cpu.rflags, c.cpu.rflags, "{c:?}");
        o.end
    };
    let plain = |vector| End::Fault { vector, error: None, address: None };
    assert_eq!(fault(&case(&[0xf7, 0xf1])), plain(0)); // div ecx
    assert_eq!(fault(&case(&[0x0f, 0x0b])), plain(6)); // ud2
    let general = End::Fault { vector: 13, error: Some(0), address: None };
    assert_eq!(fault(&case(&[0xf4])), general); // hlt
    let mut c = case(&[0x0f, 0x28, 0x03]); // movaps xmm0, [rbx]
    c.cpu.gpr[RBX] = DATA + 8;
    assert_eq!(fault(&c), general);
    let page = |error, address| End::Fault { vector: 14, error: Some(error), address: Some(address) };
    let mut c = case(&[0x89, 0x03]); // mov [rbx], eax
    for (at, error, address) in [(GUARD - 2, 6, GUARD), (GUARD, 6, GUARD), (READ_ONLY, 7, READ_ONLY)] {
        c.cpu.gpr[RBX] = at;
        assert_eq!(fault(&c), page(error, address));
    }
    let mut c = case(&[0x66, 0x0f, 0x58, 0xc1]); // addpd xmm0, xmm1
    c.cpu.fx.set_mxcsr(0x1f00); // invalid operation unmasked
    c.cpu.fx.set_xmm(1, 0x7ff0_0000_0000_0001 /* a signalling NaN */);
    assert_eq!(fault(&c), plain(19));
    let mut c = case(&[0xd8, 0xc0]); // fadd st0, st0 with an exception pending
    c.cpu.fx.set_u16(0, 0x37e);
    c.cpu.fx.set_u16(2, 0x8081);
    assert_eq!(fault(&c), plain(16));
}

#[test]
fn branches_end_where_they_lead() {
    let mut c = case(&[0xeb, 0x3e]); // jmp ENTRY + 0x40
    assert_eq!((run(&c).end, run(&c).cpu.rip), (End::Done, LANDING));
    // ret into nowhere: the branch itself is done.
    c.bytes = vec![0xc3];
    c.memory.patches.push(Patch { address: c.cpu.gpr[RSP], bytes: 0x1234_5678_u64.to_le_bytes().to_vec() });
    let o = run(&c);
    assert_eq!((o.end, o.cpu.rip, o.cpu.gpr[RSP]), (End::Done, 0x1234_5678, STACK + PAGE / 2 + 8));
    // An instruction cut off by the page's end cannot be fetched.
    let mut c = case(&[0x48, 0x01]);
    c.cpu.rip = CODE + PAGE - 2;
    let absent = CODE + PAGE;
    let end = End::Fault { vector: 14, error: Some(0x14), address: Some(absent) };
    assert_eq!((run(&c).end, run(&c).cpu.rip), (end, c.cpu.rip));
}

#[test]
fn legacy_instructions_in_32_bit_code() {
    let mut native = Native::new().expect("native");
    if !native.runs(Mode::Protected) {
        println!("SKIPPED: this host has no 32-bit code segment");
        return;
    }
    let mut c = case_in(Mode::Protected, &[0x37]); // aaa
    c.cpu.gpr[RAX] = 0x010b;
    c.cpu.gpr[RDX] = 7;
    let o = native.run(&c, c.mode);
    assert_eq!((o.end, o.cpu.gpr[RAX], o.cpu.gpr[RDX]), (End::Done, 0x0201, 7));
    assert_eq!(o.cpu.rflags & 0x11, 0x11); // CF AF
    let mut c = case_in(Mode::Protected, &[0x62, 0x03]); // bound eax, [ebx]
    c.cpu.gpr[RBX] = DATA;
    c.cpu.gpr[RAX] = 9;
    c.memory.patches.push(Patch { address: DATA, bytes: vec![0, 0, 0, 0, 8, 0, 0, 0] });
    assert_eq!(native.run(&c, c.mode).end, End::Fault { vector: 5, error: None, address: None });
}

#[test]
fn addresses_wrap_in_16_bit_code() {
    let mut native = Native::new().expect("native");
    if !native.runs(Mode::Protected16) {
        println!("SKIPPED: this host has no 16-bit code segment");
        return;
    }
    let mut c = case_in(Mode::Protected16, &[0x01, 0x00]); // add [bx+si], ax
    c.cpu.gpr[RAX] = 2;
    c.cpu.gpr[RBX] = 0x5555_f000;
    c.cpu.gpr[6] = 0x7777_0000 + (DATA - BASE16 + 0x1000);
    c.memory.patches.push(Patch { address: DATA, bytes: vec![1, 0, 0, 0, 0, 0, 0, 0] });
    let o = native.run(&c, c.mode);
    assert_eq!((o.end, o.cpu.rip), (End::Done, ENTRY - BASE16 + 2));
    assert_eq!(o.memory, [Change { address: DATA, value: 3 }]);
    // A push moves SP alone, and a 32-bit address beyond the segment's limit is a general protection fault.
    let mut c = case_in(Mode::Protected16, &[0x50]); // push ax
    c.cpu.gpr[RSP] |= 0x1234_0000;
    assert_eq!(native.run(&c, c.mode).cpu.gpr[RSP], c.cpu.gpr[RSP] - 2);
    let mut c = case_in(Mode::Protected16, &[0x67, 0x89, 0x03]); // mov [ebx], ax
    c.cpu.gpr[RBX] = 0x1_0000;
    let end = End::Fault { vector: 13, error: Some(0), address: None };
    assert_eq!(native.run(&c, c.mode).end, end);
}

#[test]
fn a_case_that_never_ends_is_lost_alone() {
    let mut native = Native::new().expect("native");
    let good = case(&[0xff, 0xc0]); // inc eax
    let endless = case(&[0xeb, 0xfe]); // jmp self
    let all = native.run_batch(&[good.clone(), endless, good]).expect("runs");
    assert_eq!([all[0].end, all[1].end, all[2].end], [End::Done, End::Lost, End::Done]);
    assert_eq!((all[2].cpu.gpr[RAX], native.lost()), (1, 1));
}

#[test]
fn changes_are_relative_to_what_the_case_describes() {
    // What a subject computes from `materialize` and `changes` is what the sandbox reports.
    let mut native = Native::new().expect("native");
    let mut generator = Generator::new(21, Mode::Long, &|_| true);
    let cases: Vec<Case> = (0..4000).filter_map(|_| generator.next_case()).map(|c| c.1).collect();
    let outcomes = native.run_batch(&cases).expect("runs");
    let mut seen = 0;
    for (case, outcome) in cases.iter().zip(&outcomes) {
        let before = case.memory.materialize(case);
        let mut after = before.clone();
        for change in &outcome.memory {
            let at = offset(change.address).expect("a present address");
            assert_eq!(change.address % 8, 0);
            after[at..at + 8].copy_from_slice(&change.value.to_le_bytes());
        }
        assert_eq!(changes(&before, &after), outcome.memory, "{case:?}");
        seen += outcome.memory.len();
    }
    assert!(seen > 500, "{seen}");
}

#[test]
fn ill_formed_cases_are_lost_and_harm_nobody() {
    let mut native = Native::new().expect("native");
    let good = case(&[0xff, 0xc0]);
    let mut absent = good.clone();
    absent.memory.patches.push(Patch { address: GUARD, bytes: vec![1] });
    let mut across = good.clone();
    across.memory.patches.push(Patch { address: GUARD - 1, bytes: vec![1, 2] });
    let mut huge = good.clone();
    huge.memory.patches.push(Patch { address: DATA, bytes: vec![1; 4096] });
    let cases = [case(&[]), case(&[0x90; 16]), absent, across, huge, good];
    let ends: Vec<End> = native.run_batch(&cases).expect("runs").iter().map(|o| o.end).collect();
    assert_eq!(ends, [End::Lost, End::Lost, End::Lost, End::Lost, End::Lost, End::Done]);
}
