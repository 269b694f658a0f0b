"""Two runs of one kernel, snippet by snippet, with the rules that explain a difference."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.fuzz.journal import STACK, Seen, Values

__all__ = ["Difference", "Rule", "differences", "load_rules", "unexplained"]

_LAST = "left"


@dataclass(frozen=True)
class Difference:
    """One field of one event, or of what a snippet left, that is not as in the reference."""

    where: str
    field: str
    expected: int | str
    found: int | str
    vector: int = -1

    def __str__(self) -> str:
        return f"{self.where} {self.field}: {_shown(self.expected)}, not {_shown(self.found)}"


def _shown(value: int | str) -> str:
    return f"{value:#x}" if isinstance(value, int) else value


@dataclass(frozen=True)
class Rule:
    """Explains differences on some hosts: in some fields, bits, vectors, or snippets that have all tags. Empty: any."""

    name: str
    reason: str
    source: str
    hosts: tuple[str, ...]
    fields: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    vectors: tuple[int, ...] = ()
    bits: int = 0
    """Bits of the field that may differ; 0 is all of them."""
    above: int = 0
    """The value found must be at least this."""

    def explains(self, difference: Difference, host: str, tags: frozenset[str]) -> bool:
        """Is this difference one that the rule allows?"""
        if host not in self.hosts or (not tags.issuperset(self.tags)):
            return False
        if self.fields and difference.field not in self.fields:
            return False
        if self.vectors and difference.vector not in self.vectors:
            return False
        expected, found = difference.expected, difference.found
        if self.bits or self.above:
            if not isinstance(expected, int) or not isinstance(found, int):
                return False
            return (not self.bits or not (expected ^ found) & ~self.bits) and found >= self.above
        return True


@cache
def load_rules() -> tuple[Rule, ...]:
    """The rules of rules.toml."""
    document = tomllib.loads((Path(__file__).parent / "rules.toml").read_text(encoding="utf-8"))
    return tuple(
        Rule(**{key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()})
        for entry in document["rule"]
    )


def _values(where: str, expected: Values, found: Values, vector: int = -1) -> Iterator[Difference]:
    for field, value in expected.items():
        if found[field] != value:
            yield Difference(where, field, value, found[field], vector)


def _memory(expected: bytes, found: bytes) -> Iterator[Difference]:
    for at in range(0, min(len(expected), len(found)), 4):
        if expected[at : at + 4] != found[at : at + 4]:
            place = f"stack+{at:#x}" if at < STACK else f"data+{at - STACK:#x}"
            yield Difference(
                "memory",
                place,
                int.from_bytes(expected[at : at + 4], "little"),
                int.from_bytes(found[at : at + 4], "little"),
            )


def differences(expected: Seen, found: Seen | None, end: str) -> Iterator[Difference]:
    """All differences of one snippet, the first event that differs last: what follows has no meaning."""
    if found is None:
        yield Difference("run", "reached", "reached", f"not reached ({end})")
        return
    for number, event in enumerate(expected.events):
        where = f"event {number}"
        if number >= len(found.events):
            yield Difference(where, "vector", event["vector"], end or "nothing", event["vector"])
            return
        yield from _values(where, event, found.events[number], event["vector"])
        if event["vector"] != found.events[number]["vector"]:
            return
    if len(found.events) > len(expected.events):
        extra = found.events[len(expected.events)]["vector"]
        yield Difference(f"event {len(expected.events)}", "vector", "nothing", extra, extra)
        return
    if (expected.left is None) != (found.left is None):
        yield Difference("end", "reached", *(("yes", end or "no") if expected.left else ("no", "yes")))
        return
    if expected.left is not None and found.left is not None:
        yield from _values(_LAST, expected.left, found.left)
        yield from _memory(expected.memory, found.memory)


def unexplained(
    found: Iterator[Difference], host: str, tags: frozenset[str], used: dict[str, int]
) -> list[Difference]:
    """What no rule explains; `used` counts the rules that did."""
    rest = []
    for difference in found:
        rule = next((rule for rule in load_rules() if rule.explains(difference, host, tags)), None)
        if rule is None:
            rest.append(difference)
        else:
            used[rule.name] = used.get(rule.name, 0) + 1
    return rest
