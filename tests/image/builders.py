"""Small valid images made by hand, so that each test sees exactly the bytes that it is about."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from rewriter.image.codecs import codec_named

CODE = b"\x90" * 16 + b"\xfa\xf4\xfb\xc3"  # nops, cli, hlt, sti, ret


@dataclass(frozen=True)
class Load:
    """A PT_LOAD segment."""

    vaddr: int
    paddr: int
    content: bytes
    mem_size: int = 0
    flags: int = 5


@dataclass(frozen=True)
class Part:
    """A section; allocated ones take the address of the segment byte that they name."""

    name: str
    kind: int
    flags: int
    vaddr: int
    offset: int
    size: int
    link: int = 0
    entry_size: int = 0


def note(owner: bytes, kind: int, description: bytes) -> bytes:
    """One ELF note."""
    owner += b"\0"
    head = struct.pack("<III", len(owner), len(description), kind)
    return head + owner + bytes(-len(owner) % 4) + description + bytes(-len(description) % 4)


def multiboot1_header(flags: int = 3, addresses: tuple[int, ...] = ()) -> bytes:
    """A multiboot 1 header."""
    magic = 0x1BADB002
    return struct.pack(f"<{3 + len(addresses)}I", magic, flags, -(magic + flags) & 0xFFFFFFFF, *addresses)


def multiboot2_header(entry: int | None = None) -> bytes:
    """A multiboot 2 header, with an entry address tag if wanted."""
    tags = b"" if entry is None else struct.pack("<HHIII", 3, 0, 12, entry, 0)
    tags += struct.pack("<HHI", 0, 0, 8)
    length = 16 + len(tags)
    return struct.pack("<4I", 0xE85250D6, 0, length, -(0xE85250D6 + length) & 0xFFFFFFFF) + tags


def elf(
    bits: int = 32,
    loads: tuple[Load, ...] = (),
    *,
    entry: int | None = None,
    notes: bytes = b"",
    machine: int | None = None,
    kind: int = 2,
    symbols: tuple[tuple[str, int, int], ...] = (),
) -> bytes:
    """An ELF file: segments page by page from 0x1000, .text over the first, notes and symbols on demand."""
    loads = loads or (Load(0xC0100000, 0x100000, CODE + bytes(64)),)
    machine = machine if machine is not None else (3 if bits == 32 else 62)
    entry = loads[0].vaddr if entry is None else entry
    body = bytearray(0x1000)
    headers: list[tuple[int, int, int, int, int, int, int]] = []
    for load in loads:
        body += bytes(-len(body) % 0x1000)
        mem_size = max(load.mem_size, len(load.content))
        headers.append((1, len(body), load.vaddr, load.paddr, len(load.content), mem_size, load.flags))
        body += load.content
    parts = [Part(".text", 1, 6, loads[0].vaddr, 0x1000, len(loads[0].content))]
    if notes:
        body += bytes(-len(body) % 4)
        headers.append((4, len(body), 0, 0, len(notes), len(notes), 4))
        parts.append(Part(".notes", 7, 0, 0, len(body), len(notes)))
        body += notes
    if symbols:
        parts += _symbol_parts(body, bits, symbols, len(parts) + 1)
    names = b"\0" + b"".join(part.name.encode() + b"\0" for part in parts) + b".shstrtab\0"
    parts.append(Part(".shstrtab", 3, 0, 0, len(body), len(names)))
    body += names
    body += bytes(-len(body) % 8)
    section_offset = len(body)
    body += _section(bits, 0, Part("", 0, 0, 0, 0, 0))
    for part in parts:
        body += _section(bits, names.index(b"\0" + part.name.encode() + b"\0") + 1, part)
    program = b"".join(_segment(bits, header) for header in headers)
    head = b"\x7fELF" + bytes((1 if bits == 32 else 2, 1, 1)) + bytes(9)
    sizes = (52, 32, 40) if bits == 32 else (64, 56, 64)
    head += struct.pack(
        "<HHI" + ("III" if bits == 32 else "QQQ") + "IHHHHHH",
        kind, machine, 1, entry, sizes[0], section_offset, 0,
        sizes[0], sizes[1], len(headers), sizes[2], len(parts) + 1, len(parts),
    )  # fmt: skip
    body[: len(head) + len(program)] = head + program
    return bytes(body)


def with_dynamic(data: bytes, address: int, size: int, offset: int) -> bytes:
    """An ELF32 file with a PT_DYNAMIC header more, in the room behind its program headers."""
    (count,) = struct.unpack_from("<H", data, 44)
    header = struct.pack("<8I", 2, offset, address, address, size, size, 6, 4)
    place = 52 + 32 * count
    return data[:44] + struct.pack("<H", count + 1) + data[46:place] + header + data[place + 32 :]


def _symbol_parts(
    body: bytearray, bits: int, symbols: tuple[tuple[str, int, int], ...], index: int
) -> list[Part]:
    strings = b"\0" + b"".join(name.encode() + b"\0" for name, _, _ in symbols)
    entry_size = 16 if bits == 32 else 24
    table = bytes(entry_size)
    for name, address, size in symbols:
        at = strings.index(b"\0" + name.encode() + b"\0") + 1
        if bits == 32:
            table += struct.pack("<IIIBBH", at, address, size, 0x12, 0, 1)
        else:
            table += struct.pack("<IBBHQQ", at, 0x12, 0, 1, address, size)
    body += bytes(-len(body) % 8)
    parts = [Part(".symtab", 2, 0, 0, len(body), len(table), index + 1, entry_size)]
    body += table
    parts.append(Part(".strtab", 3, 0, 0, len(body), len(strings)))
    body += strings
    return parts


def _segment(bits: int, header: tuple[int, int, int, int, int, int, int]) -> bytes:
    kind, offset, vaddr, paddr, file_size, mem_size, flags = header
    if bits == 32:
        return struct.pack("<8I", kind, offset, vaddr, paddr, file_size, mem_size, flags, 0x1000)
    return struct.pack("<II6Q", kind, flags, offset, vaddr, paddr, file_size, mem_size, 0x1000)


def _section(bits: int, name: int, part: Part) -> bytes:
    layout = "<10I" if bits == 32 else "<IIQQQQIIQQ"
    return struct.pack(
        layout,
        name,
        part.kind,
        part.flags,
        part.vaddr,
        part.offset,
        part.size,
        part.link,
        1,
        4,
        part.entry_size,
    )


def linux_flat(code: bytes = CODE + bytes(0x300), *, xloadflags: int = 1, init_size: int = 0x8000) -> bytes:
    """A Linux boot protocol image whose protected-mode part is the program (payload_length 0)."""
    return _boot_image(code, xloadflags=xloadflags, init_size=init_size)


def bzimage(vmlinux: bytes, codec: str = "gzip", *, stub: bytes = CODE) -> bytes:
    """A bzImage in the 6.x layout: stub code, compressed payload, the pair {input_len, output_len}."""
    packed = codec_named(codec).encode(vmlinux)
    if codec != "gzip":
        packed += struct.pack("<I", len(vmlinux))
    code = stub + bytes(0x240 - len(stub))
    offset = len(code)
    code += packed + bytes(-len(packed) % 8) + struct.pack("<II", len(packed), len(vmlinux)) + bytes(64)
    return _boot_image(code, payload_offset=offset, payload_length=len(packed), init_size=0x100000)


def _boot_image(
    code: bytes, *, xloadflags: int = 1, init_size: int = 0, payload_offset: int = 0, payload_length: int = 0
) -> bytes:
    setup = bytearray(512 * 3)
    code += bytes(-len(code) % 16)
    setup[0x1F1] = 2
    struct.pack_into("<I", setup, 0x1F4, len(code) // 16)
    setup[0x1FE:0x200] = b"\x55\xaa"
    setup[0x200:0x202] = b"\xeb\x6a"
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, 0x20F)
    setup[0x211] = 1
    struct.pack_into("<I", setup, 0x214, 0x100000)
    struct.pack_into("<H", setup, 0x236, xloadflags)
    struct.pack_into("<II", setup, 0x248, payload_offset, payload_length)
    struct.pack_into("<QI", setup, 0x258, 0x100000, init_size)
    return bytes(setup) + code
