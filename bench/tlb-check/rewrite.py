"""Puts a check before each memory access of a program's assembly, as the translator would."""

import re

from assembly import ALL, Instruction, Memory

SPAN = 128  # as in group.rs
SAVE = ["mov gs:[V_RAX], rax", "lahf", "seto al", "mov WORD PTR gs:[V_FLAGS], ax", "mov rax, gs:[V_RAX]"]
RESTORE = ["mov gs:[V_RAX], rax", "movzx eax, WORD PTR gs:[V_FLAGS]", "add al, 0x7f", "sahf", "mov rax, gs:[V_RAX]"]
HIGH = {"ah", "bh", "ch", "dh"}
HOST, MEMORY, BOTH = "host", "memory", "both"


class Output:
    """Lines of the result."""

    def __init__(self):
        self.lines, self.cold_lines, self.data_lines, self.labels = [], [], [], 0

    def __call__(self, *lines):
        self.lines.extend(lines)

    def cold(self, *lines):
        self.cold_lines.extend(lines)

    def data(self, *lines):
        self.data_lines.extend(lines)

    def label(self):
        self.labels += 1
        return f".Lcheck{self.labels}"

    def text(self):
        cold = ['.section .text.cold, "ax"', *self.cold_lines, ".data", ".balign 16", *self.data_lines]
        return "\n".join(['.include "vcpu.inc"', *self.lines, *cold]) + "\n"


def needed_at_labels(items):
    """Flags that matter at each label, found by going round until nothing changes."""
    needed, changed = {}, True
    while changed:
        changed, live = False, 0
        for item in reversed(items):
            if isinstance(item, str):
                label = item.rstrip(":") if item.endswith(":") else None
                if label and needed.get(label, 0) != live:
                    needed[label], changed = live, True
            elif item.branch:
                target = needed.get(item.operands[0], 0) if item.operands else 0
                live = (live | target | item.reads()) if item.condition else target
            else:
                live = live & ~item.kills() | item.reads()
    return needed


class Rewriter:
    """Rewrites one file. `flags`: "lazy", as the translator does it, "around" each check where they matter, or "always"."""

    def __init__(self, design, flags, group):
        self.out = Output()
        self.check = design(self.out)
        self.flags = flags if self.check.clobbers else "free"
        self.use_groups = group
        self.place, self.group = HOST, None

    def run(self, source):
        items = [parse(line) for line in source.splitlines()]
        self.needed = needed_at_labels(items)
        block = []
        for item in items:
            if isinstance(item, Instruction):
                block.append(item)
            if isinstance(item, str) or item.name in ("jmp", "ret"):
                self.block(block)
                block = []
            if isinstance(item, str):
                self.arrive(item)
        self.block(block)
        return self.out.text()

    def arrive(self, item):
        """A label or directive between blocks: flags are in their register."""
        if item.endswith(":"):
            self.leave(item.rstrip(":"))
            self.place = HOST
        self.out(item)

    def leave(self, label):
        if self.place == MEMORY and self.needed.get(label, 0):
            self.out(*RESTORE)
            self.place = BOTH

    def block(self, block):
        """Instructions up to a label or jump; the translator takes flags at each branch and at the end for live."""
        live = [ALL] * (len(block) + 1)
        for n in range(len(block) - 1, -1, -1):
            i = block[n]
            live[n] = ALL if i.branch else live[n + 1] & ~i.kills() | i.reads()
        self.live = live
        for n, i in enumerate(block):
            if self.use_groups and self.group is None:
                self.open(block, n)
            self.instruction(n, i)
            if self.group and self.group[0] == n:
                self.group = None

    def around(self, live, emit):
        """Emits something that overwrites the flags."""
        around = self.flags == "always" or self.flags == "around" and live
        if around:
            self.out(*SAVE)
        elif self.flags == "lazy" and live:
            if self.place == HOST:
                self.out(*SAVE)
            self.place = MEMORY
        result = emit()
        if around:
            self.out(*RESTORE)
        return result

    def need_flags(self):
        if self.place == MEMORY:
            self.out(*RESTORE)
            self.place = BOTH

    def instruction(self, n, i):
        operand, checked = None, self.operand_of(i)
        member = self.group is not None and checked is not None
        if member:
            operand = self.group[1](i.memory, n == self.group[0])
        elif checked is not None:
            memory, write = checked
            operand = self.around(self.live[n], lambda: self.access(memory, write))
        if i.reads() or i.changes() and self.live[n + 1] & ~i.kills():
            self.need_flags()
        if i.condition and i.name[0] == "j" or i.name == "jmp":
            self.leave(i.operands[0])
        # A high byte cannot be encoded beside R14; guest and host addresses are the same here.
        self.out(i.text(operand if i.memory and not HIGH & set(i.operands) else None))
        if i.changes():
            self.place = HOST
        if i.name == "call":
            self.place = HOST
        if member and i.writes_memory():
            self.around(self.live[n + 1], self.check.look)
        elif checked and checked[1] and i.name != "call":
            self.around(self.live[n + 1], self.check.look)

    def access(self, memory, write):
        operand = self.check.access(memory, memory.size, write)
        if write:
            self.check.load_attention(memory)
        return operand

    def operand_of(self, i):
        """What an instruction accesses, and whether it writes. Of two accesses, only the explicit one is checked."""
        if i.memory:
            return i.memory, i.writes_memory()
        if i.name in ("push", "call"):
            return Memory("QWORD PTR -8[rsp]"), True
        if i.name in ("pop", "ret"):
            return Memory("QWORD PTR [rsp]"), False
        return None

    def general(self, i):
        m = i.memory
        return m and not m.known and not (m.stack and self.check.use_stack)

    def open(self, block, n):
        """Begins a group with instruction n, if it is worth one: plan() of group.rs."""
        first = block[n]
        if not self.general(first) or first.branch or first.name in ("push", "pop"):
            return
        members, low, high, write, end = 0, 1 << 40, -1 << 40, False, n
        for k in range(n, len(block)):
            i = block[k]
            if i.branch or i.name in ("push", "pop", "leave") or i.prefix:
                break
            if i.memory:
                at = i.memory.number
                if i.memory.place() != first.memory.place() or max(high, at + i.memory.size) - min(low, at) > SPAN:
                    break
                low, high, end = min(low, at), max(high, at + i.memory.size), k
                members, write = members + 1, write or i.writes_memory()
            if i.changed_registers() & {first.memory.base, first.memory.index}:
                break
        if members > 1:
            last_is_base = first.memory.base in block[end].changed_registers()
            to = self.around(self.live[n],
                             lambda: self.check.group(first.memory, low, high - low, write, last_is_base))
            self.group = end, to


def parse(line):
    """An instruction, or the line."""
    text = line.strip()
    if not text or text[0] in ".#" or text.endswith(":"):
        return text
    return Instruction(text)
