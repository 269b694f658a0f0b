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
from rewriter.decode.lengths import MAX_INSTRUCTION
from rewriter.scan.block import Block, BlockDecoder, Edge, Read
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


_PREFIXES, _PREFIX_SHARE = 4, 8
"""So many INC and DEC, and one in so many instructions, are the REX prefixes of 64-bit code."""

HYPERCALL_PAGE = 4096
"""Bytes of the page that Xen fills with hypercall stubs."""

_PROLOGUES = (b"\x55\x89\xe5", b"\x55\x48\x89\xe5", b"\xf3\x0f\x1e\xfa", b"\xf3\x0f\x1e\xfb")
"""How compilers begin functions: PUSH and MOV of the frame pointer, ENDBR64, ENDBR32."""

VOTE_FAR, VOTE_NEAR = 47, 15
"""Distances before a guessed start, in bytes, between which walks begin that must arrive at it."""

_BEHIND_CODE = (0xC3, 0x90, 0xCC)
"""RET, NOP, INT3: a function may begin behind them."""

ENOUGH = 256
"""Plausible instructions in one guess that are no accident."""

_LONG_BRANCH = 5
"""Bytes of a branch that holds a distance of four: that it leads to known code is no accident."""

NEAR = 64
"""Bytes around known code in which a guess is allowed, where no section says what is code."""


def _shows_prefixes(blocks: list[Block]) -> bool:
    """Whether what was read as 32-bit code is 64-bit code."""
    count = sum(len(block.instructions) for block in blocks)
    prefixes = sum(block.prefix_like for block in blocks)
    return prefixes >= _PREFIXES and prefixes * _PREFIX_SHARE > count


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
        self.takers: dict[int, set[int]] = {}
        """By address that code takes: the instructions that do."""
        self.reads: set[Read] = set()
        """Bytes inside regions that known code names as data."""
        self.doubtful: dict[int, Block] = {}
        """Instructions known only by a guess that nothing else confirms, and their blocks."""
        self.conflicts: dict[tuple[int, int], int] = {}
        """(address, width) of instructions that are also known in another width, and their length."""
        self.lost: set[int] = set()
        """Where code that is sure leads into something that is no instruction."""
        self.outside: set[int] = set()
        """Where code that is sure leads out of every region."""
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
        self._anchored = False
        """The last guess is confirmed: no data has the distance to code, or is so much plausible code."""
        self._fresh: list[Block] = []
        """What the last guess added."""
        self.guesses: list[Start] = []
        """Where the guesses began that nothing confirmed at once."""
        page = space.image.xen.get("HYPERCALL_PAGE")
        self._hypercalls = range(page, page + HYPERCALL_PAGE) if isinstance(page, int) else range(0)
        """Code that is in no file: Xen writes it (public/arch-x86/xen.h)."""
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

    def is_sure(self, address: int) -> bool:
        """Whether an address is a byte of an instruction that more than a guess leads to."""
        region = self.space.find(address)
        if region is None or not self.covered[region.index][address - region.vaddr]:
            return False
        lengths, offset = self.lengths[region.index], address - region.vaddr
        return any(
            lengths[offset - back] > back and address - back not in self.doubtful
            for back in range(min(MAX_INSTRUCTION, offset + 1))
        )

    def next_sure(self, address: int) -> int:
        """The first instruction from an address on that more than a guess leads to, or the region's end."""
        region = self.space.find(address)
        if region is None:
            return address
        covered, lengths = self.covered[region.index], self.lengths[region.index]
        offset = address - region.vaddr
        while (offset := covered.find(1, offset)) >= 0:
            if lengths[offset] and region.vaddr + offset not in self.doubtful:
                return region.vaddr + offset
            offset += 1
        return region.end

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
        if region is None or not region.code:
            return False
        if region.section:
            return True
        low, high = self._hulls[region.index]
        return low - NEAR <= address < high + NEAR

    def follow(self, starts: Iterable[Start], *, guessed: bool = False) -> None:
        """Take every start as code and follow it to the end; what only a guess leads to stays doubtful."""
        work = [(Edge(start.address, "jump"), start.width) for start in starts]
        while work:
            if self.exhausted:
                self.complete = False
                return
            edge, width = work.pop()
            region = self.space.find(edge.address)
            if region is None:
                if not guessed:
                    self.outside.add(edge.address)
                continue
            if edge.kind in ("jump", "call"):
                self.targets.add(edge.address)
            if edge.kind == "call":
                self.calls.add(edge.address)
            if self._is_settled(region, width) or edge.address in self._hypercalls:
                continue
            known = self.widths[region.index][edge.address - region.vaddr]
            if known == width:
                if not guessed:
                    work += [(successor, width) for successor in self._confirm(edge.address)]
                continue
            if known and edge.address in self.doubtful and not guessed:
                self.forget(self.doubtful[edge.address])
            if (edge.address, width) in self.conflicts:
                continue
            work += [(successor, width) for successor in self._extend(edge, width, region, guessed)]

    def _extend(self, edge: Edge, width: int, region: Region, guessed: bool) -> list[Edge]:
        """Take the block behind an edge as code; the near ways out of it."""
        weak = edge.kind == "after_call"
        block = self.decoder.block(edge.address, width, self.widths[region.index], region, weak=weak)
        if not block.valid or not block.instructions:
            self.rejected.add((edge.address, width))
            if not block.valid and not weak and not guessed:
                self.lost.add(block.stuck)
            return []
        self._commit(block, region)
        if guessed:
            self.doubtful.update((address, block) for address, _ in block.instructions)
            self._fresh.append(block)
        else:
            self.far += [(successor, width) for successor in block.edges if successor.kind == "far"]
        ways = [successor for successor in block.edges if successor.kind != "far"]
        if block.merges and block.instructions:
            address, length = block.instructions[-1]
            ways.append(Edge(address + length, "fall"))
        return ways

    def _confirm(self, address: int) -> list[Edge]:
        """A sure way leads to an instruction; the ways out of its block, if that was doubtful."""
        block = self.doubtful.get(address)
        if block is None:
            return []
        for other, _ in block.instructions:
            if other >= address:
                self.doubtful.pop(other, None)
        self.far += [(edge, block.width) for edge in block.edges if edge.kind == "far"]
        return [edge for edge in block.edges if edge.kind != "far"]

    def _uncover(self, region: Region, offset: int, length: int) -> None:
        """Forget the instruction at an offset, but not others that share bytes with it."""
        lengths, covered = self.lengths[region.index], self.covered[region.index]
        lengths[offset] = self.widths[region.index][offset] = 0
        covered[offset : offset + length] = bytes(length)
        for other in range(max(0, offset - MAX_INSTRUCTION), min(offset + length, region.size)):
            if lengths[other]:
                covered[other : other + lengths[other]] = b"\1" * lengths[other]

    def _commit(self, block: Block, region: Region) -> None:
        lengths, covered, widths = (
            self.lengths[region.index],
            self.covered[region.index],
            self.widths[region.index],
        )
        for address, length in block.instructions:
            offset = address - region.vaddr
            if widths[offset]:  # of another width, or the block would have ended here
                self.conflicts[address, block.width] = length
                continue
            lengths[offset] = length
            widths[offset] = block.width
            covered[offset : offset + length] = b"\1" * length
        self.committed += 1
        self.found_by_width[block.width] += len(block.instructions)
        low, high = self._hulls[region.index]
        last, length = block.instructions[-1]
        self._hulls[region.index] = min(low, block.start), max(high, last + length)
        self.sites.update(block.sites)
        for reference, taker in block.references:
            self.references.setdefault(reference, block.width)
            self.takers.setdefault(reference, set()).add(taker)
        self.reads.update(block.reads)
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
        if known := self.widths[region.index][address - region.vaddr]:
            return known == width
        if not region.code or self.is_object(address):
            self.rejected.add((address, width))
            return False
        self.wrong_width = False
        unlikely = self.is_inside(address) or not (region.section or self.on_boundary(region, address, width))
        if unlikely or not self._walk(address, width):
            self.rejected.add((address, width))
            return width == 32 and self.wrong_width and self.guess(address, 64)
        anchored = self._anchored
        self._fresh.clear()
        self.follow([Start(address, width)], guessed=True)
        if width == 32 and _shows_prefixes(self._fresh):
            for block in self._fresh:
                self.forget(block)
            self.rejected.add((address, width))
            return self.guess(address, 64)
        if anchored:
            self.follow([Start(address, width)])
        else:
            self.guesses.append(Start(address, width))
        return True

    def forget(self, block: Block) -> list[int]:
        """Take the doubtful instructions of a block back; their addresses."""
        region = self.space.find(block.start)
        assert region is not None
        gone = [(address, length) for address, length in block.instructions if address in self.doubtful]
        for address, length in gone:
            del self.doubtful[address]
            self.sites.discard(address)
            self._uncover(region, address - region.vaddr, length)
        self.found_by_width[block.width] -= len(gone)
        if block.indirect:
            self.indirect.pop(block.indirect, None)
        return [address for address, _ in gone]

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
        self._anchored = (self.space.read_static(address, 4) or b"").startswith(_PROLOGUES)
        while work:
            current = work.pop()
            known = self.width_at(current)
            if known and known != width:
                return False  # no near transfer changes the width
            if known or current in seen:
                ended = True
                continue
            seen.add(current)
            region = self.space.find(current)
            if region is not None and (self._is_settled(region, width) or current in self._hypercalls):
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
            block = self.decoder.block(current, width, self.widths[region.index], region, strict=True)
            if not block.valid or block.runs_off or not block.plausible:
                self.wrong_width |= block.wrong_width
                if current != address:
                    self.rejected.add((current, width))
                return False
            if any(self.covered[region.index][at - region.vaddr] for at, _ in block.instructions):
                return False
            count += len(block.instructions)
            self._anchored |= count >= ENOUGH
            if count > MAX_GUESS:
                return True
            ended = (
                ended or block.merges or not any(edge.kind in ("fall", "after_call") for edge in block.edges)
            )
            self._anchored |= self.is_anchored(block)
            for edge in block.edges:
                if edge.kind == "call":
                    if self.is_inside(edge.address) or self.width_at(edge.address) not in (0, width):
                        return False
                elif edge.kind == "far":
                    if self.space.resolve(edge.address) is not None:
                        return False
                elif edge.kind != "after_call" or self._returns_plausibly(edge.address, width):
                    work.append(edge.address)
                elif self.wrong_width:
                    return False
                else:
                    ended = True
        return ended and count >= least

    def is_anchored(self, block: Block) -> bool:
        """Whether a block ends in a call or jump of four bytes' distance to a sure instruction."""
        if not block.instructions or block.instructions[-1][1] < _LONG_BRANCH:
            return False
        for edge in block.edges:
            region = self.space.find(edge.address)
            if edge.kind not in ("call", "jump") or region is None:
                continue
            if self._is_settled(region, block.width) or edge.address in self._hypercalls:
                return True
            if self.width_at(edge.address) == block.width and edge.address not in self.doubtful:
                return True
        return False

    def _returns_plausibly(self, address: int, width: int) -> bool:
        """False when what follows a call is no code, so that the call cannot return."""
        region = self.space.find(address)
        if region is None:
            return False
        if self.lengths[region.index][address - region.vaddr]:
            return True
        block = self.decoder.block(address, width, self.widths[region.index], region, strict=True)
        self.wrong_width |= block.wrong_width
        return block.valid and not block.runs_off and block.plausible
