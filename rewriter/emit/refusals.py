"""Images that are not patched, and why: what they declare of themselves, by formats and never by names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pvpatch.abi.errors import ImageError
from pvpatch.abi.layout import find_locators
from rewriter.emit.entries import stub_entries
from rewriter.image import Image
from rewriter.image.linux_kernel import is_linux
from rewriter.image.multiboot import TAG_RELOCATABLE, find_multiboot
from rewriter.manifest import find_record
from rewriter.scan import Site

__all__ = ["refuse_foreign", "refuse_image", "refuse_patched", "refuse_unknown_widths"]

_NATIVE = ("multiboot1", "multiboot2", "linux32", "linux64", "pvh")
"""Protocols that enter a kernel on bare hardware, or as if on it."""
_FOREIGN = ("lguest", "vmi", "xen")
"""Dialects of kernels that need their hypervisor; KVM's calls are an addition to a native kernel."""
_NAMES = {"bzimage": "a bzImage", "uki": "a unified kernel image", "zboot": "an EFI zboot image"}


def refuse_image(image: Image) -> None:
    """ImageError, naming the file, for what can be told before the code is known."""
    refuse_patched(image)
    try:
        _refuse_container(image)
        if is_linux(image):
            raise ImageError(
                "this is a Linux kernel, which `patch` does not support yet",
                hint="`scan` covers it, and it runs unpatched",
            )
        stub_entries(image)
        _refuse_declared(image)
        _refuse_relocatable(image)
    except ImageError as error:
        raise ImageError(f"{image.path}: {error.message}", hint=error.hint) from error


def refuse_patched(image: Image) -> None:
    """ImageError when the image was patched before."""
    try:
        patched = find_record(image.payload) is not None
    except ImageError:
        patched = True
    patched = patched or any(
        find_locators(image.data_of(segment), segment.vaddr) for segment in image.segments
    )
    if patched:
        raise ImageError(
            f"{image.path}: this image is already patched", hint="`pvpatch revert` restores the original"
        )


def refuse_foreign(image: Image, sites: Iterable[Site]) -> None:
    """ImageError for a kernel that speaks a hypervisor's language and has no entry for bare hardware."""
    spoken = sorted({site.dialect for site in sites} & set(_FOREIGN))
    if spoken and not _is_native(image):
        raise ImageError(
            f"{image.path}: this is a guest of {' and '.join(spoken)}: it makes that hypervisor's calls, "
            "and no boot protocol enters it on bare hardware",
            hint="only native kernels are patched yet",
        )


def refuse_unknown_widths(image: Image, addresses: Sequence[int]) -> None:
    """ImageError where code of unknown width is entered: it and what it calls would be patched wrong."""
    if addresses:
        raise ImageError(
            f"{image.path}: the width of the code at {image.describe(addresses[0])} is not known",
            hint="it is entered by a far transfer whose code segment the file does not hold",
        )


def _refuse_container(image: Image) -> None:
    if len(image.container) > 1 or any(layer.kind != "gzip" for layer in image.container):
        kinds = " in ".join(_NAMES.get(layer.kind, layer.codec) for layer in reversed(image.container))
        raise ImageError(
            f"patching inside {kinds} is not supported yet",
            hint="gzip, ELF and flat images are; the kernel can be patched after it is unpacked",
        )


def _refuse_declared(image: Image) -> None:
    """Notes or a __xen_guest section of a paravirtual guest, which only PVH's entry makes a native one."""
    if image.xen and set(image.xen) != {"PHYS32_ENTRY"} and not _is_native(image):
        raise ImageError(
            "the image declares itself a paravirtual guest of Xen, and has no entry of another kind",
            hint="native entries (multiboot, Linux, PVH) are supported",
        )


def _refuse_relocatable(image: Image) -> None:
    """A multiboot 2 header with the relocatable tag: the image runs wherever it is loaded, or moves itself.

    The Xen hypervisor does, and maps afterwards only what lies between its own symbols.
    """
    if any(tag.kind == TAG_RELOCATABLE for header in find_multiboot(image.payload) for tag in header.tags):
        raise ImageError(
            "the image declares that it may be moved as a whole (relocatable tag of its multiboot 2 header)",
            hint="the resident block could not move with it",
        )


def _is_native(image: Image) -> bool:
    return any(entry.protocol in _NATIVE for entry in image.entries)
