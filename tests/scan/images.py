"""Tiny images for the scan tests: bytes at an address, entered at given places."""

from __future__ import annotations

from pathlib import Path

from rewriter.image import EntryPoint, Image, Section, Segment

BASE = 0x10_0000


def flat_image(code: bytes, width: int = 32, entries: tuple[tuple[int, int], ...] = ((0, 0),)) -> Image:
    """One executable segment at BASE; `entries` are (offset, width) pairs, width 0 meaning `width`."""
    segment = Segment(0, len(code), BASE, BASE, len(code), True, True, True, "code")
    points = tuple(EntryPoint(BASE + offset, BASE + offset, own or width, "elf") for offset, own in entries)
    return Image(Path("made.bin"), (), code, "flat", width, (segment,), points)


def sectioned_image(parts: list[tuple[str, bytes, bool]], width: int = 32) -> Image:
    """Sections one after another, (name, content, executable) each; the entry is the first byte."""
    payload = b"".join(content for _, content, _ in parts)
    sections, offset = [], 0
    for name, content, executable in parts:
        sections.append(
            Section(name, offset, len(content), BASE + offset, len(content), True, not executable, executable)
        )
        offset += len(content)
    segment = Segment(0, len(payload), BASE, BASE, len(payload), True, True, True, "all")
    entry = EntryPoint(BASE, BASE, width, "elf")
    kind = "elf64" if width == 64 else "elf32"
    return Image(Path("made.elf"), (), payload, kind, width, (segment,), (entry,), tuple(sections))
