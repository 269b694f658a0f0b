"""What `pvpatch diff` shows: JSON, a self-contained HTML page, side by side text, all from one document."""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib.resources import files
from typing import Any

import jinja2
from iced_x86 import Decoder, Formatter, FormatterSyntax
from rich.console import Console
from rich.text import Text

from pvpatch.diffing import Difference
from pvpatch.report.shown import shown_document
from rewriter.image import Image
from rewriter.manifest import UNPATCHED, Change, Site

__all__ = ["SCHEMA", "diff_document", "diff_html", "diff_json", "render_diff_rich", "render_diff_text"]

SCHEMA = "pvpatch/diff/1"
_OF_A_SITE = re.compile(r" of 0x[0-9a-f]+$")
_COLUMN = 46
_ROW = 16
"""Bytes of data in one line."""
_NAMED_SITES = 3
"""Sites that are named for each reason; the JSON document has all."""


def diff_document(difference: Difference) -> dict[str, Any]:
    """The document (docs/schema/diff-1.json). Offsets count in the payload, sizes are bytes."""
    manifest, image = difference.manifest, difference.original
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "original": {"name": image.path.name, "sha256": difference.original_sha256},
        "patched": {"name": difference.patched_path.name, "sha256": difference.patched_sha256},
        "explained": difference.explained,
        "bytes": {"changed": difference.changed, "added": difference.added, "manifest": difference.record},
        "unexplained": [
            {
                "offset": item.offset,
                "space": item.space,
                "address": item.address,
                "where": item.where,
                "expected": item.expected,
                "found": item.found,
            }
            for item in difference.unexplained
        ],
        "changes": [],
        "additions": [],
        "tactics": {},
        "refused": [],
        "run": difference.run.document() if difference.run is not None else None,
    }
    if manifest is not None:
        sites = _by_window(manifest.sites)
        document["changes"] = [_change(image, change, sites) for change in manifest.changes]
        document["additions"] = [
            {"offset": item.offset, "size": item.size, "name": item.name, "address": item.address}
            for item in manifest.additions
        ]
        document["tactics"] = dict(Counter(site.tactic for site in manifest.sites).most_common())
        document["refused"] = [
            {
                "address": site.address,
                "where": image.describe(site.address),
                "text": site.text,
                "tactic": site.tactic,
                "reason": site.reason,
            }
            for site in manifest.sites
            if site.tactic in UNPATCHED
        ]
    return document


def _by_window(sites: tuple[Site, ...]) -> dict[int, list[Site]]:
    found: dict[int, list[Site]] = {}
    for site in sites:
        if site.window is not None:
            found.setdefault(site.window, []).append(site)
    return found


def _change(image: Image, change: Change, sites: dict[int, list[Site]]) -> dict[str, Any]:
    inside = sites.get(change.window, []) if change.window is not None else []
    bits = inside[0].bits if inside else (32 if change.kind != "header" else 0)
    before = bits if change.kind != "cave" else 0  # what lies there is padding, not code
    return {
        "offset": change.offset,
        "address": change.address,
        "where": image.describe(change.address) if change.address is not None else "",
        "kind": change.kind,
        "why": change.why,
        "old": change.old,
        "new": change.new,
        "old_text": _disassemble(change.old, change.address, before),
        "new_text": _disassemble(change.new, change.address, bits),
        "sites": [
            {"address": site.address, "text": site.text, "call": site.call, "tactic": site.tactic}
            for site in inside
        ],
        "thunk": inside[0].thunk if inside else None,
    }


def _disassemble(code: str, address: int | None, bits: int) -> list[str]:
    """One line per instruction; data, and the part of an instruction at the end, stay hexadecimal."""
    data = bytes.fromhex(code)
    if not bits or address is None:
        return [data[start : start + _ROW].hex() for start in range(0, len(data), _ROW)]
    formatter = Formatter(FormatterSyntax.INTEL)
    formatter.hex_prefix, formatter.hex_suffix = "0x", ""
    formatter.uppercase_hex = formatter.add_leading_zero_to_hex_numbers = False
    lines = []
    for instruction in Decoder(bits, data, ip=address):
        start = instruction.ip - address
        if instruction.is_invalid:
            lines.append(data[start:].hex())
            break
        raw = data[start : start + instruction.len].hex()
        lines.append(f"{raw:<16} {formatter.format(instruction)}")
    return lines


def diff_json(document: dict[str, Any]) -> str:
    """The document as text."""
    return json.dumps(document, indent=1) + "\n"


def diff_html(document: dict[str, Any]) -> str:
    """One self-contained page."""
    document = shown_document(document)
    text = files("pvpatch.report").joinpath("diff.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["hex"] = lambda value: "" if value is None else f"{value:#x}"
    return environment.from_string(text).render(
        document=document,
        heading=_heading,
        appended=_appended(document),
        sites=_sites(document),
        summary=_summary(document),
    )


def _times(count: int) -> str:
    return f" x{count:,}" if count > 1 else ""


def _heading(row: dict[str, Any]) -> str:
    place = (
        f"{row['address']:#x} {row['where']}" if row["address"] is not None else f"file {row['offset']:#x}"
    )
    calls = Counter(site["call"] for site in row["sites"])
    named = ", ".join(f"{call}{_times(count)}" for call, count in calls.items())
    return f"{place}: {row['why']}" + (f" [{named}]" if named else "")


def _appended(document: dict[str, Any]) -> list[str]:
    """One line for each kind of what was appended: thunks and padding are thousands."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for item in document["additions"]:
        groups.setdefault(_OF_A_SITE.sub("", item["name"]), []).append(item)
    lines = []
    for name, items in groups.items():
        first = items[0]
        at = "" if first["address"] is None else f" at {first['address']:#x}"
        count = f", {len(items):,} of them" if len(items) > 1 else ""
        from_there = " and up" if at and count else ""
        size = sum(item["size"] for item in items)
        lines.append(f"appended {size:,} byte{'s' if size != 1 else ''}{at}{from_there}: {name}{count}")
    return lines


def _sites(document: dict[str, Any]) -> list[str]:
    """How many sites each tactic took, and those that keep their instruction, by reason."""
    tactics, refused = document["tactics"], document["refused"]
    total = sum(tactics.values())
    if not total:
        return []
    by = ", ".join(f"{name} {count:,}" for name, count in tactics.items() if name not in UNPATCHED)
    lines = [
        f"{total - len(refused):,} of {total:,} sites are calls of the ABI now" + (f": {by}" if by else "")
    ]
    if refused:
        lines.append(f"{len(refused):,} keep their instruction:")
    reasons: dict[str, list[str]] = {}
    for site in refused:
        reasons.setdefault(site["reason"], []).append(f"{site['text']} at {site['address']:#x}")
    for reason, found in sorted(reasons.items(), key=lambda item: (-len(item[1]), item[0])):
        more = f" and {len(found) - _NAMED_SITES:,} more" if len(found) > _NAMED_SITES else ""
        lines.append(f"  {len(found):,}  {reason}: {', '.join(found[:_NAMED_SITES])}{more}")
    return lines


def _pairs(row: dict[str, Any]) -> list[tuple[str, str]]:
    old, new = row["old_text"], row["new_text"]
    count = max(len(old), len(new))
    return [
        (old[index] if index < len(old) else "", new[index] if index < len(new) else "")
        for index in range(count)
    ]


def _summary(document: dict[str, Any]) -> list[str]:
    sizes = document["bytes"]
    lines = [
        f"{sizes['changed']:,} bytes differ in {len(document['changes']):,} places, "
        f"{sizes['added']:,} are appended, {sizes['manifest']:,} are the manifest"
    ]
    for item in document["unexplained"]:
        place = f" ({item['where']})" if item["where"] else ""
        at = "" if item["address"] is None else f", address {item['address']:#x}"
        lines.append(
            f"UNEXPLAINED: {item['space']} offset {item['offset']:#x}{at}{place}: "
            f"{_short(item['found'])} instead of {_short(item['expected'])}"
        )
    lines.append("every byte is explained" if document["explained"] else "some bytes are not explained")
    return lines


def _short(text: str) -> str:
    if not text:
        return "nothing"
    return text if len(text) <= 32 else f"{text[:32]}.. ({len(text) // 2} bytes)"


def _run_lines(document: dict[str, Any]) -> list[str]:
    run = document["run"]
    if run is None:
        return []
    lines = [
        f"run: original on {run['reference']}: {run['original_outcome']}; "
        f"patched on {run['backend']}: {run['patched_outcome']}"
    ]
    lines += [f"  - {left}\n  + {right}" for left, right in run["differences"]]
    lines += [f"  {name}: {left} -> {right}" for name, (left, right) in run["counters"].items()]
    lines.append("the runs agree" if run["equal"] else "the runs differ")
    return lines


def render_diff_text(document: dict[str, Any]) -> str:
    """Plain text for a pipe."""
    document = shown_document(document)
    lines: list[str] = []
    for row in document["changes"]:
        lines.append(_heading(row))
        lines += [f"  - {left:<{_COLUMN}} + {right}".rstrip() for left, right in _pairs(row)]
    lines += [*_appended(document), *_sites(document), *_summary(document), *_run_lines(document)]
    return "\n".join(lines) + "\n"


def render_diff_rich(document: dict[str, Any], console: Console) -> None:
    """The same in colour."""
    document = shown_document(document)
    for row in document["changes"]:
        console.print(Text(_heading(row), style="bold"))
        for left, right in _pairs(row):
            line = Text("  ")
            line.append(f"{left:<{_COLUMN}}", style="red")
            line.append("  ")
            line.append(right, style="green")
            console.print(line, no_wrap=True, overflow="ellipsis")
    for text in _appended(document):
        console.print(Text(text, style="cyan"))
    for text in _sites(document):
        console.print(Text(text))
    style = "green" if document["explained"] else "bold red"
    for text in _summary(document):
        console.print(Text(text, style=style))
    for text in _run_lines(document):
        console.print(Text(text))
    if document["explained"] and document["run"] is None:
        console.print(Text("`pvpatch diff --run` also runs both and compares what they print", style="dim"))
