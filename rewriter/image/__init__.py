"""Kernel images: containers are peeled, the payload becomes one `Image` model."""

from rewriter.image.model import (
    EntryPoint,
    Image,
    Kind,
    Layer,
    LoadRange,
    Note,
    Protocol,
    RelocationTail,
    Section,
    Segment,
    SetupHeader,
    StubFacts,
    Symbol,
    Table,
)
from rewriter.image.registry import open_image, parse_image
from rewriter.image.wrap import original_recipe, rewrap

__all__ = [
    "EntryPoint",
    "Image",
    "Kind",
    "Layer",
    "LoadRange",
    "Note",
    "Protocol",
    "RelocationTail",
    "Section",
    "Segment",
    "SetupHeader",
    "StubFacts",
    "Symbol",
    "Table",
    "open_image",
    "original_recipe",
    "parse_image",
    "rewrap",
]
