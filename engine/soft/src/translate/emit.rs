//! Host machine code: encoding, labels, and colder parts behind the hot one.

/// A host general register, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host(pub u8);

#[allow(missing_docs)]
impl Host {
    pub const RAX: Self = Self(0);
    pub const RCX: Self = Self(1);
    pub const RDX: Self = Self(2);
    pub const RBX: Self = Self(3);
    pub const RSP: Self = Self(4);
    pub const RBP: Self = Self(5);
    pub const RSI: Self = Self(6);
    pub const RDI: Self = Self(7);
    pub const R11: Self = Self(11);
    pub const R12: Self = Self(12);
    pub const R13: Self = Self(13);
    pub const R14: Self = Self(14);
    pub const R15: Self = Self(15);
}

/// A memory operand of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mem {
    base: Option<Host>,
    /// Index and log2 of its scale.
    index: Option<(Host, u8)>,
    disp: i32,
    /// Relative to the GS base, where the vCPU is.
    gs: bool,
}

impl Mem {
    /// A field of the vCPU, at `offset` from the GS base.
    pub fn vcpu(offset: i32) -> Self {
        Self { base: None, index: None, disp: offset, gs: true }
    }
    /// The bytes that `base` points to.
    pub fn at(base: Host, disp: i32) -> Self {
        Self { base: Some(base), index: None, disp, gs: false }
    }
    /// An absolute 32-bit displacement, as the start of an address.
    pub fn absolute(disp: i32) -> Self {
        Self { base: None, index: None, disp, gs: false }
    }
    /// The same with another displacement.
    pub fn displaced(self, disp: i32) -> Self {
        Self { disp, ..self }
    }
    /// The same with an index register, not RSP.
    pub fn indexed(self, index: Host, scale: u8) -> Self {
        debug_assert!(index != Host::RSP && scale < 4);
        match (self.base, scale) {
            // A base is shorter than an index.
            (None, 0) => Self { base: Some(index), ..self },
            _ => Self { index: Some((index, scale)), ..self },
        }
    }
}

/// What the r/m field of an instruction names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rm {
    /// A register of whatever file the instruction uses.
    Reg(u8),
    /// Memory.
    Mem(Mem),
}

impl From<Host> for Rm {
    fn from(r: Host) -> Self {
        Self::Reg(r.0)
    }
}
impl From<Mem> for Rm {
    fn from(m: Mem) -> Self {
        Self::Mem(m)
    }
}

/// An opcode with all that comes before and in front of ModRM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    /// F0, or 0.
    pub lock: bool,
    /// 66, F2, F3 as bits 0 to 2.
    pub prefixes: u8,
    /// 0: one byte, 1: 0F, 2: 0F 38, 3: 0F 3A.
    pub map: u8,
    /// The opcode byte.
    pub opcode: u8,
    /// REX.W.
    pub wide: bool,
    /// A byte register 4 to 7 is SPL to DIL: there must be a REX prefix.
    pub rex: bool,
    /// A byte register 4 to 7 is AH to BH: there must be none.
    pub high: bool,
}

impl Op {
    /// 66.
    pub const P66: u8 = 1;
    /// F2.
    pub const PF2: u8 = 2;
    /// F3.
    pub const PF3: u8 = 4;

    /// A one-byte opcode with 32-bit operands.
    pub const fn new(opcode: u8) -> Self {
        Self { lock: false, prefixes: 0, map: 0, opcode, wide: false, rex: false, high: false }
    }
    /// An opcode after 0F.
    pub const fn secondary(opcode: u8) -> Self {
        Self { map: 1, ..Self::new(opcode) }
    }
    /// With 64-bit operands.
    pub const fn wide(self) -> Self {
        Self { wide: true, ..self }
    }
}

/// The eight operations of the classic arithmetic group, by their number in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Alu {
    Add = 0,
    Or = 1,
    And = 4,
    Sub = 5,
    Cmp = 7,
}

/// Conditions of Jcc, by their number.
#[allow(missing_docs)]
pub mod cc {
    pub const B: u8 = 2;
    pub const E: u8 = 4;
    pub const NE: u8 = 5;
    pub const A: u8 = 7;
    pub const S: u8 = 8;
}

/// A place in the code, bound once and jumped to from anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(u32);

/// An instruction that cannot be encoded: a high byte register together with one that needs a REX prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unencodable;

/// Where code goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// What usually runs.
    Hot,
    /// Ways out of the middle; placed behind all hot code of the block.
    Aside,
    /// What runs now and then; placed behind all else. Each piece ends in a jump.
    Cold,
}

/// How many parts there are.
const PARTS: usize = 3;

/// Where a four-byte field's distance leads.
enum Target {
    Label(Label),
    /// An address outside the code under construction.
    Address(usize),
}

/// A four-byte field that holds a distance.
struct Fixup {
    part: Part,
    at: usize,
    target: Target,
}

/// Code under construction.
pub struct Emitter {
    parts: [Vec<u8>; PARTS],
    part: Part,
    labels: Vec<Option<(Part, usize)>>,
    fixups: Vec<Fixup>,
}

impl Emitter {
    /// No code.
    pub fn new() -> Self {
        // Enough for most translations.
        let parts = [2048, 512, 2048].map(Vec::with_capacity);
        Self { parts, part: Part::Hot, labels: Vec::with_capacity(128), fixups: Vec::with_capacity(128) }
    }

    /// Emits to this part from now on; gives the part before.
    pub fn switch(&mut self, part: Part) -> Part {
        std::mem::replace(&mut self.part, part)
    }

    fn code(&mut self) -> &mut Vec<u8> {
        &mut self.parts[self.part as usize]
    }

    /// A label that is yet to be bound.
    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() as u32 - 1)
    }

    /// Binds a label to the current place.
    pub fn bind(&mut self, label: Label) {
        let at = (self.part, self.code().len());
        debug_assert!(self.labels[label.0 as usize].is_none(), "bound twice");
        self.labels[label.0 as usize] = Some(at);
    }

    /// A label bound here.
    pub fn here(&mut self) -> Label {
        let label = self.label();
        self.bind(label);
        label
    }

    /// The code for address `base`, part after part, with all distances resolved; and where each label is in it.
    pub fn finish(mut self, base: usize) -> (Vec<u8>, Vec<u32>) {
        let mut starts = [0; PARTS];
        for n in 1..PARTS {
            starts[n] = starts[n - 1] + self.parts[n - 1].len();
        }
        let place = |(part, at): (Part, usize)| starts[part as usize] + at;
        let places: Vec<u32> = self
            .labels
            .iter()
            .map(|l| match l {
                Some(l) => place(*l) as u32,
                None => unreachable!("every label is bound before the end"),
            })
            .collect();
        let mut code = std::mem::take(&mut self.parts).concat();
        for f in &self.fixups {
            let at = place((f.part, f.at));
            let to = match f.target {
                Target::Label(label) => base + places[label.0 as usize] as usize,
                Target::Address(to) => to,
            };
            let distance = to as i64 - (base + at + 4) as i64;
            debug_assert!(i32::try_from(distance).is_ok());
            code[at..at + 4].copy_from_slice(&(distance as i32).to_le_bytes());
        }
        (code, places)
    }

    /// Position of a label in what [`Emitter::finish`] gave.
    pub fn place(places: &[u32], label: Label) -> u32 {
        places[label.0 as usize]
    }

    /// Raw bytes.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.code().extend_from_slice(bytes);
    }

    fn distance_to(&mut self, target: Target) {
        let (part, at) = (self.part, self.code().len());
        self.fixups.push(Fixup { part, at, target });
        self.bytes(&[0; 4]);
    }

    /// Any instruction with ModRM: `reg` is a register number or the opcode's extension; `immediate` follows.
    pub fn op(&mut self, op: Op, reg: u8, rm: Rm, immediate: &[u8]) -> Result<(), Unencodable> {
        let (b, x) = match rm {
            Rm::Reg(r) => (r, 0),
            Rm::Mem(m) => (m.base.map_or(0, |b| b.0), m.index.map_or(0, |i| i.0.0)),
        };
        let rex = u8::from(op.wide) << 3 | (reg >> 3) << 2 | (x >> 3) << 1 | b >> 3;
        if op.high && rex != 0 {
            return Err(Unencodable);
        }
        self.prefixes(op, matches!(rm, Rm::Mem(Mem { gs: true, .. })));
        if rex != 0 || op.rex {
            self.bytes(&[0x40 | rex]);
        }
        match op.map {
            0 => {}
            1 => self.bytes(&[0x0f]),
            2 => self.bytes(&[0x0f, 0x38]),
            _ => self.bytes(&[0x0f, 0x3a]),
        }
        self.bytes(&[op.opcode]);
        self.modrm(reg, rm);
        self.bytes(immediate);
        Ok(())
    }

    fn prefixes(&mut self, op: Op, gs: bool) {
        let all = [
            (gs, 0x65),
            (op.lock, 0xf0),
            (op.prefixes & Op::P66 != 0, 0x66),
            (op.prefixes & Op::PF2 != 0, 0xf2),
            (op.prefixes & Op::PF3 != 0, 0xf3),
        ];
        for (_, byte) in all.into_iter().filter(|(there, _)| *there) {
            self.bytes(&[byte]);
        }
    }

    fn modrm(&mut self, reg: u8, rm: Rm) {
        let reg = (reg & 7) << 3;
        let m = match rm {
            Rm::Reg(r) => return self.bytes(&[0xc0 | reg | r & 7]),
            Rm::Mem(m) => m,
        };
        let index = m.index.map_or(0x20, |(i, scale)| scale << 6 | (i.0 & 7) << 3);
        let Some(base) = m.base else {
            // No base: SIB with base 5, and a displacement of 32 bits.
            self.bytes(&[reg | 4, index | 5]);
            return self.bytes(&m.disp.to_le_bytes());
        };
        let low = base.0 & 7;
        // RBP and R13 as a base always have a displacement.
        let size = match m.disp {
            0 if low != 5 => 0,
            -128..128 => 0x40,
            _ => 0x80,
        };
        if m.index.is_some() || low == 4 {
            self.bytes(&[size | reg | 4, index | low]);
        } else {
            self.bytes(&[size | reg | low]);
        }
        match size {
            0 => {}
            0x40 => self.bytes(&[m.disp as u8]),
            _ => self.bytes(&m.disp.to_le_bytes()),
        }
    }

    /// As [`Emitter::op`], for forms of the translator's own, which have no byte registers.
    fn own(&mut self, op: Op, reg: u8, rm: impl Into<Rm>, immediate: &[u8]) {
        let done = self.op(op, reg, rm.into(), immediate);
        debug_assert!(done.is_ok());
    }

    /// `mov r64, rm`.
    pub fn load(&mut self, to: Host, from: impl Into<Rm>) {
        self.own(Op::new(0x8b).wide(), to.0, from, &[]);
    }
    /// `mov r32, rm`, which clears the upper half.
    pub fn load32(&mut self, to: Host, from: impl Into<Rm>) {
        self.own(Op::new(0x8b), to.0, from, &[]);
    }
    /// `mov rm, r64`.
    pub fn store(&mut self, to: Mem, from: Host) {
        self.own(Op::new(0x89).wide(), from.0, to, &[]);
    }
    /// `mov m32, imm32`.
    pub fn store32_imm(&mut self, to: Mem, v: u32) {
        self.own(Op::new(0xc7), 0, to, &v.to_le_bytes());
    }
    /// `mov m8, imm8`.
    pub fn store8_imm(&mut self, to: Mem, v: u8) {
        self.own(Op::new(0xc6), 0, to, &[v]);
    }
    /// A constant, in the shortest way that keeps the flags.
    pub fn constant(&mut self, to: Host, v: u64) {
        if let Ok(v) = u32::try_from(v) {
            let rex: &[u8] = if to.0 > 7 { &[0x41] } else { &[] };
            self.bytes(rex);
            self.bytes(&[0xb8 | to.0 & 7]);
            self.bytes(&v.to_le_bytes());
        } else if let Ok(v) = i32::try_from(v as i64) {
            self.own(Op::new(0xc7).wide(), 0, to, &v.to_le_bytes());
        } else {
            self.bytes(&[0x48 | to.0 >> 3, 0xb8 | to.0 & 7]);
            self.bytes(&v.to_le_bytes());
        }
    }
    /// `lea r64, m`.
    pub fn lea(&mut self, to: Host, from: Mem) {
        self.own(Op::new(0x8d).wide(), to.0, from, &[]);
    }
    /// `lea r32, m`.
    pub fn lea32(&mut self, to: Host, from: Mem) {
        self.own(Op::new(0x8d), to.0, from, &[]);
    }
    /// `op r64, rm`.
    pub fn alu(&mut self, op: Alu, to: Host, from: impl Into<Rm>) {
        self.own(Op::new((op as u8) << 3 | 3).wide(), to.0, from, &[]);
    }
    /// `op r32, rm`.
    pub fn alu32(&mut self, op: Alu, to: Host, from: impl Into<Rm>) {
        self.own(Op::new((op as u8) << 3 | 3), to.0, from, &[]);
    }
    /// `op rm64, imm`.
    pub fn alu_imm(&mut self, op: Alu, to: impl Into<Rm>, v: i32) {
        self.group1(Op::new(0x81).wide(), op, to.into(), v);
    }
    /// `op rm32, imm`.
    pub fn alu32_imm(&mut self, op: Alu, to: impl Into<Rm>, v: i32) {
        self.group1(Op::new(0x81), op, to.into(), v);
    }
    fn group1(&mut self, op: Op, alu: Alu, to: Rm, v: i32) {
        match i8::try_from(v) {
            Ok(v) => self.own(Op { opcode: 0x83, ..op }, alu as u8, to, &[v as u8]),
            Err(_) => self.own(op, alu as u8, to, &v.to_le_bytes()),
        }
    }
    /// `test m32, imm32`.
    pub fn test32_imm(&mut self, m: Mem, v: u32) {
        self.own(Op::new(0xf7), 0, m, &v.to_le_bytes());
    }
    /// `cmp m16, imm8`, sign-extended.
    pub fn cmp16_imm(&mut self, m: Mem, v: u8) {
        self.own(Op { prefixes: Op::P66, ..Op::new(0x83) }, Alu::Cmp as u8, m, &[v]);
    }
    /// `cmp m8, imm8`.
    pub fn cmp8_imm(&mut self, m: Mem, v: u8) {
        self.own(Op::new(0x80), Alu::Cmp as u8, m, &[v]);
    }
    /// `shl r64, n`.
    pub fn shl(&mut self, r: Host, n: u8) {
        self.own(Op::new(0xc1).wide(), 4, r, &[n]);
    }
    /// `sar r64, n`.
    pub fn sar(&mut self, r: Host, n: u8) {
        self.own(Op::new(0xc1).wide(), 7, r, &[n]);
    }
    /// `movsxd r64, r32`.
    pub fn movsxd(&mut self, to: Host, from: Host) {
        self.own(Op::new(0x63).wide(), to.0, from, &[]);
    }
    /// `shr r64, n`.
    pub fn shr(&mut self, r: Host, n: u8) {
        self.own(Op::new(0xc1).wide(), 5, r, &[n]);
    }
    /// `rorx r64, r64, n` (BMI2): keeps the flags.
    pub fn rorx(&mut self, to: Host, from: Host, n: u8) {
        self.bytes(&[0xc4, 0xe3 & !(to.0 >> 3 << 7) & !(from.0 >> 3 << 5), 0xfb, 0xf0]);
        self.modrm(to.0, from.into());
        self.bytes(&[n]);
    }
    /// `push r64` on the host's stack.
    pub fn push(&mut self, r: Host) {
        self.own(Op::new(0xff), 6, r, &[]);
    }
    /// `pop r64` from the host's stack.
    pub fn pop(&mut self, r: Host) {
        self.own(Op::new(0x8f), 0, r, &[]);
    }
    /// `lahf; seto al`: the arithmetic flags to AX.
    pub fn flags_to_ax(&mut self) {
        self.bytes(&[0x9f, 0x0f, 0x90, 0xc0]);
    }
    /// `add al, 0x7f; sahf`: the arithmetic flags from AX.
    pub fn flags_from_ax(&mut self) {
        self.bytes(&[0x04, 0x7f, 0x9e]);
    }
    /// `jcc label`.
    pub fn jcc(&mut self, cc: u8, to: Label) {
        self.bytes(&[0x0f, 0x80 | cc]);
        self.distance_to(Target::Label(to));
    }
    /// `jmp label`.
    pub fn jmp(&mut self, to: Label) {
        self.bytes(&[0xe9]);
        self.distance_to(Target::Label(to));
    }
    /// `jmp rm64`.
    pub fn jmp_to(&mut self, rm: impl Into<Rm>) {
        self.own(Op::new(0xff), 4, rm, &[]);
    }
    /// `call rm64`.
    pub fn call_to(&mut self, rm: impl Into<Rm>) {
        self.own(Op::new(0xff), 2, rm, &[]);
    }
    /// `ret`.
    pub fn ret(&mut self) {
        self.bytes(&[0xc3]);
    }
    /// An instruction with a RIP-relative operand at a label: opcode bytes with ModRM, all but the displacement.
    pub fn relative(&mut self, opcode: &[u8], label: Label) {
        self.bytes(opcode);
        self.distance_to(Target::Label(label));
    }
    /// An instruction that ends in a distance to an address outside: a branch, or a RIP-relative operand.
    pub fn relative_to(&mut self, opcode: &[u8], address: usize) {
        self.bytes(opcode);
        self.distance_to(Target::Address(address));
    }
    /// `jmp address`.
    pub fn jmp_address(&mut self, to: usize) {
        self.relative_to(&[0xe9], to);
    }
    /// `jcc address`.
    pub fn jcc_address(&mut self, cc: u8, to: usize) {
        self.relative_to(&[0x0f, 0x80 | cc], to);
    }
    /// `mov m16, r16`.
    pub fn store16(&mut self, to: Mem, from: Host) {
        self.own(Op { prefixes: Op::P66, ..Op::new(0x89) }, from.0, to, &[]);
    }
    /// `mov m32, r32`.
    pub fn store32(&mut self, to: Mem, from: Host) {
        self.own(Op::new(0x89), from.0, to, &[]);
    }
    /// `mov r16, m16`.
    pub fn load16(&mut self, to: Host, from: Mem) {
        self.own(Op { prefixes: Op::P66, ..Op::new(0x8b) }, to.0, from, &[]);
    }
    /// `movzx r32, m16`.
    pub fn load_u16(&mut self, to: Host, from: Mem) {
        self.own(Op::secondary(0xb7), to.0, from, &[]);
    }
    /// `mov m64, imm32`, sign-extended.
    pub fn store_imm(&mut self, to: Mem, v: i32) {
        self.own(Op::new(0xc7).wide(), 0, to, &v.to_le_bytes());
    }
    /// `movaps m128, xmm` or `movaps xmm, m128`.
    pub fn movaps(&mut self, m: Mem, xmm: u8, store: bool) {
        self.own(Op::secondary(if store { 0x29 } else { 0x28 }), xmm, m, &[]);
    }
    /// `vmovaps m256, ymm` or `vmovaps ymm, m256`, of a field of the vCPU.
    pub fn vmovaps(&mut self, m: Mem, ymm: u8, store: bool) {
        debug_assert!(m.gs && m.base.is_none() && m.index.is_none());
        let r = if ymm < 8 { 0x80 } else { 0 };
        self.bytes(&[0x65, 0xc5, 0x7c | r, if store { 0x29 } else { 0x28 }, (ymm & 7) << 3 | 4, 0x25]);
        self.bytes(&m.disp.to_le_bytes());
    }
    /// `ldmxcsr m32` or `stmxcsr m32`.
    pub fn mxcsr(&mut self, m: Mem, store: bool) {
        self.own(Op::secondary(0xae), if store { 3 } else { 2 }, m, &[]);
    }
    /// `and r32, imm32`.
    pub fn and32_imm(&mut self, r: Host, v: u32) {
        self.own(Op::new(0x81), Alu::And as u8, r, &v.to_le_bytes());
    }
    /// `cmp r64, imm32`, never shortened.
    pub fn cmp_imm32(&mut self, r: Host, v: i32) {
        self.own(Op::new(0x81).wide(), Alu::Cmp as u8, r, &v.to_le_bytes());
    }
    /// `cmp m32, imm32`, never shortened.
    pub fn cmp32_imm32(&mut self, m: Mem, v: u32) {
        self.own(Op::new(0x81), Alu::Cmp as u8, m, &v.to_le_bytes());
    }
    /// `xor r32, r32`.
    pub fn xor32(&mut self, to: Host, from: Host) {
        self.own(Op::new(0x33), to.0, from, &[]);
    }
    /// `shift r32, n`; left if `left`.
    pub fn shift32(&mut self, r: Host, n: u8, left: bool) {
        self.own(Op::new(0xc1), if left { 4 } else { 5 }, r, &[n]);
    }
    /// Eight bytes of data, in the current part.
    pub fn data(&mut self, v: u64) -> Label {
        let label = self.here();
        self.bytes(&v.to_le_bytes());
        label
    }
}

#[cfg(test)]
mod tests;
