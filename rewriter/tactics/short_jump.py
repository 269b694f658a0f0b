"""A short jump of 2 bytes to a cave, and the long jump there."""

from __future__ import annotations

from dataclasses import replace

from rewriter.tactics.caves import SHORT_JUMP, caves_near, reachable
from rewriter.tactics.protocol import Context, Patchable, Window
from rewriter.tactics.window import Rules, search

__all__ = ["ShortJump"]


class ShortJump:
    """Room for a short jump at the site, and a cave within 127 bytes."""

    name = "short_jump"

    def fits(self, site: Patchable, context: Context) -> list[Window] | str:
        """The site's small window, pointing at the nearest free cave."""
        found = small_window(site, context, self.name)
        if isinstance(found, str):
            return found
        if found.cave is not None:
            return [found]
        size = context.reach.size(site.bits)
        cave = next(caves_near(context, found.start, found.end, size), None)
        if cave is None:
            return "no cave within reach of a short jump"
        return [replace(found, cave=cave)]


def small_window(site: Patchable, context: Context, tactic: str) -> Window | str:
    """The shortest window of at least 2 bytes around a site that touches no other window.

    One that swallows a small window whole takes over its cave.
    """
    reason = "no room for a short jump"
    for rules in (Rules(), Rules(branches=True), Rules(preceding=True, branches=True, calls=True)):
        found = search(context, site, rules, tactic, SHORT_JUMP)
        if isinstance(found, str):
            reason = found
            continue
        met = context.windows.overlapping(found.start, found.end)
        if not met:
            return found
        if joined := _swallow(found, met, context.reach.size(site.bits)):
            return joined
        reason = "its neighbours belong to another window"
    return reason


def _swallow(found: Window, met: list[Window], size: int) -> Window | None:
    """The window with the cave of the only small one that it meets, which lies inside it."""
    inner = met[0]
    if len(met) > 1 or inner.cave is None or inner.start < found.start or inner.end > found.end:
        return None
    overlaps = found.start < inner.cave + size and inner.cave < found.end
    if overlaps or not reachable(found.start, inner.cave):
        return None
    return replace(found, cave=inner.cave)
