"""Instructions before the site, or on both sides of it, that do not branch."""

from __future__ import annotations

from rewriter.tactics.protocol import Context, Patchable, Window
from rewriter.tactics.window import Rules, search

__all__ = ["AbsorbAround"]


class AbsorbAround:
    """Instructions before the site, or on both sides of it, that do not branch."""

    name = "absorb_around"
    rules = Rules(preceding=True)

    def fits(self, site: Patchable, context: Context) -> list[Window] | str:
        """The shortest such window."""
        found = search(context, site, self.rules, self.name, context.reach.size(site.bits))
        return found if isinstance(found, str) else [found]
