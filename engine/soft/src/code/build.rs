//! Decoding guest bytes into blocks.

use iced_x86::{Code, Decoder, DecoderError, Instruction, OpKind, Register};

use super::{Block, Key};
use crate::cpu::mode::Mode;
use crate::cpu::{Cpu, Exec, regs, seg};
use crate::exec::{self, Address, Uop};
use crate::mmu::watch::granule_mask;

/// Most instructions of a block.
const MAX_INSTRUCTIONS: usize = 48;
/// Longest instruction (SDM vol. 2, 2.3.11).
const MAX_BYTES: usize = 15;

/// What decoding gave.
struct Decoded {
    uops: Vec<Uop>,
    len: u16,
    /// The bytes ended in the middle of the first instruction.
    truncated: bool,
}

/// A block whose bytes are announced: any later change will be reported.
pub(crate) struct StableBlock {
    /// The instructions.
    pub uops: Box<[Uop]>,
    /// Their bytes.
    pub bytes: Vec<u8>,
    /// Page and granules of the bytes; a second page when the (only) instruction crosses a page border.
    pub pages: [Option<(u32, u64)>; 2],
}

impl Cpu {
    /// Builds and keeps the block at RIP, whose first byte is at `key.gpa`.
    pub(super) fn build(&mut self, key: Key) -> Exec<*const Block> {
        loop {
            if let Some(b) = self.stable_block(key.gpa, key.mode, usize::MAX)? {
                let hot = self.shared.code.hot((key.gpa >> 12) as u32);
                return Ok(self.code.insert(Box::new(Block::new(b.uops, key, b.pages, hot))));
            }
        }
    }

    /// Decodes the block at RIP, whose first byte is at `gpa`, of no more than `most` instructions, and announces it.
    /// `None`: it has just changed.
    pub(crate) fn stable_block(&mut self, gpa: u64, mode: Mode, most: usize) -> Exec<Option<StableBlock>> {
        let offset = (gpa & 0xfff) as usize;
        let available = (4096 - offset).min(MAX_INSTRUCTIONS * MAX_BYTES);
        let mut buffer = [0; MAX_INSTRUCTIONS * MAX_BYTES];
        let bytes = &mut buffer[..available];
        self.read_code(gpa, bytes);
        let mut d = self.decode(mode, bytes);
        let mut bytes = bytes[..usize::from(d.len)].to_vec();
        let mut second = None;
        if d.truncated {
            // Its own rules: the second page is checked, and can change, on its own.
            let next = self.fetch_second_page(gpa)?;
            bytes = buffer[..available].to_vec();
            bytes.resize(MAX_BYTES, 0);
            self.read_code(next, &mut bytes[available..]);
            self.code.scratch = d.uops;
            d = self.decode(mode, &bytes);
            d.uops.truncate(1);
            second = Some(next);
        }
        d.uops.truncate(most);
        bytes.truncate(d.uops.last().map_or(0, |u| usize::from(u.next)));
        let (first, rest) = bytes.split_at(bytes.len().min(available));
        let second = second.filter(|_| !rest.is_empty());
        let mask = |gpa: u64, bytes: &[u8]| {
            ((gpa >> 12) as u32, granule_mask((gpa & 0xfff) as u32, bytes.len() as u32))
        };
        let pages = [Some(mask(gpa, first)), second.map(|gpa| mask(gpa, rest))];
        let same = self.announce(&pages, [Some((gpa, first)), second.map(|gpa| (gpa, rest))]);
        // Of exactly its size, which a vector that has grown is not.
        let uops = d.uops.drain(..).collect();
        self.code.scratch = d.uops;
        Ok(same.then_some(StableBlock { uops, bytes, pages }))
    }

    /// Announces code in these granules. False: the bytes are not what they were; if they are, any later change will be
    /// reported.
    fn announce(&mut self, pages: &[Option<(u32, u64)>; 2], bytes: [Option<(u64, &[u8])>; 2]) -> bool {
        for (page, granules) in pages.iter().flatten() {
            self.mmu.watch.before_decode(*page, *granules);
        }
        bytes.into_iter().flatten().all(|(gpa, bytes)| {
            let mut again = [0u8; MAX_INSTRUCTIONS * MAX_BYTES];
            let again = &mut again[..bytes.len()];
            self.read_code(gpa, again);
            again == bytes
        })
    }

    /// Copies code bytes within a page, from RAM or from the bus.
    fn read_code(&mut self, gpa: u64, to: &mut [u8]) {
        use crate::mmu::Value;
        let Some(page) = self.mmu.ram.page(gpa) else {
            for (i, chunk) in to.chunks_mut(8).enumerate() {
                self.bus().mmio_read(self.index, gpa + 8 * i as u64, chunk);
            }
            return;
        };
        let from = page.host.wrapping_add((gpa & 0xfff) as usize);
        for (i, b) in to.iter_mut().enumerate() {
            // SAFETY: callers ask for no byte beyond the page's end, and the page is mapped RAM.
            *b = unsafe { u8::load(from.wrapping_add(i)) };
        }
    }

    fn decode(&mut self, mode: Mode, bytes: &[u8]) -> Decoded {
        // The instruction pointer counts from the block's start: see `Uop::imm` and `regs::BLOCK_RIP`.
        let mut decoder = Decoder::with_ip(mode.bits(), bytes, 0, self.shared.decoder_options);
        let mut uops = std::mem::take(&mut self.code.scratch);
        uops.clear();
        let mut d = Decoded { uops, len: 0, truncated: false };
        let mut i = Instruction::default();
        while d.uops.len() < MAX_INSTRUCTIONS && decoder.can_decode() {
            decoder.decode_out(&mut i);
            if decoder.last_error() == DecoderError::NoMoreBytes
                && bytes.len() - usize::from(d.len) < MAX_BYTES
            {
                d.truncated = d.uops.is_empty();
                return d;
            }
            let next = d.len + i.len().max(1) as u16;
            let otherwise = match i.is_invalid() && self.too_long(mode, &bytes[usize::from(d.len)..]) {
                true => exec::too_long,
                false => exec::undefined,
            };
            let mut u = Uop::new(otherwise, i.len().max(1) as u8, next);
            let ends = self.decode_one(mode, &i, &mut u);
            d.uops.push(u);
            d.len = next;
            if ends {
                break;
            }
        }
        d
    }

    /// Whether the bytes begin with an instruction that has not ended with its 15th byte. (One of 15 bytes that is
    /// undefined counts as such.)
    fn too_long(&self, mode: Mode, bytes: &[u8]) -> bool {
        let Some(most) = bytes.get(..MAX_BYTES - 1) else { return false };
        let mut decoder = Decoder::with_ip(mode.bits(), most, 0, self.shared.decoder_options);
        decoder.decode().is_invalid() && decoder.last_error() == DecoderError::NoMoreBytes
    }

    /// Whether the CPU model has the instruction: anything else is undefined.
    pub fn has_instruction(&self, i: &Instruction) -> bool {
        let desc = vireo_isa::describe(i.code());
        let known = !i.is_invalid() && desc.known && self.model.has(desc.feature);
        known && !(self.is_amd() && is_prefetch_of_register(i))
    }

    /// Chooses the handler of one instruction; whether the block ends with it.
    fn decode_one(&self, mode: Mode, i: &Instruction, u: &mut Uop) -> bool {
        let desc = vireo_isa::describe(i.code());
        if !self.has_instruction(i) {
            return true;
        }
        memory_operand(mode, i, u);
        if exec::select(i, u).is_some() {
            return desc.ends_block && !i.is_jcc_short_or_near();
        }
        if let Some(ends) = crate::system::decode(i, u) {
            return ends || desc.ends_block;
        }
        if crate::host::decode(i, desc, mode.bits(), &self.shared.stubs, u).is_some() {
            return desc.ends_block;
        }
        true
    }
}

/// 0F 0D with a register: a NOP on processors of Intel, undefined on AMD's (AMD APM vol. 3, PREFETCH).
fn is_prefetch_of_register(i: &Instruction) -> bool {
    let reserved = matches!(
        i.code(),
        Code::Reservednop_rm16_r16_0F0D | Code::Reservednop_rm32_r32_0F0D | Code::Reservednop_rm64_r64_0F0D
    );
    reserved && i.op0_kind() == OpKind::Register
}

/// Fills the address fields of a micro-operation from the instruction's memory operand, if it has one.
fn memory_operand(mode: Mode, i: &Instruction, u: &mut Uop) {
    let mut size = None;
    for op in 0..i.op_count() {
        size = match i.op_kind(op) {
            OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => Some(0),
            OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => Some(1),
            OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => Some(2),
            OpKind::Memory => Some(explicit_operand(i, u)),
            _ => size,
        };
    }
    let Some(size) = size else { return };
    let segment = match memory_segment(mode, i) {
        Register::ES => seg::ES,
        Register::CS => seg::CS,
        Register::SS => seg::SS,
        Register::FS => seg::FS,
        Register::GS => seg::GS,
        _ => seg::DS,
    };
    u.seg = segment | size << 4;
    u.address = match (mode.is64(), size) {
        _ if segment >= seg::FS => Address::General,
        (true, 2) => Address::Flat64,
        // CS may be read but never written, so it is always checked.
        (false, 1) if mode.flat() && segment != seg::CS => Address::Flat32,
        _ => Address::General,
    };
}

/// The segment of the memory operand. In 64-bit mode prefixes for ES, CS, SS and DS are ignored: the operand keeps its
/// default, which decides between #SS and #GP (SDM vol. 1, 3.4.4).
fn memory_segment(mode: Mode, i: &Instruction) -> Register {
    let s = i.memory_segment();
    if !mode.is64() || matches!(s, Register::FS | Register::GS) {
        return s;
    }
    match i.memory_base() {
        Register::RSP | Register::ESP | Register::RBP | Register::EBP => Register::SS,
        _ => Register::DS,
    }
}

/// Base, index, scale and displacement; gives the address size (0 = 16, 1 = 32, 2 = 64 bits).
fn explicit_operand(i: &Instruction, u: &mut Uop) -> u8 {
    let number = |r: Register| match r {
        Register::None => regs::ZERO,
        Register::RIP | Register::EIP => regs::BLOCK_RIP,
        r => r.number() as u8,
    };
    u.base = number(i.memory_base());
    u.index = number(i.memory_index());
    u.scale = i.memory_index_scale().trailing_zeros() as u8;
    let displacement = i.memory_displacement64();
    u.disp = displacement as i32;
    if i.memory_base() == Register::RIP && displacement as i64 > i64::from(i32::MAX) {
        // Counted from the block's start it has 33 bits; there is no index whose place would be needed.
        (u.index, u.disp) = (regs::HALF_SLOT, displacement.wrapping_sub(regs::HALF) as i32);
    }
    let by = |r: Register| match r.size() {
        2 => 0,
        4 => 1,
        _ => 2,
    };
    match (i.memory_base(), i.memory_index()) {
        (Register::None, Register::None) => match i.memory_displ_size() {
            2 => 0,
            4 => 1,
            _ => 2,
        },
        (Register::None, index) => by(index),
        (base, _) => by(base),
    }
}
