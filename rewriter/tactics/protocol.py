"""The protocol of tactics: ``fits(site, context)`` gives a window or the reason why not.

A tactic only looks; nothing is changed before the whole image is planned
(``rewriter.plan``), and then everything is applied once (``rewriter.emit``).
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from rewriter.emit.operands import Binding
from rewriter.emit.reach import Reach
from rewriter.tactics.view import CodeView

__all__ = ["Context", "Patchable", "Tactic", "Window", "Windows"]


@dataclass(frozen=True)
class Patchable:
    """One site that is to become a call, with the meaning of its instruction."""

    address: int
    bits: int
    binding: Binding
    end: int  # behind the instruction, or behind the pair that the binding covers
    form: int  # which of its call's forms the instruction is
    shadowless: bool = False  # the next instruction does not stay in its shadow, as it needs none
    stackless: bool = False  # no stack is known to exist here: the instruction moves, and becomes a cell


@dataclass(frozen=True)
class Window:
    """Consecutive instructions that move into one thunk; the guest's bytes [start, end) are ours.

    ``sites`` are the addresses of the sites among them; ``cave`` is where the jump to the
    thunk stands when the window itself has only room for a short jump. ``returns`` is False
    when control never comes back to ``end``.
    """

    start: int
    end: int
    bits: int
    instructions: tuple[int, ...]
    sites: tuple[int, ...]
    returns: bool
    tactic: str
    cave: int | None = None

    @property
    def entry(self) -> int:
        """Where the long way to the thunk stands."""
        return self.start if self.cave is None else self.cave


@dataclass
class Windows:
    """The windows chosen so far, by address; no two overlap."""

    _starts: list[int] = field(default_factory=list)
    _by_start: dict[int, Window] = field(default_factory=dict)

    @classmethod
    def of(cls, windows: Iterable[Window]) -> Windows:
        """Windows that were chosen before."""
        made = cls()
        for window in windows:
            made.add(window)
        return made

    def __iter__(self) -> Iterator[Window]:
        return (self._by_start[start] for start in self._starts)

    def at(self, address: int) -> Window | None:
        """The window that holds an address."""
        index = bisect_right(self._starts, address) - 1
        if index >= 0:
            window = self._by_start[self._starts[index]]
            if address < window.end:
                return window
        return None

    def overlapping(self, start: int, end: int) -> list[Window]:
        """Windows that share a byte with [start, end)."""
        index = max(bisect_right(self._starts, start) - 1, 0)
        found = []
        for first in self._starts[index:]:
            if first >= end:
                break
            if self._by_start[first].end > start:
                found.append(self._by_start[first])
        return found

    def add(self, window: Window) -> None:
        """Take a window in, replacing those that it covers."""
        self.remove(self.overlapping(window.start, window.end))
        insort(self._starts, window.start)
        self._by_start[window.start] = window

    def remove(self, windows: Iterable[Window]) -> None:
        """Take windows out again."""
        for window in windows:
            self._starts.remove(window.start)
            del self._by_start[window.start]


@dataclass
class Context:
    """What a tactic sees: the code, the way to thunks, all sites, and the windows chosen so far."""

    view: CodeView
    reach: Reach
    sites: Mapping[int, Patchable]
    unpatchable: Mapping[int, str]
    windows: Windows
    caves_taken: dict[int, int] = field(default_factory=dict)  # start -> end of used caves

    def holds_cave(self, start: int, end: int) -> bool:
        """Whether a byte of [start, end) is part of a cave in use."""
        return any(first < end and start < last for first, last in self.caves_taken.items())

    def free_from(self, address: int, count: int) -> int:
        """How many of the ``count`` bytes at an address come before the next window or cave in use."""
        taken = [window.start for window in self.windows.overlapping(address, address + count)]
        caves = self.caves_taken.items()
        taken += [start for start, end in caves if start < address + count and address < end]
        return max(min(taken, default=address + count) - address, 0)


class Tactic(Protocol):
    """One way to turn a site into a call."""

    name: str

    def fits(self, site: Patchable, context: Context) -> list[Window] | str:
        """The windows to take (the site's own last), or the reason why this tactic cannot."""
        ...
