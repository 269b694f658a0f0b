"""Decode one basic block and say where it leads: the step that discovery by recursion repeats."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

from iced_x86 import Code, Decoder, FlowControl, Instruction, MemorySizeExt, Mnemonic, OpKind, Register

from rewriter.decode.classification import class_by_code, codes_matching
from rewriter.scan.descriptor_data import DataRanges
from rewriter.scan.space import Region, Space

__all__ = ["XEN_EMULATE", "Block", "BlockDecoder", "Edge", "Read"]

MAX_BLOCK = 4096
"""Instructions in one block before it is cut; real blocks stay far below."""

XEN_EMULATE = b"\x0f\x0bxen"
"""Xen's forced emulation prefix: UD2 and a name (XEN_EMULATE_PREFIX, public/arch-x86/xen.h); the instruction
behind it is emulated, and control goes on behind that."""

_POP_STACK_POINTER = 0x5C
_LARGEST_STRUCTURE = 0x10000
"""Displacements below count as offsets in structures: some images are linked at 0."""

_MAY_NOT_RETURN = (Mnemonic.HLT, Mnemonic.INT)
_ENDING = {FlowControl.RETURN, FlowControl.EXCEPTION}
_IMMEDIATE_KINDS = (OpKind.IMMEDIATE32, OpKind.IMMEDIATE64, OpKind.IMMEDIATE32TO64)
_BRANCH_KINDS = (OpKind.NEAR_BRANCH16, OpKind.NEAR_BRANCH32, OpKind.NEAR_BRANCH64)


@dataclass(frozen=True)
class _Implausible:
    """The content of implausible.toml."""

    codes: frozenset[int]
    anywhere: frozenset[int]
    """Those of `codes` that are no better inside a function."""
    filler: frozenset[bytes]
    wrong_width: frozenset[bytes]


@cache
def _implausible() -> _Implausible:
    data = tomllib.loads(files("rewriter.scan").joinpath("implausible.toml").read_text(encoding="utf-8"))
    anywhere = {code for pattern in data["codes"] for code in codes_matching(pattern)}
    by_hand = {code for pattern in data["by_hand"] for code in codes_matching(pattern)}
    return _Implausible(
        frozenset(anywhere | by_hand),
        frozenset(anywhere),
        frozenset(bytes.fromhex(row) for row in data["bytes"]),
        frozenset(bytes.fromhex(row) for row in data["wrong_width_32"]),
    )


@dataclass(frozen=True, slots=True)
class Edge:
    """A way out of a block: kind is jump, fall, call, after_call or far.

    `address` is virtual, but that of a far one is the offset in the segment that `selector` names.
    """

    address: int
    kind: str
    selector: int = 0


@dataclass(frozen=True, slots=True)
class Read:
    """Bytes of a region that an instruction uses as data; `size` 0 when nobody knows how many.

    `copied`: a string instruction moves them somewhere else.
    """

    address: int
    size: int
    copied: bool = False


@dataclass(slots=True)
class Block:
    """What one block holds. `valid` is False when it runs into something that is no instruction."""

    start: int
    width: int
    valid: bool = True
    plausible: bool = True
    runs_off: bool = False
    """Its last instruction ends where the region ends: a kernel whose last word is HLT, or no code at all."""
    prefix_like: int = 0
    """In 32-bit code, INC and DEC of one byte: what 64-bit code has as REX prefixes."""
    wrong_width: bool = False
    """32-bit decoding shows what only 64-bit code means."""
    instructions: list[tuple[int, int]] = field(default_factory=list)
    """Address and length of each instruction."""
    edges: list[Edge] = field(default_factory=list)
    sites: list[int] = field(default_factory=list)
    references: list[tuple[int, int]] = field(default_factory=list)
    """Addresses inside regions that the code takes (LEA, immediates), code or data, not known here; and by
    which instruction."""
    reads: list[Read] = field(default_factory=list)
    """Memory operands that name bytes of a region by their address."""
    stuck: int = 0
    """Where it runs into something that is no instruction, when it is not valid."""
    slots: list[int] = field(default_factory=list)
    """Addresses of pointers that the code calls or jumps through."""
    based: list[int] = field(default_factory=list)
    """Displacements of `lea r, [base+disp32]`: offsets from the GOT in position independent i386 code."""
    tables: list[int] = field(default_factory=list)
    """Addresses of GDT pseudo-descriptors that the block loads."""
    idt_pointers: list[int] = field(default_factory=list)
    """Addresses of IDT pseudo-descriptors that the block loads."""
    indirect: int = 0
    """Address of the indirect jump that ends it, or 0."""
    merges: bool = False
    """It ends because it ran into code that is already known."""


class BlockDecoder:
    """Decodes blocks anywhere in a space, at any width; holds no knowledge of what was seen before."""

    def __init__(self, space: Space, data: DataRanges | None = None) -> None:
        self.space = space
        self.data = data or DataRanges()
        """Bytes that are no instructions unless a branch leads to them."""
        self.decoded = 0
        self._decoders: dict[int, Decoder] = {}
        self._instruction = Instruction()

    def instruction_at(self, address: int, width: int, region: Region) -> Instruction:
        """Decode one instruction; the object is reused by the next call (copy to keep)."""
        decoder = self._decoders.get(width)
        if decoder is None:
            decoder = self._decoders[width] = Decoder(width, self.space.image.payload)
        decoder.position = region.file_offset + address - region.vaddr
        decoder.ip = address
        decoder.decode_out(self._instruction)
        self.decoded += 1
        return self._instruction

    def instructions(self, start: int, end: int, width: int) -> Iterator[Instruction]:
        """Consecutive instructions of [start, end) inside one region; stops at an invalid one."""
        region = self.space.find(start)
        while region is not None and start < min(end, region.end):
            instruction = self.instruction_at(start, width, region)
            if instruction.is_invalid or start + instruction.len > region.end:
                return
            yield instruction.copy()
            start += instruction.len

    def boundaries(self, start: int, end: int, width: int) -> list[int]:
        """Starts of the instructions that fill [start, end) exactly; empty when something else does."""
        signs = _implausible()
        found: list[int] = []
        address = start
        for instruction in self.instructions(start, end, width):
            if instruction.code in signs.anywhere:
                return []
            if self.space.read_static(address, instruction.len) in signs.filler:
                return []
            found.append(address)
            address = instruction.next_ip
        return found if address == end else []

    def block(
        self,
        start: int,
        width: int,
        known: bytearray,
        region: Region,
        *,
        strict: bool = False,
        weak: bool = False,
        end: int | None = None,
    ) -> Block:
        """The block at `start`; `known` holds the widths of instructions already found in `region`.

        It ends where an instruction of its own width is known. An instruction behind Xen's forced emulation
        prefix is one with it, in images that know Xen.

        With `strict`, decoding ends at the first implausible instruction. Code that runs into data is
        none, but for what stands before a last HLT or INT n: those may never come back. Data is what is
        no instruction and, where control comes by a return that may never happen (`weak`), by a guess
        or past such an instruction, also zeros and what `data` holds. `end` cuts the block there.
        """
        block = Block(start, width)
        pause = 0
        sensitive = class_by_code()
        payload = self.space.image.payload
        address = start
        for _ in range(MAX_BLOCK):
            offset = address - region.vaddr
            if address == end:
                return block
            if address >= region.end:
                block.runs_off = True
                return block
            if known[offset] == width:
                block.merges = True
                return block
            instruction = self.instruction_at(address, width, region)
            if instruction.code == Code.UD2:
                if length := self._emulated(address, width, region):
                    block.instructions.append((address, length))
                    block.sites.append(address)
                    address += length
                    continue
                instruction = self.instruction_at(address, width, region)
            length = instruction.len
            invalid = instruction.is_invalid or address + length > region.end
            doubtful = weak or strict or pause
            if invalid or (doubtful and self._is_data(address, length, region.file_offset + offset)):
                if pause:
                    return self.block(start, width, known, region, strict=strict, end=pause)
                block.valid = False
                block.stuck = address
                return block
            code = instruction.code
            self._judge(block, instruction, payload, region.file_offset + offset)
            if strict and not block.plausible:
                return block
            block.instructions.append((address, length))
            if code in sensitive:
                block.sites.append(address)
            self._collect(block, instruction)
            if self._flow(block, instruction, address):
                return block
            address += length
            if instruction.mnemonic in _MAY_NOT_RETURN:
                pause = address
        block.edges.append(Edge(address, "fall"))
        return block

    def _emulated(self, address: int, width: int, region: Region) -> int:
        """Length of Xen's forced emulation prefix at an address with the instruction behind it, else 0."""
        at = region.file_offset + address - region.vaddr
        if not self.space.image.xen or not self.space.image.payload.startswith(XEN_EMULATE, at):
            return 0
        behind = address + len(XEN_EMULATE)
        if behind >= region.end:
            return 0
        instruction = self.instruction_at(behind, width, region)
        plain = not instruction.is_invalid and instruction.flow_control == FlowControl.NEXT
        return len(XEN_EMULATE) + instruction.len if plain and instruction.next_ip <= region.end else 0

    def _is_data(self, address: int, length: int, at: int) -> bool:
        """Whether what may never be reached is a descriptor table, or zeros."""
        zeros = length == 2 and self.space.image.payload[at : at + 2] in _implausible().filler
        return zeros or address in self.data

    def _judge(self, block: Block, instruction: Instruction, payload: bytes, at: int) -> None:
        """Note what real code would not contain."""
        signs = _implausible()
        length = instruction.len
        block.prefix_like += block.width == 32 and length == 1 and payload[at] & 0xF0 == 0x40
        if instruction.code in signs.codes:
            on_stack = instruction.is_jmp_far_indirect or instruction.is_call_far_indirect
            on_stack = on_stack and instruction.memory_base in (Register.ESP, Register.RSP)
            block.plausible = block.plausible and on_stack
        elif length == 2 and payload[at : at + 2] in signs.filler:
            block.plausible = False
        if block.width == 32 and length <= 2 and at and payload[at - 1 : at + length] in signs.wrong_width:
            block.plausible = False
            block.wrong_width = True

    def _is_number(self, instruction: Instruction) -> bool:
        """Whether what the instruction holds is no address: the image would have to relocate that."""
        relocated = self.space.image.relocated
        return relocated is not None and relocated.isdisjoint(range(instruction.ip, instruction.next_ip))

    def _collect(self, block: Block, instruction: Instruction) -> None:
        """Addresses that the instruction takes, for seeds and for targets."""
        for index in range(instruction.op_count):
            kind = instruction.op_kind(index)
            if kind == OpKind.MEMORY:
                if instruction.is_ip_rel_memory_operand:
                    value = instruction.ip_rel_memory_address
                elif instruction.memory_base == Register.NONE and instruction.memory_index == Register.NONE:
                    value = instruction.memory_displacement
                else:
                    if instruction.mnemonic == Mnemonic.LEA and instruction.memory_displ_size >= 4:
                        block.based.append(instruction.memory_displacement & 0xFFFF_FFFF)
                    elif self._names_a_table(instruction):
                        self._read(block, instruction, instruction.memory_displacement, indexed=True)
                    continue
                if instruction.mnemonic != Mnemonic.LEA and (
                    instruction.is_ip_rel_memory_operand or not self._is_number(instruction)
                ):
                    self._read(block, instruction, value, indexed=False)
                if instruction.mnemonic == Mnemonic.LEA:
                    if instruction.is_ip_rel_memory_operand or not self._is_number(instruction):
                        self._reference(block, value, instruction.ip)
                elif instruction.mnemonic in (Mnemonic.CALL, Mnemonic.JMP):
                    block.slots.append(value)
                elif instruction.mnemonic == Mnemonic.LGDT:
                    block.tables.append(value)
                elif instruction.mnemonic == Mnemonic.LIDT:
                    block.idt_pointers.append(value)
            elif kind in _IMMEDIATE_KINDS:
                value = instruction.immediate(index)
                if value > 0xFFF and not self._is_number(instruction):
                    mask = 0xFFFF_FFFF if block.width == 32 else (1 << 64) - 1
                    self._reference(block, value & mask, instruction.ip)

    def _reference(self, block: Block, value: int, by: int) -> None:
        target = self.space.resolve(value)
        if target is not None:
            block.references.append((target, by))

    def _names_a_table(self, instruction: Instruction) -> bool:
        """Whether the displacement behind a register is an address, and no offset in a structure."""
        if instruction.memory_displ_size < 4 or self._is_number(instruction):
            return False
        alone = instruction.memory_base == Register.NONE
        return bool(alone or instruction.memory_displacement >= _LARGEST_STRUCTURE)

    def _read(self, block: Block, instruction: Instruction, address: int, *, indexed: bool) -> None:
        """Note a memory operand inside a region; FS and GS have bases that nobody knows here."""
        if instruction.memory_segment in (Register.FS, Register.GS):
            return
        target = self.space.resolve(address & 0xFFFF_FFFF if block.width == 32 else address)
        if target is not None:
            size = 0 if indexed else max(MemorySizeExt.size(instruction.memory_size), 1)
            block.reads.append(Read(target, size))

    def _far_pointer(self, block: Block, instruction: Instruction) -> None:
        """A far transfer through a pointer that the file holds leads where the pointer says."""
        if not (instruction.is_jmp_far_indirect or instruction.is_call_far_indirect):
            return
        fixed = instruction.memory_base == Register.NONE and instruction.memory_index == Register.NONE
        if not (fixed or instruction.is_ip_rel_memory_operand):
            return
        size = MemorySizeExt.size(instruction.memory_size)
        raw = self.space.read_static(instruction.memory_displacement, size)
        if raw:
            offset, selector = int.from_bytes(raw[:-2], "little"), int.from_bytes(raw[-2:], "little")
            block.edges.append(Edge(offset, "far", selector))

    def _takes_return_address(self, callee: int, width: int, following: int) -> bool:
        """Whether a callee begins with POP: it does not return behind the call, but may read there."""
        region = self.space.find(callee)
        if region is None or callee == following:
            return False
        first = self.space.code(region)[callee - region.vaddr]
        return width != 16 and 0x58 <= first <= 0x5F and first != _POP_STACK_POINTER

    def _flow(self, block: Block, instruction: Instruction, address: int) -> bool:
        """Record the edges of a control transfer; True when the block ends here."""
        flow = instruction.flow_control
        if flow == FlowControl.NEXT:
            return False
        following = address + instruction.len
        near = instruction.op_count and instruction.op0_kind in _BRANCH_KINDS
        if near or flow == FlowControl.XBEGIN_XABORT_XEND:
            if not near:
                return False
            delta = instruction.near_branch_target - address
            if block.width != 64:
                delta = (delta + 0x8000_0000) % 0x1_0000_0000 - 0x8000_0000
            target = address + delta
            if self.space.find(target) is None:
                block.plausible = False
            kind = "call" if flow == FlowControl.CALL else "jump"
            block.edges.append(Edge(target, kind))
            if flow == FlowControl.CALL and self._takes_return_address(target, block.width, following):
                block.references.append((following, target))
            elif flow == FlowControl.CALL:
                block.edges.append(Edge(following, "after_call"))
            elif flow != FlowControl.UNCONDITIONAL_BRANCH:
                block.edges.append(Edge(following, "fall"))
            return True
        if instruction.is_jmp_far or instruction.is_call_far:
            offset = (
                instruction.far_branch32
                if instruction.op0_kind == OpKind.FAR_BRANCH32
                else instruction.far_branch16
            )
            block.edges.append(Edge(offset, "far", instruction.far_branch_selector))
            if instruction.is_call_far:
                block.edges.append(Edge(following, "after_call"))
            return True
        self._far_pointer(block, instruction)
        if flow == FlowControl.INDIRECT_BRANCH:
            if not instruction.is_jmp_far_indirect:
                block.indirect = address
            return True
        if flow in (FlowControl.INDIRECT_CALL, FlowControl.CALL):
            if instruction.mnemonic != Mnemonic.CALL:
                return False  # VMCALL and its like
            block.edges.append(Edge(following, "after_call"))
            return True
        if flow == FlowControl.INTERRUPT and instruction.mnemonic == Mnemonic.INT3:
            block.plausible = False
            block.edges.append(
                Edge(following, "after_call")
            )  # a breakpoint, or filling that is never reached
            return True
        return flow in _ENDING
