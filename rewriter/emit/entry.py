"""The entry stub: the first code that a patched image runs (texts in entry32.s and entry64.s)."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

from pvpatch.abi.asm import assemble
from pvpatch.abi.errors import SelfCheckError
from rewriter.image import EntryPoint

__all__ = ["MAP_BUFFER", "STACK", "Entry", "Stub", "StubPlace", "assemble_stubs"]

MAP_BUFFER = 8192  # bytes for the rewritten memory map
STACK = 4096  # bytes of stack that the guest starts with
_PROTOCOL = {"elf": 0, "multiboot1": 1, "multiboot2": 1, "linux32": 2, "pvh": 3}


@dataclass(frozen=True)
class Entry:
    """One entry of the image: where it is and, for flat images, the bytes that the stub puts back.

    A flat image's entry is overwritten with a jump to the stub. The image may copy itself and
    run its entry again in the copy, so the stub restores the bytes before it goes on.
    """

    point: EntryPoint
    restore: bytes = b""


@dataclass(frozen=True)
class StubPlace:
    """Physical addresses that the stub is built for; ``image_end`` is 0 for a block behind the image.

    ``zero`` is address and size of memory that the stub clears, since the loader no longer does.
    """

    code: int
    reserve: tuple[int, int]
    buffer: int
    stack_top: int
    image_end: int = 0
    zero: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Stub:
    """Assembled stubs; ``starts`` gives each entry's first address, by original physical address."""

    code: bytes
    starts: tuple[tuple[EntryPoint, int], ...]


def assemble_stubs(entries: tuple[Entry, ...], place: StubPlace) -> Stub:
    """All stubs that the entries need, placed one after the other at ``place.code``."""
    code = bytearray()
    starts: list[tuple[EntryPoint, int]] = []
    narrow = tuple(entry for entry in entries if entry.point.width == 32)
    if narrow:
        head = "".join(_narrow_entry(entry) for entry in narrow)
        result = assemble(head + _text("entry32.s"), 32, place.code, _symbols(place))
        sizes = [
            assemble(_narrow_entry(entry) + "\nsave:\nprotocol:\n", 32, place.code, _symbols(place))
            for entry in narrow
        ]
        at = place.code
        for entry, size in zip(narrow, sizes, strict=True):
            starts.append((entry.point, at))
            at += len(size.code)
        code += result.code
    for entry in entries:
        if entry.point.width == 64:
            code += bytes(-len(code) % 16)
            at = place.code + len(code)
            tail = "\nleave_0:\n" + _restore(entry, 64) + f"  jmp {entry.point.physical}\n"
            code += assemble(_text("entry64.s") + tail, 64, at, _symbols(place)).code
            starts.append((entry.point, at))
    return Stub(bytes(code), tuple(starts))


def _narrow_entry(entry: Entry) -> str:
    return (
        f"  mov esp, STACK_TOP\n  mov dword ptr [protocol], {_PROTOCOL[entry.point.protocol]}\n"
        f"  call save\n" + _restore(entry, 32) + f"  jmp {entry.point.physical}\n"
    )


def _restore(entry: Entry, width: int) -> str:
    """Stores that put the entry's own bytes back."""
    if not entry.restore:
        return ""
    pointer = "rax" if width == 64 else "eax"
    lines = [f"  push {pointer}\n  mov eax, {entry.point.physical}\n"]
    for offset in range(0, len(entry.restore), 4):
        chunk = entry.restore[offset : offset + 4]
        size = {4: "dword", 2: "word", 1: "byte"}.get(len(chunk))
        if size is None:
            raise SelfCheckError(f"no store of {len(chunk)} bytes")
        lines.append(f"  mov {size} ptr [{pointer}+{offset}], {int.from_bytes(chunk, 'little')}\n")
    lines.append(f"  pop {pointer}\n")
    return "".join(lines)


def _text(name: str) -> str:
    return files("rewriter.emit").joinpath(name).read_text(encoding="utf-8")


def _symbols(place: StubPlace) -> dict[str, int]:
    return {
        "RES_START": place.reserve[0],
        "RES_END": place.reserve[1],
        "IMAGE_END": place.image_end or 0xFFFFFFFF,
        "ZERO_START": place.zero[0],
        "ZERO_SIZE": place.zero[1],
        "BUFFER": place.buffer,
        "BUFFER_END": place.buffer + MAP_BUFFER,
        "STACK_TOP": place.stack_top,
    }
