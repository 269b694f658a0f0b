"""A short jump of 2 bytes to a cave, and the long jump there."""

from __future__ import annotations

from dataclasses import replace

from rewriter.tactics.caves import SHORT_JUMP, caves_near
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
        size = context.reach.size(site.bits)
        cave = next(caves_near(context, found.start, size), None)
        if cave is None:
            return "no cave within reach of a short jump"
        return [replace(found, cave=cave)]


def small_window(site: Patchable, context: Context, tactic: str) -> Window | str:
    """The shortest window of at least 2 bytes around a site that touches no other window."""
    reason = "no room for a short jump"
    for rules in (Rules(), Rules(branches=True), Rules(preceding=True, branches=True, calls=True)):
        found = search(context, site, rules, tactic, SHORT_JUMP)
        if isinstance(found, str):
            reason = found
        elif context.windows.overlapping(found.start, found.end):
            reason = "its neighbours belong to another window"
        else:
            return found
    return reason
