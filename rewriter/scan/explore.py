"""Discovery by recursion: follow control flow from known starts, and test guesses before they count.

A *known* start (entry point, unwind record, function symbol, branch target) is followed and what
it reaches is code. A *guess* (an address found in data, taken by an instruction, or left over in a
gap) is first walked without a trace; only if everything it reaches looks like code is it kept.
A block that runs into an invalid instruction is dropped as a whole: that is what follows a call
that never returns.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from rewriter.decode import instruction_lengths
from rewriter.scan.block import Block, BlockDecoder, Edge
from rewriter.scan.descriptor_data import DataRanges
from rewriter.scan.space import Region, Space

__all__ = ["Explorer", "Start"]

MAX_DECODED = 6_000_000
"""Instructions decoded before discovery stops and reports itself incomplete: bounds time on hostile input."""

MAX_GUESS = 3000
"""Instructions that one guess may be walked."""


@dataclass(frozen=True, slots=True)
class Start:
    """Where to begin and how wide the code is there."""

    address: int
    width: int


VOTE_FAR, VOTE_NEAR = 47, 15
"""Distances before a guessed start, in bytes, between which walks begin that must arrive at it."""

_BEHIND_CODE = (0xC3, 0x90, 0xCC)
"""RET, NOP, INT3: a function may begin behind them."""

NEAR = 64
"""Bytes around known code in which a guess is allowed, where no section says what is code."""


class Explorer:
    """What recursion has found so far. Addresses are virtual; arrays are per region, by offset."""

    def __init__(self, space: Space, data: DataRanges | None = None) -> None:
        self.space = space
        self.settled: frozenset[int] = frozenset()
        """Regions whose code of the image's own width is known by other means; it is not followed."""
        self.decoder = BlockDecoder(space, data)
        self.lengths = [bytearray(region.size) for region in space.regions]
        """Instruction length at each start, else 0."""
        self.covered = [bytearray(region.size) for region in space.regions]
        """1 for every byte of a known instruction."""
        self.widths = [bytearray(region.size) for region in space.regions]
        """Code width at each instruction start."""
        self._hulls = [(region.end + NEAR, region.vaddr - NEAR) for region in space.regions]
        """Per region, the addresses between which all known code lies; empty at first."""
        self.found_by_width: Counter[int] = Counter()
        """Known instructions of each width."""
        self.targets: set[int] = set()
        self.calls: set[int] = set()
        self.sites: set[int] = set()
        self.references: dict[int, int] = {}
        self.slots: dict[int, int] = {}
        self.based: set[int] = set()
        self.gdt_pointers: set[int] = set()
        self.idt_pointers: set[int] = set()
        self.indirect: dict[int, int] = {}
        self.far: list[tuple[Edge, int]] = []
        self.rejected: set[tuple[int, int]] = set()
        self.got_bases: Counter[int] = Counter()
        self.wrong_width = False
        """The last guess met 64-bit code while it was read as 32-bit."""
        self._dense_lengths: dict[tuple[int, int], bytes] = {}
        self.complete = True
        self.committed = 0
        """Blocks taken as code: grows while discovery makes progress."""

    @property
    def exhausted(self) -> bool:
        """True when the work limit is reached."""
        return self.decoder.decoded > MAX_DECODED

    def is_start(self, address: int) -> bool:
        """True when a known instruction begins at `address`."""
        region = self.space.find(address)
        return region is not None and self.lengths[region.index][address - region.vaddr] > 0

    def is_inside(self, address: int) -> bool:
        """True when `address` is a byte of a known instruction, but not its first."""
        region = self.space.find(address)
        if region is None:
            return False
        offset = address - region.vaddr
        return self.covered[region.index][offset] > 0 and not self.lengths[region.index][offset]

    def width_at(self, address: int) -> int:
        """Width of the known instruction at `address`, 0 when there is none."""
        region = self.space.find(address)
        return 0 if region is None else self.widths[region.index][address - region.vaddr]

    def _is_settled(self, region: Region, width: int) -> bool:
        return region.index in self.settled and width == self.space.image.bits

    def near_code(self, address: int) -> bool:
        """False for a place in a region without section bounds that lies apart from all known code.

        Such a region holds code, constants and data in this order; a guess behind the last known
        function would be a guess about data.
        """
        region = self.space.find(address)
        if region is None:
            return False
        if region.section:
            return True
        low, high = self._hulls[region.index]
        return low - NEAR <= address < high + NEAR

    def follow(self, starts: Iterable[Start]) -> None:
        """Take every start as code and follow it to the end."""
        work = [(Edge(start.address, "jump"), start.width) for start in starts]
        while work:
            if self.exhausted:
                self.complete = False
                return
            edge, width = work.pop()
            region = self.space.find(edge.address)
            if region is None:
                continue
            if edge.kind in ("jump", "call"):
                self.targets.add(edge.address)
            if edge.kind == "call":
                self.calls.add(edge.address)
            offset = edge.address - region.vaddr
            if self.lengths[region.index][offset] or self._is_settled(region, width):
                continue
            if self.covered[region.index][offset] and edge.kind not in ("jump", "call"):
                continue
            weak = edge.kind == "after_call"
            block = self.decoder.block(edge.address, width, self.lengths[region.index], region, weak=weak)
            if not block.valid or not block.instructions:
                self.rejected.add((edge.address, width))
                continue
            self._commit(block, region)
            for successor in block.edges:
                if successor.kind == "far":
                    self.far.append((successor, width))
                else:
                    work.append((successor, width))

    def _commit(self, block: Block, region: Region) -> None:
        lengths, covered, widths = (
            self.lengths[region.index],
            self.covered[region.index],
            self.widths[region.index],
        )
        for address, length in block.instructions:
            offset = address - region.vaddr
            lengths[offset] = length
            widths[offset] = block.width
            covered[offset : offset + length] = b"\1" * length
        self.committed += 1
        self.found_by_width[block.width] += len(block.instructions)
        low, high = self._hulls[region.index]
        last, length = block.instructions[-1]
        self._hulls[region.index] = min(low, block.start), max(high, last + length)
        self.sites.update(block.sites)
        for reference in block.references:
            self.references.setdefault(reference, block.width)
        for slot in block.slots:
            self.slots.setdefault(slot, block.width)
        self.based.update(block.based)
        self.gdt_pointers.update(block.tables)
        self.idt_pointers.update(block.idt_pointers)
        if block.indirect:
            self.indirect[block.indirect] = block.width
        if block.width == 32:
            self._note_got(block)

    def _note_got(self, block: Block) -> None:
        """`call thunk; add reg, imm32`, the thunk being `mov reg, [esp]; ret`: the i386 GOT address."""
        call = next((edge for edge in block.edges if edge.kind == "call"), None)
        if call is None:
            return
        thunk = self.space.read_static(call.address, 4)
        if thunk is None or thunk[0] != 0x8B or thunk[1] & 0xC7 != 0x04 or thunk[2:] != b"\x24\xc3":
            return
        following = block.edges[-1].address
        code = self.space.read_static(following, 6) or b""
        if code[:1] == b"\x81" and len(code) == 6 and code[1] & 0xF8 == 0xC0:
            self.got_bases[(following + int.from_bytes(code[2:6], "little")) & 0xFFFF_FFFF] += 1
        elif code[:1] == b"\x05":
            self.got_bases[(following + int.from_bytes(code[1:5], "little")) & 0xFFFF_FFFF] += 1

    def guess(self, address: int, width: int) -> bool:
        """Test whether `address` looks like code; if so, follow it. True when it is code (or was already)."""
        region = self.space.find(address)
        if region is None or (address, width) in self.rejected:
            return False
        if self._is_settled(region, width):
            return True
        if self.lengths[region.index][address - region.vaddr]:
            return True
        if self.is_object(address):
            self.rejected.add((address, width))
            return False
        self.wrong_width = False
        unlikely = self.is_inside(address) or not (region.section or self.on_boundary(region, address, width))
        if unlikely or not self._walk(address, width):
            self.rejected.add((address, width))
            return width == 32 and self.wrong_width and self.guess(address, 64)
        self.follow([Start(address, width)])
        return True

    @cached_property
    def _objects(self) -> tuple[list[int], list[int]]:
        """Starts and ends of what symbols call data, by address."""
        found = sorted(
            (symbol.address, symbol.address + symbol.size)
            for symbol in self.space.image.symbols
            if symbol.kind == "object" and symbol.size and self.space.find(symbol.address) is not None
        )
        return [start for start, _ in found], [end for _, end in found]

    def holds_code(self, ranges: Iterable[tuple[int, int]]) -> bool:
        """Whether a byte of these ranges was taken for code."""
        for start, end in ranges:
            region = self.space.find(start)
            if region is not None and any(
                self.covered[region.index][start - region.vaddr : end - region.vaddr]
            ):
                return True
        return False

    def is_object(self, address: int) -> bool:
        """Whether a symbol or a descriptor table says that the byte is data, which outweighs any guess."""
        if address in self.decoder.data:
            return True
        starts, ends = self._objects
        index = bisect_right(starts, address) - 1
        return index >= 0 and address < ends[index]

    def on_boundary(self, region: Region, address: int, width: int, *, aligned: bool = True) -> bool:
        """Whether the bytes before agree that an instruction begins here (or, with `aligned`, the address).

        Decoding from any place falls into step with the real instructions soon, so most walks that
        start some way before a real boundary arrive at it, and hardly any at the middle of one.
        Asked where no section says what is code: there, numbers look like addresses.
        """
        offset = address - region.vaddr
        code = self.space.image.payload
        before = code[region.file_offset + offset - 1] if offset else 0xC3
        if before in _BEHIND_CODE or (aligned and address % 16 == 0) or offset < VOTE_FAR:
            return True
        lengths = self._dense(region, width)
        arrived = 0
        for position in range(offset - VOTE_FAR, offset - VOTE_NEAR):
            while position < offset:
                position += lengths[position] or 1
            arrived += position == offset
        return arrived * 2 > VOTE_FAR - VOTE_NEAR

    def _dense(self, region: Region, width: int) -> bytes:
        key = (region.index, width)
        if key not in self._dense_lengths:
            self._dense_lengths[key] = instruction_lengths(self.space.code(region), width).lengths.tobytes()
        return self._dense_lengths[key]

    def leads_to_code(self, address: int, width: int) -> bool:
        """Whether all that an address reaches looks like code, be it only a jump to some that is known."""
        return self._walk(address, width, least=1)

    def _walk(self, address: int, width: int, least: int = 2) -> bool:
        work, seen, count, ended = [address], set[int](), 0, False
        while work:
            current = work.pop()
            if current in seen or self.is_start(current):
                ended = True
                continue
            seen.add(current)
            region = self.space.find(current)
            if region is not None and self._is_settled(region, width):
                ended = True
                continue
            if (
                region is None
                or self.is_inside(current)
                or (current, width) in self.rejected
                or self.is_object(current)
                or self.exhausted
            ):
                return False
            block = self.decoder.block(current, width, self.lengths[region.index], region, strict=True)
            if not block.valid or block.runs_off or not block.plausible:
                self.wrong_width |= block.wrong_width
                if current != address:
                    self.rejected.add((current, width))
                return False
            if any(self.covered[region.index][at - region.vaddr] for at, _ in block.instructions):
                return False
            count += len(block.instructions)
            if count > MAX_GUESS:
                return True
            ended = (
                ended or block.merges or not any(edge.kind in ("fall", "after_call") for edge in block.edges)
            )
            for edge in block.edges:
                if edge.kind == "call":
                    if self.is_inside(edge.address):
                        return False
                elif edge.kind == "far":
                    return False
                elif edge.kind != "after_call" or self._returns_plausibly(edge.address, width):
                    work.append(edge.address)
                elif self.wrong_width:
                    return False
                else:
                    ended = True
        return ended and count >= least

    def _returns_plausibly(self, address: int, width: int) -> bool:
        """False when what follows a call is no code, so that the call cannot return."""
        region = self.space.find(address)
        if region is None:
            return False
        if self.lengths[region.index][address - region.vaddr]:
            return True
        block = self.decoder.block(address, width, self.lengths[region.index], region, strict=True)
        self.wrong_width |= block.wrong_width
        return block.valid and not block.runs_off and block.plausible
