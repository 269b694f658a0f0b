"""Small windows and their caves: what a short jump and an evicted neighbour make possible."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from iced_x86 import Decoder

from pvpatch.abi.errors import SelfCheckError
from rewriter.bind_sites import bind_sites
from rewriter.emit.reach import Reach
from rewriter.plan import Plan, make_plan
from rewriter.tactics import TRAP
from rewriter.tactics.view import CodeRegion, CodeView
from rewriter.verify_windows import check_windows
from tests.patch.bench import CODE

MOVABLE = "b801000000bb02000000c3"  # mov eax, 1; mov ebx, 2; ret: room for two long jumps
CALLEE = "668cc8cb"  # mov ax, cs; retf


def view_of_code(code: bytes, targets: set[int], *, at: int = 0, also: Iterable[int] = ()) -> CodeView:
    """Straight 32-bit code at CODE + `at`; instructions of another reading begin at the offsets `also`."""
    lengths = bytearray(len(code))
    for instruction in Decoder(32, code, ip=0):
        lengths[instruction.ip] = instruction.len
    for offset in also:
        lengths[offset] = Decoder(32, code[offset:]).decode().len
    widths = bytes(32 if length else 0 for length in lengths)
    region = CodeRegion(CODE + at, code, bytes(lengths), widths)
    return CodeView((region,), frozenset(CODE + target for target in targets))


def plan(code: bytes, targets: set[int], sites: list[int], *, at: int = 0) -> Plan:
    """The plan of straight 32-bit code at CODE + `at`; targets and sites are offsets from there."""
    view = view_of_code(code, {target + at for target in targets}, at=at)
    reach = Reach("relative")
    return make_plan(view, reach, bind_sites(view, reach, [CODE + at + site for site in sites], {}))


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


@pytest.mark.parametrize(
    ("code", "targets", "sites"),
    [
        ("eb02b801000000c39090909090fa668cc8668cc8c3", {0, 2, 13, 17}, [13, 14, 17]),
        ("7402e800000000669040c3cccccccccc6690cbc3", {0, 9}, [18]),
    ],
    ids=["evicted code takes padding that is a cave", "a cave in the window's own padding"],
)
def test_no_byte_is_given_out_twice(code: str, targets: set[int], sites: list[int]) -> None:
    made = plan(bytes.fromhex(code), targets, sites)
    check_windows(view_of_code(bytes.fromhex(code), targets), Reach("relative"), made)


PIECES = tuple(
    bytes.fromhex(text)
    for text in (
        *("668cc8", "fa", "0f20c0", "90", "40", "b801000000", "c3", "cb", "6690", "90" * 5, "cc" * 5),
        *("eb02", "7402", "89c3", "e800000000"),
    )
)
SITES = (0, 1, 2, 7)
"""Those of the pieces that are sites."""


@settings(max_examples=300, deadline=None)
@given(chosen=st.lists(st.tuples(st.integers(0, len(PIECES) - 1), st.booleans()), min_size=4, max_size=40))
def test_plans_of_any_code_stand_up_to_the_check(chosen: list[tuple[int, bool]]) -> None:
    code, targets, sites = b"", {0}, []
    for piece, is_target in chosen:
        if is_target:
            targets.add(len(code))
        if piece in SITES:
            sites.append(len(code))
        code += PIECES[piece]
    made = plan(code + b"\xc3", targets, sites)
    check_plan_room(made)


def check_plan_room(made: Plan) -> None:
    """No two jumps share a byte; a cave lies in one window or in none."""
    taken: set[int] = set()
    for window in made.windows:
        jumps = [(window.start, 5)] if window.cave is None else [(window.start, 2), (window.cave, 5)]
        for start, size in jumps:
            assert taken.isdisjoint(range(start, start + size))
            taken.update(range(start, start + size))


def test_a_plan_that_takes_a_byte_twice_is_a_fault_of_this_program() -> None:
    code = bytes.fromhex(MOVABLE + CALLEE + "40c3")
    made = plan(code, {0, 11, 15}, [11, 14])
    neighbours, shared = made.windows
    wrong = replace(made, windows=(neighbours, replace(shared, cave=neighbours.start + 2)))
    with pytest.raises(SelfCheckError) as failure:
        check_windows(view_of_code(code, {0, 11, 15}), Reach("relative"), wrong)
    assert failure.value.exit_code == 70


@pytest.mark.parametrize(
    ("text", "targets"),
    [("fa40b801000000ebf8", {0}), ("fa40b801000000c3", {0, 2})],
    ids=["a branch that the view's targets lack", "a target that the planner was not told of"],
)
def test_a_window_with_a_target_inside_is_found_by_who_did_not_plan_it(text: str, targets: set[int]) -> None:
    code = bytes.fromhex(text)
    made = plan(code, {0}, [0])
    assert made.windows[0].end > CODE + 1
    with pytest.raises(SelfCheckError):
        check_windows(view_of_code(code, targets), Reach("relative"), made)


def test_another_instruction_that_reaches_into_a_window_is_found() -> None:
    code = bytes.fromhex("b8fa909090c3")
    made = plan(code[1:], {0}, [0], at=1)
    with pytest.raises(SelfCheckError, match="has bytes of"):
        check_windows(view_of_code(code, {0}, also=range(1, 6)), Reach("relative"), made)
