"""What gcc's assembly (-masm=intel) says: instructions, memory operands, flags read and written."""

import re

# Flags in two classes: the carry flag, and all others.
CARRY, OTHERS, ALL = 1, 2, 3
SIZES = {"BYTE": 1, "WORD": 2, "DWORD": 4, "QWORD": 8, "XMMWORD": 16, "OWORD": 16}
REGISTERS = "ax bx cx dx si di bp sp".split()
MEMORY = re.compile(r"^(?:(\w+) PTR )?([^\[]*)\[([^\]]*)\]$")
KILL_ALL = set("add sub and or xor cmp test neg imul mul adc sbb comisd comiss ucomisd ucomiss popcnt xadd ptest".split())
SHIFTS = set("shl shr sar sal shld shrd".split())
ROTATES = set("rol ror".split())
BRANCHES = set("jmp call ret".split())
CARRY_CONDITIONS = {"b", "c", "nae", "nb", "nc", "ae"}
BOTH_CONDITIONS = {"be", "na", "a", "nbe"}


def full(register):
    """The 64-bit register that a register is part of, or None."""
    r = register
    if m := re.fullmatch(r"r(\d+)[dwb]?", r):
        return "r" + m[1]
    if r in ("al", "ah", "bl", "bh", "cl", "ch", "dl", "dh"):
        return "r" + r[0] + "x"
    stem = r[1:] if r[:1] in "re" and len(r) == 3 else r
    stem = stem[:-1] if stem[-1:] == "l" and stem[:-1] in REGISTERS else stem
    return "r" + stem if stem in REGISTERS else None


class Memory:
    """A memory operand: size, symbol, displacement, base, index, scale."""

    def __init__(self, text):
        size, outer, inner = MEMORY.match(text).groups()
        self.size = SIZES.get(size, 8)
        self.prefix = f"{size} PTR " if size else ""
        self.base = self.index = None
        self.scale, self.number, self.symbol = 1, 0, ""
        for part in re.findall(r"[+-]?[^+-]+", outer) + re.findall(r"[+-]?[^+-]+", inner):
            self._add(part.lstrip("+"))

    def _add(self, part):
        if "*" in part:
            self.index, scale = part.split("*")
            self.scale = int(scale)
        elif re.fullmatch(r"-?\d+", part):
            self.number += int(part)
        elif full(part) or part == "rip":
            if self.base is None:
                self.base = part
            else:
                self.index = part
        else:
            self.symbol += part

    @property
    def known(self):
        return self.base in (None, "rip") and self.index is None

    @property
    def stack(self):
        return self.base == "rsp" and self.index is None

    def place(self):
        """What has to be the same for two operands to be near each other."""
        return self.symbol, self.base, self.index, self.scale

    def at(self, *registers, by=0):
        """The operand at the sum of registers and `by`."""
        return f"{self.prefix}[{' + '.join(registers)} + {by}]"

    def address(self, by=None):
        """The address, for LEA; `by` instead of the displacement."""
        parts = [self.base] if self.base else []
        parts += [f"{self.index}*{self.scale}"] if self.index else []
        parts += [self.symbol] if self.symbol else []
        return f"[{' + '.join(parts + [str(self.number if by is None else by)])}]"


class Instruction:
    """One instruction of the program."""

    def __init__(self, line):
        line = line.strip()
        self.prefix, words = "", line.split(None, 1)
        if words[0] in ("rep", "repz", "repnz", "lock"):
            self.prefix, words = words[0] + " ", words[1].split(None, 1)
        self.name = words[0]
        self.operands = [o.strip() for o in re.split(r",(?![^\[]*\])", words[1])] if len(words) > 1 else []
        self.at = next((n for n, o in enumerate(self.operands) if "[" in o), None)
        self.memory = None
        if self.at is not None and self.name not in ("lea", "nop"):
            text = self.operands[self.at]
            if self.name in BRANCHES and text[0] == "[":
                text = text[1:-1]
            self.memory = Memory(text)

    @property
    def condition(self):
        """Of a conditional jump, move or set."""
        m = re.fullmatch(r"(?:j|cmov|set)(\w+)", self.name)
        return m[1] if m and self.name != "jmp" else None

    @property
    def branch(self):
        return self.name in BRANCHES or self.name[0] == "j"

    def reads(self):
        """Flags read."""
        if self.name in ("adc", "sbb"):
            return CARRY
        c = self.condition
        if c is None:
            return 0
        return CARRY if c in CARRY_CONDITIONS else ALL if c in BOTH_CONDITIONS else OTHERS

    def changes(self):
        """Flags that it may change."""
        counted = self.name in SHIFTS or self.name in ROTATES
        odd = self.name in ("inc", "dec", "bsr", "bsf", "tzcnt", "lzcnt", "bt", "btc", "bts", "btr", "div", "idiv")
        return ALL if self.name in KILL_ALL or counted or odd else 0

    def kills(self):
        """Flags that get values of their own for certain."""
        if self.name in KILL_ALL:
            return ALL
        if self.name in ("inc", "dec"):
            return OTHERS
        if self.name in ("bt", "btc", "bts", "btr"):
            return CARRY
        if self.name in SHIFTS and self.operands[-1] != "cl":
            return ALL
        return 0

    def writes_memory(self):
        only_read = ("cmp", "test", "push", "comisd", "comiss", "ucomisd", "ucomiss", "div", "idiv", "mul", "bt")
        one = self.name in ("imul",) and len(self.operands) == 1
        return self.memory is not None and self.at == 0 and self.name not in only_read and not one and not self.branch

    def changed_registers(self):
        """64-bit registers that it may change."""
        changed = set()
        if self.name in ("mul", "div", "idiv", "cqo", "cdq", "cqto") or (self.name == "imul" and len(self.operands) == 1):
            changed |= {"rax", "rdx"}
        if self.name in ("cdqe", "cwde", "cbw"):
            changed.add("rax")
        if self.name in ("xchg", "xadd"):
            changed |= {full(o) for o in self.operands}
        if self.operands and self.at != 0 and self.name not in ("cmp", "test", "push", "bt"):
            changed.add(full(self.operands[0]))
        if self.prefix.startswith("rep") and self.name != "ret":
            changed |= {"rcx", "rsi", "rdi"}
        return changed

    def text(self, operand=None):
        """The instruction, with another memory operand."""
        operands = list(self.operands)
        if operand is not None:
            operands[self.at] = operand
        return f"{self.prefix}{self.name} {', '.join(operands)}".rstrip()
