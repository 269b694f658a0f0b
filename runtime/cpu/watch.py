"""Finding instructions that must not run unseen, without a cost for those that may.

The emulator reports each block once, when it has been translated. The block's bytes are searched
for the instructions that the backend watches; each one found gets a hook on exactly its address,
and the translation is dropped and made again before it runs. Code that was overwritten is
translated, and so examined, again.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import iced_x86

from runtime.cpu import flags as fl
from runtime.cpu.vcpu import VCpu

__all__ = ["CodeReader", "Site", "Watcher"]

_MNEMONIC_NAMES: dict[int, str] = {
    value: name.lower()
    for name, value in vars(iced_x86.Mnemonic).items()
    if name.isupper() and isinstance(value, int)
}

_OPCODE_BYTES: dict[str, tuple[bytes, ...]] = {
    "rdmsr": (b"\x0f\x32",),
    "wrmsr": (b"\x0f\x30",),
    "rdpmc": (b"\x0f\x33",),
    **dict.fromkeys(("pushf", "pushfd", "pushfq"), (b"\x9c",)),
    **dict.fromkeys(("popf", "popfd", "popfq"), (b"\x9d",)),
    **dict.fromkeys(("sgdt", "sidt", "lgdt", "lidt", "smsw", "lmsw"), (b"\x0f\x01",)),
    **dict.fromkeys(("sldt", "str", "verr", "verw", "lldt", "ltr"), (b"\x0f\x00",)),
    "lar": (b"\x0f\x02",),
    "lsl": (b"\x0f\x03",),
    "arpl": (b"\x63",),
    "in": (b"\xe4", b"\xe5", b"\xec", b"\xed"),
    "out": (b"\xe6", b"\xe7", b"\xee", b"\xef"),
    **dict.fromkeys(("insb", "insw", "insd"), (b"\x6c", b"\x6d")),
    **dict.fromkeys(("outsb", "outsw", "outsd"), (b"\x6e", b"\x6f")),
    **dict.fromkeys(("mov es", "mov cs", "mov ss", "mov ds", "mov fs", "mov gs"), (b"\x8c",)),
    "int1": (b"\xf1",),
    "mov cr8": (b"\x0f\x20", b"\x0f\x22"),
    "mov cr4": (b"\x0f\x22",),
    "mov dr": (b"\x0f\x23",),
    "push es": (b"\x06",),
    "push cs": (b"\x0e",),
    "push ss": (b"\x16",),
    "push ds": (b"\x1e",),
    "push fs": (b"\x0f\xa0",),
    "push gs": (b"\x0f\xa8",),
    "call far": (b"\x9a", b"\xff"),
}
"""Bytes that code must contain to hold the instruction: most blocks need not be decoded at all."""


_SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs")
_READ_SEGMENTS = {getattr(iced_x86.Register, name.upper()): f" {name}" for name in _SEGMENTS}


_DEBUG_REGISTERS = frozenset(getattr(iced_x86.Register, f"DR{number}") for number in (0, 1, 2, 3, 7))


def _name_of(instruction: iced_x86.Instruction) -> str:
    """The mnemonic; reads of segment registers, CR8 and far calls, are told from their kin."""
    name = _MNEMONIC_NAMES.get(instruction.mnemonic, "")
    if name == "mov":
        if iced_x86.Register.CR8 in (instruction.op0_register, instruction.op1_register):
            return "mov cr8"
        if instruction.op0_register == iced_x86.Register.CR4:
            return "mov cr4"
        if instruction.op0_register in _DEBUG_REGISTERS:
            return "mov dr"
        return name + _READ_SEGMENTS.get(instruction.op1_register, "")
    if name == "push":
        return name + _READ_SEGMENTS.get(instruction.op0_register, "")
    if name == "call" and (instruction.is_call_far or instruction.is_call_far_indirect):
        return "call far"
    return name


@dataclass(frozen=True)
class Site:
    """One watched instruction at a linear address."""

    address: int
    code: bytes
    mnemonic: str
    width: int

    def decode(self) -> iced_x86.Instruction:
        """The decoded instruction."""
        return iced_x86.Decoder(self.width, self.code, ip=self.address).decode()


NOTHING = b"(?!)"
"""A pattern that matches nowhere."""


class CodeReader(Protocol):
    """Reads code by linear address."""

    def try_read(self, linear: int, length: int) -> bytes:
        """As much as is mapped of `length` bytes."""


class _Wanted:
    """A set of mnemonics with the bytes that give them away."""

    def __init__(self, mnemonics: frozenset[str]) -> None:
        self.mnemonics = mnemonics
        first_words = {name.split()[0] for name in mnemonics}
        self.kinds = frozenset(kind for kind, name in _MNEMONIC_NAMES.items() if name in first_words)
        """iced-x86's numbers of the mnemonics, which tell most other instructions apart at once."""
        self._certain = all(name in _OPCODE_BYTES for name in mnemonics)
        needles = sorted({needle for name in mnemonics for needle in _OPCODE_BYTES.get(name, ())})
        pattern = b"|".join(map(re.escape, needles)) or NOTHING
        self._search = re.compile(pattern, re.DOTALL).search

    def possible(self, code: bytes) -> bool:
        """False if `code` cannot hold any of the instructions."""
        return not self._certain or self._search(code) is not None


class Watcher:
    """Looks at every block before it first runs and calls `reached` before each watched instruction.

    `mnemonics` are watched everywhere, `outer` only above privilege level 0. `reached` returns True
    if it has emulated the instruction: execution goes on behind it, or where `reached` has put RIP.
    """

    def __init__(
        self,
        cpu: VCpu,
        memory: CodeReader,
        mnemonics: frozenset[str],
        reached: Callable[[Site], bool],
        exempt: Callable[[int], bool],
        outer: frozenset[str] = frozenset(),
    ) -> None:
        self._cpu = cpu
        self._memory = memory
        self._reached = reached
        self._exempt = exempt
        self._inner = _Wanted(mnemonics)
        self._outer = _Wanted(mnemonics | outer)
        self._level = 0 if mnemonics else 1
        self._sites: dict[int, Site] = {}
        self._hooks: list[int] = []
        self._stale: list[tuple[int, int]] = []
        self._clean: dict[int, tuple[_Wanted, bytes]] = {}
        """Blocks in which there was nothing, by address: code is translated more than once."""
        cpu.on_new_block(self._examine, self._level)

    def before_run(self) -> None:
        """Look at the block where execution is about to enter: the emulator does not report it."""
        if self._cpu.cpl < self._level:
            return
        address = self._cpu.state.rip + self._code_base()
        code = self._block_at(address)
        self._examine(address, len(code))
        self.settle()

    def _code_base(self) -> int:
        """Base of the code segment: hooks and blocks are at linear addresses, RIP is not."""
        return 0 if self._cpu.code_width == 64 else int(self._cpu.state.segments[fl.CS].base)

    def settle(self) -> None:
        """Drop the translations in which watched instructions were found."""
        if len(self._hooks) > _MOST_SITES:
            self._cpu.drop_all_translations()
            for hook in self._hooks:
                self._cpu.remove_hook(hook)
            self._hooks.clear()
            self._sites.clear()
            self._stale.clear()
        for begin, end in self._stale:
            self._cpu.drop_translation(begin, end)
        self._stale.clear()

    def _block_at(self, rip: int) -> bytes:
        code = self._memory.try_read(rip, _LONGEST_LOOK)
        size = 0
        for instruction in iced_x86.Decoder(self._cpu.code_width, code, ip=rip):
            size += instruction.len
            if instruction.flow_control != iced_x86.FlowControl.NEXT:
                break
        return code[:size]

    def _examine(self, address: int, size: int) -> None:
        """Search one block; called when it has been translated and has not run."""
        if not size or self._exempt(address):
            return
        code = self._memory.try_read(address, size)
        wanted = self._outer if self._cpu.cpl else self._inner
        if not wanted.possible(code) or self._clean.get(address) == (wanted, code):
            return
        found, nothing = False, True
        for instruction in iced_x86.Decoder(self._cpu.code_width, code, ip=address):
            if instruction.mnemonic not in wanted.kinds:
                continue
            name = _name_of(instruction)
            if name not in wanted.mnemonics:
                continue
            nothing = False
            offset = instruction.ip - address
            site = Site(instruction.ip, code[offset : offset + instruction.len], name, self._cpu.code_width)
            if self._sites.get(site.address) == site:
                continue
            if site.address not in self._sites:
                arrive = partial(self._arrive, site.address)
                self._hooks.append(self._cpu.on_instruction(site.address, arrive))
                found = True
            self._sites[site.address] = site
        if nothing:
            if len(self._clean) >= _MOST_CLEAN:
                self._clean.clear()
            self._clean[address] = (wanted, code)
        if found:
            self._stale.append((address, address + size))
            self._cpu.request_stop()

    def _arrive(self, address: int) -> None:
        """A hooked address is about to execute; make sure it still is what it was."""
        site = self._sites[address]
        code = self._memory.try_read(address, len(site.code))
        if code != site.code or self._cpu.code_width != site.width:
            return
        state = self._cpu.state
        start = address - self._code_base() & 0xFFFFFFFFFFFFFFFF
        state.rip = start
        if self._reached(site):
            self._cpu.jump(state.rip if state.rip != start else start + len(code))


_LONGEST_LOOK = 512
_MOST_SITES = 1024
"""Hooked addresses after which all are forgotten, and found anew where code still runs: each hook makes each
translation dearer, and a guest that writes its code can have one at every address."""
_MOST_CLEAN = 16384
"""Blocks that are remembered as clean."""
