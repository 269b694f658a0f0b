"""The plan of a patch: every site gets a tactic before a single byte changes.

Sites are taken in address order and each takes the cheapest tactic that fits; a window that
meets another one is merged with it. Sites that found no room get a second chance once all
windows, and with them all caves, are known.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rewriter.bind_sites import Bound
from rewriter.emit.reach import Reach
from rewriter.tactics import MERGED, TACTICS, TRAP, Context, Patchable, Tactic, Window, Windows
from rewriter.tactics.view import CodeView

__all__ = ["Decision", "Plan", "make_plan"]

_CAVE_TACTICS = ("short_jump", "evict")


@dataclass(frozen=True)
class Decision:
    """What happens to one site, and why it is refused when its tactic is ``trap``."""

    address: int
    call: str
    tactic: str
    reason: str = ""
    window: int | None = None


@dataclass(frozen=True)
class Plan:
    """All windows by address, and one decision per site."""

    windows: tuple[Window, ...]
    decisions: tuple[Decision, ...]


@dataclass
class _Planner:
    context: Context
    reasons: dict[int, list[str]] = field(default_factory=dict)
    chosen: dict[int, str] = field(default_factory=dict)

    def run(self) -> None:
        """First without caves, then with them."""
        wide = tuple(tactic for tactic in TACTICS if tactic.name not in _CAVE_TACTICS)
        caves = tuple(tactic for tactic in TACTICS if tactic.name in _CAVE_TACTICS)
        waiting = [site for site in self._in_order() if not self._place(site, wide)]
        for tactic in caves:
            waiting = [site for site in waiting if not self._place(site, (tactic,))]

    def _in_order(self) -> list[Patchable]:
        return [self.context.sites[address] for address in sorted(self.context.sites)]

    def _place(self, site: Patchable, tactics: tuple[Tactic, ...]) -> bool:
        """Whether the site is in a window now."""
        window = self.context.windows.at(site.address)
        if window is not None:
            self.chosen.setdefault(site.address, MERGED)
            return True
        for tactic in tactics:
            found = tactic.fits(site, self.context)
            if isinstance(found, str):
                self._note(site.address, found)
                continue
            self.chosen[site.address] = tactic.name
            for new in found:
                self._take(new)
            return True
        return False

    def _note(self, address: int, reason: str) -> None:
        """Keep every different reason, except that a window is too short, which another one explains."""
        reasons = self.reasons.setdefault(address, [])
        if reason != "too short" and reason not in reasons:
            reasons.append(reason)

    def _take(self, window: Window) -> None:
        self.context.windows.add(window)
        if window.cave is not None:
            size = self.context.reach.size(window.bits)
            self.context.caves_taken[window.cave] = window.cave + size


def make_plan(view: CodeView, reach: Reach, bound: Bound) -> Plan:
    """Plan all sites of an image."""
    context = Context(view, reach, bound.sites, bound.kept, Windows())
    planner = _Planner(context)
    planner.run()
    decisions = [
        _decide(planner, bound, address) for address in sorted({*bound.sites, *bound.kept, *bound.paired})
    ]
    return Plan(tuple(context.windows), tuple(decisions))


def _decide(planner: _Planner, bound: Bound, address: int) -> Decision:
    call = bound.calls.get(address, "")
    if address in bound.kept:
        return Decision(address, call, TRAP, bound.kept[address])
    first = bound.paired.get(address, address)
    window = planner.context.windows.at(first)
    if window is None:
        return Decision(address, call, TRAP, "; ".join(planner.reasons.get(first, [])) or "no tactic fits")
    tactic = planner.chosen.get(first, MERGED) if first == address else MERGED
    return Decision(address, call, tactic, window=window.start)
