"""From an image to its sites: choose how each region is searched, search, classify, describe."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from rewriter.decode import candidates
from rewriter.decode.classification import class_by_code
from rewriter.image import Image
from rewriter.scan.codemap import CodeMap, RegionMap
from rewriter.scan.describe import SiteDescriber
from rewriter.scan.dialects import declared_interfaces, paravirt_sites
from rewriter.scan.document import RegionReport, ScanResult, Site
from rewriter.scan.flow_facts import compute_flow
from rewriter.scan.kernel_tables import Alternative, KernelTables, read_kernel_tables
from rewriter.scan.recursion import Recursion
from rewriter.scan.space import Region, Space
from rewriter.scan.sweeping import MIN_SIZE, Sweep, sweep_region

__all__ = ["Progress", "scan_image"]

Progress = Callable[[str], None]
"""Told in words what is being done; for a person who waits."""


def _silent(_: str) -> None:
    return None


def scan_image(image: Image, progress: Progress = _silent) -> ScanResult:
    """Every site of an image, and the map of the code around them.

    Raises ImageError for an image without executable bytes; never anything but PvpatchError.
    """
    reached: frozenset[int] = frozenset()
    while True:
        scan = _Scan(image, progress, reached)
        result = scan.run()
        found = scan.leads_outside()
        if not found:
            return result
        reached |= found


class _Scan:
    def __init__(self, image: Image, progress: Progress, reached: frozenset[int] = frozenset()) -> None:
        self.image = image
        self.progress = progress
        self.space = Space(image, reached)
        self.tables: KernelTables = read_kernel_tables(image, self.space)
        self.recursion = Recursion(image, self.space)
        self.swept: dict[int, Sweep] = {}
        self.reasons: dict[int, str] = {}

    def run(self) -> ScanResult:
        replacement = set(self._replacement_regions())
        self._sweep(replacement)
        recursive = [
            r for r in self.space.regions if r.index not in self.swept and r.index not in replacement
        ]
        self.progress("following the code from its entry points")
        self.recursion.settled = frozenset(self.swept) | replacement
        if recursive:
            self.recursion.run_all()
        else:
            self.recursion.run_entries()
        maps, reports = [], []
        starts: list[tuple[Region, NDArray[np.int64]]] = []
        for region in self.space.regions:
            built = self._region_map(region, region.index in replacement)
            maps.append(built)
            starts.append((region, self._candidates(region, built)))
            reports.append(self._report(region, built))
        codemap = CodeMap(
            self.space,
            tuple(maps),
            partial(
                compute_flow, self.image, self.space, tuple(maps), self.swept, self.recursion, self.tables
            ),
        )
        sites = self._describe(codemap, starts)
        unknown = tuple(sorted(self.recursion.unsettled_widths()))
        return ScanResult(
            tuple(sites),
            tuple(reports),
            declared_interfaces(self.image, self.tables, sites),
            self.recursion.explorer.complete and not self.recursion.explorer.lost and not unknown,
            unknown,
            codemap,
        )

    def leads_outside(self) -> frozenset[int]:
        """Where sure code leads that lies in no region, although the file holds bytes for it."""
        return frozenset(
            address
            for address in self.recursion.explorer.outside
            if self.space.find(address) is None and self.space.holds(address)
        )

    def _replacement_regions(self) -> list[int]:
        """Regions whose content is exactly the replacements of the alternatives table."""
        addresses = {row.replacement for row in self.tables.alternatives if row.replacement_length}
        found = {region.index for address in addresses if (region := self.space.find(address)) is not None}
        originals = {
            region.index
            for row in self.tables.alternatives
            if (region := self.space.find(row.address)) is not None
        }
        return sorted(found - originals)

    def _sweep(self, replacement: set[int]) -> None:
        """Sweep large regions; if one proves pure code, sweep its smaller neighbours too."""
        eligible = [r for r in self.space.regions if r.section and r.index not in replacement]
        for region in eligible:
            if region.size >= MIN_SIZE:
                self.progress(f"sweeping {region.name}, {region.size} bytes")
                swept = sweep_region(self.space, region, self.image.bits)
                self.reasons[region.index] = swept.evidence
                if swept.pure:
                    self.swept[region.index] = swept
        if not self.swept:
            return
        for region in eligible:
            if region.size < MIN_SIZE:
                swept = sweep_region(self.space, region, self.image.bits)
                self.reasons[region.index] = swept.evidence
                if swept.spotless:
                    self.swept[region.index] = swept

    def _region_map(self, region: Region, replacement: bool) -> RegionMap:
        explorer = self.recursion.explorer
        followed = np.frombuffer(explorer.lengths[region.index], np.uint8)
        followed_width = np.frombuffer(explorer.widths[region.index], np.uint8)
        data = self.space.code(region)
        if replacement:
            lengths = self._replacement_lengths(region)
            return RegionMap(region, data, lengths, (lengths > 0) * np.uint8(self.image.bits), "table")
        swept = self.swept.get(region.index)
        if swept is None:
            return RegionMap(region, data, followed, followed_width, "recursion")
        lengths = swept.lengths.copy()
        widths = (lengths > 0).astype(np.uint8) * np.uint8(self.image.bits)
        self._merge_islands(lengths, widths, followed, followed_width)
        return RegionMap(region, data, lengths, widths, "sweep")

    def _merge_islands(
        self,
        lengths: NDArray[np.uint8],
        widths: NDArray[np.uint8],
        followed: NDArray[np.uint8],
        followed_width: NDArray[np.uint8],
    ) -> None:
        """Where an entry point leads through code of another width, that reading replaces the sweep's."""
        for offset in np.flatnonzero((followed_width != 0) & (followed_width != self.image.bits)).tolist():
            length = int(followed[offset])
            lengths[offset : offset + length] = 0
            widths[offset : offset + length] = 0
            lengths[offset], widths[offset] = length, followed_width[offset]

    def _replacement_lengths(self, region: Region) -> NDArray[np.uint8]:
        lengths = np.zeros(region.size, np.uint8)
        decoder = self.recursion.explorer.decoder
        rows: dict[tuple[int, int], Alternative] = {
            (row.replacement, row.replacement_length): row for row in self.tables.alternatives
        }
        for start, count in rows:
            if self.space.find(start) is not region:
                continue
            for instruction in decoder.instructions(start, start + count, self.image.bits):
                if instruction.next_ip <= start + count:
                    lengths[instruction.ip - region.vaddr] = instruction.len
        return lengths

    def _candidates(self, region: Region, built: RegionMap) -> NDArray[np.int64]:
        """Offsets at which a sensitive instruction may start."""
        if built.method != "sweep":
            return np.flatnonzero(built.lengths)
        swept = self.swept[region.index]
        found = candidates(swept.code, built.lengths > 0, swept.map.prefixes, self.image.bits)
        other = np.flatnonzero((built.widths != 0) & (built.widths != self.image.bits))
        return np.unique(np.concatenate([found, other, np.array(swept.emulated, np.int64)]))

    def _describe(self, codemap: CodeMap, starts: list[tuple[Region, NDArray[np.int64]]]) -> list[Site]:
        describer = SiteDescriber(self.image, self.space, self.tables, codemap)
        sensitive = class_by_code()
        sites: dict[int, Site] = {}
        for region, offsets in starts:
            widths = codemap.regions[region.index].widths
            for offset in offsets.tolist():
                instruction = self.recursion.explorer.decoder.instruction_at(
                    region.vaddr + offset, int(widths[offset]), region
                )
                if int(codemap.regions[region.index].lengths[offset]) > instruction.len:
                    site = describer.emulated(region.vaddr + offset, region, int(widths[offset]))
                    sites[site.address] = site
                    continue
                entry = sensitive.get(instruction.code)
                if entry is not None:
                    site = describer.native(instruction.copy(), entry, region, int(widths[offset]))
                    sites[site.address] = site
        for site in paravirt_sites(self.image, self.space, self.tables, describer):
            sites[site.address] = site
        for site in describer.hypercalls(self.recursion.explorer, self.swept):
            sites.setdefault(site.address, site)
        return describer.join_pairs([sites[address] for address in sorted(sites)])

    def _report(self, region: Region, built: RegionMap) -> RegionReport:
        reason = self.reasons.get(region.index, "")
        if built.method == "recursion":
            reason = reason or "too small or without section header: no statistical evidence"
        return RegionReport(
            region.name,
            region.vaddr,
            region.size,
            built.method,
            int(built.lengths.sum(dtype=np.int64)),
            int(np.count_nonzero(built.lengths)),
            "boundaries given by .altinstructions" if built.method == "table" else reason,
        )
