"""Which ABI call an address of a hypervisor's guest-side code belongs to."""

from __future__ import annotations

import bisect
from collections.abc import Mapping

from pvpatch.abi.spec import load_spec
from runtime.backends.slotfile import SlotFile

__all__ = ["CallerIndex"]


class CallerIndex:
    """`labels` are the places of the text's routines and `code` the addresses of all; `shared` says for which
    call a routine counts that several calls use."""

    def __init__(
        self, text: SlotFile, labels: Mapping[str, int], shared: Mapping[str, str], code: range
    ) -> None:
        placed = sorted((labels[name], name) for name in text.routines)
        self._starts = [start for start, _ in placed]
        self._names = [shared.get(name, name) for _, name in placed]
        self._code = code
        self._calls = {call.name for call in load_spec().calls}

    def find(self, address: int) -> str | None:
        """The call's name, None for code that is no call's."""
        if address not in self._code:
            return None
        index = bisect.bisect_right(self._starts, address) - 1
        name = self._names[index] if index >= 0 else ""
        return name if name in self._calls else None
