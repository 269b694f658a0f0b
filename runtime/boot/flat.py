"""No protocol: jump to the entry in the image's width, for samples and tests of bare code."""

from __future__ import annotations

from pvpatch.abi.errors import ImageError
from runtime.boot.layout import Arena
from runtime.boot.model import BootImage, BootKind, BootRequest, EntryState
from runtime.boot.protocol import flat32, identity64, refuse_modules

__all__ = ["load_flat"]


def load_flat(image: BootImage, request: BootRequest, arena: Arena) -> EntryState:
    """Enter at the physical address that holds the (virtual) entry point."""
    refuse_modules(request.modules, "flat")
    virtual = image.entries.get(BootKind.FLAT)
    for segment in image.segments:
        if virtual is not None and segment.vaddr <= virtual < segment.vaddr + segment.memsz:
            rip = virtual - segment.vaddr + segment.paddr
            return identity64(rip, arena) if image.width == 64 else flat32(rip, arena)
    raise ImageError("the flat entry point is missing or outside the loaded image")
