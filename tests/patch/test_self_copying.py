"""ELF kernels that run in copies of themselves: the same text as unpatched everywhere, nothing missed."""

from __future__ import annotations

import struct
from functools import cache
from pathlib import Path

import pytest

from pvpatch.abi.asm import assemble
from pvpatch.bootimage import boot_image
from rewriter.emit.produce import Produced, patch_image
from rewriter.image import Image, parse_image
from rewriter.scan import scan_image
from runtime.backends import backend_named
from runtime.machine import Machine, MachineConfig
from runtime.outcome import Outcome, RunResult
from tests.image.builders import Load, elf, multiboot1_header, with_dynamic

BASE, COPY, SIZE, MEMORY = 0x10000, 0x40000, 0x1000, 0x2000
ENTRY, TABLES = BASE + 0x40, BASE + 0x800
DYNAMIC, RECORDS = TABLES + 0x40, TABLES + 0x80
_CODE = f"""
again:
 cld
 cli
 mov ebp, again+1
 mov esp, 0x8000
 call here
here:
 pop ebx
 and ebx, 0xfffff000
 mov edx, 0x3f8
 mov al, [ebx+{TABLES - BASE}]
 inc byte ptr [ebx+{TABLES - BASE}]
 out dx, al
 cmp ebx, {COPY}
 je copied
 mov esi, ebx
 mov edi, {COPY}
 mov ecx, {SIZE // 4}
 rep movsd
 add dword ptr [{COPY + TABLES + 4 - BASE}], {COPY - BASE}
 mov eax, {COPY + ENTRY - BASE}
 jmp eax
copied:
 mov edi, {BASE}
 mov ecx, {SIZE // 4}
 mov eax, 0xf4f4f4f4
 rep stosd
 call dword ptr [ebx+{TABLES + 4 - BASE}]
 call back
 mov eax, 0
 out 0xf4, eax
stay:
 jmp stay
function:
 mov al, 0x21
 out dx, al
 call back
back:
 ret
"""


@cache
def kernel(kind: int = 3) -> bytes:
    """It says 0, copies itself, says 1 in the copy, clears the original, calls through what it relocated."""
    code = assemble(_CODE, 32, ENTRY)
    content = bytearray(SIZE)
    tags = struct.pack("<8I", 17, RECORDS, 18, 8, 19, 8, 0, 0)
    parts = {
        BASE: multiboot1_header(),
        ENTRY: code.code,
        TABLES: b"0\0\0\0" + struct.pack("<I", code.labels["function"]),
        DYNAMIC: tags,
        RECORDS: struct.pack("<II", TABLES + 4, 8),
    }
    for address, part in parts.items():
        content[address - BASE : address - BASE + len(part)] = part
    data = elf(32, (Load(BASE, BASE, bytes(content), MEMORY, flags=7),), entry=ENTRY, kind=kind)
    return with_dynamic(data, DYNAMIC, len(tags), 0x1000 + DYNAMIC - BASE)


def image(data: bytes) -> Image:
    return parse_image(data, Path("kernel"))


@cache
def patched() -> Produced:
    return patch_image(image(kernel()))


def run(data: bytes, backend: str) -> RunResult:
    config = MachineConfig(memory_mib=4, max_time_s=1.0)
    return Machine(config, boot_image(image(data)), backend_named(backend)).run()


def test_only_relocated_words_are_pointers() -> None:
    assert image(kernel()).relocated == frozenset({TABLES + 4})
    assert image(kernel(kind=2)).relocated is None
    moving, fixed = scan_image(image(kernel())).codemap, scan_image(image(kernel(kind=2))).codemap
    (function,) = struct.unpack("<I", image(kernel()).read(TABLES + 4, 4))
    assert moving.is_target(function) and fixed.is_target(function)
    assert fixed.is_target(ENTRY + 1) and not moving.is_target(ENTRY + 1)
    assert [window.kind for window in moving.windows_over(TABLES + 4, TABLES + 8)] == ["relocation"]


def test_a_damaged_table_says_nothing() -> None:
    data = bytearray(kernel())
    struct.pack_into("<I", data, 0x1000 + DYNAMIC - BASE + 4, 0x70000000)
    assert image(bytes(data)).relocated is None


def test_every_site_is_reached_by_address() -> None:
    result = patched()
    assert result.job.reach.kind == "absolute"
    assert {site.tactic for site in result.manifest.sites}.isdisjoint({"trap", "kept"})


def test_the_block_lies_at_the_top_of_conventional_memory() -> None:
    resident = patched().job.resident
    assert resident.physical > COPY + MEMORY
    assert resident.physical + resident.memory_size <= 0x90000


@pytest.mark.parametrize("backend", ["bare", "kvm", "lguest", "vmi", "xen"])
def test_it_says_the_same_as_unpatched(backend: str) -> None:
    assert run(kernel(), "bare").transcript == b"01!"
    result = run(patched().file, backend)
    assert result.outcome == Outcome.EXITED
    assert result.transcript == b"01!"
    assert result.stats["missed"] == 0
