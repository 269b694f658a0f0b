"""Evict neighbours: instructions near the site that are no sites move away to make a cave."""

from __future__ import annotations

from dataclasses import replace

from rewriter.tactics.caves import reachable
from rewriter.tactics.protocol import Context, Patchable, Window
from rewriter.tactics.short_jump import small_window
from rewriter.tactics.window import build

__all__ = ["Evict"]


class Evict:
    """A short jump into the room that evicted neighbours leave behind their own jump."""

    name = "evict"

    def fits(self, site: Patchable, context: Context) -> list[Window] | str:
        """The neighbours' window first, then the site's small one."""
        small = small_window(site, context, self.name)
        if isinstance(small, str):
            return small
        if small.cave is not None:
            return [small]
        size = context.reach.size(site.bits)
        for distance in range(1, 120):
            for start in (small.end + distance - 1, small.start - distance - 2 * size):
                victim = self._victim(context, start, size, small)
                if victim is not None and reachable(small.start, victim.start + size):
                    return [victim, replace(small, cave=victim.start + size)]
        return "no neighbours within reach can make room"

    def _victim(self, context: Context, start: int, size: int, small: Window) -> Window | None:
        """A run of movable instructions from ``start`` with room for two long jumps."""
        if context.view.at(start) is None or context.windows.at(start):
            return None
        end = start
        while end - start < 2 * size:
            instruction = context.view.at(end)
            if instruction is None:
                return None
            site = context.sites.get(end)
            end = site.end if site else instruction.next_ip
        if context.windows.overlapping(start, end):
            return None
        found = build(context, start, end, self.name, 2 * size)
        if isinstance(found, str) or (found.start < small.end and small.start < found.end):
            return None
        return found
