"""Length tables of the x86 opcode maps, derived from iced-x86's opcode database.

Nothing about an opcode is written down here: every entry follows from what iced publishes
about an instruction code (map, opcode byte, ModRM group, operand kinds, sizes, prefixes).
Encoding rules are those of the Intel SDM volume 2, chapter 2 (prefixes, ModRM, SIB, VEX, EVEX).

A table is indexed by two consecutive bytes, `opcode | next << 8`, and gives the length
in bytes from the opcode byte to the end of the instruction:

* 0: no instruction has this encoding;
* bit 7 set: add 4 when the SIB byte (two after the opcode) has base 5;
* `ESCAPE`: the length is decided in another map (0F, 0F38, 0F3A, VEX, XOP, EVEX, 3DNow).
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from iced_x86 import Code, EncodingKind, MandatoryPrefix, OpCodeInfo, OpCodeOperandKind, OpCodeTableKind
from numpy.typing import NDArray

ByteArray = NDArray[np.uint8]

ESCAPE = 0x40
SIB_DISPLACEMENT = 0x80
LENGTH_MASK = 0x3F

ESCAPE_0F = 0x0F
VEX3, VEX2, EVEX, XOP = 0xC4, 0xC5, 0x62, 0x8F


@dataclass(frozen=True)
class Context:
    """Everything before the opcode byte that can change its length or validity."""

    width: int
    """Bits of the code segment: 16, 32 or 64."""
    operand_prefix: bool = False
    address_prefix: bool = False
    repeat: int = 0
    """The last of F2 and F3 before the opcode, or 0."""
    wide: bool = False
    """REX.W."""
    lock: bool = False
    """F0: only read-modify-write forms with a memory operand accept it (SDM 2, LOCK)."""

    @property
    def operand_size(self) -> int:
        """Effective operand size in bits (SDM 1, table 3-4)."""
        if self.wide:
            return 64
        default = 16 if self.width == 16 else 32
        return (48 - default) if self.operand_prefix else default

    @property
    def address_size(self) -> int:
        """Effective address size in bits."""
        if self.width == 64:
            return 32 if self.address_prefix else 64
        return (48 - self.width) if self.address_prefix else self.width


_KIND_NAMES = {
    value: name
    for name, value in vars(OpCodeOperandKind).items()
    if name.isupper() and isinstance(value, int)
}
_IMMEDIATE_BYTES = {
    "IMM8": 1, "IMM8SEX16": 1, "IMM8SEX32": 1, "IMM8SEX64": 1, "IMM16": 2, "IMM32": 4, "IMM32SEX64": 4,
    "IMM64": 8, "BR16_1": 1, "BR32_1": 1, "BR64_1": 1, "BR16_2": 2, "BR32_4": 4, "BR64_4": 4,
    "BRDISP_2": 2, "BRDISP_4": 4, "XBEGIN_2": 2, "XBEGIN_4": 4, "FARBR2_2": 4, "FARBR4_2": 6,
    "XMM_IS4": 1, "YMM_IS4": 1, "XMM_IS5": 1, "YMM_IS5": 1,
}  # fmt: skip
_ANY_RM = (0xA6, 0xA7)
"""Two-byte opcodes 0F A6 and 0F A7 (VIA PadLock): the processor ignores the rm field."""
_REGISTER_ONLY = {"R16_RM", "R32_RM", "R64_RM", "XMM_RM", "YMM_RM", "ZMM_RM", "MM_RM", "K_RM", "TMM_RM"}
_MODRM_REGISTER = {
    "R8_REG", "R16_REG", "R32_REG", "R64_REG", "R16_REG_MEM", "R32_REG_MEM", "R64_REG_MEM", "XMM_REG",
    "YMM_REG", "ZMM_REG", "MM_REG", "K_REG", "KP1_REG", "SEG_REG", "CR_REG", "DR_REG", "TR_REG", "BND_REG",
    "TMM_REG",
}  # fmt: skip
_MEMORY_ONLY = {
    "MEM", "MEM_MPX", "MEM_MIB", "MEM_VSIB32X", "MEM_VSIB64X", "MEM_VSIB32Y", "MEM_VSIB64Y", "MEM_VSIB32Z",
    "MEM_VSIB64Z", "SIBMEM",
}  # fmt: skip
_REGISTER_FIELD = {
    "SEG_REG": (0, 1, 2, 3, 4, 5),  # SDM 3.2 MOV: 6 and 7 are #UD
    "CR_REG": (0, 2, 3, 4),  # others do not exist; CR8 is CR0 with REX.R
}


@dataclass(frozen=True)
class Encoding:
    """What one instruction code contributes to the tables."""

    code: int
    kind: int
    table: int
    opcodes: tuple[int, ...]
    modrm: frozenset[int] | None
    """ModRM bytes that select it, or None when it has no ModRM byte."""
    immediate: int
    memory_offset: bool
    prefix: int
    operand_size: int
    sizes: str
    """"" exact, "d64" defaults to 64 in 64-bit mode, "f64" always 64 there."""
    modes: frozenset[int]
    lockable: bool
    refuses_repeat: bool
    refuses_66: bool
    register_always: bool
    """The mod bits are ignored: MOV to and from control and debug registers."""


def _modrm_bytes(info: OpCodeInfo, kinds: list[str]) -> frozenset[int] | None:
    if info.op_code_len == 2:
        first = info.op_code & 0xFF
        any_rm = "STI_OPCODE" in kinds or info.op_code >> 8 in _ANY_RM
        return frozenset(range(first, first + 8) if any_rm else (first,))
    has_modrm = (
        info.is_group
        or info.is_rm_group
        or any(kind in _MODRM_REGISTER or kind in _MEMORY_ONLY or kind in _REGISTER_ONLY for kind in kinds)
        or any(kind.endswith(("_OR_MEM", "_OR_MEM_MPX")) for kind in kinds)
    )
    if not has_modrm:
        return None
    registers: set[int] = {info.group_index} if info.is_group else set(range(8))
    for position, kind in enumerate(kinds):
        if kind in _REGISTER_FIELD:
            registers &= set(_REGISTER_FIELD[kind])
            if kind == "SEG_REG" and position == 0:
                registers.discard(1)  # CS cannot be loaded by MOV
    register_form = any(kind in _REGISTER_ONLY for kind in kinds) or info.is_rm_group
    memory_form = any(kind in _MEMORY_ONLY for kind in kinds)
    modes = "rm" if info.ignores_mod_bits else "r" if register_form else "m" if memory_form else "rm"
    return _select(frozenset(registers), info.rm_group_index if info.is_rm_group else None, modes)


@cache
def _select(registers: frozenset[int], rm: int | None, modes: str) -> frozenset[int]:
    """ModRM bytes with one of `registers` in reg, `rm` in rm, and register (r) or memory (m) mode."""
    return frozenset(
        value
        for value in range(256)
        if (value >> 3) & 7 in registers
        and (rm is None or value & 7 == rm)
        and ("r" if value >= 0xC0 else "m") in modes
    )


def _describe(info: OpCodeInfo) -> Encoding:
    kinds = [_KIND_NAMES[kind] for kind in info.op_kinds()]
    opcode = info.op_code >> 8 if info.op_code_len == 2 else info.op_code
    embeds_register = any(kind.endswith("_OPCODE") and kind != "STI_OPCODE" for kind in kinds)
    immediate = sum(_IMMEDIATE_BYTES.get(kind, 0) for kind in kinds if not kind.endswith(("_IS4", "_IS5")))
    if any(kind.endswith(("_IS4", "_IS5")) for kind in kinds):
        immediate = 1  # the register and the M2Z field share one byte
    modes = {mode for mode, ok in ((16, info.mode16), (32, info.mode32), (64, info.mode64)) if ok}
    forced = info.force_op_size64 or info.intel_force_op_size64
    return Encoding(
        code=info.code,
        kind=info.encoding,
        table=info.table,
        opcodes=tuple(range(opcode, opcode + 8)) if embeds_register else (opcode,),
        modrm=_modrm_bytes(info, kinds),
        immediate=immediate,
        memory_offset="MEM_OFFS" in kinds,
        prefix=info.mandatory_prefix,
        operand_size=info.operand_size,
        sizes="f64" if forced else "d64" if info.default_op_size64 else "",
        modes=frozenset(modes),
        lockable=info.can_use_lock_prefix,
        refuses_repeat=info.nfx,
        refuses_66=info.no66,
        register_always=info.ignores_mod_bits,
    )


@cache
def encodings() -> tuple[Encoding, ...]:
    """Every instruction code that iced's decoder yields with its default options."""
    result = []
    for name, value in vars(Code).items():
        if not (name.isupper() and isinstance(value, int)):
            continue
        info = OpCodeInfo(value)
        if not info.is_instruction or info.decoder_option or info.fwait or info.encoding == EncodingKind.MVEX:
            continue
        if info.intel_decoder32 or info.intel_decoder64:
            result.append(_describe(info))
    return tuple(result)


@cache
def modrm_lengths(address_size: int) -> ByteArray:
    """Bytes taken by ModRM, SIB and displacement, with `SIB_DISPLACEMENT` (SDM 2, tables 2-1 to 2-3)."""
    table = np.zeros(256, np.uint8)
    for value in range(256):
        mode, rm = value >> 6, value & 7
        if mode == 3:
            length = 1
        elif address_size == 16:
            length = 1 + (2 if mode == 2 or (mode == 0 and rm == 6) else mode)
        else:
            length = 1 + (0, 1, 4)[mode] + (rm == 4)
            if mode == 0 and rm == 5:
                length += 4
            if mode == 0 and rm == 4:
                length |= SIB_DISPLACEMENT
        table[value] = length
    return table


def _size_matches(entry: Encoding, context: Context) -> bool:
    if not entry.operand_size:
        return True
    if context.width == 64 and entry.sizes:
        if entry.sizes == "f64":
            return entry.operand_size == 64
        effective = 16 if context.operand_prefix and not context.wide else 64
        return entry.operand_size == effective
    return entry.operand_size == context.operand_size


def _fits(entry: Encoding, context: Context, rank: int) -> bool:
    """Rank 0: REX.W on an instruction that has no 64-bit form is ignored (IN, OUT, INS, OUTS)."""
    if context.width not in entry.modes or (context.lock and not entry.lockable):
        return False
    if rank == 0:
        return context.wide and entry.operand_size == 32 and _prefix_rank(entry, context) > 0
    return _prefix_rank(entry, context) == rank and _size_matches(entry, context)


def _prefix_rank(entry: Encoding, context: Context) -> int:
    """How specifically the mandatory prefix fits: 0 not at all, 1 any prefix, 2 exactly."""
    if entry.prefix == MandatoryPrefix.NONE:
        refused = (entry.refuses_repeat and context.repeat) or (entry.refuses_66 and context.operand_prefix)
        return 0 if refused else 1
    wanted = {0xF3: MandatoryPrefix.PF3, 0xF2: MandatoryPrefix.PF2}.get(context.repeat)
    if wanted is None:
        wanted = MandatoryPrefix.P66 if context.operand_prefix else MandatoryPrefix.PNP
    return 2 if entry.prefix == wanted else 0


def _place(table: ByteArray, entry: Encoding, context: Context, extra: int = 0) -> None:
    grid = table.reshape(256, 256)  # [next byte][opcode]
    immediate = entry.immediate + extra + (context.address_size // 8 if entry.memory_offset else 0)
    for opcode in entry.opcodes:
        if entry.modrm is None:
            grid[:, opcode] = 1 + immediate
        else:
            selected = np.array(
                [value for value in sorted(entry.modrm) if value < 0xC0 or not context.lock], np.intp
            )
            operand = np.uint8(1) if entry.register_always else modrm_lengths(context.address_size)[selected]
            grid[selected, opcode] = operand + np.uint8(1 + immediate)


@cache
def legacy_table(table_kind: int, context: Context) -> ByteArray:
    """Table of one legacy map (NORMAL, T0F, T0F38, T0F3A) under `context`."""
    table = np.zeros(65536, np.uint8)
    for rank in (0, 1, 2):
        for entry in encodings():
            if (
                entry.kind == EncodingKind.LEGACY
                and entry.table == table_kind
                and _fits(entry, context, rank)
            ):
                _place(table, entry, context)
    grid = table.reshape(256, 256)
    if table_kind == OpCodeTableKind.NORMAL:
        vector_forms = slice(0, 256) if context.width == 64 else slice(0xC0, 256)
        grid[vector_forms, [VEX3, VEX2]] = ESCAPE
        grid[vector_forms, EVEX] = ESCAPE
        grid[(np.arange(256) & 0x1F) >= 8, XOP] = ESCAPE
        grid[:, ESCAPE_0F] = ESCAPE
    elif table_kind == OpCodeTableKind.T0F:
        grid[:, [0x38, 0x3A, 0x0F]] = ESCAPE
    return table


@cache
def vector_table(kind: int, table_kind: int, prefix: int, width: int) -> ByteArray:
    """Table of one VEX, EVEX or XOP map for the implied prefix `pp` (0 none, 1 66, 2 F3, 3 F2)."""
    table = np.zeros(65536, np.uint8)
    wanted = (MandatoryPrefix.PNP, MandatoryPrefix.P66, MandatoryPrefix.PF3, MandatoryPrefix.PF2)[prefix]
    context = Context(width)
    for entry in encodings():
        if (
            entry.kind == kind
            and entry.table == table_kind
            and width in entry.modes
            and entry.prefix in (wanted, MandatoryPrefix.NONE)
        ):
            _place(table, entry, context)
    return table


@cache
def suffix_opcodes() -> ByteArray:
    """1 for every byte that is the trailing opcode of a 3DNow instruction."""
    table = np.zeros(256, np.uint8)
    table[[entry.opcodes[0] for entry in encodings() if entry.kind == EncodingKind.D3NOW]] = 1
    return table
