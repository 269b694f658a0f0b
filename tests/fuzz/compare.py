"""Two runs of one kernel, snippet by snippet, with the rules that explain a difference."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

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
    displaced: bool = False
    """An event of this snippet, this one or one before, was shown inside the resident block."""

    def __str__(self) -> str:
        return f"{self.where} {self.field}: {_shown(self.expected)}, not {_shown(self.found)}"


def _shown(value: int | str) -> str:
    return f"{value:#x}" if isinstance(value, int) else value


@dataclass(frozen=True)
class Rule:
    """Explains differences on some hosts: in some fields, bits, vectors, or snippets with all the tags.

    What is empty holds for any.
    """

    name: str
    reason: str
    source: str
    hosts: tuple[str, ...]
    fields: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    vectors: tuple[int, ...] = ()
    bits: int = 0
    """Bits of the field that may differ; 0 is all of them."""
    displaced: bool = False
    """Only where the event was shown at an address in the resident block."""

    def explains(self, difference: Difference, host: str, tags: frozenset[str]) -> bool:
        """Is this difference one that the rule allows?"""
        if host not in self.hosts or (not tags.issuperset(self.tags)):
            return False
        if self.fields and difference.field not in self.fields:
            return False
        if self.vectors and difference.vector not in self.vectors:
            return False
        if self.displaced and not difference.displaced:
            return False
        expected, found = difference.expected, difference.found
        if not self.bits:
            return True
        return isinstance(expected, int) and isinstance(found, int) and not (expected ^ found) & ~self.bits


@cache
def load_rules() -> tuple[Rule, ...]:
    """The rules of rules.toml."""
    document = tomllib.loads((Path(__file__).parent / "rules.toml").read_text(encoding="utf-8"))
    return tuple(_rule(entry) for entry in document["rule"])


def _rule(entry: dict[str, Any]) -> Rule:
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()
    }
    return Rule(**values)


def _values(
    where: str, expected: Values, found: Values, vector: int = -1, displaced: bool = False
) -> Iterator[Difference]:
    for field, value in expected.items():
        if found[field] != value:
            yield Difference(where, field, value, found[field], vector, displaced)


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


def differences(expected: Seen, found: Seen | None, end: str, own: range) -> Iterator[Difference]:
    """All differences of one snippet, up to the first event of another kind: what follows has no meaning.

    `own` are the kernel's own addresses: an event elsewhere is displaced, unless the reference has it there.
    """
    if found is None:
        yield Difference("run", "reached", "reached", f"not reached ({end})")
        return
    displaced = False
    for number, event in enumerate(expected.events):
        where = f"event {number}"
        if number >= len(found.events):
            yield Difference(where, "vector", event["vector"], end or "nothing", event["vector"], displaced)
            return
        other = found.events[number]
        displaced |= other["ip"] != event["ip"] and other["ip"] not in own
        yield from _values(where, event, other, event["vector"], displaced)
        if event["vector"] != other["vector"]:
            return
    if len(found.events) > len(expected.events):
        number = len(expected.events)
        vector = found.events[number]["vector"]
        yield Difference(f"event {number}", "vector", "nothing", vector, vector, displaced)
        return
    if (expected.left is None) != (found.left is None):
        yield Difference("end", "reached", *(("yes", end or "no") if expected.left else ("no", "yes")))
        return
    if expected.left is not None and found.left is not None:
        rest = (*_values(_LAST, expected.left, found.left), *_memory(expected.memory, found.memory))
        yield from (replace(one, displaced=displaced) for one in rest)


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
