"""Compare two payloads byte by byte against the manifest: what it does not explain is named."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rewriter.manifest.document import Addition, Manifest
from rewriter.manifest.store import find_record

__all__ = ["Explanation", "Unexplained", "differences", "explain"]

_MOST = 10_000  # ranges listed; two unrelated files would give millions


@dataclass(frozen=True)
class Unexplained:
    """A run of bytes that is not what the manifest says. ``offset`` counts in the patched payload."""

    offset: int
    expected: str
    found: str
    part: str = ""
    part_offset: int = 0
    address: int | None = None


@dataclass(frozen=True)
class Explanation:
    """Sizes in bytes; ``changed`` counts differing bytes of the original's extent."""

    changed: int
    added: int
    record: int
    unexplained: tuple[Unexplained, ...]


def differences(expected: bytes, found: bytes) -> list[tuple[int, int]]:
    """[start, end) of every run in which two byte strings differ, a difference in length included."""
    size = min(len(expected), len(found))
    unequal = np.frombuffer(expected, np.uint8, size) != np.frombuffer(found, np.uint8, size)
    edges = np.flatnonzero(np.diff(np.concatenate(([False], unequal, [False])).astype(np.int8)))
    runs = [(int(start), int(end)) for start, end in edges.reshape(-1, 2)[:_MOST]]
    if len(expected) != len(found):
        longest = max(len(expected), len(found))
        if runs and runs[-1][1] == size:
            return [*runs[:-1], (runs[-1][0], longest)]
        runs.append((size, longest))
    return runs


def explain(original: bytes, patched: bytes, manifest: Manifest) -> Explanation:
    """Everything in which ``patched`` is not what the manifest makes of ``original``."""
    expected = bytearray(original)
    wrong: list[Unexplained] = []
    for change in manifest.changes:
        old, new = bytes.fromhex(change.old), bytes.fromhex(change.new)
        present = original[change.offset : change.offset + len(old)]
        if present != old:
            wrong.append(
                Unexplained(
                    change.offset,
                    change.old,
                    present.hex(),
                    "the original, by the manifest",
                    address=change.address,
                )
            )
        expected[change.offset : change.offset + len(new)] = new
    for addition in manifest.additions:
        expected += bytes.fromhex(addition.data)
    record = find_record(patched)
    start, size = record if record is not None else (len(patched), 0)
    body = patched[:start] + patched[start + size :]
    for first, last in differences(bytes(expected), body):
        wrong += _locate(first, last, bytes(expected), body, manifest)
    extent = min(len(original), len(body))
    changed = int(
        np.count_nonzero(np.frombuffer(original, np.uint8, extent) != np.frombuffer(body, np.uint8, extent))
    )
    return Explanation(changed, max(len(body) - len(original), 0), size, tuple(wrong))


def _locate(first: int, last: int, expected: bytes, found: bytes, manifest: Manifest) -> list[Unexplained]:
    """Split a run at the borders of what was appended, and name the part."""
    parts: list[Unexplained] = []
    at = first
    while at < last:
        addition = next(
            (item for item in manifest.additions if item.offset <= at < item.offset + item.size), None
        )
        end = last if addition is None else min(last, addition.offset + addition.size)
        if addition is None and at < manifest.payload_size < last:
            end = manifest.payload_size
        name, inside, address = _part(at, addition)
        parts.append(Unexplained(at, expected[at:end].hex(), found[at:end].hex(), name, inside, address))
        at = end
    return parts


def _part(at: int, addition: Addition | None) -> tuple[str, int, int | None]:
    if addition is None:
        return "", 0, None
    inside = at - addition.offset
    return addition.name, inside, None if addition.address is None else addition.address + inside
