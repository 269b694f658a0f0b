"""As before, and a direct call at the end, whose callee still finds its old return address."""

from __future__ import annotations

from rewriter.tactics.protocol import Context, Patchable, Window
from rewriter.tactics.window import Rules, search

__all__ = ["MovedCall"]


class MovedCall:
    """As before, and a direct call at the end, whose callee still finds its old return address."""

    name = "moved_call"
    rules = Rules(preceding=True, branches=True, calls=True)

    def fits(self, site: Patchable, context: Context) -> list[Window] | str:
        """The shortest such window."""
        found = search(context, site, self.rules, self.name, context.reach.size(site.bits))
        return found if isinstance(found, str) else [found]
