"""The stackless form in the rewriter: which sites take it, what the thunk holds then, when it is refused."""

from __future__ import annotations

from itertools import pairwise

import pytest
from iced_x86 import Decoder

from pvpatch.abi.layout import unpack_cells
from pvpatch.abi.spec import load_spec
from rewriter.bind_sites import Bound, bind_sites
from rewriter.emit.pieces import pieces_of
from rewriter.emit.reach import Reach
from rewriter.emit.resident import Resident, ThunkRequest, build_resident
from rewriter.emit.thunk import Piece, compose_relative
from rewriter.plan import make_plan
from rewriter.tactics import Windows
from rewriter.tactics.view import CodeView
from tests.patch.bench import CODE, view_of

SS, JUMP = "8ed0", "ea00f010000800"  # mov ss, ax; jmp 8:10f000h
NEW_STACK = "bc00001000"  # mov esp, 100000h


def bound(code: str, bits: int = 32, reach: str = "relative") -> tuple[CodeView, Bound]:
    """Every site of the code bound; what is no site has no form of the ABI."""
    data = bytes.fromhex(code)
    view = view_of(data, bits)
    sites = [item.ip for item in Decoder(bits, data, ip=CODE) if _is_site(view, item.ip)]
    return view, bind_sites(view, Reach("absolute" if reach == "absolute" else "relative"), sites, {})


def _is_site(view: CodeView, address: int) -> bool:
    found = bind_sites(view, Reach("relative"), [address], {})
    return address in found.sites


def stackless(code: str, bits: int = 32) -> list[int]:
    """Offsets of the sites that take the form."""
    _, found = bound(code, bits)
    return [address - CODE for address, site in found.sites.items() if site.stackless]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (SS + JUMP, [0, 2]),  # no register is free, and the jump has no stack
        (SS + "fa" + "0f20c0" + NEW_STACK, [0, 2, 3]),  # EAX is written next, but the call needs it
        (SS + "b901000000" + "fa" + NEW_STACK, [7]),  # ECX is free for the load, not for what follows
        (SS + "01c2" + "01cb" + "01f7" + "01ed" + NEW_STACK, [0]),
        (SS + "fa" + "50", []),  # the guest uses its stack: it is the one from before
        (SS + "fa" + "83c404" + "c3", []),
        (SS + "89e0" + "fa" + JUMP, [0, 4, 5]),  # reading the pointer is no use of the stack
        ("0fb22500001000" + NEW_STACK, [0]),  # lss: where there may have been none
        ("0fb264244a" + NEW_STACK, []),  # lss from the stack itself
        ("8ed8" + "8ec0" + "fa", []),
    ],
)
def test_which_sites_take_the_form(code: str, expected: list[int]) -> None:
    assert stackless(code) == expected


def test_in_64_bit_code_a_stack_stays_where_it_is() -> None:
    assert stackless(SS + "fa" + "0f20c1" + NEW_STACK) == [2, 3]
    assert stackless(SS + "fa" + "0f20c0" + "48bc" + "00" * 8, 64) == []


def test_thunks_that_are_reached_by_a_call_cannot_have_it() -> None:
    _, found = bound(SS + JUMP, reach="absolute")
    assert {"reached by a call" in reason for reason in found.kept.values()} == {True}


def test_a_pair_and_a_software_interrupt_cannot_have_it() -> None:
    spec = load_spec()
    for name in ("safe_halt", "soft_int", "iret", "flags_read", "flags_write", "far_return", "far_call"):
        call = spec.call(name)
        assert not any(spec.is_stackless(call, form) for form in call.replaces), name
    for name in ("segment_load", "far_jump", "irq_disable", "cr0_write", "gdt_load", "in8", "out32", "cpuid"):
        call = spec.call(name)
        assert any(spec.is_stackless(call, form) for form in call.replaces), name


def resident(code: str) -> tuple[Resident, dict[int, int]]:
    """A resident block with one thunk for the whole code; offsets of the sites to those of their cells."""
    view, found = bound(code)
    pieces = []
    for item in Decoder(32, bytes.fromhex(code), ip=CODE):
        site = found.sites.get(item.ip)
        stackless = site is not None and site.stackless
        form = site.form if site is not None else 0
        pieces.append(Piece(item, site.binding if site else None, stackless=stackless, form=form))
    assert view.at(CODE) is not None

    thunk = ThunkRequest(CODE, 32, 0, lambda slot: compose_relative(32, tuple(pieces), None, slot))
    block = build_resident(0x200000, 0, (32,), (thunk,), (), 0)
    return block, {site - CODE: cell.offset for (_, site), cell in block.cells.items()}


def test_cells_are_the_instructions_themselves_long_enough_for_two_traps() -> None:
    block, places = resident(SS + "fa" + "0f20c0" + JUMP)
    data = block.data()
    assert {data[place : place + 2].hex() for place in places.values()} >= {"8ed0", "3efa"}
    table = next(part for part in block.parts if part.name == "cell table")
    found = unpack_cells(table.data, block.memory_size)
    assert [cell.length for cell in found] == [2, 2, 3, 7]
    assert [load_spec().calls[cell.call].name for cell in found] == [
        "segment_load", "irq_disable", "cr0_read", "far_jump",
    ]  # fmt: skip
    for first, second in pairwise(found):
        assert first.offset + first.length == second.offset  # nothing stands between them


def test_a_thunk_of_cells_has_no_other_code() -> None:
    block, _ = resident(SS + "01c1" + JUMP)
    (thunk,) = block.thunks.values()
    assert thunk.data.hex() == SS + "01c1" + JUMP


def test_the_loads_of_ss_and_of_the_stack_pointer_stay_together() -> None:
    """On hardware no interrupt comes between them: SDM vol. 3, 6.8.3."""
    code = "8ed2" + NEW_STACK + "40" * 8  # mov ss, dx; mov esp, 100000h
    view, found = bound(code)
    assert found.sites[CODE].stackless
    (window,) = make_plan(view, Reach("relative"), found).windows
    assert window.instructions[:2] == (CODE, CODE + 2)
    split = CodeView(view.regions, frozenset({CODE + 2}))
    again = bind_sites(split, Reach("relative"), [CODE], {})
    window = next(item for item in make_plan(split, Reach("relative"), again).windows if CODE in item.sites)
    moved = pieces_of(split, again, Windows(), window, called=False)
    assert window.end == CODE + 2  # the other way to the load stays
    assert [piece.instruction.ip for piece in moved.pieces] == [CODE, CODE + 2]
    assert moved.end == CODE + 7


@pytest.mark.parametrize("code", ["ff2d00002000", "66b80100" + "cf"])
def test_a_task_that_is_switched_to_again_goes_on_behind_its_jump(code: str) -> None:
    """JMP to a TSS and IRET with NT keep the address behind them: SDM vol. 3, 8.3."""
    view, found = bound(code)
    (window,) = make_plan(view, Reach("relative"), found).windows
    assert not window.returns
    assert pieces_of(view, found, Windows(), window, called=False).end == window.end
