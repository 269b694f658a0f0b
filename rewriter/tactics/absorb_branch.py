"""Instructions behind the site, up to and with a branch or return, and padding behind it."""

from __future__ import annotations

from rewriter.tactics.protocol import Context, Patchable, Window
from rewriter.tactics.window import Rules, search

__all__ = ["AbsorbBranch"]


class AbsorbBranch:
    """Instructions behind the site, up to and with a branch or return, and padding behind it."""

    name = "absorb_branch"
    rules = Rules(branches=True)

    def fits(self, site: Patchable, context: Context) -> list[Window] | str:
        """The shortest such window."""
        found = search(context, site, self.rules, self.name, context.reach.size(site.bits))
        return found if isinstance(found, str) else [found]
