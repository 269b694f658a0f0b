"""Real kernels: the model agrees with pyelftools, an independent reader, and with lasting facts."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from pvpatch.abi.errors import ImageError
from rewriter.image import Image, open_image, parse_image, rewrap

GuestPath = Callable[[str], Path]
pytestmark = pytest.mark.guest

# name: (container and codec, kind, {(protocol, width)})
EXPECTED: dict[str, tuple[tuple[str, ...], str, set[tuple[str, int]]]] = {
    "gnumach-i386": (("gzip",), "elf32", {("multiboot1", 32)}),
    "gnumach-amd64": (("gzip",), "elf64", {("multiboot1", 32)}),
    "memtest-ia32": ((), "flat", {("linux32", 32)}),
    "memtest-x64": ((), "flat", {("linux32", 32), ("linux64", 64)}),
    "linux-amd64": (("bzimage",), "elf64", {("pvh", 32), ("xen", 64), ("elf", 64)}),
    "linux-i386": (("bzimage",), "elf32", {("elf", 32)}),
    "gnumach-xen-i386": (("gzip",), "elf32", {("xen", 32), ("elf", 32)}),
    "gnumach-xen-amd64": (("gzip",), "elf64", {("xen", 64), ("elf", 64)}),
    "grub-xen-i386": ((), "elf32", {("xen", 32), ("elf", 32)}),
    "grub-xen-amd64": ((), "elf64", {("xen", 64), ("elf", 64)}),
    "grub-pvh-i386": ((), "elf32", {("pvh", 32), ("elf", 32)}),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_containers_kind_and_entries(name: str, guest_path: GuestPath) -> None:
    image = open_image(guest_path(name))
    containers, kind, entries = EXPECTED[name]
    assert tuple(layer.kind for layer in image.container) == containers
    assert image.kind == kind
    assert {(entry.protocol, entry.width) for entry in image.entries} == entries
    for entry in image.entries:
        segment = image.segment_at(entry.address)
        assert segment is not None and segment.executable
        assert image.offset_of(entry.address) is not None


@pytest.mark.parametrize("name", [name for name in EXPECTED if not name.startswith("memtest")])
def test_agrees_with_pyelftools(name: str, guest_path: GuestPath) -> None:
    image = open_image(guest_path(name))
    reader = ELFFile(io.BytesIO(image.payload))
    loads = [
        (s["p_offset"], s["p_filesz"], s["p_vaddr"], s["p_paddr"], s["p_memsz"])
        for s in reader.iter_segments("PT_LOAD")
    ]
    assert loads == [(s.file_offset, s.file_size, s.vaddr, s.paddr, s.mem_size) for s in image.segments]
    sections = [
        (s.name, s["sh_offset"], s["sh_addr"], s["sh_size"])
        for s in reader.iter_sections()
        if s["sh_type"] != "SHT_NULL"
    ]
    assert sections == [(s.name, s.file_offset, s.vaddr, s.mem_size) for s in image.sections]


def _linux(guest_path: GuestPath, name: str) -> Image:
    return open_image(guest_path(name))


@pytest.mark.parametrize("name", ["linux-amd64", "linux-i386"])
def test_linux_relocations_and_tables(name: str, guest_path: GuestPath) -> None:
    image = _linux(guest_path, name)
    tail = image.relocations
    assert tail is not None
    for address in (*tail.abs64[::997], *tail.abs32[::997]):
        assert image.offset_of(address) is not None
    table = image.table(".parainstructions")
    assert table is not None and table.size and len(image.data_of(table)) == table.size
    (layer,) = image.container
    assert layer.stub is not None and len(layer.stub.length_pair_offsets) == 1


@pytest.mark.parametrize("name", ["gnumach-amd64", "gnumach-xen-i386"])
def test_gzip_rewraps_deterministically(name: str, guest_path: GuestPath) -> None:
    image = open_image(guest_path(name))
    changed = image.payload[:-8] + b"PVPATCH!"
    again = rewrap(image, changed)
    assert again == rewrap(image, changed)
    assert parse_image(rewrap(image, image.payload), image.path).payload == image.payload


@pytest.mark.slow
def test_linux_amd64_repacks_into_its_bzimage(guest_path: GuestPath) -> None:
    image = _linux(guest_path, "linux-amd64")
    changed = image.payload.replace(b"Linux version ", b"PATCHED versn ")
    assert changed != image.payload
    again = parse_image(rewrap(image, changed), image.path)
    assert again.payload == changed
    assert again.container[0].stub is not None and again.container[0].stub.certificate == (0, 0)


def test_static_programs_are_refused(guest_path: GuestPath) -> None:
    for name in ("busybox-amd64", "busybox-i386"):
        with pytest.raises(ImageError, match="program for an operating system"):
            open_image(guest_path(name))


def test_opening_linux_is_quick(guest_path: GuestPath) -> None:
    path = guest_path("linux-amd64")
    started = time.process_time()
    open_image(path)
    limit = 3.0 if os.environ.get("CI") else 2.0  # seconds of CPU; 0.3 on the machine it was written on
    assert time.process_time() - started < limit
