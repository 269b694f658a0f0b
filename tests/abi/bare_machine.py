"""A CPU at privilege 0 with flat segments on which bare slots run one at a time."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import unicorn
from unicorn import x86_const as x86

from pvpatch.abi.layout import slot_offset
from pvpatch.abi.page import build_bare_page
from pvpatch.abi.spec import load_spec, register

PAGE, STACK, GDT, IDT, SCRATCH, RETURN = 0x10000, 0x80000, 0x20000, 0x21000, 0x30000, 0x70000
CODE32, DATA, CODE64, LDT, TSS, USER_DATA = 0x08, 0x10, 0x18, 0x20, 0x30, 0x43
DESCRIPTORS = {
    CODE32: 0x00CF9B000000FFFF,
    DATA: 0x00CF93000000FFFF,
    CODE64: 0x00AF9B000000FFFF,
    LDT: 0x0000820220000017,
    TSS: 0x0000890230000067,
    0x40: 0x00CFF3000000FFFF,
}
ROLES = ("eax", "edx", "ecx", "ebx", "esi", "edi", "ebp")
ARITHMETIC = 0x8D5
IF, DF, ZF, AC = 0x200, 0x400, 0x40, 0x40000


@dataclass
class Outcome:
    """State after a slot returned (or, for a jump, arrived)."""

    registers: dict[str, int]
    flags: int
    sp: int
    ip: int
    ports: list[tuple[str, int, int, int]] = field(default_factory=list)
    vectors: list[int] = field(default_factory=list)


class BareMachine:
    """One emulated CPU; `run` starts a slot with chosen registers, flags and stack words."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.word = width // 8
        self.mask = (1 << width) - 1
        self.code_selector = CODE32 if width == 32 else CODE64
        mode = unicorn.UC_MODE_32 if width == 32 else unicorn.UC_MODE_64
        self.uc = unicorn.Uc(unicorn.UC_ARCH_X86, mode)
        self.uc.mem_map(0, 0x400000)
        self.uc.mem_write(PAGE, build_bare_page(width, PAGE, PAGE))
        self.uc.mem_write(RETURN, b"\x90" * 16)
        for selector, descriptor in DESCRIPTORS.items():
            self.uc.mem_write(GDT + selector, struct.pack("<Q", descriptor))
        self.uc.reg_write(x86.UC_X86_REG_GDTR, (0, GDT, 0x4F, 0))
        self.uc.reg_write(x86.UC_X86_REG_IDTR, (0, IDT, 0xFFF, 0))
        if width == 32:
            self.uc.reg_write(x86.UC_X86_REG_CS, CODE32)
            for name in ("SS", "DS", "ES"):
                self.uc.reg_write(getattr(x86, f"UC_X86_REG_{name}"), DATA)
        self.names = {role: self._id(role) for role in ROLES}
        self.sp = getattr(x86, f"UC_X86_REG_{'E' if width == 32 else 'R'}SP")
        self.ip = getattr(x86, f"UC_X86_REG_{'E' if width == 32 else 'R'}IP")
        self.ports: list[tuple[str, int, int, int]] = []
        self.vectors: list[int] = []
        self.uc.hook_add(unicorn.UC_HOOK_INSN, self._on_in, None, 1, 0, x86.UC_X86_INS_IN)
        self.uc.hook_add(unicorn.UC_HOOK_INSN, self._on_out, None, 1, 0, x86.UC_X86_INS_OUT)
        self.uc.hook_add(unicorn.UC_HOOK_INTR, self._on_interrupt)

    def _id(self, role: str) -> int:
        name = register(role, self.width) if role != "ebp" else ("ebp" if self.width == 32 else "rbp")
        return int(getattr(x86, f"UC_X86_REG_{name.upper()}"))

    def _on_in(self, _uc: unicorn.Uc, port: int, size: int, _data: object) -> int:
        self.ports.append(("in", port, size, 0))
        return 0xA5B6C7D8 & ((1 << 8 * size) - 1)

    def _on_out(self, _uc: unicorn.Uc, port: int, size: int, value: int, _data: object) -> None:
        self.ports.append(("out", port, size, value & ((1 << 8 * size) - 1)))

    def _on_interrupt(self, uc: unicorn.Uc, vector: int, _data: object) -> None:
        self.vectors.append(vector)
        if vector < 32 and vector not in (3, 4):
            uc.emu_stop()

    def run(
        self,
        call: str,
        registers: dict[str, int] | None = None,
        flags: int = 2,
        stack: tuple[int, ...] = (),
        *,
        until: int = RETURN,
    ) -> Outcome:
        """Enter a slot as its kind wants it, with `stack` words above the return address; stop at `until`."""
        entry = load_spec().call(call)
        words = stack if entry.kind == "jump" else (RETURN, *stack)
        top = STACK
        for index, word in enumerate(words):
            self.uc.mem_write(top + index * self.word, (word & self.mask).to_bytes(self.word, "little"))
        for role in ROLES:
            self.uc.reg_write(self.names[role], (registers or {}).get(role, 0) & self.mask)
        self.uc.reg_write(self.sp, top)
        self.uc.reg_write(x86.UC_X86_REG_EFLAGS, flags | 2)
        self.uc.mem_write(GDT + TSS, struct.pack("<Q", DESCRIPTORS[TSS]))  # not busy: it can be loaded again
        self.ports, self.vectors = [], []
        self.uc.emu_start(PAGE + slot_offset(entry.number), until, count=3000)
        return Outcome(
            {role: self.uc.reg_read(self.names[role]) for role in ROLES},
            self.uc.reg_read(x86.UC_X86_REG_EFLAGS),
            self.uc.reg_read(self.sp),
            self.uc.reg_read(self.ip),
            self.ports,
            self.vectors,
        )

    def read_word(self, address: int) -> int:
        """A native word of guest memory."""
        return int.from_bytes(self.uc.mem_read(address, self.word), "little")
