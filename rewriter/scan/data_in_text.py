"""Bytes among the code that code uses as data: tables, strings, and code that is copied to run elsewhere.

What known code reads is data wherever it lies: no guess makes it code, and no patch may change it, since
its reader would see the change, and a copy of it would run somewhere else. Where nobody says how far a table
goes, it goes up to the next code that is sure; a copied function, which is such code itself, up to the next.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rewriter.scan.block import Read
from rewriter.scan.descriptor_data import DataRanges
from rewriter.scan.explore import Explorer
from rewriter.scan.jump_tables import JumpTable

__all__ = ["DataInText", "data_in_text"]


_BIAS = 16
"""Bytes by which compilers put the address of a table before its first entry."""


@dataclass(frozen=True, slots=True)
class DataInText:
    """Bytes of the regions that known code reads, and those that it copies somewhere else."""

    read: DataRanges
    copied: DataRanges

    def __contains__(self, address: object) -> bool:
        return address in self.read or address in self.copied


def data_in_text(
    explorer: Explorer, tables: Iterable[JumpTable], uses: Iterable[Read], labels: Iterable[int]
) -> DataInText:
    """All of it; `labels` are addresses at which something begins."""
    bounded: Mapping[int, int] = {table.address: table.size for table in tables if table.bounded}
    starts = sorted({*labels, *explorer.references, *explorer.calls})
    found: dict[bool, list[tuple[int, int]]] = {False: [], True: []}
    found[False] += [(at, at + size) for at, size in bounded.items()]
    for read in {*explorer.reads, *uses}:
        if read.size:
            found[read.copied].append((read.address, read.address + read.size))
        elif (start := _counted_from_behind(explorer, read.address)) is not None:
            found[False].append((start, explorer.next_sure(start)))
        elif read.address not in bounded:
            copied = read.copied or explorer.is_sure(read.address)  # what else would one read code for?
            found[copied].append((read.address, _unbounded_end(explorer, read.address, starts)))
    return DataInText(*(DataRanges(_inside(explorer, found[copied])) for copied in (False, True)))


def _counted_from_behind(explorer: Explorer, address: int) -> int | None:
    """Where a table begins whose index starts above 0: its address lies inside the instruction before it."""
    if explorer.is_start(address) or not explorer.is_sure(address):
        return None
    return next((at for at in range(address, address + _BIAS) if not explorer.is_sure(at)), None)


def _unbounded_end(explorer: Explorer, address: int, starts: list[int]) -> int:
    """Where something of unknown size that begins at `address` ends at the latest."""
    region = explorer.space.find(address)
    if region is None:
        return address
    if explorer.is_sure(address):
        index = bisect_right(starts, address)
        return min(starts[index], region.end) if index < len(starts) else region.end
    return explorer.next_sure(address)


def _inside(explorer: Explorer, ranges: Iterable[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    """The parts of ranges that lie in the region where they begin."""
    for start, end in ranges:
        region = explorer.space.find(start)
        if region is not None and start < end:
            yield start, min(end, region.end)
