//! The part of a vCPU's state that repeatable instructions change.

use std::fmt::Write;

use vireo_core::state::{Activity, Segment};

use crate::cpu::flags::Flags;
use crate::cpu::{Cpu, Exec, Fault, Shadow, Stop, seg, vector};
use crate::host::FpuCopy;

/// Registers before or after a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Registers {
    gpr: [u64; 16],
    /// RIP.
    pub rip: u64,
    /// Arithmetic flags.
    pub flags: Flags,
    eflags: u64,
    segments: [Segment; 6],
    cpl: u8,
    kernel_gs_base: u64,
    fpu: FpuCopy,
    fault: Fault,
    trap_rip: u64,
    fault_address: u64,
    shadow: Shadow,
    nmi_masked: bool,
    activity: Activity,
    instructions: u64,
}

const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];

impl Registers {
    /// Those of `cpu` now; with `x87`, of the x87 unit too.
    pub fn of(cpu: &mut Cpu, x87: bool) -> Self {
        Self {
            gpr: cpu.regs.architectural(),
            rip: cpu.rip,
            flags: cpu.flags,
            eflags: cpu.eflags,
            segments: cpu.seg,
            cpl: cpu.cpl,
            kernel_gs_base: cpu.msr.kernel_gs_base,
            fpu: cpu.fpu.copy(x87),
            fault: cpu.fault,
            trap_rip: cpu.trap_rip,
            fault_address: cpu.mmu.fault_address,
            shadow: cpu.shadow,
            nmi_masked: cpu.nmi_masked,
            activity: cpu.activity,
            instructions: cpu.instructions,
        }
    }

    /// Has `cpu` have them.
    pub fn put_back(&self, cpu: &mut Cpu) {
        cpu.regs.set_architectural(&self.gpr);
        cpu.rip = self.rip;
        (cpu.flags, cpu.eflags) = (self.flags, self.eflags);
        (cpu.seg, cpu.cpl) = (self.segments, self.cpl);
        cpu.msr.kernel_gs_base = self.kernel_gs_base;
        cpu.fpu.put_back(&self.fpu);
        (cpu.fault, cpu.trap_rip) = (self.fault, self.trap_rip);
        cpu.mmu.fault_address = self.fault_address;
        (cpu.shadow, cpu.nmi_masked, cpu.activity) = (self.shadow, self.nmi_masked, self.activity);
        cpu.instructions = self.instructions;
        cpu.mode_changed();
    }

    /// How many general registers of `cpu` are these, if its RIP is.
    pub fn alike(&self, cpu: &Cpu) -> Option<usize> {
        let now = cpu.regs.architectural();
        (self.rip == cpu.rip).then(|| self.gpr.iter().zip(&now).filter(|(a, b)| a == b).count())
    }

    /// Gives `other` what may differ between two runs that ended with `end`. `waits`: an interrupt does. `dead_flags`: the
    /// flags do not matter at RIP.
    pub fn allow(&self, other: &mut Self, end: Exec, waits: bool, dead_flags: bool) {
        other.instructions = self.instructions;
        // Without an interrupt to keep waiting, translated code does without the shadow of STI.
        if !waits && self.shadow != Shadow::MovSs && other.shadow != Shadow::MovSs {
            other.shadow = self.shadow;
        }
        let raised = matches!(end, Err(Stop::Fault | Stop::Trap));
        if !raised {
            other.fault = self.fault;
        }
        if !raised || self.fault.vector != vector::PF {
            other.fault_address = self.fault_address;
        }
        if end != Err(Stop::Trap) {
            other.trap_rip = self.trap_rip;
        }
        // Flags that instructions behind the fault, or behind a string instruction that is not done, would have overwritten are not
        // kept.
        if matches!(end, Err(Stop::Fault | Stop::Yield)) || dead_flags {
            other.flags = self.flags;
        }
    }

    /// What differs: a line for each register, with the interpreter's (`self`) and the translator's value.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut add = |name: &str, a: String, b: String| {
            if a != b {
                lines.push(format!("{name:<8} interpreter {a}, translator {b}"));
            }
        };
        for (name, (a, b)) in NAMES.iter().zip(self.gpr.iter().zip(&other.gpr)) {
            add(name, format!("{a:#018x}"), format!("{b:#018x}"));
        }
        add("rip", format!("{:#x}", self.rip), format!("{:#x}", other.rip));
        let flags = |r: &Self| format!("{:#x}", r.eflags | r.flags.to_rflags());
        add("rflags", flags(self), flags(other));
        for (n, (a, b)) in self.fpu.ymm.iter().zip(&other.fpu.ymm).enumerate() {
            add(&format!("xmm{n}"), format!("{:#034x}", a[0]), format!("{:#034x}", b[0]));
            add(&format!("upper half of ymm{n}"), format!("{:#034x}", a[1]), format!("{:#034x}", b[1]));
        }
        add("mxcsr", format!("{:#x}", self.fpu.mxcsr), format!("{:#x}", other.fpu.mxcsr));
        add("x87", x87(&self.fpu), x87(&other.fpu));
        add("segments", format!("{:x?}", self.segments), format!("{:x?}", other.segments));
        add(
            "gs base of SWAPGS",
            format!("{:#x}", self.kernel_gs_base),
            format!("{:#x}", other.kernel_gs_base),
        );
        add("fault", format!("{:x?}", self.fault), format!("{:x?}", other.fault));
        add("fault address", format!("{:#x}", self.fault_address), format!("{:#x}", other.fault_address));
        let rest = |r: &Self| {
            format!(
                "cpl {}, {:?}, {:?}, nmi {}, {:#x}",
                r.cpl, r.shadow, r.activity, r.nmi_masked, r.trap_rip
            )
        };
        add("other", rest(self), rest(other));
        lines
    }

    /// All of them, for a reader.
    pub fn list(&self) -> String {
        let mut s = String::new();
        for (n, (name, v)) in NAMES.iter().zip(self.gpr).enumerate() {
            _ = write!(s, "{name:>5} {v:#018x}{}", if n % 4 == 3 { "\n" } else { "" });
        }
        let base = |n: u8| self.segments[n as usize].base;
        _ = writeln!(
            s,
            "  rip {:#x}, rflags {:#x}, cpl {}, fs base {:#x}, gs base {:#x}, mxcsr {:#x}",
            self.rip,
            self.eflags | self.flags.to_rflags(),
            self.cpl,
            base(seg::FS),
            base(seg::GS),
            self.fpu.mxcsr
        );
        for (n, [low, high]) in self.fpu.ymm.iter().enumerate().filter(|x| *x.1 != [0, 0]) {
            _ = writeln!(s, "  ymm{n} {high:#034x} {low:#034x}");
        }
        s
    }
}

/// Control, status and tag words, the registers that are not zero, and the pointers.
fn x87(fpu: &FpuCopy) -> String {
    let Some((image, last, caused)) = &fpu.x87 else { return String::new() };
    let mut s = format!("words {:02x?}", &image.0[..6]);
    for (n, r) in image.0[32..160].chunks(16).enumerate().filter(|(_, r)| r.iter().any(|b| *b != 0)) {
        _ = write!(s, " st{n} {r:02x?}");
    }
    s + &format!(" {last:x?} {caused:x?}")
}
