"""What a tactic may ask about the code around a site.

Addresses are linked virtual addresses. The view is built once from what the scan knows
(``rewriter.tactics.adapter``); tactics only read it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from functools import cached_property

from iced_x86 import Decoder, Instruction, Mnemonic, OpKind, Register

from rewriter.decode.crosscheck import has_length
from rewriter.emit.operation import survives_encoding

__all__ = ["CodeRegion", "CodeView", "Exclusion", "is_filler"]

MAX_INDEXED = 4 << 20  # bytes of code up to which all branches are indexed by their targets
NEAR_BRANCHES = (OpKind.NEAR_BRANCH16, OpKind.NEAR_BRANCH32, OpKind.NEAR_BRANCH64)
MAX_LENGTH = 15  # bytes of the longest instruction (SDM 2.3.11)


@dataclass(frozen=True)
class CodeRegion:
    """Executable bytes: instruction length (0: none starts here) and code width at each offset."""

    vaddr: int
    data: bytes
    lengths: bytes
    widths: bytes

    @property
    def end(self) -> int:
        """First address behind the region."""
        return self.vaddr + len(self.data)


@dataclass(frozen=True)
class Exclusion:
    """A range whose bytes must stay as they are, and why."""

    start: int
    end: int
    reason: str


@dataclass
class CodeView:
    """Instructions, branch targets and exclusions of an image."""

    regions: tuple[CodeRegion, ...]
    targets: Set[int]
    exclusions: tuple[Exclusion, ...] = ()
    indirect: Set[int] | None = None
    """Targets that more than direct branches lead to; None: not known, so all may be."""
    _cache: dict[int, Instruction | None] = field(default_factory=dict, repr=False)
    _doubts: dict[int, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.regions = tuple(sorted(self.regions, key=lambda region: region.vaddr))
        self._keys = [region.vaddr for region in self.regions]
        self.exclusions = tuple(sorted(self.exclusions, key=lambda item: item.start))
        self._excluded_keys = [item.start for item in self.exclusions]
        self._longest = max((item.end - item.start for item in self.exclusions), default=0)

    def region(self, address: int) -> CodeRegion | None:
        """The region that holds an address."""
        index = bisect_right(self._keys, address) - 1
        if index >= 0 and address < self.regions[index].end:
            return self.regions[index]
        return None

    def width(self, address: int) -> int:
        """Code width of the instruction at an address, 0 when none is known there."""
        region = self.region(address)
        return region.widths[address - region.vaddr] if region else 0

    def at(self, address: int) -> Instruction | None:
        """The known instruction at an address."""
        if address not in self._cache:
            self._cache[address] = self._decode(address)
        return self._cache[address]

    def _decode(self, address: int) -> Instruction | None:
        region = self.region(address)
        if region is None:
            return None
        offset = address - region.vaddr
        length = region.lengths[offset]
        if not length:
            return None
        return decode_one(region.data[offset : offset + length], region.widths[offset], address)

    def code(self, address: int) -> bytes:
        """The bytes of the known instruction at an address; empty when none is known."""
        region = self.region(address)
        if region is None:
            return b""
        offset = address - region.vaddr
        return region.data[offset : offset + region.lengths[offset]]

    def doubt(self, address: int) -> str:
        """Why the known instruction at an address cannot be moved whole; empty when it can."""
        if address not in self._doubts:
            self._doubts[address] = self._doubt(address)
        return self._doubts[address]

    def _doubt(self, address: int) -> str:
        region, instruction = self.region(address), self.at(address)
        assert region is not None and instruction is not None
        offset = address - region.vaddr
        width = region.widths[offset]
        if not has_length(region.data[offset : offset + instruction.len], width):
            return "two decoders do not agree on an instruction"
        if not survives_encoding(instruction, width):
            return "an instruction that cannot be encoded again"
        return ""

    def before(self, address: int) -> Instruction | None:
        """The known instruction that ends where an address begins."""
        region = self.region(address)
        if region is None:
            return None
        offset = address - region.vaddr
        for length in range(1, min(MAX_LENGTH, offset) + 1):
            if region.lengths[offset - length] == length:
                return self.at(address - length)
        return None

    def is_target(self, address: int) -> bool:
        """Whether control may come here by anything but falling through."""
        return address in self.targets

    def targets_inside(self, start: int, end: int) -> list[int]:
        """Targets strictly inside [start, end), on instruction boundaries or not."""
        return [address for address in range(start + 1, end) if address in self.targets]

    def only_from(self, address: int, start: int, end: int) -> bool:
        """Whether it is certain that only direct branches inside [start, end) lead to an address."""
        if self.indirect is None or address in self.indirect or self._too_large:
            return False
        sources = self._sources.get(address, ())
        return bool(sources) and all(start <= source < end for source in sources)

    @cached_property
    def _too_large(self) -> bool:
        return sum(len(region.data) for region in self.regions) > MAX_INDEXED

    @cached_property
    def _sources(self) -> dict[int, list[int]]:
        """Every direct branch and call by its target."""
        found: dict[int, list[int]] = {}
        for region in self.regions:
            mask = (1 << 64) - 1
            for offset, length in enumerate(region.lengths):
                if not length:
                    continue
                width = region.widths[offset]
                address = region.vaddr + offset
                instruction = decode_one(region.data[offset : offset + length], width, address)
                if instruction.op_count and instruction.op0_kind in NEAR_BRANCHES:
                    target = instruction.near_branch_target & (mask if width == 64 else 0xFFFFFFFF)
                    found.setdefault(target, []).append(address)
        return found

    def excluded(self, start: int, end: int) -> str:
        """The reason why a byte of [start, end) must not change; empty when all may."""
        index = bisect_right(self._excluded_keys, end - 1) - 1
        while index >= 0 and self.exclusions[index].start > start - self._longest:
            if self.exclusions[index].end > start:
                return self.exclusions[index].reason
            index -= 1
        return ""

    def filler(self, address: int) -> int:
        """Bytes from an address that are padding nobody reaches, none of them a target."""
        region = self.region(address)
        if region is None:
            return 0
        count = 0
        for instruction in self._raw(region, address):
            if self.is_target(instruction.ip) or not is_filler(instruction):
                break
            count += instruction.len
        return count

    def _raw(self, region: CodeRegion, address: int) -> Iterator[Instruction]:
        offset = address - region.vaddr
        width = next((w for w in reversed(region.widths[max(0, offset - MAX_LENGTH) : offset]) if w), 0)
        decoder = Decoder(width or 32, region.data[offset : offset + 512], ip=address)
        for instruction in decoder:
            if instruction.is_invalid:
                return
            yield instruction


def decode_one(data: bytes, width: int, address: int) -> Instruction:
    """One instruction."""
    return Decoder(width, data, ip=address).decode()


def is_filler(instruction: Instruction) -> bool:
    """Whether an instruction is what assemblers and linkers pad code with."""
    if instruction.mnemonic in (Mnemonic.NOP, Mnemonic.INT3):
        return True
    if instruction.mnemonic == Mnemonic.LEA:
        plain = instruction.memory_index == Register.NONE and instruction.memory_displacement == 0
        return bool(plain and instruction.memory_base == instruction.op0_register)
    if instruction.mnemonic in (Mnemonic.MOV, Mnemonic.XCHG) and instruction.op_count == 2:
        registers = instruction.op0_kind == instruction.op1_kind == OpKind.REGISTER
        return bool(registers and instruction.op0_register == instruction.op1_register)
    return False
