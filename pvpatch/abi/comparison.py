"""The unified ABI beside the interfaces it stands for: tables out of the mappings, for docs/one-abi.md."""

from __future__ import annotations

from pvpatch.abi.mappings import INTERFACES, Mapping, load_mappings
from pvpatch.abi.spec import Call, load_spec

__all__ = ["comparison"]

_NOTHING = "·"


def _units(call: Call) -> str:
    """Arguments and results that carry a unit, such as `due (ns)`."""
    parts = [f"{one.name} ({one.unit})" for one in (*call.args, *call.results) if one.unit]
    return ", ".join(parts).replace("|", "\\|") or _NOTHING


def _names(mapping: Mapping, call: str) -> str:
    return ", ".join(dict.fromkeys(row.name for _, row in mapping.users_of(call))) or _NOTHING


def _calls_table(mappings: tuple[Mapping, ...]) -> list[str]:
    head = " | ".join(("call", "values and units", *INTERFACES))
    lines = [f"| {head} |", "|---|---|" + "---|" * len(mappings)]
    for call in load_spec().calls:
        cells = [f"`{call.name}`", _units(call), *(_names(mapping, call.name) for mapping in mappings)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _without(mappings: tuple[Mapping, ...]) -> list[str]:
    """What has no call, with the reason: as much part of the answer as what has one."""
    lines = ["| interface | table | name | why there is no call |", "|---|---|---|---|"]
    for mapping in mappings:
        for table in mapping.tables:
            lines += [
                f"| {mapping.interface} | {table.title} | {row.name} | {row.reason} |"
                for row in table.rows
                if row.reason
            ]
    return lines


def _changes(mappings: tuple[Mapping, ...]) -> list[str]:
    """Where the arguments are not simply the same."""
    lines = ["| interface | name | calls | what differs |", "|---|---|---|---|"]
    for mapping in mappings:
        for table in mapping.tables:
            lines += [
                f"| {mapping.interface} | {row.name} | {', '.join(row.calls)} | {row.note} |"
                for row in table.rows
                if row.note and row.calls
            ]
    return lines


def _counts(mappings: tuple[Mapping, ...]) -> list[str]:
    lines = ["| interface | numbers | map to one call | to a sequence | have none |", "|---|---|---|---|---|"]
    for mapping in mappings:
        rows = [row for table in mapping.tables for row in table.rows]
        one = sum(len(row.calls) == 1 for row in rows)
        more = sum(len(row.calls) > 1 for row in rows)
        lines.append(f"| {mapping.title} | {len(rows)} | {one} | {more} | {len(rows) - one - more} |")
    return lines


def comparison() -> str:
    """Markdown: counts, every call against the five interfaces, what changes on the way, what has no call."""
    mappings = load_mappings()
    parts = [
        "## In numbers",
        "",
        *_counts(mappings),
        "",
        "## Every call, and what it is elsewhere",
        "",
        *_calls_table(mappings),
        "",
        "## What changes on the way",
        "",
        *_changes(mappings),
        "",
        "## What has no call, and why",
        "",
        *_without(mappings),
    ]
    return "\n".join(parts) + "\n"
