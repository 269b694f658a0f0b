"""The recursive discovery plan: which starts are sure, which guesses follow, in which order."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from rewriter.image import Image
from rewriter.image.multiboot import find_multiboot
from rewriter.scan.block import Read
from rewriter.scan.data_in_text import DataInText, data_in_text
from rewriter.scan.descriptor_data import DataRanges, descriptor_data
from rewriter.scan.doubt import confirm_guesses, confirm_region, confirm_taken, retract
from rewriter.scan.explore import Explorer, Start
from rewriter.scan.frames import function_frames
from rewriter.scan.gaps import gaps, guess_gaps, padding_end
from rewriter.scan.jump_tables import JumpTable, resolve_jump
from rewriter.scan.pointers import absolute_pointers, relocation_addends
from rewriter.scan.space import Region, Space
from rewriter.scan.uses import data_uses

__all__ = ["Recursion"]

_WIDTHS = (16, 32, 64)
_ATTEMPTS = 3
_NO_CODE = (0, 0)
"""What stands for an entry of a GDT that is no code segment."""
_LOCAL = 4
"""The bit of a selector that names the LDT."""
PURE_SIZE = 1 << 17
"""Bytes of sure code from which on the rest of a region says something about its kind."""
PURE_REST = 0.02
"""Bytes that are neither code nor padding, per byte of code, in a region of code; GNU Mach's has 0.005."""
PURE_DOUBT = 4
"""Bytes that a doubtful instruction counts for."""


class Recursion:
    """Runs an `Explorer` over an image until nothing new is found."""

    def __init__(self, image: Image, space: Space) -> None:
        self.image = image
        self.space = space
        self.settled: frozenset[int] = frozenset()
        """Regions whose code of the image's own width is known by other means."""
        self._begin(DataRanges())

    def _begin(self, data: DataRanges) -> None:
        """Know nothing but what is data."""
        self.explorer = Explorer(self.space, data)
        self.explorer.settled = self.settled
        self.tables: dict[int, JumpTable] = {}
        self.functions: set[int] = set()
        self.unknown_widths: set[int] = set()
        """Where far transfers lead whose code segment the image does not hold."""
        self._uses: dict[int, list[Read]] = {}
        self._tried_far = 0
        self._tried: set[tuple[int, int]] = set()

    def run_entries(self) -> None:
        """Follow the entry points only, each in the width that its boot protocol enters it in.

        What they load as descriptor tables is data; if it was taken for code, all begins again.
        """
        headers = list(self._boot_headers())
        data = DataRanges(headers)
        for _ in range(_ATTEMPTS):
            self._begin(data)
            self._follow_entries()
            tables = descriptor_data(self.space, self.explorer.gdt_pointers, self.explorer.idt_pointers)
            data = DataRanges((*headers, *tables.ranges))
            if not self.explorer.holds_code(data.ranges):
                break
        self.explorer.decoder.data = data

    def _boot_headers(self) -> Iterable[tuple[int, int]]:
        """Multiboot headers, which kernels like to keep in their code: magic, flags, checksum at least."""
        for header in find_multiboot(self.image.payload):
            start = self.image.vaddr_of_offset(header.offset)
            if start is not None:
                yield start, start + 12

    def _follow_entries(self) -> None:
        starts = [Start(entry.address, entry.width) for entry in self.image.entries if entry.width in _WIDTHS]
        self.functions.update(start.address for start in starts)
        self.explorer.follow(starts)
        self._settle()

    def run_all(self) -> None:
        """Everything; then guesses in what sure code reads are taken back."""
        self._run_once()
        confirm_guesses(self.explorer)
        self._settle()
        retract(self.explorer, self.data_read())
        for region in self.space.regions:
            if region.section and self._is_pure(region):
                confirm_region(self.explorer, region)

    def _is_pure(self, region: Region) -> bool:
        """Whether nearly all of a large region is sure code or padding, so that a guess in it is no risk."""
        explorer, code = self.explorer, self.space.code(region).tobytes()
        covered = explorer.covered[region.index]
        doubtful = sum(region.vaddr <= address < region.end for address in explorer.doubtful)
        bare = sum(end - padding_end(code, start, end) for start, end in gaps(covered))
        known = sum(covered)
        return known >= PURE_SIZE and bare + PURE_DOUBT * doubtful <= known * PURE_REST

    def data_read(self) -> DataInText:
        """The bytes of the regions that known code reads, as far as is known now."""
        uses = [read for reads in self._uses.values() for read in reads]
        return data_in_text(self.explorer, self.tables.values(), uses, self.functions)

    def _run_once(self) -> None:
        """Entries, unwind records, symbols, what code refers to, pointers in data, gaps."""
        self.run_entries()
        self._frames()
        symbols = [symbol.address for symbol in self.image.symbols if symbol.kind == "function"]
        self.functions.update(symbols)
        width = self.common_width()
        self._follow_named(symbols, width)
        self._settle()
        for start, end in self._sized_functions():
            self._sweep_plain_rest(start, end, width)
        self._settle()
        bounded = [(read.address, read.address + read.size) for read in self.explorer.reads if read.size]
        self.explorer.decoder.data = DataRanges((*self.explorer.decoder.data.ranges, *bounded))
        self._guess((address, width) for address in relocation_addends(self.space))
        pointers = sorted(set(absolute_pointers(self.space)[1].tolist()))
        width = self.common_width()
        self._guess((address, width) for address in pointers)
        for _ in range(8):
            if not guess_gaps(self.explorer, self.common_width()):
                break
            self._settle()
        self.functions |= self.explorer.calls

    def _follow_named(self, addresses: Iterable[int], width: int) -> None:
        """Functions that the file names. It does not name their width, which is a guess in a 32-bit file with
        64-bit code."""
        new = [address for address in addresses if not self.explorer.width_at(address)]
        if self.image.bits == 32 and self.explorer.found_by_width[64]:
            self._guess((address, width) for address in new)
        else:
            self.explorer.follow(Start(address, width) for address in new)

    def common_width(self) -> int:
        """The width that most of the known code has; the image's own before anything is known."""
        counts = self.explorer.found_by_width
        best = max(_WIDTHS, key=lambda width: counts[width])
        return best if counts[best] > 64 else self.image.bits

    def _frames(self) -> None:
        frames = function_frames(self.image)
        width = self.image.bits
        self.functions.update(frame.start for frame in frames)
        self._follow_named((frame.start for frame in frames), width)
        self._settle()
        for frame in frames:
            self._sweep_rest(frame.start, frame.start + frame.size, width)
        self._settle()

    def _sweep_rest(self, start: int, end: int, width: int) -> None:
        """Inside one function a compiler places no data: what is left over there is code too."""
        region = self.space.find(start)
        if region is None:
            return
        end = min(end, region.end)
        covered = self.explorer.covered[region.index]
        address = start
        while address < end:
            offset = covered.find(0, address - region.vaddr, end - region.vaddr)
            if offset < 0:
                return
            address = region.vaddr + offset
            self.explorer.follow([Start(address, width)])
            if not covered[offset]:
                return

    def _sized_functions(self) -> list[tuple[int, int]]:
        """[start, end) of the functions whose symbol tells their size, none reaching into the next."""
        sized = {s.address: s.size for s in self.image.symbols if s.kind == "function" and s.size}
        starts = sorted(sized)
        ends = [min(start + sized[start], following) for start, following in pairwise([*starts, 1 << 64])]
        return list(zip(starts, ends, strict=True))

    def _sweep_plain_rest(self, start: int, end: int, width: int) -> None:
        """What no branch reaches inside a function with a size: code behind far transfers and returns.

        Written by hand, such a function may hold data; so a gap counts only if it decodes without
        a remainder up to what is known behind it, and no symbol calls any of it data.
        """
        region = self.space.find(start)
        if region is None:
            return
        covered = self.explorer.covered[region.index]
        low, high = start - region.vaddr, min(end, region.end) - region.vaddr
        while (low := covered.find(0, low, high)) >= 0:
            after = covered.find(1, low, high)
            after = high if after < 0 else after
            starts = self.explorer.decoder.boundaries(region.vaddr + low, region.vaddr + after, width)
            if any(self.explorer.is_object(address) for address in starts):
                starts = []
            for address in starts:
                if not covered[address - region.vaddr]:
                    self.explorer.follow([Start(address, width)])
            low = after

    def _look_at_uses(self) -> None:
        """What is read through the addresses that code takes, so far as they name what may be code.

        What sure code takes and is not seen to read is code.
        """
        for address, takers in list(self.explorer.takers.items()):
            if address not in self._uses and self.explorer.width_at(address):
                self._uses[address] = data_uses(self.explorer, address, takers)
            if address in self.explorer.doubtful and not self._uses.get(address):
                confirm_taken(self.explorer, address, takers)

    def _settle(self) -> None:
        """Until nothing changes: switch tables, far jumps, and addresses that found code refers to."""
        while True:
            before = self.explorer.committed
            self._far_jumps()
            self._jump_tables()
            slots = dict(self.explorer.slots)
            self._guess(
                (pointer, width) for slot, width in slots.items() for pointer in self._pointer(slot, width)
            )
            self._guess(list(self.explorer.references.items()))
            self._guess(self.got_references())
            self._look_at_uses()
            if self.explorer.committed == before or self.explorer.exhausted:
                return

    def _guess(self, seeds: Iterable[tuple[int, int]]) -> None:
        for address, width in seeds:
            if (address, width) not in self._tried and self.explorer.near_code(address):
                self._tried.add((address, width))
                self.explorer.guess(address, width)

    def _pointer(self, slot: int, width: int) -> list[int]:
        data = self.space.read_static(slot, width // 8)
        if data is None:
            return []
        target = self.space.resolve(int.from_bytes(data, "little"))
        return [] if target is None else [target]

    def got_references(self) -> list[tuple[int, int]]:
        """Addresses that i386 code takes relative to its GOT, with the width of that code."""
        if not self.explorer.got_bases:
            return []
        got = self.explorer.got_bases.most_common(1)[0][0]
        candidates = ((got + displacement) & 0xFFFF_FFFF for displacement in self.explorer.based)
        return [(address, 32) for address in candidates if self.space.find(address) is not None]

    def _jump_tables(self) -> None:
        for address, width in list(self.explorer.indirect.items()):
            if self.explorer.exhausted:
                return
            if address in self.tables:
                continue
            table = resolve_jump(self.explorer, address, width)
            if table is not None:
                self.tables[address] = table
                self.explorer.follow(Start(target, width) for target in table.targets)

    def _far_jumps(self) -> None:
        while self._tried_far < len(self.explorer.far):
            edge, width = self.explorer.far[self._tried_far]
            self._tried_far += 1
            known = self._segments(edge.selector)
            if known is None:
                self._far_anywhere(edge.address, width)
                continue
            for found, base in sorted(known):
                linear = edge.address if found == 64 else edge.address + base & 0xFFFF_FFFF
                target = self.space.resolve(linear)
                if target is not None:
                    self.explorer.targets.add(target)
                    self.explorer.follow([Start(target, found)])

    def _far_anywhere(self, offset: int, width: int) -> None:
        """A far transfer out of code of this width into a segment that nobody knows."""
        target = self.space.resolve(offset)
        if target is None:
            return
        self.explorer.targets.add(target)
        if self.explorer.is_start(target):
            return
        self.unknown_widths.add(target)
        for candidate in (self.image.bits, width, 96 - width):
            if candidate in (32, 64) and self.explorer.guess(target, candidate):
                break

    def unsettled_widths(self) -> set[int]:
        """Where far transfers lead in an unknown width, and nothing else that is sure leads."""
        explorer = self.explorer
        return {at for at in self.unknown_widths if not explorer.width_at(at) or at in explorer.doubtful}

    def _segments(self, selector: int) -> set[tuple[int, int]] | None:
        """Width and base of the code segment that a selector names in the GDTs that the image holds (SDM 3,
        3.4.5); of each where they are based differently.

        Empty where all of them have something else there, or end before: the transfer raises #GP, or leads
        elsewhere. None where the image does not tell: no table with that entry is in it, or widths differ.
        """
        if selector & _LOCAL:
            return None
        found = {self._entry(pointer, selector) for pointer in self.explorer.gdt_pointers}
        segments = {entry for entry in found if entry is not None and entry[0]}
        if segments:
            return segments if len({width for width, _ in segments}) == 1 else None
        return set() if found == {_NO_CODE} else None

    def _entry(self, pointer: int, selector: int) -> tuple[int, int] | None:
        """The same of one table; None for an entry that is empty, or not in the file."""
        for size in (8, 4):
            head = self.space.read_static(pointer, 2 + size) or b""
            base = int.from_bytes(head[2:], "little")
            raw = self.space.read_static(base + (selector & ~7), 8) if base else None
            if raw is None:
                continue
            if selector | 7 > int.from_bytes(head[:2], "little"):
                return _NO_CODE
            access, flags = raw[5], raw[6]
            if access & 0x98 == 0x98:  # present, code
                based = int.from_bytes(raw[2:5], "little") | raw[7] << 24
                return (64, 0) if flags & 0x20 else (32 if flags & 0x40 else 16, based)
            if any(raw):
                return _NO_CODE
        return None
