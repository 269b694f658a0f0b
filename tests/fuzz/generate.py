"""Random snippets from a seed."""

from __future__ import annotations

from random import Random

from tests.fuzz import texts, transfers
from tests.fuzz.draw import Draw
from tests.fuzz.families import FAMILIES
from tests.fuzz.shapes import shaped
from tests.fuzz.snippet import Snippet

__all__ = ["snippets"]

_SHAPED = 40
"""Of a hundred snippets, so many are sites in all forms among neighbours; the others are of a family."""
assert transfers.CODE_SELECTORS and texts.TEXTS  # these modules' families are registered by their import


def _snippet(random: Random, width: int) -> Snippet:
    draw = Draw(random, width)
    tags: set[str] = set()
    if draw.chance(_SHAPED):
        lines = shaped(draw, tags)
    else:
        name = draw.one(tuple(FAMILIES))
        tags.add(name)
        lines = FAMILIES[name](draw, tags)
    armed = "armed" in tags
    flags = draw.start_flags() & ~(0x200 * armed)
    return Snippet(tuple(lines), draw.start(), flags, armed=armed, tags=frozenset(tags))


def snippets(seed: int, width: int, count: int) -> tuple[Snippet, ...]:
    """The snippets of one kernel: the same for the same arguments."""
    random = Random(f"{seed}/{width}")
    return tuple(_snippet(random, width) for _ in range(count))
