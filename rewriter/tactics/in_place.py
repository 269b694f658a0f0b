"""The instruction itself is long enough for the jump."""

from __future__ import annotations

from rewriter.tactics.protocol import Context, Patchable, Window
from rewriter.tactics.window import build

__all__ = ["InPlace"]


class InPlace:
    """5 bytes or more (6 or 7 at absolute reach): nothing else moves."""

    name = "in_place"

    def fits(self, site: Patchable, context: Context) -> list[Window] | str:
        """A window of exactly the site."""
        if context.windows.at(site.address):
            return "inside another window"
        found = build(context, site.address, site.end, self.name, context.reach.size(site.bits))
        return found if isinstance(found, str) else [found]
