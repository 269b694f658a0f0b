"""What is known of the code around the sites: boundaries, targets, blocks, windows to stay out of, caves.

Everything is conservative: an address is called no target, a place is called free, or a
function is called completely known only when the image gives proof.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from iced_x86 import Decoder, FlowControl, Instruction
from numpy.typing import NDArray

from rewriter.decode.opcode_tables import ByteArray
from rewriter.scan.space import Region, Space

__all__ = ["CodeMap", "FlowFacts", "RegionMap", "Window"]

MAX_LENGTH = 15
INT3 = 0xCC


@dataclass(frozen=True, slots=True)
class Window:
    """Bytes [start, end) that the kernel itself patches, looks up by address, or unwinds through."""

    start: int
    end: int
    kind: str


@dataclass(frozen=True)
class RegionMap:
    """Known instructions of one region; all arrays have one element per byte."""

    region: Region
    data: ByteArray
    lengths: ByteArray
    """Length of the known instruction that starts here, else 0."""
    widths: ByteArray
    """Code width (16, 32, 64) at known instruction starts, else 0."""
    method: str
    """How they were found: sweep, recursion or table."""


@dataclass(frozen=True)
class FlowFacts:
    """Control flow of a whole image; computed when it is first asked for, since a mere scan never does."""

    targets: tuple[ByteArray, ...]
    """Per region, 1 where control may arrive by a branch, a table or a pointer."""
    indirect: tuple[ByteArray, ...]
    """Per region, 1 where it may arrive by anything but a direct branch."""
    ends: tuple[ByteArray, ...]
    """Per region, 1 at instructions that transfer control (branches, calls, returns, traps)."""
    functions: NDArray[np.uint64]
    """Sorted addresses at which functions are known to begin."""
    unresolved: NDArray[np.uint64]
    """Sorted addresses of indirect jumps whose targets are not all known."""
    windows: tuple[Window, ...]


class CodeMap:
    """Queries by virtual address over all regions of an image."""

    def __init__(self, space: Space, regions: tuple[RegionMap, ...], flow: Callable[[], FlowFacts]) -> None:
        self.space = space
        self.regions = regions
        self._compute_flow = flow
        self._decoders: dict[int, Decoder] = {}

    @cached_property
    def flow(self) -> FlowFacts:
        """Targets, block ends, functions and windows."""
        return self._compute_flow()

    @cached_property
    def windows(self) -> tuple[Window, ...]:
        """Ranges to stay out of, by address."""
        return tuple(sorted(self.flow.windows, key=lambda window: (window.start, window.end, window.kind)))

    @property
    def functions(self) -> NDArray[np.uint64]:
        """Sorted addresses at which functions are known to begin."""
        return self.flow.functions

    @property
    def unresolved(self) -> NDArray[np.uint64]:
        """Sorted addresses of indirect jumps whose targets are not all known."""
        return self.flow.unresolved

    def target_addresses(self, *, indirect: bool = False) -> NDArray[np.uint64]:
        """Every target address, sorted; with `indirect` only those that more than direct branches lead to."""
        chosen = self.flow.indirect if indirect else self.flow.targets
        parts = [
            np.flatnonzero(bits).astype(np.uint64) + np.uint64(part.region.vaddr)
            for part, bits in zip(self.regions, chosen, strict=True)
        ]
        return np.concatenate(parts) if parts else np.zeros(0, np.uint64)

    def region_map(self, address: int) -> RegionMap | None:
        """The map of the region that holds an address."""
        region = self.space.find(address)
        return None if region is None else self.regions[region.index]

    def width_at(self, address: int) -> int:
        """Width of the known instruction that starts at `address`, 0 when there is none."""
        found = self.region_map(address)
        return 0 if found is None else int(found.widths[address - found.region.vaddr])

    def is_boundary(self, address: int) -> bool:
        """True when a known instruction starts at `address`."""
        found = self.region_map(address)
        return found is not None and found.lengths[address - found.region.vaddr] > 0

    def instruction_at(self, address: int) -> Instruction | None:
        """The known instruction that starts at `address`, decoded afresh."""
        found = self.region_map(address)
        if found is None or not self.is_boundary(address):
            return None
        width = int(found.widths[address - found.region.vaddr])
        decoder = self._decoders.get(width)
        if decoder is None:
            decoder = self._decoders[width] = Decoder(width, self.space.image.payload)
        decoder.position = found.region.file_offset + address - found.region.vaddr
        decoder.ip = address
        return decoder.decode()

    def next_boundary(self, address: int) -> int | None:
        """Where the known instruction at `address` ends, if another known one starts there."""
        found = self.region_map(address)
        if found is None:
            return None
        following = address + int(found.lengths[address - found.region.vaddr])
        return following if following != address and self.is_boundary(following) else None

    def previous_boundary(self, address: int) -> int | None:
        """Start of the known instruction that ends exactly at `address`."""
        found = self.region_map(address - 1)
        if found is None:
            return None
        offset = address - found.region.vaddr
        for length in range(1, min(MAX_LENGTH, offset) + 1):
            if found.lengths[offset - length] == length:
                return address - length
        return None

    def is_target(self, address: int) -> bool:
        """True unless it is certain that control reaches `address` only by falling through."""
        found = self.region_map(address)
        return found is None or bool(self.flow.targets[found.region.index][address - found.region.vaddr])

    def targets_in(self, start: int, end: int) -> list[int]:
        """Target addresses in [start, end), boundaries or not."""
        found = self.region_map(start)
        if found is None:
            return list(range(start, end))
        base = found.region.vaddr
        return [
            start + int(at)
            for at in np.flatnonzero(self.flow.targets[found.region.index][start - base : end - base])
        ]

    def block_bounds(self, address: int) -> tuple[int, int] | None:
        """[start, end) of the basic block around the known instruction at `address`.

        No instruction but the first is a target; none but the last transfers control. Calls end a
        block: the address behind one is where its return arrives.
        """
        if not self.is_boundary(address):
            return None
        start = address
        while not self.is_target(start):
            before = self.previous_boundary(start)
            if before is None or self._ends(before):
                break
            start = before
        end = address
        while True:
            ended = self._ends(end)
            following = self.next_boundary(end)
            if ended or following is None or self.is_target(following):
                found = self.region_map(end)
                assert found is not None
                return start, end + int(found.lengths[end - found.region.vaddr])
            end = following

    def _ends(self, address: int) -> bool:
        found = self.region_map(address)
        return found is None or bool(self.flow.ends[found.region.index][address - found.region.vaddr])

    def function_bounds(self, address: int) -> tuple[int, int] | None:
        """[start, end) from the nearest known function start to the next one, inside one region."""
        region = self.space.find(address)
        if region is None:
            return None
        index = int(np.searchsorted(self.functions, np.uint64(address), "right"))
        start = int(self.functions[index - 1]) if index else region.vaddr
        end = int(self.functions[index]) if index < self.functions.size else region.end
        return max(start, region.vaddr), min(end, region.end)

    def known_complete(self, address: int) -> bool:
        """True when no indirect jump with unknown targets lies in the function around `address`."""
        bounds = self.function_bounds(address)
        if bounds is None:
            return False
        low, high = np.searchsorted(self.unresolved, np.array(bounds, np.uint64))
        return bool(low == high)

    @cached_property
    def _window_index(self) -> tuple[list[int], int]:
        longest = max((window.end - window.start for window in self.windows), default=0)
        return [window.start for window in self.windows], longest

    def windows_over(self, start: int, end: int) -> tuple[Window, ...]:
        """Every window that shares a byte with [start, end)."""
        keys, longest = self._window_index
        index = bisect_right(keys, end - 1)
        result = []
        while index > 0 and keys[index - 1] > start - longest:
            index -= 1
            if self.windows[index].end > start:
                result.append(self.windows[index])
        return tuple(reversed(result))

    def caves(self, low: int, high: int, size: int) -> Iterator[tuple[int, int]]:
        """(address, length) of padding that nothing reaches in [low, high), at least `size` bytes each.

        Runs of int3, and runs of nops that follow an instruction which does not fall through.
        """
        found = self.region_map(low)
        if found is None:
            return
        base = found.region.vaddr
        low, high = max(low, base) - base, min(high, found.region.end) - base
        position = low
        while position < high:
            start = position
            while position < high and self._is_padding(found, position, start):
                position += max(1, int(found.lengths[position]))
            if position - start >= size and not self.windows_over(base + start, base + position):
                yield base + start, position - start
            position = max(position, start + 1)

    def _is_padding(self, found: RegionMap, offset: int, start: int) -> bool:
        address = found.region.vaddr + offset
        if self.flow.targets[found.region.index][offset]:
            return False
        if found.data[offset] == INT3:
            return True
        length = int(found.lengths[offset])
        if not length or not _is_nop(bytes(found.data[offset : offset + length])):
            return False
        if offset > start:
            return True
        before = self.previous_boundary(address)
        return before is not None and _never_falls_through(self.instruction_at(before))


def _is_nop(code: bytes) -> bool:
    """NOP (90 with 66 prefixes) and the long NOP 0F 1F."""
    body = code.lstrip(b"\x66\x2e")
    return body == b"\x90" or body[:2] == b"\x0f\x1f"


def _never_falls_through(instruction: Instruction | None) -> bool:
    return instruction is not None and instruction.flow_control in (
        FlowControl.RETURN,
        FlowControl.UNCONDITIONAL_BRANCH,
        FlowControl.INDIRECT_BRANCH,
        FlowControl.EXCEPTION,
    )
