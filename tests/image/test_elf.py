"""ELF kernels: segments, entries with their width, notes, symbols, and what is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvpatch.abi.errors import ImageError
from rewriter.image import EntryPoint, parse_image
from rewriter.image.xen_notes import xen_parameters
from tests.image.builders import CODE, Load, elf, multiboot1_header, multiboot2_header, note

HERE = Path("kernel")
TWO = (
    Load(0xC0100000, 0x100000, CODE + bytes(100), flags=5),
    Load(0xC0102000, 0x102000, b"data" * 8, mem_size=0x5000, flags=6),
)


@pytest.mark.parametrize("bits", [32, 64])
def test_segments_and_elf_entry(bits: int) -> None:
    image = parse_image(elf(bits, TWO), HERE)
    assert (image.kind, image.bits) == (f"elf{bits}", bits)
    assert [(s.vaddr, s.paddr, s.file_size, s.mem_size, s.flags) for s in image.segments] == [
        (0xC0100000, 0x100000, 120, 120, "r-x"),
        (0xC0102000, 0x102000, 32, 0x5000, "rw-"),
    ]
    assert image.entries == (EntryPoint(0xC0100000, 0x100000, bits, "elf"),)


def test_read_crosses_into_the_zero_filled_part() -> None:
    image = parse_image(elf(32, TWO), HERE)
    assert image.read(0xC0102000 + 30, 6) == b"ta" + bytes(4)
    with pytest.raises(ImageError, match="no byte of the image is at 0xc0200000"):
        image.read(0xC0200000, 1)


@given(st.integers(0, 119))
def test_addresses_and_offsets_are_inverse(inside: int) -> None:
    image = parse_image(elf(32, TWO), HERE)
    offset = image.offset_of(0xC0100000 + inside)
    assert offset is not None
    assert image.vaddr_of_offset(offset) == 0xC0100000 + inside
    paddr = image.paddr_of(0xC0100000 + inside)
    assert paddr == 0x100000 + inside
    assert image.vaddr_of_paddr(paddr) == 0xC0100000 + inside
    assert image.payload[offset] == image.read(0xC0100000 + inside, 1)[0]


def test_addresses_outside_have_no_offset() -> None:
    image = parse_image(elf(32, TWO), HERE)
    assert image.offset_of(0xC0102020) is None  # zero-filled: memory, but not in the file
    assert image.paddr_of(0xC0102020) == 0x102020
    assert image.offset_of(0) is None and image.vaddr_of_offset(0) is None and image.vaddr_of_paddr(0) is None


def test_describe_names_symbol_and_section() -> None:
    image = parse_image(elf(32, TWO, symbols=(("start", 0xC0100000, 16), ("work", 0xC0100010, 4))), HERE)
    assert image.describe(0xC0100000) == "start in .text"
    assert image.describe(0xC0100012) == "work+0x2 in .text"
    assert image.describe(0xC0100020) == ".text+0x20"  # behind the sized symbol
    assert image.describe(0x1234) == "0x1234 (outside the image)"


@pytest.mark.parametrize("bits", [32, 64])
def test_multiboot_enters_in_32_bits_whatever_the_file_class(bits: int) -> None:
    load = Load(0xC0100000, 0x100000, CODE + multiboot1_header() + bytes(16))
    image = parse_image(elf(bits, (load,)), HERE)
    assert image.entries == (EntryPoint(0xC0100000, 0x100000, 32, "multiboot1"),)


def test_multiboot2_entry_tag_wins_over_the_elf_entry() -> None:
    content = CODE + bytes(4) + multiboot2_header(entry=0x100004) + bytes(16)
    image = parse_image(elf(64, (Load(0xC0100000, 0x100000, content),)), HERE)
    assert image.entries == (EntryPoint(0xC0100004, 0x100004, 32, "multiboot2"),)


def test_xen_and_pvh_notes_give_entries_of_their_own_width() -> None:
    base = 0xFFFFFFFF81000000
    notes = note(b"Xen", 1, struct.pack("<Q", base + 4)) + note(b"Xen", 18, struct.pack("<I", 0x1000008))
    notes += note(b"Xen", 3, struct.pack("<Q", base)) + note(b"Xen", 10, b"a|b\0")
    image = parse_image(elf(64, (Load(base, 0x1000000, CODE),), entry=0x1000000, notes=notes), HERE)
    assert set(image.entries) == {
        EntryPoint(base + 8, 0x1000008, 32, "pvh"),
        EntryPoint(base + 4, 0x1000004, 64, "xen"),
        EntryPoint(base, 0x1000000, 64, "elf"),
    }
    assert image.xen["VIRT_BASE"] == base and image.xen["FEATURES"] == "a|b"


def xen_note(kind: int, value: bytes | int, bits: int = 64) -> bytes:
    return note(b"Xen", kind, value if isinstance(value, bytes) else value.to_bytes(bits // 8, "little"))


PARAVIRTUAL = xen_note(5, b"xen-3.0\0") + xen_note(6, b"tests\0") + xen_note(8, b"generic\0")


@pytest.mark.parametrize(
    ("notes", "protocols"),
    [
        (PARAVIRTUAL + xen_note(2, 0x101000), {"xen", "elf"}),
        (xen_note(5, b"xen-3.0\0") + xen_note(6, b"linux\0"), {"xen", "elf"}),
        (PARAVIRTUAL + xen_note(18, 0x100000), {"pvh", "elf"}),
        (xen_note(5, b"xen-3.0\0") + xen_note(6, b"tests\0"), {"elf"}),
        (xen_note(8, b"generic\0"), {"elf"}),
        (xen_note(2, 0x101000), {"elf"}),
    ],
    ids=["generic", "linux", "pvh-only", "no-loader", "no-version", "no-names"],
)
def test_a_paravirtual_guest_that_names_no_entry_starts_at_the_elf_entry(
    notes: bytes, protocols: set[str]
) -> None:
    """elf_xen_addr_calc_check, for images that elf_xen_note_check takes for paravirtual ones."""
    load = Load(0x100000, 0x100000, CODE + bytes(64))
    image = parse_image(elf(64, (load,), entry=0x100004, notes=notes), HERE)
    assert {entry.protocol for entry in image.entries} == protocols
    if "xen" in protocols:
        assert EntryPoint(0x100004, 0x100004, 64, "xen") in image.entries
        assert image.xen["ENTRY"] == 0x100004


def test_the_older_string_gives_the_defaults_of_its_time() -> None:
    """Physical addresses of such images count from VIRT_BASE, and the hypercall page is a page number."""
    text = b"GUEST_OS=tests,XEN_VER=xen-3.0,VIRT_BASE=0xC0000000,HYPERCALL_PAGE=0x2,LOADER=generic\0"
    found = xen_parameters((), text, 0xC0100000)
    assert found["ENTRY"] == 0xC0100000
    assert found["PADDR_OFFSET"] == 0xC0000000
    assert found["HYPERCALL_PAGE"] == 0xC0002000


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (elf(32, machine=40), "for ARM"),
        (elf(64, machine=22), "for S/390"),
        (elf(64, machine=183), "for AArch64"),
        (elf(64, machine=3), "is no kernel"),
        (elf(32, kind=1), "relocatable object"),
        (elf(32, kind=4), "core dump"),
        (elf(32, entry=0x10), "entry point 0x10 lies outside"),
        (elf(32, notes=note(b"GNU", 1, bytes(16))), "program for an operating system"),
        (elf(32, (TWO[0], Load(0xC0100010, 0x200000, CODE))), "overlap in virtual memory"),
        (elf(32, (TWO[0], Load(0xC0200000, 0x100010, CODE))), "overlap in physical memory"),
        (elf(64, (Load(2**64 - 8, 0x1000, CODE),)), "end of the address space"),
        (elf(32, (Load(0x1000, 0x1000, CODE, mem_size=0xFFFFFFFF),)), "end of the address space"),
        (elf(64, (Load(0x1000, 0x1000, CODE, mem_size=1 << 40),)), "asks for 0x10000000000 bytes"),
        (elf(32)[:60], "program headers lie behind"),
        (elf(32)[:40], "header is cut short"),
        (elf(32)[:0x1008], "section headers lie behind"),
    ],
)
def test_refused_with_one_clear_line(data: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words) as caught:
        parse_image(data, HERE)
    assert str(caught.value).startswith("kernel: ") and "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_a_physical_address_that_only_repeats_the_virtual_one() -> None:
    """A hypervisor's own guest is placed by its notes: GNU Mach for Xen states the kernel half twice."""
    top = 0xFFFF_FFFF_8000_0000
    image = parse_image(elf(64, (Load(top, top, CODE + bytes(64)),)), HERE)
    assert image.segments[0].paddr == top


def test_programs_of_this_machine_are_refused() -> None:
    with pytest.raises(ImageError, match="program for an operating system, not a kernel"):
        parse_image(Path("/bin/ls").read_bytes(), Path("/bin/ls"))


def test_names_that_are_no_utf8_do_not_stop_the_reading(recwarn: pytest.WarningsRecorder) -> None:
    data = elf(32, TWO, notes=note(b"\xf4\xff", 1, b"abcd"), symbols=(("start", 0xC0100000, 16),))
    data = data.replace(b"start\0", b"s\xffart\0")
    image = parse_image(data, HERE)
    assert len(image.notes) == 1 and image.symbols[0].address == 0xC0100000
    odd = bytearray(elf(32, TWO))
    struct.pack_into("<I", odd, 52 + 32, 0x12345678)  # the second segment gets an unknown type
    assert len(parse_image(bytes(odd), HERE).segments) == 1
    assert not recwarn.list


@pytest.mark.parametrize("alignment", [4, 8])
@pytest.mark.parametrize("bits", [32, 64])
def test_notes_padded_to_the_alignment_of_their_segment(alignment: int, bits: int) -> None:
    """A PVH entry behind notes that are padded to 8 bytes, as `.p2align 3` makes them."""

    def padded(owner: bytes, kind: int, description: bytes) -> bytes:
        head = struct.pack("<III", len(owner) + 1, len(description), kind) + owner + b"\0"
        head += bytes(-len(head) % alignment)
        return head + description + bytes(-len(description) % alignment)

    notes = padded(b"Xen", 6, b"osv\0") + padded(b"GNU", 5, b"\2\0\0\xc0\4\0\0\0\3\0\0\0")
    notes += padded(b"Xen", 18, struct.pack("<I", 0x100000))
    data = bytearray(elf(bits, notes=notes))
    at = (52 + 32 + 28) if bits == 32 else (64 + 56 + 48)  # p_align of the second program header
    struct.pack_into("<I", data, at, alignment)
    section = int.from_bytes(data[32:36] if bits == 32 else data[40:48], "little")
    at = section + 2 * 40 + 32 if bits == 32 else section + 2 * 64 + 48  # sh_addralign of .notes
    struct.pack_into("<I", data, at, alignment)
    image = parse_image(bytes(data), Path("kernel"))
    assert [(note.owner, note.type) for note in image.notes] == [("Xen", 6), ("GNU", 5), ("Xen", 18)]
    assert [entry.physical for entry in image.entries if entry.protocol == "pvh"] == [0x100000]
    note = image.notes[2]
    assert image.payload[note.offset : note.offset + 4] == note.description == struct.pack("<I", 0x100000)


def test_memory_that_only_the_address_fields_give_belongs_to_the_image() -> None:
    """Program headers that leave out the zero-filled memory, as GRUB Invaders has them."""
    start = 0x100000
    header = multiboot1_header(0x10003, (start, start, start + 0x200, start + 0x5000, start + 0x20))
    data = elf(32, (Load(start, start, (header + CODE).ljust(0x200, b"\0")),), entry=start + 0x20)
    image = parse_image(data, Path("kernel"))
    assert [(item.paddr, item.file_size, item.mem_size) for item in image.segments] == [
        (start, 0x200, 0x200),
        (start + 0x200, 0, 0x4E00),
    ]
    elsewhere = multiboot1_header(0x10003, (start + 0x40, start, start + 0x200, start + 0x5000, start + 0x20))
    data = elf(32, (Load(start, start, (elsewhere + CODE).ljust(0x200, b"\0")),), entry=start + 0x20)
    assert len(parse_image(data, Path("kernel")).segments) == 1
