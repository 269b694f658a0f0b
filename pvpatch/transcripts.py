"""Comparing what two runs of a guest printed, apart from differences that follow from time and memory alone.

The rules are data (transcript_rules.toml). A transcript that addresses the cursor, as memtest86+'s does, is a
screen: it is drawn on a terminal of 80 by 25 first, and the final screens are compared.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from runtime.terminal import is_screen, screen

__all__ = ["Comparison", "Rule", "compare", "load_rules", "normalise"]


@dataclass(frozen=True)
class Rule:
    """One kind of text whose value may differ."""

    name: str
    why: str
    pattern: re.Pattern[str]
    replacement: str | None
    """None: the whole line is left out."""


@dataclass(frozen=True)
class Comparison:
    """The answer: equal or not, the differing lines as (left, right), and how often each rule was needed."""

    equal: bool
    differences: tuple[tuple[str, str], ...]
    rules_used: dict[str, int]
    lines: int
    """Lines that were compared."""


@cache
def load_rules() -> tuple[Rule, ...]:
    """The rules, in the order in which they are applied."""
    data = tomllib.loads(files(__package__).joinpath("transcript_rules.toml").read_text())
    return tuple(
        Rule(raw["name"], raw["why"], re.compile(raw.get("drop") or raw["mask"]), raw.get("with"))
        for raw in data["rule"]
    )


def normalise(transcript: bytes, used: dict[str, int] | None = None) -> list[str]:
    """The lines of a transcript with every rule applied; counts in `used` how often each mattered."""
    lines = screen(transcript) if is_screen(transcript) else _lines(transcript)
    out = []
    for line in lines:
        kept: str | None = line
        for rule in load_rules():
            if rule.replacement is None:
                if rule.pattern.search(line):
                    kept, count = None, 1
                else:
                    count = 0
            else:
                kept, count = rule.pattern.subn(rule.replacement, kept or "")
            if count and used is not None:
                used[rule.name] = used.get(rule.name, 0) + count
            if kept is None:
                break
        if kept is not None:
            out.append(kept.rstrip())
    return out


def _lines(transcript: bytes) -> list[str]:
    return transcript.decode("utf-8", "replace").replace("\r", "").split("\n")


def compare(left: bytes, right: bytes, until: str = "") -> Comparison:
    """Compare two transcripts line by line, up to and including the text that ended both runs."""
    used: dict[str, int] = {}
    first, second = normalise(_cut(left, until), used), normalise(_cut(right, until))
    pairs: list[tuple[str, str]] = []
    for tag, i1, i2, j1, j2 in difflib.SequenceMatcher(None, first, second, autojunk=False).get_opcodes():
        if tag != "equal":
            pairs += _pairs(first[i1:i2], second[j1:j2])
    return Comparison(not pairs, tuple(pairs), used, len(first))


def _cut(transcript: bytes, until: str) -> bytes:
    at = transcript.find(until.encode()) if until else -1
    return transcript if at < 0 else transcript[: at + len(until.encode())]


def _pairs(left: Sequence[str], right: Sequence[str]) -> list[tuple[str, str]]:
    longest = max(len(left), len(right))
    return [(left[i] if i < len(left) else "", right[i] if i < len(right) else "") for i in range(longest)]
