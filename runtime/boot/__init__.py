"""Loading: an image and what it was given, into memory, and the state in which it is entered."""

from runtime.boot.loader import PROTOCOLS, load_image
from runtime.boot.model import (
    BootImage,
    BootKind,
    BootRequest,
    BootSegment,
    EntryState,
    FlatSegment,
)

__all__ = [
    "PROTOCOLS",
    "BootImage",
    "BootKind",
    "BootRequest",
    "BootSegment",
    "EntryState",
    "FlatSegment",
    "load_image",
]
