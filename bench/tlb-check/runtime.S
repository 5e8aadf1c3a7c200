// miss: a check found no page for the address in R14. Changes nothing but the tables.
    .intel_syntax noprefix
    .text
    .globl miss
miss:
    pushfq
    cld
    .irp r, rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11
    push \r
    .endr
    mov rbp, rsp
    sub rsp, 512
    and rsp, -64
    fxsave [rsp]
    mov rdi, r14
    call missed
    fxrstor [rsp]
    mov rsp, rbp
    .irp r, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax
    pop \r
    .endr
    popfq
    ret
    .section .note.GNU-stack, "", @progbits
