"""Code that nothing but a guess leads to: what confirms it, and what makes it data again."""

from __future__ import annotations

from collections.abc import Container, Iterable

from iced_x86 import Mnemonic

from rewriter.decode.lengths import MAX_INSTRUCTION
from rewriter.scan.block import Block
from rewriter.scan.explore import ENOUGH, Explorer, Start
from rewriter.scan.space import Region

__all__ = ["confirm_guesses", "confirm_region", "confirm_taken", "retract"]

_TAKES = (Mnemonic.MOV, Mnemonic.LEA, Mnemonic.PUSH)
"""How code takes an address; in a comparison or a sum, the same number is a number."""


def confirm_guesses(explorer: Explorer) -> None:
    """Doubtful code that leads to sure code, or is too much to be data, is sure: until all is settled."""
    before = -1
    while len(explorer.doubtful) != before and not explorer.exhausted:
        before = len(explorer.doubtful)
        explorer.follow([start for start in explorer.guesses if _is_confirmed(explorer, start)])


def _is_confirmed(explorer: Explorer, start: Start) -> bool:
    """Whether doubtful code that begins at a guess has come to an anchor since."""
    work, seen, count = [start.address], set[int](), 0
    while work:
        block = explorer.doubtful.get(work.pop())
        if block is None or block.start in seen:
            continue
        seen.add(block.start)
        count += len(block.instructions)
        if count >= ENOUGH or explorer.is_anchored(block):
            return True
        work += [edge.address for edge in block.edges if edge.kind != "far"]
    return False


def confirm_taken(explorer: Explorer, address: int, takers: Iterable[int]) -> None:
    """What sure code puts into a register or on the stack is sure code, if it is no table of addresses."""
    space, block = explorer.space, explorer.doubtful[address]
    word = space.read_static(address, block.width // 8) or b""
    if space.image.segment_at(int.from_bytes(word, "little")) is not None:
        return
    for taker in takers:
        region = space.find(taker)
        if region is not None and explorer.is_start(taker) and taker not in explorer.doubtful:
            width = explorer.width_at(taker)
            instruction = explorer.decoder.instruction_at(taker, width, region)
            if width == block.width and instruction.mnemonic in _TAKES:
                explorer.follow([Start(address, width)])
                return


def confirm_region(explorer: Explorer, region: Region) -> None:
    """What guesses found in a region is sure: it is a region of code and nothing else."""
    explorer.follow(start for start in explorer.guesses if explorer.space.find(start.address) is region)


def retract(explorer: Explorer, ranges: Container[int]) -> None:
    """Take back doubtful code in these ranges, what clashes with other code, and what leads there."""
    dropped: set[int] = set()
    while True:
        blocks = {
            block.start: block
            for address, block in explorer.doubtful.items()
            if address in ranges
            or _clashes(explorer, block)
            or any(edge.address in dropped or explorer.is_inside(edge.address) for edge in block.edges)
        }
        if not blocks:
            return
        for block in blocks.values():
            dropped.update(explorer.forget(block))


def _clashes(explorer: Explorer, block: Block) -> bool:
    """Whether an instruction of a doubtful block shares bytes with one that is not of it."""
    region = explorer.space.find(block.start)
    assert region is not None
    lengths = explorer.lengths[region.index]
    for address, length in block.instructions:
        offset = address - region.vaddr
        if any(lengths[offset + 1 : offset + length]):
            return True
        before = range(1, min(MAX_INSTRUCTION, offset + 1))
        if any(lengths[offset - back] > back for back in before):
            return True
    return False
