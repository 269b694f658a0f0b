"""A small piece of control flow moves as a whole: branches and their targets together.

Allowed when only branches inside the piece lead to the targets inside it; they are aimed at
the moved instructions.
"""

from __future__ import annotations

from collections.abc import Iterator

from rewriter.tactics.protocol import Context, Patchable, Window
from rewriter.tactics.window import build

__all__ = ["AbsorbRegion"]

_MOST = 14  # instructions on either side


class AbsorbRegion:
    """The site between branch targets, with everything that branches there."""

    name = "absorb_region"

    def fits(self, site: Patchable, context: Context) -> list[Window] | str:
        """The shortest closed piece of code around the site."""
        reason = "no closed piece of code around it"
        size = context.reach.size(site.bits)
        ranges = {(start, end) for start in _starts(context, site) for end in _ends(context, site)}
        for start, end in sorted(ranges, key=lambda bounds: (bounds[1] - bounds[0], bounds)):
            found = build(context, start, end, self.name, size, closed=True)
            if not isinstance(found, str):
                return [found]
            if found != "too short":
                reason = found
        return reason


def _starts(context: Context, site: Patchable) -> Iterator[int]:
    start = site.address
    for _ in range(_MOST):
        window = context.windows.at(start)
        start = window.start if window is not None else start
        yield start
        before = context.view.before(start)
        if before is None:
            return
        start = before.ip


def _ends(context: Context, site: Patchable) -> Iterator[int]:
    end = site.end
    for _ in range(_MOST):
        window = context.windows.at(end - 1)
        end = max(window.end, end) if window is not None else end
        yield end
        following = context.view.at(end)
        if following is None:
            return
        neighbour = context.sites.get(end)
        end = neighbour.end if neighbour is not None else following.next_ip
