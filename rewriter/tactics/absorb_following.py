"""Instructions behind the site that do not branch move with it."""

from __future__ import annotations

from rewriter.tactics.protocol import Context, Patchable, Window
from rewriter.tactics.window import Rules, search

__all__ = ["AbsorbFollowing"]


class AbsorbFollowing:
    """Instructions behind the site that do not branch move with it."""

    name = "absorb_following"
    rules = Rules()

    def fits(self, site: Patchable, context: Context) -> list[Window] | str:
        """The shortest such window."""
        found = search(context, site, self.rules, self.name, context.reach.size(site.bits))
        return found if isinstance(found, str) else [found]
