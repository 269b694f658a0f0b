"""Random choices: registers, memory operands, numbers, selectors and plain instructions."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TypeVar

__all__ = ["Draw"]

T = TypeVar("T")

_LOW8 = {"eax": "al", "ecx": "cl", "edx": "dl", "ebx": "bl"}
_POINTERS = {32: ("ebx", "esi", "edi", "ebp"), 64: ("rbx", "rsi", "rdi", "rbp", "r12", "r13")}
"""These name places in `data` all the time; ECX (RCX) is a small number."""
_FREE = {32: ("eax", "edx"), 64: ("eax", "edx", "r8d", "r9d", "r10d", "r11d", "r15d")}
"""These hold anything."""
_NUMBERS = (
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x100,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x10000,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
)
_CONDITIONS = ("o", "no", "b", "ae", "e", "ne", "be", "a", "s", "ns", "p", "np", "l", "ge", "le", "g")
_NOPS = ("nop", ".byte 0x66, 0x90", "nopl (%eax)", "nopl 8(%eax)", "nopw 0x200(%eax,%eax,1)")
_FLAGS = 0x0CD5
"""Flags that a snippet may start with: arithmetic ones and DF."""
_DATA_SELECTORS = ("KERNEL_DATA", "BASED", "USER_DATA", "SMALL", "OTHER_CODE", "0", "3", "KERNEL_DATA | 3")
_BAD_SELECTORS = (
    "ABSENT",
    "READ_ONLY",
    "EXECUTE_ONLY",
    "TSS",
    "LDT",
    "CALL_GATE",
    "LOCAL_DATA",
    "0xfc",
    "0xfff8",
    "CONFORMING",
    "USER_CODE",
    "OTHER_TSS",
    "EXPAND_DOWN",
    "USER_BASED",
    "KERNEL_CODE",
)


class Draw:
    """One snippet's source of random choices. `width` is the kernel's."""

    def __init__(self, random: Random, width: int) -> None:
        self.random = random
        self.width = width
        self._labels = 0

    # ---- plain choices ----

    def one(self, choices: Sequence[T]) -> T:
        """One of the choices."""
        return self.random.choice(choices)

    def chance(self, percent: int) -> bool:
        """True in so many of a hundred cases."""
        return self.random.randrange(100) < percent

    def below(self, limit: int) -> int:
        """A number from 0 to `limit` - 1."""
        return self.random.randrange(limit)

    def label(self) -> str:
        """A new label of this snippet."""
        self._labels += 1
        return f"@{self._labels}"

    def number(self) -> int:
        """A 32-bit number, often one at an edge."""
        return self.one(_NUMBERS) if self.chance(50) else self.random.getrandbits(32)

    # ---- registers ----

    def free(self, bits: int = 32) -> str:
        """A register that may be written, as an operand."""
        return "%" + self.sized(self.one(_FREE[self.width]), bits)

    def pointer(self) -> str:
        """A register that points into `data`, as an operand."""
        return "%" + self.one(_POINTERS[self.width])

    def sized(self, name: str, bits: int) -> str:
        """The part of a 32-bit register with so many bits."""
        if name.startswith("r"):
            stem = name.rstrip("d")
            return stem + {8: "b", 16: "w", 32: "d", 64: ""}[bits]
        if bits == 8:
            return _LOW8[name]
        return {16: name[1:], 32: name, 64: "r" + name[1:]}[bits]

    @property
    def word(self) -> int:
        """Bits of a push."""
        return self.width

    def native(self, name: str) -> str:
        """`eax` as the width's full register, as an operand."""
        return "%" + self.sized(name, self.width)

    def start(self) -> dict[str, str]:
        """Start values of the registers."""
        values = {name: f"data + {64 + 4 * self.below(96)}" for name in _POINTERS[self.width]}
        small = self.sized("ecx", self.width)
        values[small] = str(self.below(13))
        for name in _FREE[self.width]:
            high = self.random.getrandbits(32) << 32 if self.width == 64 and self.chance(30) else 0
            values[self.sized(name, self.width)] = str(self.number() | high)
        return values

    def start_flags(self) -> int:
        """Start value of the flags, with IF in half of the cases."""
        return 2 | self.random.getrandbits(16) & _FLAGS | (0x200 if self.chance(50) else 0)

    # ---- memory ----

    def memory(self, *, faulting: int = 6) -> str:
        """A memory operand; in `faulting` of a hundred cases on a page that is not simply there."""
        if self.chance(faulting):
            page = self.one((3, 20, 40, 50, 70, 100))
            return f"WINDOW + {page * 0x1000 + 4 * self.below(1000):#x}"
        offset = 4 * self.below(32) - 64
        kind = self.below(8)
        if kind < 3:
            return f"{offset}({self.pointer()})"
        if kind == 3:
            return f"{offset}({self.pointer()},{self.native('ecx')},{self.one((1, 2, 4, 8))})"
        if kind == 4:
            return f"{4 * self.below(40)}(%{'esp' if self.width == 32 else 'rsp'})"
        if kind == 5:
            return f"%{self.one(('cs', 'ds', 'es', 'ss'))}:{offset}({self.pointer()})"
        if kind == 6:
            return self._far_segment()
        return f"data + {4 * self.below(250)}" + ("(%rip)" if self.width == 64 and self.chance(50) else "")

    def _far_segment(self) -> str:
        place = f"data + {4 * self.below(250)}"
        name = self.one(("fs", "gs"))
        if self.width == 32:
            return f"%{name}:{place}"
        return f"%{name}:{place} - {name.upper()}_BASE"

    def place(self, bits: int, *, faulting: int = 6) -> str:
        """A register or a memory operand."""
        return self.free(bits) if self.chance(50) else self.memory(faulting=faulting)

    # ---- selectors ----

    def selector(self, bad: int = 30) -> str:
        """A selector for a data segment register; in `bad` of a hundred cases probably not a right one."""
        text = self.one(_BAD_SELECTORS if self.chance(bad) else _DATA_SELECTORS)
        return f"{text} | {self.below(4)}" if self.chance(10) else text

    # ---- plain instructions ----

    def plain(self) -> str:
        """An instruction that is not sensitive, with defined flags."""
        kind = self.below(16)
        first, second = self.free(), self.free()
        if kind < 3:
            return f"mov ${self.number():#x}, {first}"
        if kind < 6:
            operation = self.one(("add", "sub", "xor", "and", "or", "adc", "sbb", "cmp", "test"))
            return f"{operation} {self.one((second, f'${self.number():#x}'))}, {first}"
        if kind == 6:
            return f"{self.one(('add', 'cmp', 'mov', 'sub'))} {self.memory()}, {first}"
        if kind == 7:
            return f"{self.one(('add', 'mov', 'xor', 'xchg'))} {first}, {self.memory()}"
        if kind == 8:
            return f"{self.one(('inc', 'dec', 'neg', 'not'))} {first}"
        if kind == 9:
            return f"lea {self.memory(faulting=0).split(':')[-1]}, {self.native('edx')}"
        if kind == 10:
            return f"set{self.one(_CONDITIONS)} {self.free(8)}"
        if kind == 11:
            return f"cmov{self.one(_CONDITIONS)} {second}, {first}"
        if kind == 12:
            return f"push {self.native('eax')}; pop {self.native('edx')}"
        if kind == 13:
            return self.one(("stc", "clc", "cmc", "lahf", "sahf", "cwtl", "cltd", "cld"))
        if kind == 14:
            return self.one(_NOPS)
        return f"{self.one(('movzbl', 'movsbl', 'movzwl', 'movswl'))} {self.memory()}, {first}"

    def plains(self, most: int = 3) -> list[str]:
        """Some of them."""
        return [self.plain() for _ in range(self.below(most + 1))]

    def condition(self) -> str:
        """The letters of a condition."""
        return self.one(_CONDITIONS)
