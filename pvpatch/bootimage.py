"""From the rewriter's `Image` to the runtime's `BootImage`: the only place that knows both."""

from __future__ import annotations

from pvpatch.abi.errors import ImageError, UsageError
from rewriter.image import Image
from rewriter.image.linux_kernel import is_linux
from runtime.boot.model import BootImage, BootKind, BootSegment

__all__ = ["boot_image", "protocol_named"]

_KIND_BY_PROTOCOL = {
    "multiboot1": BootKind.MULTIBOOT1,
    "multiboot2": BootKind.MULTIBOOT2,
    "linux32": BootKind.LINUX32,
    "linux64": BootKind.LINUX64,
    "pvh": BootKind.PVH,
    "xen": BootKind.XEN_PV,
}
_PREFERENCE = (
    BootKind.MULTIBOOT1,
    BootKind.MULTIBOOT2,
    BootKind.LINUX64,
    BootKind.LINUX32,
    BootKind.PVH,
    BootKind.FLAT,
    BootKind.XEN_PV,
)
_VIRTUAL_ENTRY = (BootKind.XEN_PV, BootKind.FLAT)


def protocol_named(name: str) -> BootKind:
    """The boot protocol called `name`. Raises `UsageError` naming those that exist."""
    try:
        return BootKind(name)
    except ValueError:
        names = ", ".join(kind.value for kind in BootKind)
        raise UsageError(f"there is no boot protocol '{name}'", f"there are: {names}") from None


def _entries(image: Image) -> dict[BootKind, int]:
    """Entry addresses by protocol; a vmlinux, in a bzImage or raw, is entered as the decompressor would."""
    entries: dict[BootKind, int] = {}
    for entry in image.entries:
        kind = _KIND_BY_PROTOCOL.get(entry.protocol)
        if kind is not None:
            entries[kind] = entry.address if kind in _VIRTUAL_ENTRY else entry.physical
        elif entry.protocol == "elf":
            entries[BootKind.FLAT] = entry.address
            if image.setup_header is not None or is_linux(image):
                linux = BootKind.LINUX64 if image.bits == 64 else BootKind.LINUX32
                entries[linux] = entry.physical
    return entries


def boot_image(image: Image, protocol: str = "") -> BootImage:
    """Describe a parsed image to the runtime; `protocol` overrides the choice of entry.

    Raises `ImageError` when the image has no entry that the runtime can use.
    """
    entries = _entries(image)
    if protocol:
        kind = protocol_named(protocol)
        if kind not in entries:
            have = ", ".join(entry.value for entry in entries)
            raise UsageError(f"{image.path} has no {kind.value} entry", f"it has: {have}")
    else:
        kinds = [kind for kind in _PREFERENCE if kind in entries]
        if not kinds:
            raise ImageError(f"{image.path} has no entry point that can be run")
        kind = kinds[0]
    segments = tuple(
        BootSegment(
            paddr=segment.paddr,
            vaddr=segment.vaddr,
            data=image.data_of(segment),
            memsz=segment.mem_size,
            flags=segment.readable << 2 | segment.writable << 1 | int(segment.executable),
        )
        for segment in image.segments
        if segment.mem_size
    )
    symbols = sorted(
        (symbol.address, symbol.size, symbol.name)
        for symbol in image.symbols
        if symbol.name and symbol.kind in ("function", "notype", "object")
    )
    return BootImage(
        name=image.path.name,
        kind=kind,
        width=image.bits,
        segments=segments,
        entries=entries,
        setup_header=image.setup_header.raw if image.setup_header is not None else b"",
        xen=image.xen,
        symbols=tuple(symbols),
    )
