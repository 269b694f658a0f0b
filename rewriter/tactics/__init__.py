"""Tactics, cheapest first: ways to turn a site into a call."""

from __future__ import annotations

from rewriter.tactics.absorb_around import AbsorbAround
from rewriter.tactics.absorb_around_branch import AbsorbAroundBranch
from rewriter.tactics.absorb_branch import AbsorbBranch
from rewriter.tactics.absorb_following import AbsorbFollowing
from rewriter.tactics.absorb_region import AbsorbRegion
from rewriter.tactics.evict import Evict
from rewriter.tactics.in_place import InPlace
from rewriter.tactics.moved_call import MovedCall
from rewriter.tactics.protocol import Context, Patchable, Tactic, Window, Windows
from rewriter.tactics.short_jump import ShortJump

__all__ = ["MERGED", "TACTICS", "TRAP", "Context", "Patchable", "Tactic", "Window", "Windows"]

TACTICS: tuple[Tactic, ...] = (
    InPlace(),
    AbsorbFollowing(),
    AbsorbBranch(),
    AbsorbAround(),
    AbsorbAroundBranch(),
    MovedCall(),
    AbsorbRegion(),
    ShortJump(),
    Evict(),
)
MERGED = "merged"
"""The site moved into the window of a neighbouring site."""
TRAP = "trap"
"""The original bytes stay; a deprivileged backend traps the site and counts it as missed."""
