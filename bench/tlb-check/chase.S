// The loops of chase.c: each follows a ring of cells {next, value} and adds up the values, which is `list` of bench/cpu as
// compiled code, with the check of one design before each access or each group. Registers as in the translator: R14 and
// R11 are scratch, GS is the vCPU, addresses are the guest's. uint64_t loop(uint64_t cell, uint64_t links).
    .intel_syntax noprefix
    .text

    .include "vcpu.inc"

    .set MOST, 4096 - 16           // furthest offset of a cell
    .set MOST_WORD, 4096 - 8

.macro BEGIN name
    .globl chase_\name
    .balign 64
chase_\name:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov rax, rdi
    xor edx, edx
    .balign 64
1:
.endm

.macro END
    sub rsi, 1
    jne 1b
    add rax, rdx
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret
.endm

// Both words at the sum of two registers, or at one.
.macro BOTH base
    add rdx, [\base + 8]
    mov rax, [\base]
.endm

// Both words at the sum of RAX and R11; the one that RAX waits for a cycle before the other: if both miss the first-level
// cache in the same cycle, the younger load waits for the older one's line.
.macro BOTH_NEXT_FIRST
    lea r14, [rax + r11]
    add rdx, [r14 + 8]
    mov rax, [rax + r11]
.endm

// One cycle each: how long a cycle is.
    .globl chase_cycle
    .balign 64
chase_cycle:
    mov rax, rdi
1:
    .rept 64
    add rax, 1
    .endr
    sub rsi, 1
    jne 1b
    ret

BEGIN native
    BOTH rax
END
BEGIN native_next
    mov rbx, rax
    mov rax, [rax]
    add rdx, [rbx + 8]
END

// What TCG emits for this loop, from memory of its output: registers live in memory between translation blocks, one check
// for each access.
.macro TCG_LOAD at, to
    mov rdi, \at
    shr rdi, 7
    and rdi, [rbp + V_TCG_MASK]
    add rdi, [rbp + V_TCG_TABLE]
    lea r10, [\at + 7]
    and r10, -4096
    cmp r10, [rdi]
    jne miss
    mov rdi, [rdi + 24]
    mov \to, [\at + rdi]
.endm

BEGIN tcg
    mov rbp, gs:[V_ENV + 56]
    mov [rbp + V_ENV], rax
    mov [rbp + V_ENV + 8], rdx
    mov [rbp + V_ENV + 16], rsi
    .balign 16
1:
    mov ebx, [rbp + V_EXIT]
    test ebx, ebx
    js miss
    mov rbx, [rbp + V_ENV]
    lea r12, [rbx + 8]
    TCG_LOAD r12, r12
    mov r13, [rbp + V_ENV + 8]
    add r13, r12
    mov [rbp + V_ENV + 8], r13
    TCG_LOAD rbx, rbx
    mov [rbp + V_ENV], rbx
    mov r12, [rbp + V_ENV + 16]
    sub r12, 1
    mov [rbp + V_ENV + 16], r12
    mov [rbp + V_ENV + 24], r12
    test r12, r12
    jne 1b
    mov rax, [rbp + V_ENV]
    mov rdx, [rbp + V_ENV + 8]
    mov esi, 1
    sub rsi, 1
    jne miss
    add rax, rdx
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

// Today's: the address is offset + host page, and the offset is what the tag makes of the address.
BEGIN tag_each
    lea r14, [rax + 8]
    rorx r11, r14, 6
    and r11d, 1023 << 6
    add r14, gs:[r11 + T_READ]
    cmp r14, MOST_WORD
    ja miss
    mov r11, gs:[r11 + T_HOST]
    add rdx, [r14 + r11]
    rorx r11, rax, 6
    and r11d, 1023 << 6
    mov r14, gs:[r11 + T_READ]
    add r14, rax
    cmp r14, MOST_WORD
    ja miss
    mov r11, gs:[r11 + T_HOST]
    mov rax, [r14 + r11]
END

BEGIN tag_group
    lea r14, [rax]
    rorx r11, r14, 6
    and r11d, 1023 << 6
    add r14, gs:[r11 + T_READ]
    cmp r14, MOST
    ja miss
    add r14, gs:[r11 + T_HOST]
    BOTH r14
END

// The same group, but R14 has the offset and R11 the page of the host: one addition less on the way.
BEGIN tag_pair
    lea r14, [rax]
    rorx r11, r14, 6
    and r11d, 1023 << 6
    add r14, gs:[r11 + T_READ]
    cmp r14, MOST
    ja miss
    mov r11, gs:[r11 + T_HOST]
    BOTH "r14 + r11"
END

// The addend is host minus guest address: the access waits for the addend only, the compare is beside its way. A group
// keeps the addend, its members add it to their own address.
.macro ADDEND_EACH seg, at=0
    lea r14, [rax + 8]
    rorx r11, r14, 6
    and r11d, 1023 << 6
    add r14, \seg[r11 + \at + T_READ]
    cmp r14, MOST_WORD
    ja miss
    mov r11, \seg[r11 + \at + T_ADDEND]
    add rdx, [rax + r11 + 8]
    rorx r11, rax, 6
    and r11d, 1023 << 6
    mov r14, \seg[r11 + \at + T_READ]
    add r14, rax
    cmp r14, MOST_WORD
    ja miss
    mov r11, \seg[r11 + \at + T_ADDEND]
    mov rax, [rax + r11]
.endm

.macro ADDEND seg, at=0
    rorx r11, rax, 6
    and r11d, 1023 << 6
    mov r14, \seg[r11 + \at + T_READ]
    mov r11, \seg[r11 + \at + T_ADDEND]
    add r14, rax
    cmp r14, MOST
    ja miss
.endm

BEGIN addend_each
    ADDEND_EACH gs:
END
BEGIN addend_group
    ADDEND gs:
    BOTH "rax + r11"
END
BEGIN addend_next
    ADDEND gs:
    BOTH_NEXT_FIRST
END
// The tables at an address below 2 GiB, which the code names: no segment.
BEGIN addend_next_low
    ADDEND , vcpu
    BOTH_NEXT_FIRST
END

// Tags and addends in arrays of their own, indexed with scale 8.
BEGIN arrays_next
    rorx r11, rax, 12
    and r11d, 1023
    mov r14, gs:[r11 * 8 + A_READ]
    mov r11, gs:[r11 * 8 + A_ADDEND]
    add r14, rax
    cmp r14, MOST
    ja miss
    BOTH_NEXT_FIRST
END

// 256 entries: MOVZX of a byte takes no time where moves are eliminated.
BEGIN small_next
    rorx r14, rax, 12
    movzx r11d, r14b
    mov r14, gs:[r11 * 8 + SMALL_TAG]
    mov r11, gs:[r11 * 8 + SMALL_ADDEND]
    add r14, rax
    cmp r14, MOST
    ja miss
    BOTH_NEXT_FIRST
END

// 2^20 entries, the pages of 4 GiB: a 32-bit shift alone makes the index.
.macro WIDE seg, at=0
    mov r11d, eax
    shr r11d, 12
    mov r14, \seg[r11 * 8 + \at + W_READ]
    mov r11, \seg[r11 * 8 + \at + W_ADDEND]
    add r14, rax
    cmp r14, MOST
    ja miss
.endm
BEGIN wide_group
    WIDE gs:
    BOTH "rax + r11"
END
BEGIN wide_next
    WIDE gs:
    BOTH_NEXT_FIRST
END
BEGIN wide_next_low
    WIDE , vcpu
    BOTH_NEXT_FIRST
END
BEGIN wide_each
    lea r14, [rax + 8]
    mov r11d, r14d
    shr r11d, 12
    add r14, gs:[r11 * 8 + W_READ]
    cmp r14, MOST_WORD
    ja miss
    mov r11, gs:[r11 * 8 + W_ADDEND]
    add rdx, [rax + r11 + 8]
    mov r11d, eax
    shr r11d, 12
    mov r14, gs:[r11 * 8 + W_READ]
    add r14, rax
    cmp r14, MOST_WORD
    ja miss
    mov r11, gs:[r11 * 8 + W_ADDEND]
    mov rax, [rax + r11]
END

// No flags: PEXT picks index and difference, JRCXZ decides; RCX is saved in a third scratch register.
BEGIN flag_free
    mov r15, rcx
    pext r11, rax, gs:[V_PICK]
    mov rcx, gs:[r11 * 8 + A_READ]
    mov r11, gs:[r11 * 8 + A_ADDEND]
    lea rcx, [rax + rcx + 15]
    pext rcx, rcx, gs:[V_ABOVE]
    jrcxz 2f
    jmp miss
2:  mov rcx, r15
    BOTH_NEXT_FIRST
END

// The page accessed last here is foreseen: the access waits for nothing but the pointer. Else, the table, and that page is
// foreseen from now on.
.macro FORESEEN seg, at=0
    mov r14, \seg[\at + V_LAST]
    mov r11, \seg[\at + V_LAST + 8]
    add r14, rax
    cmp r14, MOST
    ja 3f
2:  BOTH_NEXT_FIRST
    .pushsection .text.cold, "ax"
3:  rorx r11, rax, 6
    and r11d, 1023 << 6
    mov r14, \seg[r11 + \at + T_READ]
    mov \seg[\at + V_LAST], r14
    add r14, rax
    cmp r14, MOST
    ja miss
    mov r11, \seg[r11 + \at + T_ADDEND]
    mov \seg[\at + V_LAST + 8], r11
    jmp 2b
    .popsection
.endm
BEGIN last_page
    FORESEEN gs:
END
BEGIN last_page_low
    FORESEEN , vcpu
END

// Not the page but the addend is foreseen: pages that are as far apart in the host as in the guest share it.
BEGIN last_addend
    rorx r11, rax, 6
    and r11d, 1023 << 6
    mov r14, gs:[r11 + T_READ]
    add r14, rax
    cmp r14, MOST
    ja miss
    mov r14, gs:[r11 + T_ADDEND]
    mov r11, gs:[V_LAST + 8]
    cmp r11, r14
    jne 3f
2:  BOTH_NEXT_FIRST
    .pushsection .text.cold, "ax"
3:  mov r11, r14
    mov gs:[V_LAST + 8], r11
    jmp 2b
    .popsection
END

miss:
    ud2

    .section .note.GNU-stack, "", @progbits
