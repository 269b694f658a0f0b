"""Instructions on both sides of the site, branches and padding included."""

from __future__ import annotations

from rewriter.tactics.protocol import Context, Patchable, Window
from rewriter.tactics.window import Rules, search

__all__ = ["AbsorbAroundBranch"]


class AbsorbAroundBranch:
    """Instructions on both sides of the site, branches and padding included."""

    name = "absorb_around_branch"
    rules = Rules(preceding=True, branches=True)

    def fits(self, site: Patchable, context: Context) -> list[Window] | str:
        """The shortest such window."""
        found = search(context, site, self.rules, self.name, context.reach.size(site.bits))
        return found if isinstance(found, str) else [found]
