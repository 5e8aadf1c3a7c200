"""Sequences of the checks, by design. R14 and R11 are scratch; R15 as well where flags are left alone.

Each method emits a check of `size` bytes at an operand's address and gives the operand through which the access is made.
Behind the last instruction of the check a miss goes on as a hit on a page that begins at address 0."""

PAGE = 4096


class Tag:
    """Today's design: the tag makes an offset of the address, to which the page's host address is added."""

    seg, array, mask = "gs:", "T", "1023 << 6"
    miss = "mov r11d, 1024 << 6"
    clobbers = True

    def __init__(self, out, stack, low=False):
        self.out, self.use_stack = out, stack
        self.seg, self.at0 = ("", "vcpu + ") if low else ("gs:", "")

    def field(self, name):
        index = "r11*8" if self.array in "AW" else "r11"
        return f"{self.seg}[{index} + {self.at0}{self.array}_{name}]"

    def fixed(self, name, offset=0):
        return f"{self.seg}[{self.at0}{name} + {offset}]"

    def index(self, register):
        self.out(f"rorx r11, {register}, 6", f"and r11d, {self.mask}")

    def begin(self):
        self.again = self.out.label()
        self.out(f"{self.again}:")

    def hit(self, jump, address, restore):
        """The jump to the cold part, which fills the tables and comes back."""
        cold, hit = self.out.label(), self.out.label()
        self.out(f"{jump} {cold}", f"{hit}:")
        self.out.cold(f"{cold}:", f"lea r14, {address}", "lea rsp, [rsp - 128]", "call miss", "lea rsp, [rsp + 128]",
                      *restore, f"jmp {hit}")

    def tag(self, memory, size, write, address):
        """Index in R11, what the tag makes of the address in R14."""
        tag = self.field("WRITE" if write else "READ")
        if memory.base and not memory.index and not memory.symbol and address == memory.address(0):
            self.index(memory.base)
            self.out(f"mov r14, {tag}", f"add r14, {memory.base}")
        else:
            self.out(f"lea r14, {address}")
            self.index("r14")
            self.out(f"add r14, {tag}")
        self.out(f"cmp r14, {PAGE - size}")

    def access(self, memory, size, write):
        if memory.known:
            return self.known(memory, write)
        if memory.stack and self.use_stack:
            return self.stack(memory, size)
        self.begin()
        return self.general(memory, size, write)

    def general(self, memory, size, write):
        address = memory.address()
        self.tag(memory, size, write, address)
        self.hit("ja", address, [f"lea r14, {address}", self.miss])
        if not write:
            self.out(f"mov r11, {self.field('HOST')}")
            return memory.at("r14", "r11")
        self.out(f"add r14, {self.field('HOST')}")
        return memory.at("r14")

    def known(self, memory, write):
        """The entry is known: in all designs, a compare of memory with a constant."""
        tag = self.fixed("T_WRITE" if write else "T_READ", 1024 << 6)
        self.out(f"cmp QWORD PTR {tag}, 0x1000", "jne miss", f"mov r14, {self.fixed('T_HOST', 1024 << 6)}")
        self.attention_at = self.fixed("T_ATTENTION", 1024 << 6)
        return f"{memory.prefix}[r14 + {memory.symbol} + {memory.number}]"

    def stack(self, memory, size):
        address = memory.address()
        self.out(f"lea r14, {address}", f"add r14, {self.fixed('S_TAG')}", f"cmp r14, {PAGE - size}")
        self.hit("ja", address, [f"lea r14, {address}", f"sub r14, {self.fixed('S_HOST')}"])
        self.out(f"add r14, {self.fixed('S_HOST')}")
        self.attention_at = self.fixed("S_ATTENTION")
        return memory.at("r14")

    def load_attention(self, memory):
        known = memory.known or memory.stack and self.use_stack
        self.out(f"mov r11, {self.attention_at if known else self.field('ATTENTION')}")

    def look(self):
        """The attention byte, whose address is in R11; it is never set here."""
        self.out("cmp BYTE PTR [r11], 0", "jne miss")

    def group(self, memory, low, size, write, last_is_base):
        """One check of a group; gives a function from a member to its operand."""
        address = memory.address(low)
        self.begin()
        self.group_check(memory, address, size, write)
        if write:
            self.out(f"mov r11, {self.field('ATTENTION')}")
        return lambda m, last: m.at("r14", by=m.number - low)

    def group_check(self, memory, address, size, write):
        self.out(f"lea r14, {address}")
        self.index("r14")
        self.out(f"add r14, {self.field('WRITE' if write else 'READ')}", f"cmp r14, {PAGE - size}")
        self.hit("ja", address, [f"lea r14, {address}", self.miss])
        self.out(f"add r14, {self.field('HOST')}")


class Addend(Tag):
    """The entry has host minus guest address: the access does not wait for the tag."""

    def general(self, memory, size, write):
        address, simple = memory.address(), not memory.index and not memory.symbol
        self.tag(memory, size, write, address)
        self.hit("ja", address, [self.miss])
        if write:
            self.out(f"lea r14, {address}", f"add r14, {self.field('ADDEND')}")
            return memory.at("r14")
        if simple:
            self.out(f"mov r11, {self.field('ADDEND')}")
            return memory.at(memory.base, "r11", by=memory.number)
        self.out(f"lea r14, {address}", f"mov r11, {self.field('ADDEND')}")
        return memory.at("r14", "r11")

    def group_check(self, memory, address, size, write):
        self.tag(memory, size, write, address)
        self.hit("ja", address, [self.miss])

    def group(self, memory, low, size, write, last_is_base):
        address, simple = memory.address(low), not memory.index and not memory.symbol
        self.begin()
        self.group_check(memory, address, size, write)
        if write or not simple:
            self.out(f"lea r14, {address}", f"add r14, {self.field('ADDEND')}")
            if write:
                self.out(f"mov r11, {self.field('ATTENTION')}")
            return lambda m, last: m.at("r14", by=m.number - low)
        self.out(f"mov r11, {self.field('ADDEND')}")
        if not last_is_base:
            return lambda m, last: m.at(memory.base, "r11", by=m.number)
        # The base's next value first: the others wait a cycle.
        self.out(f"lea r14, [{memory.base} + r11]")
        return lambda m, last: m.at(memory.base, "r11", by=m.number) if last else m.at("r14", by=m.number)


class Mixed(Addend):
    """The addend where it costs nothing: for reads by a register alone, and groups of them. Else as today."""

    def general(self, memory, size, write):
        fits = not write and not memory.index and not memory.symbol
        return (Addend if fits else Tag).general(self, memory, size, write)

    def group(self, memory, low, size, write, last_is_base):
        if not write and not memory.index and not memory.symbol:
            return Addend.group(self, memory, low, size, write, last_is_base)
        self.begin()
        Tag.group_check(self, memory, memory.address(low), size, write)
        if write:
            self.out(f"mov r11, {self.field('ATTENTION')}")
        return lambda m, last: m.at("r14", by=m.number - low)


class Wide(Addend):
    """2^20 entries in arrays: a 32-bit shift makes the index."""

    array, miss = "W", "mov r11d, 1 << 20"

    def index(self, register):
        low = f"{register}d" if register[1:].isdigit() else "e" + register[1:]
        self.out(f"mov r11d, {low}", "shr r11d, 12")


class Foreseen(Addend):
    """Each read has the page it accessed last beside it; another page is looked up, and foreseen from then on."""

    def begin(self):
        pass

    def foreseen(self, memory, address, size):
        site, cold, hit = self.out.label(), self.out.label(), self.out.label()
        self.out.data(f"{site}: .quad 0, 0")
        self.out(f"lea r14, {address}", f"add r14, [{site}]", f"cmp r14, {PAGE - size}", f"ja {cold}",
                 f"mov r11, [{site} + 8]", f"{hit}:")
        found, missed = self.out.label(), self.out.label()
        self.out.cold(f"{cold}:", f"lea r14, {address}", "rorx r11, r14, 6", f"and r11d, {self.mask}",
                      f"add r14, {self.field('READ')}", f"cmp r14, {PAGE - size}", f"ja {missed}",
                      f"mov r14, {self.field('READ')}", f"mov [{site}], r14", f"{found}:", f"mov r11, {self.field('ADDEND')}",
                      f"mov [{site} + 8], r11", f"jmp {hit}",
                      f"{missed}:", f"lea r14, {address}", "lea rsp, [rsp - 128]", "call miss", "lea rsp, [rsp + 128]",
                      self.miss, f"mov QWORD PTR [{site}], 1 << 20", f"jmp {found}")

    def general(self, memory, size, write):
        if write or memory.index or memory.symbol:
            super().begin()
            return super().general(memory, size, write)
        self.foreseen(memory, memory.address(), size)
        return memory.at(memory.base, "r11", by=memory.number)

    def group(self, memory, low, size, write, last_is_base):
        if write or memory.index or memory.symbol:
            return super().group(memory, low, size, write, last_is_base)
        self.foreseen(memory, memory.address(low), size)
        if not last_is_base:
            return lambda m, last: m.at(memory.base, "r11", by=m.number)
        self.out(f"lea r14, [{memory.base} + r11]")
        return lambda m, last: m.at(memory.base, "r11", by=m.number) if last else m.at("r14", by=m.number)


class Free(Tag):
    """Leaves the flags alone: PEXT and JRCXZ, RCX in a third scratch register meanwhile."""

    array, miss, clobbers = "A", "mov r11d, 1024", False

    def decide(self, address, restore):
        cold, hit = self.out.label(), self.out.label()
        self.out(f"jrcxz {hit}", f"jmp {cold}", f"{hit}:", "mov rcx, r15")
        self.out.cold(f"{cold}:", "mov rcx, r15", f"lea r14, {address}", "lea rsp, [rsp - 128]", "call miss",
                      "lea rsp, [rsp + 128]", *restore, f"jmp {hit}")

    def checked(self, address, size, write):
        tag = self.field("WRITE" if write else "READ")
        self.out(f"lea r14, {address}", "mov r15, rcx", f"pext r11, r14, {self.fixed('V_PICK')}", f"mov rcx, {tag}",
                 f"lea rcx, [r14 + rcx + {size - 1}]", f"pext rcx, rcx, {self.fixed('V_ABOVE')}")
        self.decide(address, [f"lea r14, {address}", self.miss])

    def general(self, memory, size, write):
        self.checked(memory.address(), size, write)
        if not write:
            self.out(f"mov r15, {self.field('ADDEND')}")
            return memory.at("r14", "r15")
        self.out(f"mov r15, {self.field('ADDEND')}", "lea r14, [r14 + r15]")
        return memory.at("r14")

    def known(self, memory, write):
        tag = self.fixed("T_WRITE" if write else "T_READ", 1024 << 6)
        self.out("mov r15, rcx", f"mov rcx, {tag}", "lea rcx, [rcx - 0x1000]")
        self.decide("[r15]", [])
        self.out(f"mov r14, {self.fixed('T_HOST', 1024 << 6)}")
        self.attention_at = self.fixed("T_ATTENTION", 1024 << 6)
        return f"{memory.prefix}[r14 + {memory.symbol} + {memory.number}]"

    def stack(self, memory, size):
        address = memory.address()
        self.out(f"lea r14, {address}", "mov r15, rcx", f"mov rcx, {self.fixed('S_TAG')}",
                 f"lea rcx, [r14 + rcx + {size - 1}]", f"pext rcx, rcx, {self.fixed('V_ABOVE')}")
        # Guest and host are the same here: on a miss as on a hit, the tag and the host's address cancel out.
        self.decide(address, [f"lea r14, {address}"])
        self.out(f"mov r15, {self.fixed('S_TAG')}", "lea r14, [r14 + r15]", f"mov r15, {self.fixed('S_HOST')}",
                 "lea r14, [r14 + r15]")
        self.attention_at = self.fixed("S_ATTENTION")
        return memory.at("r14")

    def group_check(self, memory, address, size, write):
        self.checked(address, size, write)
        self.out(f"mov r15, {self.field('ADDEND')}", "lea r14, [r14 + r15]")

    def look(self):
        ok = self.out.label()
        self.out("mov r15, rcx", "movzx ecx, BYTE PTR [r11]", f"jrcxz {ok}", "jmp miss", f"{ok}:", "mov rcx, r15")
