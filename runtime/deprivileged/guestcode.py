"""The code beside a patched guest that runs below privilege 0: where it is, and which ABI calls leave it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from pvpatch.abi.layout import CALL_PAGE_SIZE
from runtime.callpages import PORT_CALLS

if TYPE_CHECKING:
    from runtime.machine import Machine

__all__ = ["GuestCode"]


class GuestCode:
    """The image's call pages and the given `ranges` (first address, address behind the last)."""

    def __init__(self, machine: Machine, *ranges: tuple[int, int]) -> None:
        self._machine = machine
        self._ranges = list(ranges)
        self._exits: Counter[str] = Counter()
        for page in machine.patched.pages if machine.patched is not None else ():
            for start in {page.physical, page.virtual}:
                self._ranges.append((start, start + CALL_PAGE_SIZE))

    def owns(self, linear: int) -> bool:
        """True for an address in it."""
        return any(start <= linear < end for start, end in self._ranges)

    def exited(self, call: str | None) -> None:
        """The code of ABI call `call` has left the guest; None for code that is no call's."""
        if call is not None:
            self._exits[call] += 1

    def call_exits(self) -> dict[str, int]:
        """ABI calls that left the guest, by name: hypercalls as they came, port I/O always."""
        entries = self._machine.call_entries()
        return {**self._exits, **{name: entries[name] for name in PORT_CALLS & entries.keys()}}
