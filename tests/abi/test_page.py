"""Call pages: everything is where the layout says, decodes cleanly, and moves freely."""

from __future__ import annotations

import capstone
import iced_x86
import pytest

from pvpatch.abi.asm import AsmError
from pvpatch.abi.layout import CALL_PAGE_SIZE, SLOT_SIZE, slot_offset, unpack_header
from pvpatch.abi.page import bare_slots, build_bare_page, build_page, enosys_text, lay_out_page
from pvpatch.abi.spec import load_spec

SPEC = load_spec()
WIDTHS = (32, 64)
DATA = (".byte", ".word", ".long", ".quad")


@pytest.mark.parametrize("width", WIDTHS)
def test_header_of_the_bare_page(width: int) -> None:
    page = build_bare_page(width, 0x200000, 0xFFFFFFFF80200000)
    header = unpack_header(page)
    assert len(page) == CALL_PAGE_SIZE
    assert (header.width, header.backend_id, header.features) == (width, 0, 0)
    assert (header.self_phys, header.self_virt) == (0x200000, 0xFFFFFFFF80200000)
    assert header.slot_count == len(SPEC.calls)


@pytest.mark.parametrize("width", WIDTHS)
def test_pages_are_deterministic(width: int) -> None:
    assert build_bare_page(width, 1, 2) == build_bare_page(width, 1, 2)


@pytest.mark.parametrize("width", WIDTHS)
def test_every_piece_decodes_back_and_none_overlaps(width: int) -> None:
    layout = lay_out_page(width, 0, bare_slots(width))
    taken = [0] * CALL_PAGE_SIZE
    mode = capstone.CS_MODE_32 if width == 32 else capstone.CS_MODE_64
    disassembler = capstone.Cs(capstone.CS_ARCH_X86, mode)
    for name, piece in layout.listings.items():
        if name in layout.slots:
            assert piece.address == slot_offset(SPEC.call(name).number)
            assert len(piece.code) <= SLOT_SIZE
        assert layout.page[piece.address : piece.address + len(piece.code)] == piece.code
        for line in piece.lines:
            at = piece.address + line.offset
            for byte in range(at, at + len(line.code)):
                taken[byte] += 1
            if line.text.startswith(DATA) or not line.code:
                continue
            one = iced_x86.Decoder(width, line.code, ip=at).decode()
            assert one.len == len(line.code)
            assert next(disassembler.disasm_lite(line.code, at))[1] == len(line.code)
    assert max(taken) == 1


@pytest.mark.parametrize("width", WIDTHS)
def test_code_does_not_depend_on_its_address(width: int) -> None:
    """No piece holds an address: relative branches stay in the page, memory operands have a base."""
    layout = lay_out_page(width, 0, bare_slots(width))
    for piece in layout.listings.values():
        for line in piece.lines:
            if line.text.startswith(DATA) or not line.code:
                continue
            one = iced_x86.Decoder(width, line.code, ip=piece.address + line.offset).decode()
            for operand in range(one.op_count):
                if one.op_kind(operand) == iced_x86.OpKind.MEMORY:
                    assert one.memory_base != iced_x86.Register.NONE
                if one.op_kind(operand) in (iced_x86.OpKind.NEAR_BRANCH32, iced_x86.OpKind.NEAR_BRANCH64):
                    assert 0 < one.near_branch_target < CALL_PAGE_SIZE


@pytest.mark.parametrize("width", WIDTHS)
def test_jumps_never_return_and_calls_always_can(width: int) -> None:
    for call in SPEC.calls:
        words = bare_slots(width)[call.name].replace(";", " ").split()
        missing = call.bare_code(width) is None
        if call.kind == "jump":
            assert "ret" not in words, call.name
        elif call.name != "far_call" and (call.results or not missing):
            assert words[-1] == "ret" or call.name in ("soft_int", "segment_load", "segment_store"), call.name


def test_a_call_that_is_missing_answers_enosys() -> None:
    assert enosys_text(SPEC.call("clock_ns"), 32) == "mov eax, -38; mov edx, -1; ret"
    assert enosys_text(SPEC.call("clock_ns"), 64) == "mov rax, -38; ret"
    assert enosys_text(SPEC.call("iret"), 32) == "ud2"
    assert enosys_text(SPEC.call("swapgs"), 32) == "ud2"


def test_backends_share_routines_and_slots() -> None:
    layout = lay_out_page(
        32,
        7,
        {"clts": "call shared; ret", "halt": "jmp call_clts"},
        {"shared": "mov eax, @BACKEND_ID@; ret"},
        features=0x1_0000_0003,
    )
    decoded = iced_x86.Decoder(32, layout.page[layout.slots["clts"] :], ip=layout.slots["clts"]).decode()
    assert decoded.near_branch_target == layout.body["shared"]
    decoded = iced_x86.Decoder(32, layout.page[layout.slots["halt"] :], ip=layout.slots["halt"]).decode()
    assert decoded.near_branch_target == layout.slots["clts"]
    assert layout.page[layout.body["shared"] :][:6] == bytes.fromhex("b807000000c3")
    header = unpack_header(layout.page)
    assert (header.backend_id, header.features) == (7, 0x1_0000_0003)


def test_long_slot_code_moves_to_the_body() -> None:
    layout = lay_out_page(64, 1, {"clts": ".rept 40; nop; .endr; ret"})
    jump = iced_x86.Decoder(64, layout.page[layout.slots["clts"] :], ip=layout.slots["clts"]).decode()
    assert jump.near_branch_target == layout.body["body_clts"]


def test_code_that_cannot_fit_is_refused() -> None:
    with pytest.raises(AsmError, match="full"):
        build_page(32, 1, {"clts": f".rept {CALL_PAGE_SIZE}; .byte 0x90; .endr; ret"})
    with pytest.raises(AsmError, match="do not exist"):
        build_page(32, 1, {"clits": "ret"})
