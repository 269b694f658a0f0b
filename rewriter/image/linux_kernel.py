"""Is an image Linux? By what Linux builds into every kernel, never by a name."""

from __future__ import annotations

from rewriter.image.codecs import holds_gzip_kernel
from rewriter.image.model import Image

__all__ = ["is_linux"]

_LINUX_TABLES = frozenset(
    {
        "__ex_table",
        "__ksymtab",
        "__ksymtab_gpl",
        "__param",
        "__bug_table",
        "__jump_table",
        ".altinstructions",
        ".parainstructions",
    }
)
"""Sections by which Linux patches, extends and repairs itself (include/asm-generic/vmlinux.lds.h)."""
_LINUX_NOTE = "Linux"  # owner of Linux's own notes (include/linux/elfnote.h)


def is_linux(image: Image) -> bool:
    """Whether an image is Linux: two of the tables of its own, a note of it, or a compressed kernel inside.

    The last are boot images whose header is too old to say where the kernel in them is (before 2.08).
    """
    tables = _LINUX_TABLES & {section.name for section in image.sections}
    if len(tables) >= 2 or any(note.owner == _LINUX_NOTE for note in image.notes):
        return True
    return image.kind == "flat" and image.setup_header is not None and holds_gzip_kernel(image.payload)
