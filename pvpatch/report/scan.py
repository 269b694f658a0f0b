"""What `pvpatch scan` shows: the JSON document, the terminal tables, the plain text."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pvpatch.report.shown import shown
from pvpatch.report.tables import WIDE, table
from rewriter.image import Image
from rewriter.image.patched import resident_block
from rewriter.scan import ScanResult, Site

__all__ = ["SCHEMA", "render_scan_rich", "render_scan_text", "scan_document", "scan_json"]

SCHEMA = "pvpatch/scan/1"

_TOTALS: dict[str, Callable[[Site], str]] = {
    "kind": lambda site: site.kind,
    "section": lambda site: site.section,
    "dialect": lambda site: site.dialect,
    "width": lambda site: str(site.width),
    "call": lambda site: site.call or "(none)",
}


def _site(site: Site) -> dict[str, Any]:
    return {
        "address": site.address,
        "file_offset": site.file_offset,
        "length": site.length,
        "bytes": site.code.hex(),
        "mnemonic": site.mnemonic,
        "operands": site.operands,
        "section": site.section,
        "width": site.width,
        "dialect": site.dialect,
        "kind": site.kind,
        "effect": site.effect or None,
        "call": site.call or None,
        "reason": site.reason or None,
        "context": list(site.context),
        "partner": site.partner or None,
        "detail": site.detail or None,
    }


def _patched(image: Image, result: ScanResult) -> dict[str, Any] | None:
    """What pvpatch has added to the image, None for one that was never patched."""
    block = resident_block(image)
    if block is None:
        return None
    return {
        "abi": f"{block.abi[0]}.{block.abi[1]}",
        "resident": {"address": block.address, "size": block.size},
        "own_sites": sum(1 for site in result.sites if block.holds(site.address)),
    }


def _patched_line(image: Image, result: ScanResult) -> str:
    """Says what a patched image is, and whose the sites are; empty for others."""
    found = _patched(image, result)
    if found is None:
        return ""
    start, own = found["resident"]["address"], found["own_sites"]
    return (
        f"patched by pvpatch for ABI {found['abi']}: {own:,} of the sites are the resident block's own "
        f"({found['resident']['size']:,} bytes at {start:#x}), {len(result.sites) - own:,} the kernel's"
    )


def scan_document(image: Image, result: ScanResult) -> dict[str, Any]:
    """The JSON document of a scan (docs/schema/scan-1.json). Addresses and sizes are integers in bytes."""
    return {
        "schema": SCHEMA,
        "image": {
            "name": image.path.name,
            "kind": image.kind,
            "bits": image.bits,
            "containers": [":".join(filter(None, (layer.kind, layer.codec))) for layer in image.container],
            "entries": [
                {"address": entry.address, "width": entry.width, "protocol": entry.protocol}
                for entry in image.entries
            ],
            "interfaces": list(result.interfaces),
            "patched": _patched(image, result),
        },
        "complete": result.complete,
        "regions": [
            {
                "name": region.name,
                "address": region.address,
                "size": region.size,
                "method": region.method,
                "code_bytes": region.code_bytes,
                "instructions": region.instructions,
                "evidence": region.reason,
            }
            for region in result.regions
        ],
        "totals": {
            "sites": len(result.sites),
            **{f"by_{name}": result.totals(key) for name, key in _TOTALS.items()},
        },
        "sites": [_site(site) for site in result.sites],
    }


def scan_json(image: Image, result: ScanResult) -> str:
    """The document as text, the same for the same image."""
    return json.dumps(scan_document(image, result), indent=1) + "\n"


def render_scan_text(image: Image, result: ScanResult) -> str:
    """Plain text for a pipe: tab-separated totals, one line each."""
    lines = [f"{shown(image.path.name)}: {image.kind}, {len(result.sites)} sites"]
    lines += filter(None, [_patched_line(image, result)])
    for region in result.regions:
        lines.append(
            f"region\t{shown(region.name)}\t{region.address:#x}\t{region.size}\t{region.method}"
            f"\t{region.instructions} instructions in {region.code_bytes} bytes"
        )
    for name, key in _TOTALS.items():
        lines += [f"{name}\t{shown(value)}\t{count}" for value, count in result.totals(key).items()]
    lines += [f"interface\t{shown(text)}" for text in result.interfaces]
    if not result.complete:
        lines.append("incomplete\tthe search stopped at its work limit")
    return "\n".join(lines) + "\n"


def render_scan_rich(image: Image, result: ScanResult, console: Console) -> None:
    """Tables for a terminal, the most important figure last, and what to do with it."""
    console.print(_regions(result, console.width >= WIDE))
    console.print()
    console.print(_kinds(result))
    console.print()
    others = table("by", "value", "sites", title="Totals", numbers=("sites",))
    for name in ("section", "dialect", "width"):
        for value, count in result.totals(_TOTALS[name]).items():
            others.add_row(name, Text(shown(value)), f"{count:,}")
    console.print(others)
    console.print()
    for text in result.interfaces:
        console.print(f"declares {shown(text)}", highlight=False, markup=False)
    called = sum(1 for site in result.sites if site.call)
    patched = _patched_line(image, result)
    have = f"{called:,} of them have an ABI call"
    then = patched or f"{have}; `pvpatch patch` turns them into it"
    rest = f": {image.kind}, {len(result.sites):,} sites, {then}"
    console.print(Text.assemble((shown(image.path.name), "bold"), rest))
    if patched:
        console.print("`pvpatch diff ORIGINAL PATCHED` explains each byte, `pvpatch revert` undoes the patch")
    if not result.complete:
        console.print("[bold red]incomplete: the search stopped at its work limit[/]")


def _regions(result: ScanResult, wide: bool) -> Table:
    more = ("code bytes",) if wide else ()
    regions = table(
        *("region", "address", "bytes", "found by", "instructions", *more),
        title="Searched",
        numbers=("bytes", "instructions", *more),
        whole=("region", "address", "found by"),
    )
    for region in result.regions:
        regions.add_row(
            Text(shown(region.name)),
            f"{region.address:#x}",
            f"{region.size:,}",
            region.method,
            f"{region.instructions:,}",
            *((f"{region.code_bytes:,}",) if wide else ()),
        )
    return regions


def _kinds(result: ScanResult) -> Table:
    kinds = table(
        *("kind", "sites", "without privilege", "ABI calls"),
        title="Sites by kind",
        numbers=("sites",),
        whole=("kind", "without privilege"),
    )
    for kind, count in result.totals(_TOTALS["kind"]).items():
        chosen = [site for site in result.sites if site.kind == kind]
        effects = sorted({site.effect for site in chosen if site.effect})
        calls = sorted({site.call for site in chosen if site.call})
        kinds.add_row(kind, f"{count:,}", ", ".join(effects), ", ".join(calls) or "[dim]none[/]")
    return kinds
