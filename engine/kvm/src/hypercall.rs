//! Hypercalls for the board.
//!
//! KVM answers VMCALL itself and has no general way to hand it to user space. Its Xen support has one: with
//! KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL every VMCALL and VMMCALL that is not one of Xen's accelerated
//! calls leaves with KVM_EXIT_XEN (api.rst, KVM_XEN_HVM_CONFIG).
//!
//! A KVM without it: guests call by OUT to [`PORT`], which the hypercall page hides from them. So do all others unless told
//! otherwise: Xen's calls have their number in RAX, which callers of Hyper-V's interface leave as it happens to be (TLFS, hypercall
//! inputs); one that looks like an accelerated call of Xen's is KVM's own to answer, and never reaches us.

use kvm_bindings::{KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL, kvm_regs, kvm_xen_hvm_config};
use kvm_ioctls::{VcpuFd, VmFd};
use vireo_core::{Bus, EngineError, HypercallRegs};

use crate::{state, sys};

/// #UD.
const INVALID_OPCODE: u8 = 6;

/// Where there is no exit for VMCALL, OUT of AL to this port is the call. No device of ours is near it. (At 7Eh
/// KVM skips the instruction before the exit.)
pub const PORT: u8 = 0xea;
/// Length of OUT imm8, AL.
const OUT_LEN: u64 = 2;

/// Asks KVM for hypercall exits.
pub fn enable(vm: &VmFd) -> Result<(), EngineError> {
    let config = kvm_xen_hvm_config { flags: KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL, ..Default::default() };
    sys::set_xen_config(vm, &config)
}

/// Serves the hypercall that the vCPU left KVM_RUN with, by KVM_EXIT_XEN. KVM skips the instruction and sets RAX at the
/// next KVM_RUN, unless RIP was changed meanwhile.
pub fn serve(vcpu: &mut VcpuFd, index: u32, bus: &dyn Bus) -> Result<(), EngineError> {
    let before = registers(vcpu)?;
    match call(vcpu, index, bus, &before)? {
        Some(rax) => vcpu.get_kvm_run().__bindgen_anon_1.xen.u.hcall.result = rax,
        None => {
            complete(vcpu)?;
            refuse(vcpu, &before)?;
        }
    }
    Ok(())
}

/// Serves the hypercall that the vCPU left KVM_RUN with, by KVM_EXIT_IO. Where the processor runs the guest, KVM skips the
/// instruction at the next KVM_RUN; where KVM emulates it, it has done so already.
pub fn serve_port(vcpu: &mut VcpuFd, index: u32, bus: &dyn Bus) -> Result<(), EngineError> {
    let mut before = registers(vcpu)?;
    if call(vcpu, index, bus, &before)?.is_none() {
        complete(vcpu)?;
        before.rip = registers(vcpu)?.rip.saturating_sub(OUT_LEN);
        refuse(vcpu, &before)?;
    }
    Ok(())
}

fn registers(vcpu: &VcpuFd) -> Result<kvm_regs, EngineError> {
    vcpu.get_regs().map_err(sys::os("reading the registers of a hypercall"))
}

/// Asks the board and sets the registers to its answer, RAX of which it returns. `None`: it refuses.
fn call(vcpu: &VcpuFd, index: u32, bus: &dyn Bus, before: &kvm_regs) -> Result<Option<u64>, EngineError> {
    let sregs = vcpu.get_sregs().map_err(sys::os("reading the mode of a hypercall"))?;
    let mut fpu = vcpu.get_fpu().map_err(sys::os("reading the registers of a hypercall"))?;
    let mut call = HypercallRegs {
        gpr: state::gpr_from_kvm(before),
        cpl: if sregs.cr0 & 1 == 0 { 0 } else { sregs.ss.dpl },
        long_mode: sregs.efer & vireo_core::state::efer::LMA != 0 && sregs.cs.l != 0,
        ..Default::default()
    };
    for (x, bytes) in call.xmm.iter_mut().zip(&fpu.xmm) {
        *x = u128::from_le_bytes(*bytes);
    }
    let Some(answer) = bus.hypercall(index, &call) else {
        return Ok(None);
    };
    let mut after = *before;
    state::gpr_to_kvm(&answer.gpr, &mut after);
    vcpu.set_regs(&after).map_err(sys::os("writing the registers of a hypercall"))?;
    if answer.xmm != call.xmm {
        for (x, bytes) in answer.xmm.iter().zip(&mut fpu.xmm) {
            *bytes = x.to_le_bytes();
        }
        vcpu.set_fpu(&fpu).map_err(sys::os("writing the registers of a hypercall"))?;
    }
    Ok(Some(after.rax))
}

/// Lets KVM complete its exit, with nothing run of the guest.
fn complete(vcpu: &mut VcpuFd) -> Result<(), EngineError> {
    vcpu.set_kvm_immediate_exit(1);
    match vcpu.run().map(drop) {
        Err(e) if e.errno() == libc::EINTR => Ok(()),
        Err(e) => Err(sys::os("completing a hypercall")(e)),
        Ok(()) => Err(EngineError::Internal("a refused hypercall did not complete".into())),
    }
}

/// Raises #UD where these registers are.
fn refuse(vcpu: &VcpuFd, before: &kvm_regs) -> Result<(), EngineError> {
    vcpu.set_regs(before).map_err(sys::os("refusing a hypercall"))?;
    let mut events = vcpu.get_vcpu_events().map_err(sys::os("refusing a hypercall"))?;
    events.exception.injected = 1;
    events.exception.nr = INVALID_OPCODE;
    events.exception.has_error_code = 0;
    events.flags = 0;
    vcpu.set_vcpu_events(&events).map_err(sys::os("refusing a hypercall"))
}
