"""From the scan's knowledge to the view that tactics use, and the sites that stay for its reasons."""

from __future__ import annotations

from rewriter.image.loading import header_ranges
from rewriter.scan import CodeMap, ScanResult, Site
from rewriter.tactics.view import CodeRegion, CodeView, Exclusion

__all__ = ["foreign_sites", "view_of"]

_EXCLUSIONS = {
    "alternative": "the kernel patches these bytes itself (alternatives)",
    "paravirt": "the kernel patches these bytes itself (paravirt call)",
    "relocation": "the image adjusts these bytes to where it runs (relocation)",
    "overlap": "another reading of the same bytes is reachable",
    "width": "the same bytes are reached as code of another width",
    "read": "the kernel reads these bytes as data",
    "copied": "the kernel copies these bytes, and runs or reads them elsewhere",
    "guess": "nothing but a guess says that these bytes are code",
    "ex_table": "the kernel looks this address up when it faults (exception table)",
}


def view_of(codemap: CodeMap, *, moves: bool) -> CodeView:
    """The view of a code map; sites of an image that `moves` reach their thunks from any copy of it."""
    regions = tuple(
        CodeRegion(part.region.vaddr, part.data.tobytes(), part.lengths.tobytes(), part.widths.tobytes())
        for part in codemap.regions
    )
    targets = frozenset(codemap.target_addresses().tolist())
    headers = tuple(
        Exclusion(start, end, f"boot loaders read these bytes ({name})")
        for start, end, name in header_ranges(codemap.space.image)
    )
    exclusions = headers + tuple(
        Exclusion(window.start, window.end, _EXCLUSIONS.get(window.kind, f"the kernel's own {window.kind}"))
        for window in codemap.windows
        if not (moves and window.kind == "copied")
    )
    indirect = frozenset(codemap.target_addresses(indirect=True).tolist())
    return CodeView(regions, targets, exclusions, indirect)


def foreign_sites(scan: ScanResult) -> dict[int, str]:
    """Sites that keep their code: those that already speak to a hypervisor, and what the scan refused."""
    kept: dict[int, str] = {}
    for site in scan.sites:
        if site.dialect != "native":
            kept[site.address] = f"it already speaks the {site.dialect} interface"
        elif not site.call and not _second_half(scan, site):
            kept[site.address] = site.reason or "no call of the ABI stands for it"
    return kept


def _second_half(scan: ScanResult, site: Site) -> bool:
    return site.partner != 0 and site.partner < site.address
