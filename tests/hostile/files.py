"""Files that are no kernels, or damaged ones, or ones that lie about themselves."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

from tests.hostile.guests import kernel
from tests.image.builders import Load, bzimage, elf, linux_flat

__all__ = ["ABSURD_ELF", "NO_KERNELS", "bomb", "sparse"]

PNG = bytes.fromhex("89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489") + bytes(40)
TWO = (Load(0x100000, 0x100000, b"\xfa\xf4" * 40), Load(0x101000, 0x101000, bytes(64)))

NO_KERNELS: dict[str, bytes] = {
    "empty": b"",
    "one byte": b"\x7f",
    "text": b"This is no kernel.\n" * 40,
    "zeros": bytes(70000),
    "a picture": PNG,
    "an ELF magic and nothing": b"\x7fELF",
    "an ELF header and nothing": elf(32)[:52],
    "for ARM": elf(64, machine=183),
    "for ARM, 32 bits": elf(32, machine=40),
    "an object file": elf(64, kind=1),
    "big-endian": b"\x7fELF\x01\x02\x01" + elf(32)[7:],
    "a class that is none": b"\x7fELF\x07\x01\x01" + elf(32)[7:],
    "gzip of nothing": gzip.compress(b"", mtime=0),
    "gzip of text": gzip.compress(b"no kernel either\n" * 30, mtime=0),
    "gzip cut short": gzip.compress(elf(32), mtime=0)[:60],
    "gzip in gzip in gzip in gzip": gzip.compress(gzip.compress(gzip.compress(gzip.compress(elf(32))))),
    "a boot sector": bytes(510) + b"\x55\xaa",
    "a setup header alone": linux_flat()[:0x300],
    "a bzImage cut short": bzimage(elf(64), "xz")[:0x700],
    "a program for Windows": b"MZ" + bytes(0x3A) + struct.pack("<I", 0x40) + b"PE\0\0" + bytes(300),
    "an archive": b"!<arch>\n" + bytes(100),
    "a script": b"#!/bin/sh\nexec true\n",
}


def _with(changes: dict[int, bytes], bits: int = 32) -> bytes:
    data = bytearray(elf(bits, TWO))
    for offset, value in changes.items():
        data[offset : offset + len(value)] = value
    return bytes(data)


def _u16(value: int) -> bytes:
    return struct.pack("<H", value)


def _u32(value: int) -> bytes:
    return struct.pack("<I", value)


def _u64(value: int) -> bytes:
    return struct.pack("<Q", value)


# Places in an ELF32 header: entry 24, phoff 28, shoff 32, phentsize 42, phnum 44, shnum 48, shstrndx 50;
# in its first program header (at 52): offset 56, vaddr 60, paddr 64, filesz 68, memsz 72; the second is 32
# further. ELF64: entry 24, phoff 32, shoff 40, phnum 56, shnum 60; first program header (at 64): offset 72,
# vaddr 80, paddr 88, filesz 96, memsz 104.
ABSURD_ELF: dict[str, bytes] = {
    "headers outside": _with({28: _u32(0xFFFFFFF0)}),
    "65535 program headers": _with({44: _u16(0xFFFF)}),
    "no program headers": _with({44: _u16(0)}),
    "program headers of one byte": _with({42: _u16(1)}),
    "65535 sections": _with({48: _u16(0xFFFF)}),
    "sections outside": _with({32: _u32(0xFFFFFF00)}),
    "section names in no section": _with({50: _u16(0xFFFE)}),
    "a segment that starts outside": _with({56: _u32(0xFFFFF000)}),
    "a segment larger than the file": _with({68: _u32(0x7FFFFFFF), 72: _u32(0x7FFFFFFF)}),
    "a file size above the memory size": _with({72: _u32(1)}),
    "memory that wraps around": _with({60: _u32(0xFFFFF000), 64: _u32(0xFFFFF000), 72: _u32(0x10000)}),
    "4 GiB of memory": _with({72: _u32(0xFFFFFFFF)}),
    "overlapping segments": _with({92: _u32(0x100010), 96: _u32(0x100010)}),
    "the same segment twice": _with({84: elf(32, TWO)[52:84]}),
    "an entry outside": _with({24: _u32(0x55550000)}),
    "an entry in the headers": _with({24: _u32(52)}),
    "64 bits, memory that wraps around": _with(
        {80: _u64(2**64 - 4096), 88: _u64(2**64 - 4096), 104: _u64(8192)}, 64
    ),
    "64 bits, memory of 2**63 bytes": _with({104: _u64(2**63)}, 64),
    "64 bits, memory of 2**40 bytes": _with({104: _u64(2**40)}, 64),
    "64 bits, a file size of 2**63 bytes": _with({96: _u64(2**63), 104: _u64(2**63)}, 64),
    "64 bits, headers outside": _with({32: _u64(2**64 - 8)}, 64),
    "64 bits, sections outside": _with({40: _u64(2**63)}, 64),
    "64 bits, 65535 program headers": _with({56: _u16(0xFFFF)}, 64),
    "64 bits, an entry outside": _with({24: _u64(2**63)}, 64),
}


def bomb(name: str) -> bytes:
    """A small file that unpacks to gigabytes of zeros."""
    if name == "gzip members":
        return gzip.compress(bytes(16 << 20), 9, mtime=0) * 200
    if name == "gzip in gzip":
        return gzip.compress(gzip.compress(bytes(16 << 20), 9, mtime=0) * 200, 9, mtime=0)
    return bzimage(elf(64) + bytes(600 << 20), name)


def sparse(path: Path, head: bytes) -> None:
    """8 GiB that take no room on the disk."""
    with path.open("wb") as stream:
        stream.write(head)
        stream.truncate(8 << 30)


HEADS: dict[str, Callable[[], bytes]] = {
    "ELF": lambda: elf(64, TWO),
    "gzip": lambda: gzip.compress(elf(32), mtime=0),
    "boot image": linux_flat,
    "a kernel": lambda: kernel("cli; hlt"),
}
