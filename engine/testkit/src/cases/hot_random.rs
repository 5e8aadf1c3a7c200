//! Random pieces of straight code: what they compute when hot is what they computed when cold, flags included.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::{Case, case};
use crate::asm::Phrases;
use crate::guest::Guest;
use crate::machine::Bench;
use crate::record::{Failure, Record};
use crate::tables::*;

pub const CASES: &[Case] = &[
    case("hot-code-computes-what-cold-code-does", |bench| same(bench, program)),
    case("hot-code-computes-what-cold-code-does-32", |bench| same(bench, program32)),
];

const PROGRAMS: u64 = 500;
const LENGTH: u64 = 24;
/// Runs of each program, the last of which is compared with the first.
const RUNS: u32 = 40;
const F: u64 = CODE_AP;
/// Registers at the start; the memory that the program uses; what it left, of the first and the last run.
const INPUT: u64 = DATA + 0x800;
const MEMORY: u64 = DATA + 0x400;
/// In every second program it is here, and reaches over a page end.
const MEMORY_AT_END: u64 = DATA + 0xfb0;
const OUTPUT: u64 = WINDOW_RAM;
const OUTPUT_SIZE: u64 = 0x200;

/// Registers that programs change; RDI leads to their memory.
const WIDE: [AsmRegister64; 14] = [rax, rcx, rdx, rbx, rbp, rsi, r8, r9, r10, r11, r12, r13, r14, r15];
const HALF: [AsmRegister32; 14] =
    [eax, ecx, edx, ebx, ebp, esi, r8d, r9d, r10d, r11d, r12d, r13d, r14d, r15d];
const SHORT: [AsmRegister16; 14] = [ax, cx, dx, bx, bp, si, r8w, r9w, r10w, r11w, r12w, r13w, r14w, r15w];
const BYTE: [AsmRegister8; 16] =
    [al, cl, dl, bl, bpl, sil, r8b, r9b, r10b, r11b, r12b, r13b, r14b, r15b, ah, ch];

/// A generator of numbers (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }
}

/// One instruction on registers.
fn on_registers(a: &mut CodeAssembler, r: &mut Random) -> Result<(), IcedError> {
    let (x, y, n) = (r.of(&WIDE), r.of(&WIDE), r.next() as i32);
    let (x4, y4, x2, y2, x1, y1) =
        (r.of(&HALF), r.of(&HALF), r.of(&SHORT), r.of(&SHORT), r.of(&BYTE[..14]), r.of(&BYTE[..14]));
    match r.below(24) {
        0 => a.add(x, y),
        1 => a.adc(x4, y4),
        2 => a.sub(x2, y2),
        3 => a.sbb(x1, y1),
        4 => a.and(x, n),
        5 => a.xor(x4, y4),
        6 => a.cmp(x, y),
        7 => a.test(x1, y1),
        8 => a.inc(x),
        9 => a.dec(x1),
        10 => a.neg(x4),
        11 => a.not(x),
        12 => a.imul_2(x, y),
        13 => a.imul_3(x4, y4, n),
        14 => a.mul(y4),
        15 => a.lea(x, qword_ptr(y + x * 4 + (n & 0xff))),
        16 => a.mov(x4, y4),
        17 => a.movzx(x4, y1),
        18 => a.movsxd(x, y4),
        19 => a.xadd(x, y),
        20 => a.cmpxchg(x, y),
        21 => a.bswap(x),
        22 => a.xchg(x4, y4),
        _ => a.popcnt(x, y),
    }
}

/// One instruction that moves bits, or moves by flags.
fn on_bits(a: &mut CodeAssembler, r: &mut Random) -> Result<(), IcedError> {
    let (x, y, n) = (r.of(&WIDE), r.of(&WIDE), r.next() as u32 & 0xff);
    let (x4, y4, x2, x1) = (r.of(&HALF), r.of(&HALF), r.of(&SHORT), r.of(&BYTE));
    match r.below(33) {
        0 => a.shl(x, n),
        1 => a.shr(x4, n & 31),
        2 => a.sar(x2, cl),
        3 => a.rol(x1, n),
        4 => a.ror(x, cl),
        5 => a.rcl(x4, 1u32),
        6 => a.rcr(x1, cl),
        7 => a.shld(x, y, n),
        8 => a.shrd(x4, y4, cl),
        9 => a.bt(x, y),
        10 => a.bts(x4, n & 31),
        11 => a.btr(x, y),
        12 => a.btc(x4, y4),
        13 => a.bsf(x, y),
        14 => a.bsr(x4, y4),
        15 => a.cmovb(x, y),
        16 => a.cmovo(x4, y4),
        17 => a.cmovle(x, y),
        18 => a.setp(x1),
        19 => a.setg(x1),
        20 => a.lahf(),
        21 => a.sahf(),
        22 => a.cmc(),
        23 => a.stc(),
        24 => a.clc(),
        25 => a.cdqe(),
        26 => a.shl(x4, cl),
        27 => a.shl(x1, n),
        28 => a.sar(x2, n),
        29 => a.ror(x2, n),
        30 => a.rcl(x1, n),
        31 => a.shrd(x2, r.of(&SHORT), n & 15),
        _ => a.cqo(),
    }
}

/// One instruction on memory or on the stack.
fn on_memory(a: &mut CodeAssembler, r: &mut Random) -> Result<(), IcedError> {
    let (x, x4, x1) = (r.of(&WIDE), r.of(&HALF), r.of(&BYTE[..14]));
    let at = rdi + (r.next() & 0x7f) as i32;
    let n = r.next() as i32;
    match r.below(26) {
        0 => a.mov(qword_ptr(at), x),
        1 => a.mov(x4, dword_ptr(at)),
        2 => a.add(qword_ptr(at), x),
        3 => a.adc(x4, dword_ptr(at)),
        4 => a.sub(byte_ptr(at), x1),
        5 => a.sbb(dword_ptr(at), n),
        6 => a.inc(dword_ptr(at)),
        7 => a.cmp(qword_ptr(at), x),
        8 => a.test(byte_ptr(at), n & 0x7f),
        9 => a.lock().xadd(dword_ptr(at), x4),
        10 => a.xchg(qword_ptr(at), x),
        11 => a.cmpxchg(dword_ptr(at), x4),
        12 => a.shl(dword_ptr(at), cl),
        13 => a.rcr(byte_ptr(at), 1u32),
        14 => a.bts(dword_ptr(at), n as u32 & 31),
        15 => a.setb(byte_ptr(at)),
        16 => a.cmovs(x, qword_ptr(at)),
        17 => a.movsx(x4, byte_ptr(at)),
        18 => {
            a.push(x)?;
            a.pop(x4_wide(x4))
        }
        19 => {
            a.pushfq()?;
            a.pop(x)
        }
        20 => a.neg(qword_ptr(at)),
        21 => a.imul_2(x, qword_ptr(at)),
        22 => a.not(dword_ptr(at)),
        23 => a.mov(byte_ptr(at), x1),
        24 => a.or(x, qword_ptr(at)),
        _ => a.dec(byte_ptr(at)),
    }
}

/// A repeated string instruction within the program's memory, its operands overlapping perhaps; its registers go to memory.
fn on_strings(a: &mut CodeAssembler, r: &mut Random) -> Result<(), IcedError> {
    let (from, to) = (rdi + (r.next() & 0x3f) as i32, rdi + (r.next() & 0x3f) as i32);
    let backwards = r.below(4) == 0;
    [rdi, rsi, rcx].into_iter().try_for_each(|x| a.push(x))?;
    a.lea(rsi, from)?;
    a.lea(rdi, to)?;
    a.mov(ecx, r.below(8) as u32)?;
    if backwards {
        a.add(rsi, 0x38)?;
        a.add(rdi, 0x38)?;
        a.std()?;
    }
    match r.below(8) {
        0 => a.rep().stosb()?,
        1 => a.rep().stosw()?,
        2 => a.rep().stosd()?,
        3 => a.rep().stosq()?,
        4 => a.rep().movsb()?,
        5 => a.rep().movsw()?,
        6 => a.repne().movsd()?,
        _ => a.rep().movsq()?,
    }
    a.cld()?;
    a.xchg(qword_ptr(rsp + 16), rdi)?;
    a.mov(qword_ptr(rdi + 0x80), rsi)?;
    a.mov(qword_ptr(rdi + 0x88), rcx)?;
    a.pop(rcx)?;
    a.pop(rsi)?;
    a.pop(qword_ptr(rdi + 0x90))
}

/// A few instructions by way of XMM registers, which nobody keeps.
fn on_vectors(a: &mut CodeAssembler, r: &mut Random) -> Result<(), IcedError> {
    let (x, y, x4, y4) = (r.of(&WIDE), r.of(&WIDE), r.of(&HALF), r.of(&HALF));
    let (at, n) = (rdi + (r.next() & 0x7f) as i32, r.next() as u32 & 7);
    a.movq(xmm0, x)?;
    a.movq(xmm9, y)?;
    match r.below(10) {
        0 => a.pshufd(xmm0, xmm9, n)?,
        1 => a.pcmpeqb(xmm0, xmm9)?,
        2 => a.ucomisd(xmm0, xmm9)?,
        3 => a.ptest(xmm0, xmm9)?,
        4 => a.cvtsi2sd(xmm0, x)?,
        5 => a.pinsrw(xmm0, y4, n)?,
        6 => a.comiss(xmm0, dword_ptr(at))?,
        7 => a.movhps(xmm0, qword_ptr(at))?,
        8 => a.cvtsi2sd(xmm0, qword_ptr(at))?,
        _ => a.crc32(y, byte_ptr(at))?,
    }
    match r.below(6) {
        0 => a.pmovmskb(x4, xmm0),
        1 => a.cvttsd2si(x, xmm0),
        2 => a.pextrw(x4, xmm0, n),
        3 => a.movups(xmmword_ptr(at), xmm0),
        4 => a.pextrq(qword_ptr(at), xmm0, n & 1),
        _ => a.movq(y, xmm0),
    }
}

/// Vectors are copied, not far and at any alignment, among instructions that set or read flags.
fn on_copies(a: &mut CodeAssembler, r: &mut Random) -> Result<(), IcedError> {
    let (x, x4) = (r.of(&WIDE), r.of(&HALF));
    let near = r.below(0x40) as i32;
    let [from, further, to, beyond] = std::array::from_fn(|_| rdi + near + r.below(0x30) as i32);
    if r.below(2) == 0 {
        a.cmp(x, r.of(&WIDE))?;
    }
    a.movups(xmm0, xmmword_ptr(from))?;
    if r.below(2) == 0 {
        a.add(x, r.next() as i32)?;
    }
    a.movups(xmm9, xmmword_ptr(further))?;
    a.movups(xmmword_ptr(to), xmm0)?;
    if r.below(2) == 0 {
        a.setl(al)?;
    }
    a.movups(xmmword_ptr(beyond), xmm9)?;
    match r.below(3) {
        0 => a.adc(x4, r.of(&HALF)),
        1 => a.cmovbe(x, r.of(&WIDE)),
        _ => a.inc(x4),
    }
}

/// The 64-bit register that a 32-bit one is part of.
fn x4_wide(r: AsmRegister32) -> AsmRegister64 {
    HALF.iter().position(|h| *h == r).map_or(rax, |n| WIDE[n])
}

fn program(bench: &Bench<'_>, seed: u64) -> Result<Guest, Failure> {
    let mut random = Random(seed);
    let memory = if seed.is_multiple_of(2) { MEMORY } else { MEMORY_AT_END };
    let g = Guest::new(bench, Mode::Long, |a| {
        a.mov(dword_ptr(DATA), RUNS as i32)?;
        a.jmp(F)
    })?;
    g.code(64, F, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        // The same memory each time, later the same flags.
        a.mov(esi, INPUT as u32)?;
        a.mov(edi, memory as u32)?;
        a.mov(ecx, 0x20)?;
        a.rep().movsq()?;
        a.mov(edi, memory as u32)?;
        for (n, r) in (0..).zip(WIDE) {
            a.mov(r, qword_ptr(INPUT + 8 * n))?;
        }
        a.push((random.next() & 0x8d5) as i32 | 2)?;
        a.popfq()?;
        for _ in 0..LENGTH {
            match random.below(9) {
                0 | 1 => on_registers(a, &mut random)?,
                2 | 3 => on_bits(a, &mut random)?,
                4 => on_vectors(a, &mut random)?,
                5 => on_strings(a, &mut random)?,
                6 => on_copies(a, &mut random)?,
                _ => on_memory(a, &mut random)?,
            }
        }
        a.pushfq()?;
        a.pop(qword_ptr(rdi + 0x108))?;
        a.mov(qword_ptr(rdi + 0x100), rsp)?;
        for (n, r) in (0..).zip(WIDE) {
            a.mov(qword_ptr(rdi + 0x110 + 8 * n), r)?;
        }
        // The first run's is kept apart.
        a.mov(esi, memory as u32)?;
        a.mov(edi, OUTPUT as u32)?;
        a.mov(ecx, (OUTPUT_SIZE / 8) as u32)?;
        a.cmp(dword_ptr(DATA), RUNS as i32)?;
        a.mov(eax, (OUTPUT + OUTPUT_SIZE) as u32)?;
        a.cmovne(edi, eax)?;
        a.rep().movsq()?;
        a.dec(dword_ptr(DATA))?;
        a.jnz(again)?;
        a.done()
    })?;
    write_input(&g, &mut random);
    Ok(g)
}

/// What registers and memory begin with: small numbers too, for shifts.
fn write_input(g: &Guest, random: &mut Random) {
    for n in 0..0x40 {
        let v = random.next() >> (random.next() & 63);
        g.machine.ram.write(INPUT + 8 * n, &v.to_le_bytes());
    }
}

/// Registers of 32-bit programs.
const OLD: [AsmRegister32; 6] = [eax, ecx, edx, ebx, ebp, esi];

/// One instruction of 32-bit code.
fn on_anything32(a: &mut CodeAssembler, r: &mut Random) -> Result<(), IcedError> {
    let (x, y, x1) = (r.of(&OLD), r.of(&OLD), r.of(&[al, cl, dl, bl, ah, ch, dh, bh]));
    let at = edi + (r.next() & 0x7f) as i32;
    let n = r.next() as i32;
    match r.below(36) {
        0 => a.add(x, y),
        1 => a.adc(x, dword_ptr(at)),
        2 => a.sub(dword_ptr(at), x),
        3 => a.sbb(x1, byte_ptr(at)),
        4 => a.and(x, n),
        5 => a.xor(dword_ptr(at), n),
        6 => a.cmp(x, y),
        7 => a.test(x1, x1),
        8 => a.inc(x),
        9 => a.dec(x),
        10 => a.inc(dword_ptr(at)),
        11 => a.neg(x),
        12 => a.imul_2(x, y),
        13 => a.lea(x, dword_ptr(y + x * 8 + n)),
        14 => a.push(x),
        15 => a.push(dword_ptr(at)),
        16 => a.push(n),
        17 => a.mov(x, dword_ptr(esp + 4)),
        18 => a.mov(dword_ptr(esp + (n & 0x1c)), x),
        19 => {
            a.pushfd()?;
            a.pop(x)
        }
        20 => a.bts(x, y),
        21 => a.bt(dword_ptr(at), n as u32 & 31),
        22 => a.shl(x, cl),
        23 => a.rcr(dword_ptr(at), 1u32),
        24 => a.shld(x, y, n as u32 & 31),
        25 => a.cmovle(x, y),
        26 => a.setb(x1),
        27 => a.lock().xadd(dword_ptr(at), x),
        28 => a.cmpxchg(dword_ptr(at), x),
        29 => a.mov(eax, dword_ptr(MEMORY + 0x20)),
        30 => a.mov(dword_ptr(MEMORY + 0x30), al_or(eax, n)),
        31 => a.aaa(),
        32 => a.das(),
        33 => a.cdq(),
        34 => a.mov(x, dword_ptr(at).fs()),
        _ => a.movsx(x, x1),
    }
}

/// EAX, or another register now and then.
fn al_or(usual: AsmRegister32, n: i32) -> AsmRegister32 {
    if n & 1 == 0 { usual } else { edx }
}

fn program32(bench: &Bench<'_>, seed: u64) -> Result<Guest, Failure> {
    let mut random = Random(seed ^ 0x3232);
    let mode = if seed.is_multiple_of(2) { Mode::Protected32 } else { Mode::Paging32 };
    let g = Guest::new(bench, mode, |a| {
        a.mov(dword_ptr(DATA), RUNS as i32)?;
        a.jmp(F)
    })?;
    g.code(32, F, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.mov(esi, INPUT as u32)?;
        a.mov(edi, MEMORY as u32)?;
        a.mov(ecx, 0x40)?;
        a.rep().movsd()?;
        a.mov(edi, MEMORY as u32)?;
        // The stack is the same each time too.
        a.mov(esp, (MEMORY + 0xc0) as u32)?;
        for (n, r) in (0..).zip(OLD) {
            a.mov(r, dword_ptr(INPUT + 8 * n))?;
        }
        a.push((random.next() & 0x8d5) as i32 | 2)?;
        a.popfd()?;
        for _ in 0..LENGTH {
            on_anything32(a, &mut random)?;
        }
        a.pushfd()?;
        a.pop(dword_ptr(edi + 0x108))?;
        a.mov(dword_ptr(edi + 0x100), esp)?;
        for (n, r) in (0..).zip(OLD) {
            a.mov(dword_ptr(edi + 0x110 + 8 * n), r)?;
        }
        a.mov(esi, MEMORY as u32)?;
        a.mov(edi, OUTPUT as u32)?;
        a.mov(ecx, (OUTPUT_SIZE / 4) as u32)?;
        a.cmp(dword_ptr(DATA), RUNS as i32)?;
        a.mov(eax, (OUTPUT + OUTPUT_SIZE) as u32)?;
        a.cmovne(edi, eax)?;
        a.rep().movsd()?;
        a.dec(dword_ptr(DATA))?;
        a.jnz(again)?;
        a.done()
    })?;
    write_input(&g, &mut random);
    Ok(g)
}

fn same(
    bench: &Bench<'_>,
    program: fn(&Bench<'_>, u64) -> Result<Guest, Failure>,
) -> Result<Record, Failure> {
    let mut r = Record::default();
    for seed in 0..PROGRAMS {
        let mut g = program(bench, seed)?;
        g.run()?;
        r.expect("traps", g.vectors(), vec![])?;
        let outputs = [OUTPUT, OUTPUT + OUTPUT_SIZE].map(|at| {
            let words: Vec<u64> = (0..OUTPUT_SIZE / 8).map(|n| g.machine.ram.u64(at + 8 * n)).collect();
            words
        });
        let [first, last] = outputs;
        let different: Vec<_> = (0..)
            .zip(first.iter().zip(&last))
            .filter(|(_, (a, b))| a != b)
            .map(|(n, ab): (u64, _)| (8 * n, ab))
            .collect();
        r.check(&format!("program {seed}"), different.is_empty(), &different)?;
    }
    Ok(r)
}
