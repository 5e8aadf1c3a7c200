//! Hypercalls: how they are called (TLFS 3), and those that there are.

use vireo_core::HypercallRegs;
use vireo_core::partition::HypercallInstruction;
use vireo_memory::GuestMemory;

use crate::Message;
use crate::ports::Ports;
use crate::processors::Processors;

/// How a hypercall ended (TLFS 3.12, appendix B).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Status {
    /// It was done.
    Success = 0,
    /// There is no such call.
    InvalidCode = 2,
    /// The input is none for this call.
    InvalidInput = 3,
    /// An address is not a multiple of 8.
    InvalidAlignment = 4,
    /// A parameter has a value that it cannot have.
    InvalidParameter = 5,
    /// There is no such port.
    InvalidPortId = 0x11,
    /// There is no such connection.
    InvalidConnectionId = 0x12,
    /// There is no room: try again later.
    InsufficientBuffers = 0x13,
}

mod code {
    pub const FLUSH_SPACE: u16 = 0x2;
    pub const FLUSH_LIST: u16 = 0x3;
    pub const NOTIFY_LONG_SPIN_WAIT: u16 = 0x8;
    pub const SEND_IPI: u16 = 0xb;
    pub const FLUSH_SPACE_EX: u16 = 0x13;
    pub const FLUSH_LIST_EX: u16 = 0x14;
    pub const SEND_IPI_EX: u16 = 0x15;
    pub const POST_MESSAGE: u16 = 0x5c;
    pub const SIGNAL_EVENT: u16 = 0x5d;
}

/// Whether a call takes a list (a "rep" call), and a header of variable size (TLFS 3.2, 3.7).
fn has_list(code: u16) -> bool {
    matches!(code, code::FLUSH_LIST | code::FLUSH_LIST_EX)
}
fn has_variable_header(code: u16) -> bool {
    matches!(code, code::FLUSH_SPACE_EX | code::FLUSH_LIST_EX | code::SEND_IPI_EX)
}

/// Words in a page: no call's input goes over the end of one.
const PAGE_WORDS: usize = 512;

/// A call, out of the registers that it is made with (TLFS 3.7 and 3.8).
pub struct Call {
    code: u16,
    /// Input is in the registers.
    pub fast: bool,
    /// Words of the header's variable part.
    pub variable: usize,
    /// Elements of the list, and the first that is to be looked at.
    pub repetitions: usize,
    pub first: usize,
    /// Address of the input, or its first 16 bytes.
    pub input: [u64; 2],
    long_mode: bool,
}

impl Call {
    fn of(regs: &HypercallRegs) -> Self {
        let [rax, rcx, rdx, rbx, _, _, rsi, rdi, r8, ..] = regs.gpr;
        let pair = |high: u64, low: u64| high << 32 | low & 0xffff_ffff;
        let (control, input) = if regs.long_mode {
            (rcx, [rdx, r8])
        } else {
            (pair(rdx, rax), [pair(rbx, rcx), pair(rdi, rsi)])
        };
        Self {
            code: control as u16,
            fast: control >> 16 & 1 != 0,
            variable: (control >> 17 & 0x3ff) as usize,
            repetitions: (control >> 32 & 0xfff) as usize,
            first: (control >> 48 & 0xfff) as usize,
            input,
            long_mode: regs.long_mode,
        }
    }

    /// Whether there is a list where one belongs, and nowhere else.
    fn is_well_formed(&self) -> bool {
        let listed = self.repetitions != 0 || self.first != 0;
        let sound = self.first < self.repetitions;
        (if has_list(self.code) { sound } else { !listed })
            && (self.variable == 0 || has_variable_header(self.code))
    }

    /// The registers after it.
    fn ended(&self, regs: &HypercallRegs, status: Status) -> HypercallRegs {
        let mut after = *regs;
        // A list is done whole or not at all.
        let done = if status == Status::Success { self.repetitions as u64 } else { 0 };
        let result = done << 32 | status as u64;
        if self.long_mode {
            after.gpr[0] = result;
        } else {
            (after.gpr[0], after.gpr[2]) = (result & 0xffff_ffff, result >> 32);
        }
        after
    }

    /// The first `N` bytes of input, from memory.
    fn input<const N: usize>(&self, memory: &GuestMemory) -> Result<[u8; N], Status> {
        if !self.input[0].is_multiple_of(8) {
            return Err(Status::InvalidAlignment);
        }
        let mut bytes = [0; N];
        memory.read(self.input[0], &mut bytes).map_err(|_| Status::InvalidInput)?;
        Ok(bytes)
    }

    /// All of its input, from memory: `fixed` words, the variable part, the list. Read once.
    pub fn words(&self, fixed: usize, memory: &GuestMemory) -> Result<Vec<u64>, Status> {
        let (at, count) = (self.input[0], fixed + self.variable + self.repetitions);
        if self.fast {
            return Err(Status::InvalidInput);
        }
        if !at.is_multiple_of(8) {
            return Err(Status::InvalidAlignment);
        }
        if (at % 4096) as usize / 8 + count > PAGE_WORDS {
            return Err(Status::InvalidInput);
        }
        let mut bytes = vec![0; 8 * count];
        memory.read(at, &mut bytes).map_err(|_| Status::InvalidInput)?;
        let word = |b: &[u8; 8]| u64::from_le_bytes(*b);
        Ok(bytes.as_chunks::<8>().0.iter().map(word).collect())
    }
}

/// What hypercalls act on.
pub struct Target<'a> {
    /// Where their input is.
    pub memory: &'a GuestMemory,
    /// Who takes messages and events.
    pub ports: &'a Ports,
    /// The caller.
    pub vp: u32,
    /// Other processors, if the guest was told of calls about them.
    pub processors: Option<Processors<'a>>,
}

/// Serves a call.
pub fn serve(regs: &HypercallRegs, target: &Target<'_>) -> HypercallRegs {
    let call = Call::of(regs);
    let processors = || target.processors.as_ref().ok_or(Status::InvalidCode);
    let done = match call.code {
        _ if !call.is_well_formed() => Err(Status::InvalidInput),
        code::SIGNAL_EVENT => signal_event(&call, target),
        code::POST_MESSAGE => post_message(&call, target),
        code::NOTIFY_LONG_SPIN_WAIT => {
            std::thread::yield_now();
            Ok(())
        }
        code::FLUSH_SPACE | code::FLUSH_LIST => {
            processors().and_then(|p| p.flush(&call, false, target.memory))
        }
        code::FLUSH_SPACE_EX | code::FLUSH_LIST_EX => {
            processors().and_then(|p| p.flush(&call, true, target.memory))
        }
        code::SEND_IPI => processors().and_then(|p| p.send_ipi(&call, target.memory)),
        code::SEND_IPI_EX => processors().and_then(|p| p.send_ipi_ex(&call, target.memory)),
        _ => Err(Status::InvalidCode),
    };
    call.ended(regs, done.err().unwrap_or(Status::Success))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// HvCallSignalEvent (TLFS 11.11.3): connection id in 32 bits, number of the flag in 16.
fn signal_event(call: &Call, target: &Target<'_>) -> Result<(), Status> {
    let input = if call.fast { call.input[0] } else { u64::from_le_bytes(call.input(target.memory)?) };
    let port = target.ports.events(input as u32).ok_or(Status::InvalidConnectionId)?;
    port.signal((input >> 32) as u16);
    Ok(())
}

/// HvCallPostMessage (TLFS 11.11.2): connection id, 0, kind, size of the payload, 240 bytes of payload.
fn post_message(call: &Call, target: &Target<'_>) -> Result<(), Status> {
    const HEAD: usize = 16;
    if call.fast {
        return Err(Status::InvalidInput);
    }
    let input: [u8; HEAD + Message::MAX] = call.input(target.memory)?;
    let size = word(&input, 12) as usize;
    let payload = input[HEAD..].get(..size).ok_or(Status::InvalidParameter)?;
    let kind = word(&input, 8);
    // Bit 31 is the hypervisor's own.
    let message =
        Message::new(kind, 0, payload).filter(|_| kind >> 31 == 0).ok_or(Status::InvalidParameter)?;
    let port = target.ports.messages(word(&input, 0)).ok_or(Status::InvalidConnectionId)?;
    match port.post(target.vp, &message) {
        Status::Success => Ok(()),
        other => Err(other),
    }
}

/// What the hypercall page holds: the instruction by which a guest calls, and a return.
pub fn page(call: HypercallInstruction) -> Vec<u8> {
    const RET: u8 = 0xc3;
    let mut page = call.code();
    page.push(RET);
    page
}
