"""Discovery on hand-made code: what must be found, and what must not be taken for code."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewriter.image import Image, Symbol, parse_image
from rewriter.scan import ScanResult, scan_image
from tests.image.builders import Load, elf, multiboot1_header
from tests.scan.images import BASE, flat_image, sectioned_image


def kinds(result: ScanResult) -> list[tuple[int, str, int]]:
    """(offset, kind, width) of every site."""
    return [(site.address - BASE, site.kind, site.width) for site in result.sites]


def test_data_behind_a_jump_is_no_code() -> None:
    text = b"in our lonely office"  # decodes to ins, outs and arpl
    code = b"\xfa\xeb" + bytes([len(text)]) + text + b"\xf4\xeb\xfd"
    assert kinds(scan_image(flat_image(code))) == [(0, "cli", 32), (3 + len(text), "hlt", 32)]


def test_a_call_that_never_returns_is_not_followed() -> None:
    panic = b"\xf4\xeb\xfd"
    code = b"\xe8\x08\x00\x00\x00" + b"\x06\x06\xff\xff\xff\xff\xff\xff" + panic
    assert kinds(scan_image(flat_image(code))) == [(13, "hlt", 32)]


@pytest.mark.parametrize("behind", ["halt", "call"])
def test_tables_behind_the_first_instructions_are_data(behind: str) -> None:
    """The GDT pointer decodes to OUTSD and ADD, the GDT to a far call and IRET; HLT may not return."""
    start = b"\xfa\x0f\x01\x15" + struct.pack("<I", BASE + 0x22)  # cli ; lgdt [pointer]
    start += b"\xf4" if behind == "halt" else b"\xe8" + struct.pack("<i", 0x60 - 13)  # hlt, or call panic
    code = start.ljust(0x20, b"\x90") + b"\0\0" + struct.pack("<HI", 0x6F, BASE + 0x30)
    code = code.ljust(0x30, b"\x90")
    code += struct.pack("<QQQ", 0, 0x40CF9A000000FFFF, 0x40CF92000000FFFF)
    code = code.ljust(0x60, b"\0") + b"\xf4\xeb\xfd"
    last = [(8 if behind == "halt" else 0x60, "hlt", 32)]
    assert kinds(scan_image(flat_image(code))) == [(0, "cli", 32), (1, "lgdt", 32), *last]


@pytest.mark.parametrize("data", ["00" * 16, "ff" * 16, "66ff" * 8])
def test_what_stands_before_a_last_halt_is_code_whatever_follows(data: str) -> None:
    code = b"\xfa\xf4" + bytes.fromhex(data)
    assert kinds(scan_image(flat_image(code))) == [(0, "cli", 32), (1, "hlt", 32)]


def test_a_limit_beyond_the_table_makes_no_code_data() -> None:
    code = b"\x0f\x01\x15" + struct.pack("<I", BASE + 0x12) + b"\xeb\x1f"  # lgdt [pointer] ; jmp
    code = code.ljust(0x12, b"\xcc") + struct.pack("<HI", 0xFFFF, BASE + 0x18)
    code += struct.pack("<QQ", 0, 0x00CF9A000000FFFF) + b"\xfa\xfb\x90\x90\x90\x90\x90\x90\xf4\xeb\xfd"
    assert [kind for _, kind, _ in kinds(scan_image(flat_image(code)))][:3] == ["lgdt", "cli", "sti"]


def test_a_far_jump_into_64_bit_code_changes_the_width() -> None:
    gdt = struct.pack("<QQ", 0, 0x00AF_9A00_0000_FFFF)
    start = b"\x0f\x01\x15" + struct.pack("<I", BASE + 0x40)  # lgdt [pointer]
    start += b"\xea" + struct.pack("<IH", BASE + 0x20, 8)  # ljmp 8:long
    long_mode = b"\x0f\x01\xf8\x48\xcf"  # swapgs; iretq
    code = start.ljust(0x20, b"\xcc") + long_mode
    code = code.ljust(0x40, b"\xcc") + struct.pack("<HI", 15, BASE + 0x48) + b"\0\0" + gdt
    result = scan_image(flat_image(code, 64, ((0, 32),)))
    assert kinds(result) == [
        (0, "lgdt", 32),
        (7, "far_jump", 32),
        (0x20, "swapgs", 64),
        (0x23, "iret", 64),
    ]


def test_64_bit_stub_in_a_32_bit_image_is_recognised() -> None:
    """`lea` names a stub that only makes sense as 64-bit code: sub rsp,8 ; cli ; add rsp,8 ; iretq."""
    code = b"\xb8" + struct.pack("<I", BASE + 8) + b"\xf4\xeb\xfd" + bytes.fromhex("4883ec08fa4883c40848cf")
    assert kinds(scan_image(flat_image(code))) == [(5, "hlt", 32), (12, "cli", 64), (17, "iret", 64)]


@pytest.mark.parametrize("entries", [2, 5])
def test_switch_table_with_absolute_entries(entries: int) -> None:
    table = 0x40
    code = b"\x83\xf8" + bytes([entries - 1]) + b"\x77\x07"  # cmp eax, n-1 ; ja +7
    code += b"\xff\x24\x85" + struct.pack("<I", BASE + table) + b"\xc3"  # jmp [eax*4+table] ; ret
    cases = [0x80 + 4 * index for index in range(entries)]
    code = code.ljust(table, b"\xcc") + b"".join(struct.pack("<I", BASE + case) for case in cases)
    code = code.ljust(0x80, b"\xcc") + b"\xfa\xfb\xc3\xcc" * entries
    result = scan_image(flat_image(code))
    assert [offset for offset, kind, _ in kinds(result) if kind == "cli"] == cases
    assert all(result.codemap.is_target(BASE + case) for case in cases)


def test_switch_table_relative_to_itself() -> None:
    code = (
        bytes.fromhex("83f801 7710") + b"\x48\x8d\x15" + struct.pack("<i", 0x40 - 12)
    )  # lea rdx, [rip+table]
    code += bytes.fromhex("48630482 4801d0 ffe0 c3")  # movsxd rax, [rdx+rax*4] ; add rax, rdx ; jmp rax ; ret
    code = code.ljust(0x40, b"\xcc") + struct.pack("<ii", 0x20, 0x24)
    code = code.ljust(0x60, b"\xcc") + b"\xfa\xc3\xcc\xcc\xfb\xc3"
    assert kinds(scan_image(flat_image(code, 64))) == [(0x60, "cli", 64), (0x64, "sti", 64)]


def test_a_function_pointer_in_data_leads_to_code() -> None:
    text = b"\xf4\xeb\xfd".ljust(16, b"\x90") + b"\x55\x89\xe5\xfa\x5d\xc3"
    data = struct.pack("<I", BASE + 16)
    image = sectioned_image([(".text", text.ljust(32, b"\x90"), True), (".data", data, False)])
    assert (19, "cli", 32) in kinds(scan_image(image))


def test_a_string_in_a_code_section_that_data_points_to_is_no_code() -> None:
    text = b"\xf4\xeb\xfd".ljust(16, b"\x90") + b"lonely clouds do not fault\0"
    data = struct.pack("<I", BASE + 16)
    image = sectioned_image([(".text", text.ljust(64, b"\x90"), True), (".data", data, False)])
    assert kinds(scan_image(image)) == [(0, "hlt", 32)]


def _with_symbols(text: bytes, *symbols: Symbol) -> Image:
    return replace(sectioned_image([(".text", text, True)]), symbols=symbols)


def test_code_behind_a_far_return_in_a_sized_function_is_found() -> None:
    """push cs; push label; retf; label: cli; retf 8; sti; ret: what no branch names is code all the same."""
    text = b"\x0e\x68" + struct.pack("<I", BASE + 7) + b"\xcb" + b"\xfa\xca\x08\x00\xfb\xc3"
    image = _with_symbols(text + b"\xfa" * 3, Symbol("f", BASE, len(text), "function", True))
    assert [offset for offset, kind, _ in kinds(scan_image(image)) if kind in ("cli", "sti")] == [7, 11]


@pytest.mark.parametrize(
    "rest",
    [
        b"\xfa\x0f\x04\xff",  # no instruction
        b"\xfa\x00\x00\xfa",  # zeros
        b"in our lonely office",
        b"\xfa\xfa\xb8",  # an instruction that the end of the function cuts
    ],
)
def test_what_does_not_decode_to_the_end_of_its_function_is_data(rest: bytes) -> None:
    text = b"\xfb\xcb" + rest
    image = _with_symbols(text + b"\xff" * 8, Symbol("f", BASE, len(text), "function", True))
    assert [kind for _, kind, _ in kinds(scan_image(image)) if kind in ("cli", "ins", "outs")] == []


def test_an_object_inside_a_function_is_data() -> None:
    text = b"\xfb\xcb" + b"\xfa" * 8 + b"\xf4\xc3"
    symbols = (
        Symbol("f", BASE, len(text), "function", True),
        Symbol("table", BASE + 2, 8, "object", False),
    )
    assert "cli" not in [kind for _, kind, _ in kinds(scan_image(_with_symbols(text, *symbols)))]


def test_sti_hlt_are_partners() -> None:
    result = scan_image(flat_image(b"\xfb\xf4\xeb\xfc"))
    sti, hlt = result.sites
    assert (sti.call, sti.partner, hlt.partner) == ("safe_halt", hlt.address, sti.address)


def test_a_halt_that_is_a_target_has_its_own_call() -> None:
    result = scan_image(flat_image(b"\xfb\xf4\xeb\xfd"))  # the jump leads to hlt
    assert result.codemap.is_target(BASE + 1)
    assert result.sites[1].call == "halt"


def test_site_document() -> None:
    (site,) = scan_image(flat_image(b"\x90\x0f\x22\xd8\xc3")).sites
    assert (site.address, site.file_offset, site.length, site.code) == (BASE + 1, 1, 3, b"\x0f\x22\xd8")
    assert (site.mnemonic, site.operands, site.kind, site.call) == (
        "mov",
        "cr3, eax",
        "mov_to_cr",
        "cr3_write",
    )
    assert (site.dialect, site.effect, site.faults_when_deprivileged) == ("native", "faults", True)


def test_hypervisor_dialects_are_listed() -> None:
    code = bytes.fromhex("0f01c1 0f01d9 cd82 cd1f cd80 c3")
    result = scan_image(flat_image(code))
    assert [site.dialect for site in result.sites] == ["kvm", "kvm", "xen", "lguest", "native"]


def test_block_bounds_and_neighbours() -> None:
    #        0: nop  1: cli  2: jz 5  4: nop  5: sti  6: ret
    code = bytes.fromhex("90 fa 7401 90 fb c3")
    codemap = scan_image(flat_image(code)).codemap
    assert codemap.block_bounds(BASE + 1) == (BASE, BASE + 4)
    assert codemap.block_bounds(BASE + 4) == (BASE + 4, BASE + 5)
    assert codemap.block_bounds(BASE + 5) == (BASE + 5, BASE + 7)
    assert codemap.next_boundary(BASE + 2) == BASE + 4
    assert codemap.previous_boundary(BASE + 4) == BASE + 2
    assert codemap.targets_in(BASE, BASE + 7) == [BASE, BASE + 5]
    assert codemap.known_complete(BASE + 1)
    assert codemap.is_target(0x1234)  # outside: nothing is proved


def test_an_unresolved_jump_makes_its_function_incomplete() -> None:
    codemap = scan_image(flat_image(bytes.fromhex("fa ffe0"))).codemap
    assert not codemap.known_complete(BASE)


def test_caves() -> None:
    code = b"\xfa\xc3" + b"\xcc" * 9 + b"\x90" * 5
    image = sectioned_image([(".text", code, True)])
    codemap = scan_image(image).codemap
    assert list(codemap.caves(BASE, BASE + len(code), 5)) == [(BASE + 2, 9)]


@settings(max_examples=80, deadline=None)
@given(code=st.binary(min_size=1, max_size=2000), width=st.sampled_from([32, 64]), entry=st.integers(0, 2100))
def test_hostile_bytes_only_ever_give_a_result(code: bytes, width: int, entry: int) -> None:
    result = scan_image(flat_image(code, width, ((entry, 0), (0, 96 - width))))
    for site in result.sites:
        assert code[site.file_offset : site.file_offset + site.length] == site.code
        assert result.codemap.is_boundary(site.address)
    _ = result.codemap.windows


@settings(max_examples=40, deadline=None)
@given(code=st.binary(min_size=1, max_size=600), data=st.binary(min_size=0, max_size=600))
def test_hostile_sections(code: bytes, data: bytes) -> None:
    scan_image(sectioned_image([(".text", code, True), (".data", data, False)], 64))


def test_long_chains_do_not_recurse() -> None:
    jumps = b"\xeb\x00" * 50_000
    assert kinds(scan_image(flat_image(jumps + b"\xf4\xeb\xfd"))) == [(100_000, "hlt", 32)]


def test_an_image_without_code_has_no_sites() -> None:
    assert scan_image(flat_image(b"", 32, ())).sites == ()


def test_code_that_ends_with_its_segment_is_code() -> None:
    """HLT as the last byte of a kernel: the block leads nowhere, and its instructions still run."""
    code = multiboot1_header() + bytes(4) + bytes.fromhex("fa fb fa f4")
    data = elf(32, (Load(0xC0100000, 0x100000, code),), entry=0xC0100010)
    result = scan_image(parse_image(data, Path("ends-with-hlt")))
    assert [site.mnemonic for site in result.sites] == ["cli", "sti", "cli", "hlt"]


def test_a_hypercall_page_far_from_the_code_is_called_by_nobody() -> None:
    """A header of a guest that moved to another address may still name the old page."""
    code = b"\xe8\x00\x00\x00\x00\xf4\xeb\xfd"
    image = sectioned_image([(".text", code, True)], 64)
    top = 0xFFFF_FFFF_8000_0000
    section = replace(image.sections[0], vaddr=top)
    segment = replace(image.segments[0], vaddr=top, paddr=top)
    entry = replace(image.entries[0], address=top, physical=top, protocol="xen")
    moved = replace(
        image,
        sections=(section,),
        segments=(segment,),
        entries=(entry,),
        xen={"HYPERCALL_PAGE": 0x4000_2000, "ENTRY": top},
    )
    assert [site.kind for site in scan_image(moved).sites] == ["hlt"]


def test_a_number_that_looks_like_an_address_is_no_target_but_a_table_of_them_is() -> None:
    """Where code lies at 1 MiB, a mask like 100003h names the middle of an instruction."""
    code = b"\xfa\x8b\x9e\x14\x02\x00\x00\xf4\xeb\xfd"  # cli ; mov ebx, [esi+214h] ; hlt ; jmp
    places = [struct.pack("<I", BASE + offset) for offset in (3, 1, 4, 5, 6)]
    alone = code.ljust(16, b"\x90") + bytes(16) + places[0] + bytes(12) + places[1] + bytes(16)
    run = code.ljust(16, b"\x90") + bytes(16) + b"".join(places[2:]) + bytes(16)
    codemap = scan_image(
        sectioned_image([(".text", code, True), (".data", alone[len(code) :], False)])
    ).codemap
    assert not codemap.is_target(BASE + 3) and codemap.is_target(BASE + 1)
    codemap = scan_image(sectioned_image([(".text", code, True), (".data", run[len(code) :], False)])).codemap
    assert all(codemap.is_target(BASE + offset) for offset in (4, 5, 6))


def test_code_goes_on_behind_a_breakpoint() -> None:
    code = b"\xfa\xcc\xce\x9c\x5b\xfb\xf4\xeb\xfd"  # cli ; int3 ; into ; pushfd ; pop ebx ; sti ; hlt ; jmp
    found = {kind for _, kind, _ in kinds(scan_image(sectioned_image([(".text", code, True)])))}
    assert found >= {"cli", "pushf", "sti", "hlt"}


def test_a_gap_is_not_entered_in_the_middle_of_an_instruction() -> None:
    """What no branch reaches is tried at 16-byte boundaries, but not where the bytes before disagree."""
    hidden = b"\xce" + b"\xb8\x01\xfa\xfb\xf4" * 12 + b"\xc3"  # into ; mov eax, ... ; ret
    code = b"\x40" * 61 + b"\xf4\xeb\xfd" + hidden
    assert kinds(scan_image(sectioned_image([(".text", code, True)]))) == [(61, "hlt", 32)]


def test_a_far_call_through_a_stored_pointer_is_followed() -> None:
    code = b"\x0f\x01\x15" + struct.pack("<I", BASE + 0x40)  # lgdt [...]
    code += b"\x2e\xff\x1d" + struct.pack("<I", BASE + 0x20) + b"\xf4\xeb\xfd"  # lcall cs:[...] ; hlt ; jmp
    code = code.ljust(0x20, b"\xcc") + struct.pack("<IH", BASE + 0x30, 8)
    code = code.ljust(0x30, b"\xcc") + b"\xfa\xca\x04\x00"  # cli ; lret 4
    code = code.ljust(0x40, b"\xcc") + struct.pack("<HIH", 15, BASE + 0x48, 0)
    code += struct.pack("<QQ", 0, 0x00CF_9A00_0000_FFFF)
    assert kinds(scan_image(flat_image(code)))[2:] == [
        (14, "hlt", 32),
        (0x30, "cli", 32),
        (0x31, "far_return", 32),
    ]


def test_a_multiboot_header_in_the_code_is_data() -> None:
    """Its checksum ends in E4: with CLI behind it, that reads IN AL, 0FAh."""
    header = struct.pack("<III", 0x1BADB002, 0, -0x1BADB002 & 0xFFFF_FFFF)
    code = header + b"\xfa\xf4\xeb\xfd"
    image = sectioned_image([(".text", code, True)])
    moved = replace(image, entries=(replace(image.entries[0], address=BASE + 12),))
    assert kinds(scan_image(moved)) == [(12, "cli", 32), (13, "hlt", 32)]


def test_pointers_to_text_behind_a_table_without_a_bound_are_none_of_its_entries() -> None:
    """Where no section tells code from text, an entry counts if all that it reaches looks like code."""
    code = b"\xff\x24\x85" + struct.pack("<I", BASE + 0x40) + b"\xf4\xeb\xfd"  # jmp [eax*4+table] ; hlt ; jmp
    places = (0x80, 0x84, 0x90)
    code = code.ljust(0x40, b"\xcc") + b"".join(struct.pack("<I", BASE + place) for place in places)
    code = code.ljust(0x80, b"\xcc") + b"\xfa\xc3\xcc\xcc\xeb\xfa"  # cli ; ret ; and a jump to it
    code = code.ljust(0x90, b"\xcc") + b"PQRt lonely clouds do not fault, they only drift\0"  # push ... ; je
    result = scan_image(flat_image(code))
    assert kinds(result) == [(7, "hlt", 32), (0x80, "cli", 32)]
    assert result.codemap.is_target(BASE + 0x84)
