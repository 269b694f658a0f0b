"""Open an image: peel its containers, then let the one format that knows the payload read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pvpatch.abi.errors import ImageError
from rewriter.image import bzimage, compressed, efi_containers, elf, flat, gzip_layer
from rewriter.image.linux_header import has_setup_header
from rewriter.image.model import Image, Layer
from rewriter.image.source import read_bounded

__all__ = ["CONTAINERS", "FORMATS", "Container", "Format", "open_image", "parse_image"]

MAX_LAYERS = 3


@dataclass(frozen=True)
class Container:
    """A wrapper around an image: recognised by `matches`, taken off by `unwrap`."""

    name: str
    matches: Callable[[bytes], bool]
    unwrap: Callable[[bytes], tuple[Layer, bytes]]


@dataclass(frozen=True)
class Format:
    """An executable format: recognised by `matches`, understood by `parse`."""

    name: str
    matches: Callable[[bytes], bool]
    parse: Callable[[bytes, Path], Image]


CONTAINERS: tuple[Container, ...] = (
    Container("gzip", gzip_layer.matches, gzip_layer.unwrap),
    Container("bzimage", bzimage.matches, bzimage.unwrap),
    Container("uki", efi_containers.matches_uki, efi_containers.unwrap_uki),
    Container("zboot", efi_containers.matches_zboot, efi_containers.unwrap_zboot),
    Container("compressed", compressed.matches, compressed.unwrap),
)
FORMATS: tuple[Format, ...] = (
    Format("elf", elf.matches, elf.parse),
    Format("linux-flat", flat.matches_linux, flat.parse_linux),
    Format("multiboot-flat", flat.matches_multiboot, flat.parse_multiboot),
)


def open_image(path: Path) -> Image:
    """Read and understand a kernel image file; every failure is an ImageError that names the file."""
    return parse_image(read_bounded(path), path)


def parse_image(data: bytes, path: Path) -> Image:
    """Understand the bytes of an image file; `path` is only what messages call it."""
    try:
        return _parse(data, path)
    except ImageError as error:
        raise ImageError(f"{path}: {error.message}", hint=error.hint) from error


def _parse(data: bytes, path: Path) -> Image:
    layers: list[Layer] = []
    content = data
    while (container := next((c for c in CONTAINERS if c.matches(content)), None)) is not None:
        if len(layers) == MAX_LAYERS:
            raise ImageError(f"more than {MAX_LAYERS} containers around the image")
        layer, content = container.unwrap(content)
        layers.append(layer)
    for form in FORMATS:
        if form.matches(content):
            image = form.parse(content, path)
            stub = next((layer.stub for layer in layers if layer.stub is not None), None)
            return replace(
                image,
                container=tuple(layers),
                setup_header=stub.header if stub is not None else image.setup_header,
            )
    raise ImageError(
        "this is no kernel image of a known format" + _resembles(content),
        hint="known are ELF, multiboot, Linux bzImage and flat boot-protocol images, each also compressed "
        "as a whole or in a unified kernel image",
    )


def _resembles(data: bytes) -> str:
    """What an unknown file looks like, to make the message useful."""
    head = data[:4096]
    if not head:
        return " (it is empty inside)"
    if data[:2] == b"MZ":
        return " (a PE program without a kernel in it)"
    if data[:8] == b"!<arch>\n":
        return " (an archive)"
    if not head.strip(b"\0"):
        return " (it starts with zeros)"
    if all(byte in b"\t\n\r\f" or byte >= 32 for byte in head):
        return " (it looks like text)"
    if has_setup_header(data):
        return " (a damaged Linux boot image)"
    return ""
