"""Small windows and their caves: what a short jump and an evicted neighbour make possible."""

from __future__ import annotations

from iced_x86 import Decoder

from rewriter.bind_sites import bind_sites
from rewriter.emit.reach import Reach
from rewriter.plan import Plan, make_plan
from rewriter.tactics import TRAP
from rewriter.tactics.view import CodeRegion, CodeView
from tests.patch.bench import CODE

MOVABLE = "b801000000bb02000000c3"  # mov eax, 1; mov ebx, 2; ret: room for two long jumps
CALLEE = "668cc8cb"  # mov ax, cs; retf


def plan(code: bytes, targets: set[int], sites: list[int]) -> Plan:
    """The plan of straight 32-bit code at CODE; targets and sites are offsets."""
    lengths = bytearray(len(code))
    for instruction in Decoder(32, code, ip=CODE):
        lengths[instruction.ip - CODE] = instruction.len
    region = CodeRegion(CODE, code, bytes(lengths), bytes(32 if length else 0 for length in lengths))
    view = CodeView((region,), frozenset(CODE + target for target in targets))
    reach = Reach("relative")
    return make_plan(view, reach, bind_sites(view, reach, [CODE + site for site in sites], {}))


def test_two_sites_too_small_for_a_long_jump_share_one_short_jump() -> None:
    """Both lie between two targets 4 bytes apart: the first one's window grows over the second."""
    made = plan(bytes.fromhex(MOVABLE + CALLEE + "40c3"), {0, 11, 15}, [11, 14])
    assert [decision.tactic == TRAP for decision in made.decisions] == [False, False]
    neighbours, shared = made.windows
    assert (shared.start, shared.end, shared.sites) == (CODE + 11, CODE + 15, (CODE + 11, CODE + 14))
    assert neighbours.start + 5 <= (shared.cave or 0) <= neighbours.end - 5


def test_without_movable_neighbours_they_stay() -> None:
    made = plan(bytes.fromhex(CALLEE + "40c3"), {0, 4}, [0, 3])
    assert [decision.tactic for decision in made.decisions] == [TRAP, TRAP]
