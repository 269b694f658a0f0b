"""The manifest: every change of a patched image, explained, and enough to undo it.

Schema ``pvpatch/manifest/1`` (docs/schema/manifest-1.json). Offsets count from the start of
the payload (the innermost executable image). Bytes are hexadecimal text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pvpatch.abi.errors import ImageError
from rewriter.manifest.shape import check_fields, check_outline

__all__ = ["SCHEMA", "UNPATCHED", "Addition", "Change", "Container", "Manifest", "Site"]

SCHEMA = "pvpatch/manifest/1"
WIDTHS = (16, 32, 64)
"""Bits of code."""
UNPATCHED = ("trap", "kept")
"""Tactics of sites that keep their instruction: nothing fits, or it already speaks to a hypervisor."""


@dataclass(frozen=True)
class Change:
    """Bytes of the original payload that were replaced.

    ``kind`` is window, cave, entry, header or padding; ``address`` the virtual address of the first
    byte where it is loaded; ``window`` the window that the bytes belong to; ``why`` a sentence.
    """

    offset: int
    old: str
    new: str
    kind: str
    why: str
    address: int | None = None
    window: int | None = None


@dataclass(frozen=True)
class Addition:
    """Bytes appended behind the original payload."""

    offset: int
    data: str
    name: str
    address: int | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.data) // 2


@dataclass(frozen=True)
class Site:
    """What became of one site; ``cell`` is the address of its instruction in the thunk, where it stands alone
    if ``stackless``: no stack is known to exist for a call."""

    address: int
    offset: int
    bits: int
    old: str
    text: str
    call: str
    tactic: str
    reason: str = ""
    window: int | None = None
    thunk: int | None = None
    slot: int | None = None
    cell: int | None = None
    stackless: bool = False


@dataclass(frozen=True)
class Container:
    """One container around the payload; ``recipe`` remakes the original one, if that is possible.

    Otherwise the original file is kept whole in the manifest record.
    """

    kind: str
    codec: str
    recipe: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Manifest:
    """The whole record."""

    original_sha256: str
    original_size: int
    payload_sha256: str
    payload_size: int
    format: str
    reach: str
    resident: Mapping[str, int]
    changes: tuple[Change, ...]
    additions: tuple[Addition, ...]
    sites: tuple[Site, ...]
    containers: tuple[Container, ...] = ()
    notes: tuple[str, ...] = ()
    kept_original: bytes = field(default=b"", repr=False)

    def to_json(self) -> bytes:
        """The document, in one canonical spelling."""
        data = {"schema": SCHEMA} | vars(self)
        del data["kept_original"]
        for name in ("changes", "additions", "sites", "containers"):
            data[name] = [vars(item) for item in data[name]]
        return json.dumps(data, sort_keys=True, separators=(",", ":")).encode()

    def check(self) -> None:
        """ValueError or TypeError when a field is not what the schema says."""
        for item in (self, *self.changes, *self.additions, *self.sites, *self.containers):
            check_fields(item)
        if not all(isinstance(note, str) for note in self.notes):
            raise ValueError("a note is none")
        end = self.payload_size
        for change in self.changes:
            old, new = bytes.fromhex(change.old), bytes.fromhex(change.new)
            if len(old) != len(new) or not change.offset <= end - len(old):
                raise ValueError("a change lies outside the payload")
        for addition in self.additions:
            if addition.offset != end:
                raise ValueError("what was appended has gaps")
            end += len(bytes.fromhex(addition.data))
        for site in self.sites:
            bytes.fromhex(site.old)
            if site.bits not in WIDTHS:
                raise ValueError("a width is none")
        for digest in (self.original_sha256, self.payload_sha256):
            if len(bytes.fromhex(digest)) != 32:
                raise ValueError("no SHA-256")

    @classmethod
    def from_json(cls, text: bytes, kept_original: bytes) -> Manifest:
        """Read a document back; ImageError when it is none of this schema."""
        try:
            check_outline(text)
            data = json.loads(text)
            if data.pop("schema") != SCHEMA:
                raise ImageError("the manifest has another schema", hint=f"this release knows {SCHEMA}")
            changes = tuple(Change(**item) for item in data.pop("changes"))
            additions = tuple(Addition(**item) for item in data.pop("additions"))
            sites = tuple(Site(**item) for item in data.pop("sites"))
            containers = tuple(Container(**item) for item in data.pop("containers"))
            notes = tuple(data.pop("notes"))
            made = cls(
                changes=changes,
                additions=additions,
                sites=sites,
                containers=containers,
                notes=notes,
                kept_original=kept_original,
                **data,
            )
            made.check()
            return made
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ImageError("the manifest of the patched image is damaged") from error
