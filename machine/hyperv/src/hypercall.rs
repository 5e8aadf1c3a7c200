//! Hypercalls: how they are called (TLFS 3), and those that there are.

use vireo_core::HypercallRegs;
use vireo_core::partition::HypercallInstruction;
use vireo_memory::GuestMemory;

use crate::Message;
use crate::ports::Ports;

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
    pub const NOTIFY_LONG_SPIN_WAIT: u16 = 0x8;
    pub const POST_MESSAGE: u16 = 0x5c;
    pub const SIGNAL_EVENT: u16 = 0x5d;
}

/// A call, out of the registers that it is made with (TLFS 3.7 and 3.8).
struct Call {
    code: u16,
    /// Input is in the registers.
    fast: bool,
    repetitions: u16,
    /// Address of the input, or its first 8 bytes.
    input: u64,
    long_mode: bool,
}

impl Call {
    fn of(regs: &HypercallRegs) -> Self {
        let [rax, rcx, rdx, rbx, ..] = regs.gpr;
        let pair = |high: u64, low: u64| high << 32 | low & 0xffff_ffff;
        let (control, input) = if regs.long_mode { (rcx, rdx) } else { (pair(rdx, rax), pair(rbx, rcx)) };
        Self {
            code: control as u16,
            fast: control >> 16 & 1 != 0,
            repetitions: (control >> 32 & 0xfff) as u16,
            input,
            long_mode: regs.long_mode,
        }
    }

    /// The registers after it.
    fn ended(&self, regs: &HypercallRegs, status: Status) -> HypercallRegs {
        let mut after = *regs;
        after.gpr[0] = status as u64;
        if !self.long_mode {
            after.gpr[2] = 0;
        }
        after
    }

    /// The first `N` bytes of input, from memory.
    fn input<const N: usize>(&self, memory: &GuestMemory) -> Result<[u8; N], Status> {
        if !self.input.is_multiple_of(8) {
            return Err(Status::InvalidAlignment);
        }
        let mut bytes = [0; N];
        memory.read(self.input, &mut bytes).map_err(|_| Status::InvalidInput)?;
        Ok(bytes)
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
}

/// Serves a call.
pub fn serve(regs: &HypercallRegs, target: &Target<'_>) -> HypercallRegs {
    let call = Call::of(regs);
    let done = match call.code {
        _ if call.repetitions != 0 => Err(Status::InvalidInput),
        code::SIGNAL_EVENT => signal_event(&call, target),
        code::POST_MESSAGE => post_message(&call, target),
        code::NOTIFY_LONG_SPIN_WAIT => {
            std::thread::yield_now();
            Ok(())
        }
        _ => Err(Status::InvalidCode),
    };
    call.ended(regs, done.err().unwrap_or(Status::Success))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// HvCallSignalEvent (TLFS 11.11.3): connection id in 32 bits, number of the flag in 16.
fn signal_event(call: &Call, target: &Target<'_>) -> Result<(), Status> {
    let input = if call.fast { call.input } else { u64::from_le_bytes(call.input(target.memory)?) };
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
