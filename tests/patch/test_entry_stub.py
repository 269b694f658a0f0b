"""The entry stub on a CPU: every memory map loses exactly the block, everything else arrives as it was."""

from __future__ import annotations

import struct
from dataclasses import replace
from itertools import pairwise

import pytest
import unicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from unicorn import x86_const as x86

from rewriter.emit.entry import Entry, StubPlace, assemble_stubs
from rewriter.image import EntryPoint

START, SIZE = 0x1100000, 0x10000
PLACE = StubPlace(START + 0x100, (START, START + SIZE), START + 0x8000, START + SIZE)
TARGET, INFO, MAP = 0x100000, 0x9000, 0xA000
GENERAL = ("EAX", "EBX", "ECX", "EDX", "ESI", "EDI", "EBP")

Ranges = list[tuple[int, int, int]]

ranges = st.lists(
    st.tuples(
        st.sampled_from(
            (0, 0x9F000, 0x100000, START - 4096, START, START + 4096, START + SIZE, 0x8000000, 1 << 32)
        ),
        st.sampled_from((0x1000, 0x60000, 0x100000, SIZE, 0x7EE0000, 1 << 33)),
        st.sampled_from((1, 1, 1, 2, 3)),
    ),
    max_size=12,
)


def expected(entries: Ranges) -> Ranges:
    """Each available entry cut at the borders of the block, the part inside reserved."""
    result: Ranges = []
    for base, size, kind in entries:
        end = base + size
        if kind != 1 or end <= START or base >= START + SIZE:
            result.append((base, size, kind))
            continue
        cuts = [base, *(cut for cut in (START, START + SIZE) if base < cut < end), end]
        for first, last in pairwise(cuts):
            inside = START <= first < START + SIZE
            result.append((first, last - first, 2 if inside else 1))
    return result


def enter(
    protocol: str,
    setup: dict[int, bytes],
    registers: dict[str, int],
    width: int = 32,
    restore: bytes = b"",
    reserve: tuple[int, int] = PLACE.reserve,
) -> unicorn.Uc:
    """Run the stub of a protocol until the image's own entry is reached."""
    point = EntryPoint(TARGET, TARGET, width, protocol)  # type: ignore[arg-type]
    stub = assemble_stubs((Entry(point, restore),), replace(PLACE, reserve=reserve))
    cpu = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64 if width == 64 else unicorn.UC_MODE_32)
    cpu.mem_map(0, 0x200000)
    cpu.mem_map(START, SIZE)
    cpu.mem_write(PLACE.code, stub.code)
    for address, data in setup.items():
        cpu.mem_write(address, data)
    names = GENERAL if width == 32 else tuple("R" + name[1:] for name in GENERAL)
    for name in names:
        value = registers.get("E" + name[1:], 0x11111111 * (1 + names.index(name)))
        cpu.reg_write(getattr(x86, f"UC_X86_REG_{name}"), value)
    cpu.emu_start(stub.starts[0][1], TARGET, count=100_000)
    assert cpu.reg_read(x86.UC_X86_REG_RIP if width == 64 else x86.UC_X86_REG_EIP) == TARGET
    for name in names:
        if "E" + name[1:] not in registers:
            value = 0x11111111 * (1 + names.index(name))
            assert cpu.reg_read(getattr(x86, f"UC_X86_REG_{name}")) == value, name
    stack = cpu.reg_read(x86.UC_X86_REG_ESP)
    assert START + SIZE - 64 <= stack <= START + SIZE
    return cpu


@settings(max_examples=60, deadline=None)
@given(entries=ranges, upper=st.integers(0, 1 << 21))
def test_multiboot1(entries: Ranges, upper: int) -> None:
    table = b"".join(struct.pack("<IQQI", 20, *entry) for entry in entries)
    info = struct.pack("<3I", 0x41, 639, upper).ljust(44, b"\0") + struct.pack("<II", len(table), MAP)
    cpu = enter("multiboot1", {INFO: info, MAP: table}, {"EAX": 0x2BADB002, "EBX": INFO})
    assert cpu.reg_read(x86.UC_X86_REG_EAX) == 0x2BADB002
    assert cpu.reg_read(x86.UC_X86_REG_EBX) == INFO
    size, address = struct.unpack("<II", cpu.mem_read(INFO + 44, 8))
    rows = [struct.unpack("<IQQI", cpu.mem_read(address + at, 24)) for at in range(0, size, 24)]
    assert [row[0] for row in rows] == [20] * len(rows)
    assert [row[1:] for row in rows] == expected(entries)
    (found,) = struct.unpack("<I", cpu.mem_read(INFO + 8, 4))
    assert found == min(upper, (START >> 10) - 1024)


@pytest.mark.parametrize("lower", [256, 639])
def test_lower_memory_ends_before_a_block_in_it(lower: int) -> None:
    info = struct.pack("<3I", 1, lower, 4096).ljust(64, b"\0")
    registers = {"EAX": 0x2BADB002, "EBX": INFO}
    cpu = enter("multiboot1", {INFO: info}, registers, reserve=(0x86000, 0x90000))
    assert struct.unpack("<II", cpu.mem_read(INFO + 4, 8)) == (min(lower, 0x218), 4096)


@settings(max_examples=40, deadline=None)
@given(entries=ranges)
def test_multiboot2(entries: Ranges) -> None:
    rows = b"".join(struct.pack("<QQII", *entry, 0) for entry in entries)
    tags = struct.pack("<II", 1, 13) + b"quiet" + bytes(3)
    tags += struct.pack("<IIII", 6, 16 + len(rows), 24, 0) + rows
    tags += struct.pack("<IIII", 4, 16, 639, 1000) + struct.pack("<II", 0, 8)
    info = struct.pack("<II", 8 + len(tags), 0) + tags
    cpu = enter("multiboot2", {INFO: info}, {"EAX": 0x36D76289, "EBX": INFO})
    address = cpu.reg_read(x86.UC_X86_REG_EBX)
    (total,) = struct.unpack("<I", cpu.mem_read(address, 4))
    at, kinds = 8, []
    while at < total:
        kind, size = struct.unpack("<II", cpu.mem_read(address + at, 8))
        kinds.append(kind)
        if kind == 6:
            data = bytes(cpu.mem_read(address + at + 16, size - 16))
            assert [row[:3] for row in struct.iter_unpack("<QQII", data)] == expected(entries)
        elif kind == 1:
            assert cpu.mem_read(address + at + 8, 5) == b"quiet"
        at += -(-size // 8) * 8
    assert kinds == [1, 6, 4, 0]


@settings(max_examples=40, deadline=None)
@given(entries=ranges)
def test_pvh(entries: Ranges) -> None:
    rows = b"".join(struct.pack("<QQII", *entry, 0) for entry in entries)
    info = struct.pack("<II", 0x336EC578, 1).ljust(40, b"\0") + struct.pack("<QII", MAP, len(entries), 0)
    cpu = enter("pvh", {INFO: info, MAP: rows}, {"EBX": INFO})
    address, count = struct.unpack("<QI", cpu.mem_read(INFO + 40, 12))
    data = bytes(cpu.mem_read(address, 24 * count))
    assert [row[:3] for row in struct.iter_unpack("<QQII", data)] == expected(entries)


@pytest.mark.parametrize("width", [32, 64])
@settings(max_examples=40, deadline=None)
@given(entries=ranges)
def test_linux_zero_page(width: int, entries: Ranges) -> None:
    rows = b"".join(struct.pack("<QQI", *entry) for entry in entries)
    zero_page = {INFO + 0x1E8: bytes([len(entries)]), INFO + 0x2D0: rows}
    entry_bytes = bytes.fromhex("fcfa8b9e14")
    protocol = "linux64" if width == 64 else "linux32"
    cpu = enter(protocol, zero_page, {"ESI": INFO}, width, entry_bytes)
    (count,) = cpu.mem_read(INFO + 0x1E8, 1)
    data = bytes(cpu.mem_read(INFO + 0x2D0, 20 * count))
    assert list(struct.iter_unpack("<QQI", data)) == expected(entries)
    assert cpu.mem_read(TARGET, 5) == entry_bytes


def test_a_full_table_stays_in_its_bounds() -> None:
    """128 entries are all that the zero page has; the ones that would not fit are left out."""
    entries = [(START + at * 4096, 4096, 1) for at in range(128)]
    entries[0] = (0x100000, 1 << 30, 1)
    rows = b"".join(struct.pack("<QQI", *entry) for entry in entries)
    guard = b"guard!"
    setup = {INFO + 0x1E8: b"\x80", INFO + 0x2D0: rows + guard}
    cpu = enter("linux32", setup, {"ESI": INFO})
    assert cpu.mem_read(INFO + 0x1E8, 1) == b"\x80"
    assert cpu.mem_read(INFO + 0x2D0 + 2560, 6) == guard


def test_without_a_known_protocol_nothing_is_touched() -> None:
    enter("elf", {}, {"EAX": 5, "EBX": 0xFFFFFFF0})
    enter("multiboot1", {}, {"EAX": 5, "EBX": 0xFFFFFFF0})
