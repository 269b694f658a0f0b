"""Shared layouts: round trips, damage is noticed, and the C compiler agrees at both widths."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvpatch.abi.errors import ImageError
from pvpatch.abi.header import c_header
from pvpatch.abi.layout import (
    CALL_PAGE_SIZE,
    CELL,
    HEADER,
    LOCATOR,
    LOCATOR_SIZE,
    Cell,
    Header,
    Locator,
    find_locators,
    pack_cells,
    pack_header,
    pack_locator,
    slot_offset,
    unpack_cells,
    unpack_header,
    unpack_locator,
    vcpu_page,
)
from pvpatch.abi.spec import load_spec

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
STRUCTURES = (HEADER, LOCATOR, CELL, vcpu_page())


def locators() -> st.SearchStrategy[Locator]:
    offsets = st.sampled_from([0, 64, 0x1000, 0x4040])
    plain = st.builds(Locator, st.integers(0x8040, 2**32 - 1), U64, U64, offsets, offsets, U32)
    return st.one_of(plain, plain.map(lambda one: replace(one, off_cells=0x4040, cell_count=0x400)))


def cells() -> st.SearchStrategy[Cell]:
    """Of all calls that have the form."""
    spec = load_spec()
    kinds = [
        (call.number, index)
        for call in spec.calls
        for index, form in enumerate(call.replaces)
        if spec.is_stackless(call, form)
    ]
    places = st.integers(0, 0xFFFF), st.sampled_from(kinds), st.integers(spec.cells.least, 16)
    return st.tuples(*places).map(lambda drawn: Cell(drawn[0], *drawn[1], drawn[2]))


@given(locators())
def test_locator_round_trip(locator: Locator) -> None:
    record = pack_locator(locator)
    assert len(record) == LOCATOR_SIZE
    assert unpack_locator(record) == locator


@given(locators(), st.integers(0, LOCATOR_SIZE * 8 - 1))
def test_a_flipped_bit_is_noticed(locator: Locator, bit: int) -> None:
    record = bytearray(pack_locator(locator))
    record[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ImageError):
        unpack_locator(bytes(record))


@given(st.integers(0, 40), st.integers(0, 15))
def test_locators_are_found_where_they_are_aligned(before: int, base: int) -> None:
    record = pack_locator(Locator(0x9000, 0x100000, 0xC0100000, 64))
    data = b"\x90" * before + record + b"\x90" * 100
    assert find_locators(data, base) == ((before,) if (base + before) % 16 == 0 else ())


def test_a_damaged_locator_is_not_found() -> None:
    record = pack_locator(Locator(0x9000, 0x100000, 0xC0100000, 64))
    assert find_locators(record[:-1] + b"\0") == ()
    assert find_locators(record[:50]) == ()


def test_a_page_outside_the_resident_is_refused() -> None:
    with pytest.raises(ImageError, match="outside"):
        unpack_locator(pack_locator(Locator(CALL_PAGE_SIZE, 0, 0, 64)))


def test_a_cell_table_outside_the_resident_is_refused() -> None:
    with pytest.raises(ImageError, match="cell table"):
        unpack_locator(pack_locator(Locator(0x9000, 0, 0, 64, off_cells=0x8FF0, cell_count=2)))
    with pytest.raises(ImageError, match="contradicts"):
        unpack_locator(pack_locator(Locator(0x9000, 0, 0, 64, cell_count=2)))


@given(st.lists(cells(), max_size=5))
def test_cell_tables_round_trip(wanted: list[Cell]) -> None:
    assert unpack_cells(pack_cells(wanted), 0x20000) == tuple(wanted)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"call": 5000}, "stackless form"),
        ({"form": 99}, "stackless form"),
        ({"call": 9}, "stackless form"),  # iret
        ({"length": 1}, "damaged"),
        ({"offset": 0x8FFF}, "damaged"),
        ({"width": 64}, "damaged"),
        ({"body": 0x5001}, "damaged"),  # inside the cell
        ({"body": 0x4FF0}, "damaged"),  # a jump of two bytes only goes forwards here
        ({"body": 0x5082}, "damaged"),  # and 127 bytes far
        ({"body": 0x5010, "covered": True}, "damaged"),
        ({"call": 9, "form": 1, "body": 0x5010}, "damaged"),  # iretq in 32-bit code
        ({"length": 0, "covered": True}, "damaged"),
    ],
)
def test_cells_that_cannot_be_are_refused(change: dict[str, int], words: str) -> None:
    good = Cell(0x5000, load_spec().call("irq_disable").number, 0, 2)
    with pytest.raises(ImageError, match=words):
        unpack_cells(pack_cells([replace(good, **change)]), 0x9000)


@given(st.sampled_from([32, 64]), U32, U64, U32, U64)
def test_header_round_trip(width: int, backend: int, features: int, phys: int, virt: int) -> None:
    header = Header(width, len(load_spec().calls), backend, features, phys, virt)
    assert unpack_header(pack_header(header)) == header


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (Header(32, 1, abi_major=2), "ABI 2."),
        (Header(32, 1, abi_minor=9), "ABI 1.9"),
        (Header(16, 1), "damaged"),
        (Header(32, 1, slot_size=64), "damaged"),
        (Header(32, 5000), "5000 slots"),
    ],
)
def test_foreign_headers_are_refused(header: Header, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        unpack_header(pack_header(header))


def test_no_header_is_refused() -> None:
    with pytest.raises(ImageError, match="cut short"):
        unpack_header(b"PVPATCH")
    with pytest.raises(ImageError, match="no call page"):
        unpack_header(bytes(64))


def test_slot_offsets() -> None:
    assert slot_offset(0) == 64
    assert slot_offset(3) == 64 + 96
    with pytest.raises(IndexError):
        slot_offset(len(load_spec().calls))


def test_fields_neither_overlap_nor_leave_gaps() -> None:
    for structure in STRUCTURES:
        at = 0
        for item in structure.fields:
            assert item.offset == at
            at += item.total
        assert at == structure.size


def test_hot_words_share_a_cache_line() -> None:
    page = vcpu_page()
    assert page.offset("irq_enabled") == 0
    assert page.offset("irq_pending") == 4
    assert page.offset("cr2") < 64


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("standard", ["c99", "c11", "gnu17"])
def test_the_compiler_agrees(tmp_path: Path, width: int, standard: str) -> None:
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("no gcc on this machine")
    (tmp_path / "pv_abi.h").write_text(c_header(), encoding="utf-8")
    lines = [
        f'printf("%s %s %zu %zu\\n", "{s.name}", "{f.name}", offsetof(struct {s.name}, {f.name}), '
        f"sizeof(((struct {s.name} *)0)->{f.name}));"
        for s in STRUCTURES
        for f in s.fields
    ]
    lines += [f'printf("{s.name} - 0 %zu\\n", sizeof(struct {s.name}));' for s in STRUCTURES]
    lines += [f'printf("call {c.name} %d 0\\n", PV_CALL_{c.name.upper()});' for c in load_spec().calls]
    body = "\n".join(lines)
    source = f'#include <stdio.h>\n#include "pv_abi.h"\nint main(void) {{\n{body}\nreturn 0;\n}}\n'
    (tmp_path / "print.c").write_text(source, encoding="utf-8")
    command = [gcc, f"-m{width}", f"-std={standard}", "-Wall", "-Wextra", "-Werror", "print.c", "-o", "print"]
    built = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    if built.returncode and width == 32 and "bits/libc-header-start.h" in built.stderr:
        pytest.skip("gcc has no 32-bit C library here (package gcc-multilib)")
    assert built.returncode == 0, built.stderr
    printed = subprocess.run([tmp_path / "print"], capture_output=True, text=True, check=True).stdout
    expected = [f"{s.name} {f.name} {f.offset} {f.total}" for s in STRUCTURES for f in s.fields]
    expected += [f"{s.name} - 0 {s.size}" for s in STRUCTURES]
    expected += [f"call {call.name} {call.number} 0" for call in load_spec().calls]
    assert printed.splitlines() == expected
