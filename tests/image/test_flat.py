"""Flat images: the Linux boot protocol with bare code, and multiboot with addresses in its header."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import pytest

from pvpatch.abi.errors import ImageError
from rewriter.image import EntryPoint, parse_image
from tests.image.builders import CODE, linux_flat, multiboot1_header

HERE = Path("kernel")


def test_linux_flat_has_a_32_and_a_64_bit_entry() -> None:
    image = parse_image(linux_flat(), HERE)
    assert (image.kind, image.bits) == ("flat", 64)
    (segment,) = image.segments
    assert (segment.vaddr, segment.paddr, segment.file_offset) == (0x100000, 0x100000, 0x600)
    assert segment.mem_size == 0x8000 and segment.flags == "rwx"
    assert image.entries == (
        EntryPoint(0x100000, 0x100000, 32, "linux32"),
        EntryPoint(0x100200, 0x100200, 64, "linux64"),
    )
    assert image.read(0x100000, len(CODE)) == CODE


def test_linux_flat_without_the_64_bit_flag() -> None:
    image = parse_image(linux_flat(xloadflags=0), HERE)
    assert image.bits == 32 and [entry.protocol for entry in image.entries] == ["linux32"]


def test_setup_header_is_what_a_loader_copies() -> None:
    data = linux_flat()
    header = parse_image(data, HERE).setup_header
    assert header is not None
    assert header.raw == data[0x1F1 : 0x202 + data[0x201]]
    assert (header.version, header.setup_sects, header.init_size) == (0x20F, 2, 0x8000)


def test_fields_younger_than_the_header_are_zero() -> None:
    data = bytearray(linux_flat(CODE + bytes(0x300) + gzip.compress(bytes(1 << 20))))  # Linux is inside
    struct.pack_into("<H", data, 0x206, 0x203)
    header = parse_image(bytes(data), HERE).setup_header
    assert header is not None and header.xloadflags == 0 and header.init_size == 0


@pytest.mark.parametrize(
    ("offset", "code", "value", "words"),
    [
        (0x211, "B", 0, "zImage"),
        (0x1F1, "B", 255, "behind the end"),
        (0x260, "I", 0xFFFFFFF0, "asks for"),
        (0x214, "I", 0xFFFFFFF0, "asks for"),
        (0x201, "B", 4, "cut short"),
    ],
)
def test_contradictions_are_refused(offset: int, code: str, value: int, words: str) -> None:
    data = bytearray(linux_flat())
    struct.pack_into("<" + code, data, offset, value)
    with pytest.raises(ImageError, match=words):
        parse_image(bytes(data), HERE)


def test_entry_behind_the_code_is_refused() -> None:
    with pytest.raises(ImageError, match="entry point lies behind"):
        parse_image(linux_flat(CODE), HERE)


def _multiboot(load: int, load_end: int, bss_end: int, entry: int, lead: int = 8) -> bytes:
    header = multiboot1_header(1 << 16, (load + lead, load, load_end, bss_end, entry))
    return bytes(lead) + header + CODE + bytes(64)


def test_multiboot_with_addresses_needs_no_elf() -> None:
    data = _multiboot(0x200000, 0, 0x210000, 0x200028)
    image = parse_image(data, HERE)
    (segment,) = image.segments
    assert (segment.file_offset, segment.file_size, segment.mem_size) == (0, len(data), 0x10000)
    assert image.entries == (EntryPoint(0x200028, 0x200028, 32, "multiboot1"),)
    assert image.read(0x200028, 4) == CODE[:4]


@pytest.mark.parametrize(
    "data",
    [
        _multiboot(0x200000, 0x100000, 0, 0x200028),
        _multiboot(0x200000, 0x300000, 0, 0x200028),
        _multiboot(0x200000, 0, 0xFFFFFFFF, 0x200028),
        _multiboot(0x200000, 0, 0, 0x1000),
        _multiboot(0xFFFFFFF0, 0, 0, 0xFFFFFFF8)[:0x20] + bytes(0x40),
    ],
)
def test_contradicting_multiboot_addresses_are_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match="multiboot"):
        parse_image(data, HERE)
