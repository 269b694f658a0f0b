"""What `pvpatch patch` shows: the JSON document, and the closing block for people."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

from iced_x86 import OpKind
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pvpatch.abi.spec import load_spec
from pvpatch.report.scan import scan_document
from pvpatch.report.shown import shown
from pvpatch.report.tables import table
from rewriter.emit.produce import Produced
from rewriter.image import Image
from rewriter.manifest import UNPATCHED, Site

__all__ = ["SCHEMA", "Cost", "patch_document", "patch_json", "render_patch_rich", "render_patch_text"]

SCHEMA = "pvpatch/patch/1"
LOW_COVERAGE = 0.9
"""Share of patched sites below which the closing block warns."""


@dataclass(frozen=True)
class Cost:
    """What the patch took: host seconds and the peak of resident memory in bytes."""

    seconds: float
    peak_memory: int


def _is_patched(site: Site) -> bool:
    return site.tactic not in UNPATCHED


def patch_document(image: Image, produced: Produced) -> dict[str, Any]:
    """The JSON document of a patch (docs/schema/patch-1.json): a scan with what became of each site."""
    document = scan_document(image, produced.scan)
    manifest = produced.manifest
    decided = {site.address: site for site in manifest.sites}
    for row in document["sites"]:
        site = decided[row["address"]]
        row |= {
            "call": site.call or None,
            "tactic": site.tactic,
            "reason": site.reason or None,
            "window": site.window,
            "thunk": site.thunk,
            "cell": site.cell,
        }
    document["schema"] = SCHEMA
    document["totals"]["by_tactic"] = _by_tactic(manifest.sites)
    document["totals"]["patched"] = sum(map(_is_patched, manifest.sites))
    document["totals"]["may_fault"] = _may_fault(produced)
    document["original"] = {"sha256": manifest.original_sha256, "size": manifest.original_size}
    document["output"] = {"sha256": hashlib.sha256(produced.file).hexdigest(), "size": len(produced.file)}
    document["reach"] = manifest.reach
    document["resident"] = dict(manifest.resident)
    document["bytes"] = _sizes(produced)
    document["warnings"] = list(_warnings(produced))
    return document


def patch_json(image: Image, produced: Produced) -> str:
    """The document as text, the same for the same image."""
    return json.dumps(patch_document(image, produced), indent=1) + "\n"


def _may_fault(produced: Produced) -> int:
    """Patched sites whose instruction may raise a fault: by what it does, or by its operand in memory."""
    spec, view = load_spec(), produced.job.view
    count = 0
    for site in filter(_is_patched, produced.manifest.sites):
        instruction = view.at(site.address)
        kinds = range(instruction.op_count) if instruction is not None else ()
        in_memory = instruction is not None and any(instruction.op_kind(i) == OpKind.MEMORY for i in kinds)
        count += bool(spec.call(site.call).faults) or in_memory
    return count


def _by_tactic(sites: tuple[Site, ...]) -> dict[str, int]:
    counts = Counter(site.tactic for site in sites)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _sizes(produced: Produced) -> dict[str, int]:
    """Bytes, by what they are for."""
    job = produced.job
    return {
        "changed": sum(len(change.new) // 2 for change in produced.manifest.changes),
        "thunks": sum(len(thunk.data) for thunk in job.resident.thunks.values()),
        "resident": job.resident.size,
        "reserved_memory": job.resident.memory_size,
    }


def _warnings(produced: Produced) -> tuple[str, ...]:
    """What a person must know before the patched image is used; one sentence each."""
    sites = produced.manifest.sites
    patched = sum(map(_is_patched, sites))
    if patched >= LOW_COVERAGE * len(sites):
        return produced.job.warnings
    low = (
        f"LOW COVERAGE: {len(sites) - patched:,} of {len(sites):,} sites keep their instruction; where the "
        "kernel is deprivileged each of them is emulated, or fails"
    )
    return (low, *produced.job.warnings)


def _lines(produced: Produced, cost: Cost) -> list[tuple[str, str]]:
    sites = produced.manifest.sites
    patched = sum(map(_is_patched, sites))
    share = 100 * patched / len(sites) if sites else 100.0
    rows = [("patched", f"{patched:,} / {len(sites):,} ({share:.2f} %)")]
    for name, count in _by_tactic(sites).items():
        rows.append((f"  {name}", f"{count:,}"))
        if name in UNPATCHED:
            reasons = Counter(site.reason for site in sites if site.tactic == name)
            rows += [(f"    {reason}", f"{count:,}") for reason, count in reasons.most_common()]
    sizes = _sizes(produced)
    manifest = produced.manifest
    cells = sum(site.stackless for site in sites)
    rows += [("stackless", f"{cells} sites, each an instruction in a cell")] if cells else []
    faulting = _may_fault(produced)
    rows += [
        ("may fault", f"{faulting:,} sites; on hardware at another address (docs/patch.md)"),
        ("windows", f"{len(produced.job.plan.windows):,}"),
        ("bytes rewritten", f"{sizes['changed']:,}"),
        (
            "thunks",
            f"{sizes['thunks']:,} bytes, {produced.instructions_checked:,} instructions decoded again",
        ),
        (
            "resident",
            f"{sizes['resident']:,} bytes in the file, {sizes['reserved_memory']:,} in memory at "
            f"{manifest.resident['physical']:#x}",
        ),
        ("file", f"{manifest.original_size:,} -> {len(produced.file):,} bytes"),
        (
            "time",
            f"scan {produced.scan_seconds:.2f} s, patch {produced.patch_seconds:.2f} s, "
            f"all {cost.seconds:.2f} s",
        ),
        ("memory", f"{cost.peak_memory / 2**20:.0f} MiB peak"),
    ]
    return rows + [("warning", text) for text in _warnings(produced)]


def _refused(image: Image, produced: Produced) -> list[tuple[str, ...]]:
    return [
        (
            f"{site.address:#x}",
            *map(shown, (site.text, site.tactic, site.reason, image.describe(site.address))),
        )
        for site in produced.manifest.sites
        if not _is_patched(site)
    ]


def render_patch_text(image: Image, produced: Produced, cost: Cost) -> str:
    """Plain text for a pipe."""
    lines = ["\t".join(row) for row in _refused(image, produced)]
    lines += [f"{shown(name)}: {shown(value)}" for name, value in _lines(produced, cost)]
    return "\n".join(lines) + "\n"


def render_patch_rich(image: Image, produced: Produced, cost: Cost, console: Console) -> None:
    """Tables for a terminal."""
    refused = _refused(image, produced)
    if refused:
        sites = table(
            *("address", "instruction", "tactic", "reason", "where"),
            title="Sites that keep their instruction",
            whole=("address", "tactic"),
        )
        for row in refused:
            sites.add_row(*map(Text, row))  # brackets of operands are no markup
        console.print(sites)
        console.print()
    figures = Table(show_header=False, box=None, pad_edge=False)
    for name, value in _lines(produced, cost):
        figures.add_row(Text(shown(name)), Text(shown(value)))
    console.print(figures)
