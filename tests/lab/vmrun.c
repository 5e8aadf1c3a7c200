/*
 * Mends QEMU's emulation of VMRUN; a library that is loaded before QEMU's own (LD_PRELOAD).
 *
 * VMRUN with an external interrupt to inject delivers it and leaves its vector in CPUState.exception_index all the same
 * (helper_vmrun in target/i386/tcg, SVM_EVTINJ_TYPE_INTR; found in 10.0.2, the same in later sources). If the emulator then
 * returns to its main loop before the guest's next #VMEXIT, as it does when a time slice is over, it takes the vector for
 * an exception and delivers it a second time, with RFLAGS.IF clear, in the middle of the interrupt's own handler. Linux
 * then spins on a lock that the interrupted handler holds.
 *
 * Here VMRUN ends by QEMU's own exit that clears the field. A QEMU with modules exports the names.
 */
#include <stdio.h>
#include <stdlib.h>

#define QEMU extern __attribute__((weak))

/* The first member of TCGHelperInfo. */
QEMU struct {
    void (*function)(void *env, int address_size, int instruction_length);
} helper_info_vmrun;
QEMU __thread void *current_cpu;
QEMU void helper_vmrun(void *env, int address_size, int instruction_length);
QEMU void cpu_loop_exit_noexc(void *cpu);

static void vmrun(void *env, int address_size, int instruction_length)
{
    helper_vmrun(env, address_size, instruction_length);
    cpu_loop_exit_noexc(current_cpu);
}

__attribute__((constructor)) static void mend(void)
{
    if (!&helper_info_vmrun || !helper_vmrun || !cpu_loop_exit_noexc || helper_info_vmrun.function != helper_vmrun) {
        fputs("lab: VMRUN of this QEMU cannot be mended (tests/lab/vmrun.c): it does not export what Debian's does\n",
              stderr);
        exit(125);
    }
    helper_info_vmrun.function = vmrun;
}
