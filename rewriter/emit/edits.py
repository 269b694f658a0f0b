"""All edits of a payload, collected and then applied once: changes in place, and what is appended."""

from __future__ import annotations

from dataclasses import dataclass, field

from pvpatch.abi.errors import SelfCheckError
from rewriter.manifest import Addition, Change

__all__ = ["Edits"]


@dataclass
class Edits:
    """Changes must not overlap; a change of bytes to what they are is dropped."""

    payload: bytes
    changes: list[Change] = field(default_factory=list)
    additions: list[Addition] = field(default_factory=list)
    _end: int = -1

    @property
    def end(self) -> int:
        """Size of the payload with what was appended so far."""
        return self._end if self._end >= 0 else len(self.payload)

    def change(
        self,
        offset: int,
        new: bytes,
        kind: str,
        why: str,
        address: int | None = None,
        window: int | None = None,
    ) -> None:
        """Replace bytes at an offset of the original payload."""
        old = self.payload[offset : offset + len(new)]
        if len(old) != len(new):
            raise SelfCheckError(f"change at {offset:#x} reaches behind the payload")
        if old != new:
            self.changes.append(Change(offset, old.hex(), new.hex(), kind, why, address, window))

    def append(self, data: bytes, name: str, address: int | None) -> None:
        """Append bytes."""
        if data:
            self.additions.append(Addition(self.end, data.hex(), name, address))
            self._end = self.end + len(data)

    def pad(self, step: int, name: str) -> None:
        """Append zeros up to a multiple of ``step``."""
        self.append(bytes(-self.end % step), name, None)

    def pad_to(self, offset: int, name: str) -> None:
        """Append zeros up to an offset."""
        if offset < self.end:
            raise SelfCheckError(f"{name}: {offset:#x} lies before the end {self.end:#x}")
        self.append(bytes(offset - self.end), name, None)

    def overlay(self, offset: int, new: bytes) -> bytes:
        """The bytes at an offset as the changes collected so far leave them, to be replaced by ``new``.

        Changes that share a byte with the range are cut back to what lies outside of it.
        """
        end = offset + len(new)
        current = bytearray(self.payload[offset:end])
        kept: list[Change] = []
        for change in self.changes:
            data = bytes.fromhex(change.new)
            first, last = change.offset, change.offset + len(data)
            if last <= offset or first >= end:
                kept.append(change)
                continue
            low, high = max(first, offset), min(last, end)
            current[low - offset : high - offset] = data[low - first : high - first]
            kept += _outside(change, data, offset, end)
        self.changes = kept
        return bytes(current)

    def apply(self) -> bytes:
        """The edited payload."""
        self.changes.sort(key=lambda change: change.offset)
        for first, second in zip(self.changes, self.changes[1:], strict=False):
            if first.offset + len(first.new) // 2 > second.offset:
                raise SelfCheckError(f"two changes meet at file offset {second.offset:#x}")
        data = bytearray(self.payload)
        for change in self.changes:
            new = bytes.fromhex(change.new)
            data[change.offset : change.offset + len(new)] = new
        for addition in self.additions:
            data += bytes.fromhex(addition.data)
        return bytes(data)


def _outside(change: Change, data: bytes, start: int, end: int) -> list[Change]:
    """What of a change lies outside [start, end)."""
    old = bytes.fromhex(change.old)
    parts: list[Change] = []
    for low, high in ((change.offset, start), (end, change.offset + len(data))):
        low, high = max(low, change.offset), min(high, change.offset + len(data))
        if low < high:
            first, last = low - change.offset, high - change.offset
            address = None if change.address is None else change.address + first
            parts.append(
                Change(
                    low,
                    old[first:last].hex(),
                    data[first:last].hex(),
                    change.kind,
                    change.why,
                    address,
                    change.window,
                )
            )
    return parts
