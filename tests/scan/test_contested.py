"""What scan knows of bytes that are more than one thing, of widths, and of where it lost its way."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from rewriter.scan import ScanResult, scan_image
from rewriter.scan.space import Space
from rewriter.scan.sweeping import sweep_region
from tests.scan.images import BASE, flat_image, sectioned_image


def windows(result: ScanResult, kind: str) -> list[tuple[int, int]]:
    """[start, end) offsets of the windows of a kind."""
    return [(w.start - BASE, w.end - BASE) for w in result.codemap.windows if w.kind == kind]


def found(result: ScanResult) -> list[tuple[int, str, int]]:
    """(offset, kind, width) of every site."""
    return [(site.address - BASE, site.kind, site.width) for site in result.sites]


def test_two_readings_of_the_same_bytes_are_a_window_and_both_have_their_sites() -> None:
    """call 10h; call 11h; ret; at 10h: mov eax, 0c39090fah, which is CLI; NOP; NOP; RET one byte in."""
    code = b"\xe8\x0b\0\0\0\xe8\x07\0\0\0\xc3".ljust(0x10, b"\xcc") + b"\xb8\xfa\x90\x90\xc3\xc3"
    result = scan_image(flat_image(code))
    assert windows(result, "overlap") == [(0x10, 0x15)]
    assert (0x11, "cli", 32) in found(result)


def test_code_that_falls_into_the_middle_of_an_instruction_is_another_reading() -> None:
    """The second reading goes on, behind a jump that is not taken, inside an instruction of the first."""
    first = b"\xb8\x75\x02\xfa\xf4\xb8\x01\x00\x00\x00\xc3"  # mov eax, ...; mov eax, 1; ret
    code = b"\xe8\x0b\0\0\0\xe8\x07\0\0\0\xc3".ljust(0x10, b"\xcc") + first
    result = scan_image(flat_image(code))  # one byte in: jne +2; cli; hlt
    assert {(0x13, "cli", 32), (0x14, "hlt", 32)} <= set(found(result))
    assert windows(result, "overlap")[0][0] == 0x10


def test_the_same_code_in_two_widths_is_no_code_of_either() -> None:
    gdt = struct.pack("<QQ", 0, 0x00AF_9A00_0000_FFFF)
    code = b"\x0f\x01\x15" + struct.pack("<I", BASE + 0x40)  # lgdt [pointer]
    code += b"\xe8" + struct.pack("<i", 0x20 - 12) + b"\xea" + struct.pack("<IH", BASE + 0x20, 8)
    code = code.ljust(0x20, b"\xcc") + b"\xfa\xc3"
    code = code.ljust(0x40, b"\xcc") + struct.pack("<HI", 15, BASE + 0x48) + b"\0\0" + gdt
    result = scan_image(flat_image(code))
    assert windows(result, "width") == [(0x20, 0x21), (0x21, 0x22)]


def test_a_guess_joins_no_code_of_another_width() -> None:
    """Known code decides the width: what jumps into it has the same."""
    gdt = struct.pack("<QQ", 0, 0x00AF_9A00_0000_FFFF)
    code = b"\x0f\x01\x15" + struct.pack("<I", BASE + 0x40) + b"\xea" + struct.pack("<IH", BASE + 0x20, 8)
    code = code.ljust(0x20, b"\xcc") + b"\x48\x31\xc0\xfa\xf4\xeb\xfd"  # 64 bits: xor rax, rax; cli; hlt; jmp
    code = code.ljust(0x30, b"\xcc") + b"\x31\xc0\xfb\xeb\xec"  # xor eax, eax; sti; jmp 23h - 4
    code = code.ljust(0x40, b"\xcc") + struct.pack("<HI", 15, BASE + 0x48) + b"\0\0" + gdt
    code += b"\0" * 8 + struct.pack("<I", BASE + 0x30)
    result = scan_image(sectioned_image([(".text", code, True)]))
    assert {width for offset, _, width in found(result) if 0x20 <= offset < 0x40} == {64}


@pytest.mark.parametrize("other", [0x00AF_9A00_0000_FFFF, 0x00CF_9A00_0000_FFFF])
def test_two_tables_that_differ_leave_the_width_open(other: int) -> None:
    code = b"\x0f\x01\x15" + struct.pack("<I", BASE + 0x40) + b"\x0f\x01\x15" + struct.pack("<I", BASE + 0x60)
    code += b"\xea" + struct.pack("<IH", BASE + 0x20, 8)
    code = code.ljust(0x20, b"\xcc") + b"\xfa\xf4\xeb\xfd"
    code = code.ljust(0x40, b"\xcc") + struct.pack("<HIHQQ", 15, BASE + 0x48, 0, 0, 0x00AF_9A00_0000_FFFF)
    code = code.ljust(0x60, b"\xcc") + struct.pack("<HIHQQ", 15, BASE + 0x68, 0, 0, other)
    result = scan_image(flat_image(code))
    differ = other != 0x00AF_9A00_0000_FFFF
    assert result.unknown_widths == ((BASE + 0x20,) if differ else ())
    assert result.complete is not differ


@pytest.mark.parametrize(("selector", "known"), [(8, 64), (16, 0), (24, 0), (0x10C, None)])
def test_a_selector_that_names_no_code_leads_nowhere(selector: int, known: int | None) -> None:
    """8 is code, 16 data, 24 behind the limit; of the LDT nothing is known."""
    code = (
        b"\x0f\x01\x15" + struct.pack("<I", BASE + 0x40) + b"\xea" + struct.pack("<IH", BASE + 0x20, selector)
    )
    code = code.ljust(0x20, b"\xcc") + b"\xfa\xf4\xeb\xfd"
    code = code.ljust(0x40, b"\xcc") + struct.pack("<HIH", 23, BASE + 0x48, 0)
    code += struct.pack("<QQQQ", 0, 0x00AF_9A00_0000_FFFF, 0x00CF_9200_0000_FFFF, 0x00CF_9A00_0000_FFFF)
    result = scan_image(flat_image(code))
    assert result.unknown_widths == ((BASE + 0x20,) if known is None else ())
    widths = {width for offset, _, width in found(result) if 0x20 <= offset < 0x40}
    assert known != 64 or widths == {64}


def test_code_in_a_writable_section_that_text_calls_is_code_and_the_data_beside_it_is_none() -> None:
    text = b"\xe8\x1b\0\0\0\xf4\xeb\xfd".ljust(0x20, b"\x90")
    data = b"\xfa\x0f\x22\xd8\xc3" + b"\xfb\xfa\xf4" * 8 + struct.pack("<I", BASE + 0x28)
    result = scan_image(sectioned_image([(".text", text, True), (".data", data, False)]))
    assert found(result) == [(5, "hlt", 32), (0x20, "cli", 32), (0x21, "mov_to_cr", 32)]
    assert [region.name for region in result.regions] == [".text", ".data"]


def test_data_that_nothing_leads_to_is_no_region() -> None:
    image = sectioned_image(
        [(".text", b"\xf4\xeb\xfd".ljust(16, b"\x90"), True), (".data", b"\xfa" * 16, False)]
    )
    assert [region.name for region in scan_image(image).regions] == [".text"]


@pytest.mark.parametrize(
    "bound",
    ["83e003", "0fb6c0", "c1e81e", "83f80377fe", ""],
    ids=["mask", "byte", "shift", "comparison", "nothing"],
)
def test_a_jump_table_in_text_is_data_whatever_bounds_it(bound: str) -> None:
    """The words read POP SS and the like, if one takes them for code."""
    head = bytes.fromhex(bound) + b"\xff\x24\x85" + struct.pack("<I", BASE + 0x10)
    cases = [0x40, 0x44, 0x48, 0x44]
    code = head.ljust(0x10, b"\xcc") + b"".join(struct.pack("<I", BASE + case) for case in cases)
    code = code.ljust(0x40, b"\xcc") + b"\xfa\xc3\xcc\xcc\xfb\xc3\xcc\xcc\xf4\xc3"
    result = scan_image(sectioned_image([(".text", code, True)]))
    assert [offset for offset, _, _ in found(result)] == [0x40, 0x44, 0x48]
    assert next(end for start, end in windows(result, "read") if start == 0x10) >= 0x20


def test_a_comparison_of_another_register_bounds_no_table() -> None:
    code = b"\x83\xf9\x01\x77\xfe\xff\x24\x85" + struct.pack(
        "<I", BASE + 0x10
    )  # cmp ecx, 1; ja; jmp [eax*4+..]
    code = code.ljust(0x10, b"\xcc") + b"".join(struct.pack("<I", BASE + case) for case in (0x40, 0x44, 0x48))
    code = code.ljust(0x40, b"\xcc") + b"\xfa\xc3\xcc\xcc\xfb\xc3\xcc\xcc\xf4\xc3"
    result = scan_image(sectioned_image([(".text", code, True)]))
    assert windows(result, "read") == [(0x10, 0x40)]


def test_code_that_is_copied_is_a_window_of_its_own_kind() -> None:
    """mov esi, body; mov edi, 2 MiB; mov ecx, 4; rep movsb; call body; hlt: the copy runs somewhere else."""
    code = (
        b"\xbe" + struct.pack("<I", BASE + 0x20) + b"\xbf\x00\x00\x20\x00" + b"\xb9\x04\0\0\0" + b"\xf3\xa4"
    )
    code += b"\xe8" + struct.pack("<i", 0x20 - len(code) - 5) + b"\xf4\xeb\xfd"
    code = code.ljust(0x20, b"\xcc") + b"\xfa\x90\x90\xc3"
    result = scan_image(flat_image(code))
    assert windows(result, "copied") == [(0x20, 0x24)]


def test_a_table_whose_index_starts_at_one_is_data_and_the_code_before_it_stays_code() -> None:
    """movzx eax, byte [table - 1 + ecx], where the byte before the table is the end of a jump."""
    code = b"\x0f\xb6\x81" + struct.pack("<I", BASE + 0x11) + b"\xfa\xeb\x06"  # ...; cli; jmp 10h
    code = code.ljust(0x10, b"\xcc") + b"\xeb\x04" + b"\xfa\xfb\xf4\x9d" + b"\xfb\xf4\xeb\xfd"
    result = scan_image(sectioned_image([(".text", code, True)]))
    assert found(result) == [(7, "cli", 32), (0x16, "sti", 32), (0x17, "hlt", 32)]
    assert (windows(result, "read"), windows(result, "copied")) == ([(0x12, 0x16)], [])


def test_a_guess_that_nothing_confirms_is_no_place_for_a_patch() -> None:
    text = b"\xf4\xeb\xfd".ljust(16, b"\x90") + b"\x31\xc0\xfa\xc3"
    data = struct.pack("<I", BASE + 16)
    result = scan_image(sectioned_image([(".text", text.ljust(32, b"\x90"), True), (".data", data, False)]))
    assert (0x12, "cli", 32) in found(result)
    assert (0x12, 0x13) in windows(result, "guess")


def test_a_walk_that_ends_in_data_is_not_complete() -> None:
    """jne to what is no instruction: the way is lost there, and what came before is code."""
    code = b"\xfa\x75\x04\xfb\xf4\xeb\xfd" + b"\x0f\x04\xff\xff"
    result = scan_image(sectioned_image([(".text", code, True)]))
    assert not result.complete
    assert [kind for _, kind, _ in found(result)] == ["cli", "sti", "hlt"]


def test_forced_emulation_is_one_instruction_in_a_guest_of_xen() -> None:
    code = b"\xfa" + b"\x0f\x0bxen\x0f\xa2" + b"\xfb\xf4\xeb\xfd"  # cli; the prefix with CPUID; sti; hlt; jmp
    image = flat_image(code)
    result = scan_image(replace(image, xen={"ENTRY": BASE}))
    assert [(s.address - BASE, s.length, s.mnemonic, s.dialect) for s in result.sites] == [
        (0, 1, "cli", "native"),
        (1, 7, "cpuid", "xen"),
        (8, 1, "sti", "native"),
        (9, 1, "hlt", "native"),
    ]
    assert result.complete
    assert [site.mnemonic for site in scan_image(image).sites] == ["cli"]


def test_forced_emulation_in_swept_code_leaves_no_false_sites() -> None:
    code = b"\x90" * 16 + b"\x0f\x0bxen\x0f\xa2" + b"\x90" * 16
    image = sectioned_image([(".text", code, True)], 64)
    known = replace(image, xen={"ENTRY": BASE})
    space = Space(known)
    swept = sweep_region(space, space.regions[0], 64)
    assert swept.emulated == (16,)
    assert swept.lengths[16] == 7 and not swept.lengths[17:23].any()


@pytest.mark.parametrize("branch", [b"\xe8", b"\xe9", b"\x0f\x84"])
def test_every_direct_branch_into_the_hypercall_page_is_a_hypercall(branch: bytes) -> None:
    page = BASE + 0x1000
    at = len(branch) + 4
    code = branch + struct.pack("<i", 0x1000 + 32 * 29 - at) + b"\xf4\xeb\xfd"
    image = sectioned_image([(".text", code.ljust(0x2000, b"\0"), True)])
    result = scan_image(replace(image, xen={"HYPERCALL_PAGE": page}))
    site = result.sites[0]
    assert (site.address, site.dialect, site.detail) == (BASE, "xen", "hypercall 29")


def test_an_executable_note_is_no_code() -> None:
    from pathlib import Path

    from rewriter.image import parse_image
    from tests.image.builders import CODE, Load, elf, note

    notes = note(b"Linux", 0, b"\xfa\xfb\xf4\xc3" * 4)
    data = bytearray(elf(32, (Load(0xC0100000, 0x100000, CODE + bytes(64) + notes),)))
    image = parse_image(bytes(_with_note_section(data, len(CODE) + 64, len(notes))), Path("notes"))
    assert [section.name for section in image.sections if section.executable] == [".text"]


def _with_note_section(data: bytearray, offset: int, size: int) -> bytearray:
    """Turn the last section into an allocated, executable note of `size` bytes behind .text."""
    (table,) = struct.unpack_from("<I", data, 32)
    (count,) = struct.unpack_from("<H", data, 48)
    (names,) = struct.unpack_from("<H", data, 50)
    assert names == count - 1
    data[48:50] = struct.pack("<H", count + 1)
    header = struct.pack("<10I", 0, 7, 2 | 4, 0xC0100000 + offset, 0x1000 + offset, size, 0, 0, 4, 0)
    at = table + 40 * count
    return data[:at] + header + data[at:]


def test_a_small_section_with_one_stray_call_is_not_swept() -> None:
    code = b"\x90" * 64 + b"\xe8" + struct.pack("<i", -0x7F000000) + b"\xc3"
    space = Space(sectioned_image([(".text", code, True)], 64))
    swept = sweep_region(space, space.regions[0], 64)
    assert swept.stray == 1 and not swept.spotless
