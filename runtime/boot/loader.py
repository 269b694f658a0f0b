"""The registry of boot protocols and the one function that loads an image."""

from __future__ import annotations

from pvpatch.abi.errors import ImageError
from runtime.boot.firmware import write_firmware
from runtime.boot.flat import load_flat
from runtime.boot.layout import Arena
from runtime.boot.linux import load_linux32, load_linux64
from runtime.boot.model import BootImage, BootKind, BootRequest, EntryState
from runtime.boot.multiboot1 import load_multiboot1
from runtime.boot.multiboot2 import load_multiboot2
from runtime.boot.protocol import BootProtocol
from runtime.boot.pvh import load_pvh
from runtime.ports import PhysicalMemory

__all__ = ["PROTOCOLS", "load_image"]

PROTOCOLS: dict[BootKind, BootProtocol] = {
    BootKind.MULTIBOOT1: load_multiboot1,
    BootKind.MULTIBOOT2: load_multiboot2,
    BootKind.LINUX32: load_linux32,
    BootKind.LINUX64: load_linux64,
    BootKind.PVH: load_pvh,
    BootKind.FLAT: load_flat,
}
"""Protocols of native kernels. A hypervisor's own protocol belongs to its backend."""


def load_image(
    image: BootImage, memory: PhysicalMemory, request: BootRequest, *, apics: bool = False
) -> EntryState:
    """Put firmware tables, the image and its protocol's structures into memory.

    `apics` says whether the tables tell of a local APIC and an I/O APIC.

    Returns the processor state at the first instruction. Raises ImageError if the image cannot
    be placed or has no entry for its protocol, UsageError if what comes with it does not fit.
    """
    protocol = PROTOCOLS.get(image.kind)
    if protocol is None:
        raise ImageError(f"no native loader for the {image.kind.value} protocol", "choose that backend")
    write_firmware(memory, apics=apics)
    arena = Arena(memory)
    arena.load_segments(image.segments)
    return protocol(image, request, arena)
