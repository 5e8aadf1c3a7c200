// Prints the offsets of vcpu.h for assembly.
#include <stdio.h>

#include "vcpu.h"

#define PLACE(name, field) printf("    .set %s, %zu\n", #name, offsetof(struct vcpu, field));

int main(void) {
    PLACE(T_READ, entries[0].read)
    PLACE(T_WRITE, entries[0].write)
    PLACE(T_HOST, entries[0].host)
    PLACE(T_ATTENTION, entries[0].attention)
    PLACE(T_ADDEND, entries[0].addend)
    PLACE(S_TAG, stack.tag)
    PLACE(S_HOST, stack.host)
    PLACE(S_ATTENTION, stack.attention)
    PLACE(V_RAX, rax)
    PLACE(V_FLAGS, flags)
    PLACE(V_LAST, last)
    PLACE(V_PICK, pick)
    PLACE(V_ABOVE, above)
    PLACE(V_ENV, env)
    PLACE(V_TCG_MASK, tcg_mask)
    PLACE(V_TCG_TABLE, tcg_table)
    PLACE(V_EXIT, exit)
    PLACE(SMALL_TAG, small_tag)
    PLACE(SMALL_ADDEND, small_addend)
    PLACE(A_READ, short_read)
    PLACE(A_WRITE, short_write)
    PLACE(A_ADDEND, short_addend)
    PLACE(A_ATTENTION, short_attention)
    PLACE(W_READ, wide_read)
    PLACE(W_WRITE, wide_write)
    PLACE(W_ADDEND, wide_addend)
    PLACE(W_ATTENTION, wide_attention)
    return 0;
}
