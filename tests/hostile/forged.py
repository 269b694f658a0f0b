"""Patched files whose record says what its author likes: the checksums are right, nothing else need be."""

from __future__ import annotations

import bz2
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rewriter.manifest import Manifest, find_record, pack, read_manifest

__all__ = ["EVIL", "forged", "forged_fields", "forged_text", "with_document"]

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\x7f\u202eevil\u2066\u2028line\r\nend\x08"
"""Escape sequences of 7 and 8 bits, DEL, bidirectional controls, ends of lines."""


def _body(patched: bytes) -> bytes:
    found = find_record(patched)
    assert found is not None
    return patched[: found[0]]


def with_document(patched: bytes, text: bytes, *, compressed: bytes = b"") -> bytes:
    """A patched file with another document in its record."""
    document = compressed or bz2.compress(text, 9)
    body = struct.pack("<8sII", b"PVMANIF1", len(document), 0) + document
    body += bytes(-len(body) % 8)
    tail = struct.pack("<QI", len(body) + 24, 1)
    return _body(patched) + body + tail + struct.pack("<I8s", zlib.crc32(body + tail), b"PVMANEND")


def forged(patched: bytes, change: Callable[[Manifest], Manifest]) -> bytes:
    """A patched file whose manifest was changed."""
    return _body(patched) + pack(change(read_manifest(patched)))


def forged_text(patched: bytes) -> bytes:
    """Every free string of the manifest is `EVIL`."""

    def evil(found: Manifest) -> Manifest:
        return replace(
            found,
            format=EVIL,
            notes=(EVIL,),
            changes=tuple(replace(item, kind=EVIL, why=EVIL) for item in found.changes),
            additions=tuple(replace(item, name=EVIL) for item in found.additions),
            sites=tuple(
                replace(item, text=EVIL, call=EVIL, reason=EVIL, tactic="trap" if index % 2 else EVIL)
                for index, item in enumerate(found.sites)
            ),
        )

    return forged(patched, evil)


def forged_fields(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Documents that parse and are wrong in one field."""
    values: dict[str, Any] = {
        "text": "0x10", "negative": -1, "huge": 1 << 70, "list": [], "null": None, "flag": True, "float": 1.5,
    }  # fmt: skip
    found: dict[str, dict[str, Any]] = {}
    for group in ("changes", "additions", "sites", "containers"):
        if not document[group]:
            continue
        for field in document[group][0]:
            for name, value in values.items():
                rows = [document[group][0] | {field: value}, *document[group][1:]]
                found[f"{group}.{field} {name}"] = document | {group: rows}
    for field in document:
        for name, value in values.items():
            found[f"{field} {name}"] = document | {field: value}
    return found
