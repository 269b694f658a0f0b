"""From an opened image to the bytes of its patched file, with the manifest inside."""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

from iced_x86 import Formatter, FormatterSyntax, Instruction

from pvpatch.abi.errors import ImageError
from rewriter.check_output import check_output
from rewriter.check_windows import check_windows
from rewriter.emit import flat_writer
from rewriter.emit.patch import PatchJob, may_move, patch_payload
from rewriter.emit.refusals import refuse_foreign, refuse_image, refuse_unknown_widths
from rewriter.image import Image, gzip_layer
from rewriter.manifest import Container, Manifest, Site, pack
from rewriter.plan import Decision
from rewriter.scan import ScanResult, scan_image
from rewriter.tactics.adapter import foreign_sites, view_of
from rewriter.verify import verify

__all__ = ["Produced", "patch_image"]

_RECORD_SLACK = 4096  # bytes by which a manifest may grow when a number in it changes

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Produced:
    """A patched file and how it came about. Times in seconds of the host."""

    file: bytes
    manifest: Manifest
    job: PatchJob
    scan: ScanResult
    instructions_checked: int
    scan_seconds: float
    patch_seconds: float


def patch_image(image: Image, progress: Progress = lambda _: None, block_at: int | None = None) -> Produced:
    """Scan, plan, patch and verify an image; ImageError when it cannot be patched.

    ``block_at`` is the physical address at which the resident block shall lie.
    """
    refuse_image(image)
    started = time.perf_counter()
    scan = scan_image(image, progress)
    refuse_foreign(image, scan.sites)
    refuse_unknown_widths(image, scan.unknown_widths)
    scanned = time.perf_counter()
    progress("planning and writing")
    job, payload = _patch_payload(image, scan, block_at)
    progress("decoding again what was written")
    checked = verify(job, payload)
    check_windows(job)
    manifest = _manifest(image, job, scan)
    flat_writer.cover_file(image, len(payload) + len(pack(manifest)) + _RECORD_SLACK, job.edits)
    manifest, payload = _manifest(image, job, scan), job.payload()
    file = _wrap(image, payload + pack(manifest))
    progress("reading again what will be written")
    check_output(image, job, manifest, file)
    return Produced(file, manifest, job, scan, checked, scanned - started, time.perf_counter() - scanned)


def _patch_payload(image: Image, scan: ScanResult, block_at: int | None) -> tuple[PatchJob, bytes]:
    """The patch of the payload; headers and code that contradict themselves end in one ImageError."""
    kept = {
        site.address: "its bytes are not loaded from the file"
        for site in scan.sites
        if image.offset_of(site.address) is None or image.offset_of(site.address + site.length - 1) is None
    }
    try:
        addresses = [site.address for site in scan.sites]
        view = view_of(scan.codemap, moves=may_move(image))
        job = patch_payload(image, view, addresses, foreign_sites(scan) | kept, block_at)
        return job, job.payload()
    except (ValueError, OverflowError, struct.error) as error:
        raise ImageError(
            f"{image.path}: the image cannot be patched: {error}",
            hint="its code or its headers contradict themselves",
        ) from error


def _wrap(image: Image, payload: bytes) -> bytes:
    return gzip_layer.wrap(image.container[0], payload) if image.container else payload


def _manifest(image: Image, job: PatchJob, scan: ScanResult) -> Manifest:
    recipe = gzip_layer.recipe(image.container[0], image.payload) if image.container else None
    kept = image.original if image.container and recipe is None else b""
    containers = tuple(
        Container(
            layer.kind,
            layer.codec,
            {"header": recipe.header.hex(), "level": recipe.level, "memory_level": recipe.memory_level}
            if recipe
            else None,
        )
        for layer in image.container
    )
    resident = job.resident
    return Manifest(
        original_sha256=hashlib.sha256(image.original).hexdigest(),
        original_size=len(image.original),
        payload_sha256=hashlib.sha256(image.payload).hexdigest(),
        payload_size=len(image.payload),
        format=image.kind,
        reach=job.reach.kind,
        resident={
            "physical": resident.physical,
            "size": resident.size,
            "memory_size": resident.memory_size,
            "offset": job.block_offset,
        },
        changes=tuple(sorted(job.edits.changes, key=lambda change: change.offset)),
        additions=tuple(job.edits.additions),
        sites=_sites(job, scan),
        containers=containers,
        kept_original=kept,
    )


def _sites(job: PatchJob, scan: ScanResult) -> tuple[Site, ...]:
    formatter = Formatter(FormatterSyntax.INTEL)
    known = {site.address: site for site in scan.sites}
    rows: list[Site] = []
    for decision in job.plan.decisions:
        site = known.get(decision.address)
        instruction = job.view.at(decision.address)
        if site is None:
            continue
        bound = job.bound.sites.get(job.bound.paired.get(decision.address, decision.address))
        thunk = None if decision.window is None else job.resident.thunks[decision.window].address
        text = (
            _text(formatter, instruction)
            if instruction is not None
            else f"{site.mnemonic} {site.operands}".strip()
        )
        rows.append(
            Site(
                site.address,
                site.file_offset,
                site.width,
                site.code.hex(),
                text,
                decision.call,
                decision.tactic,
                decision.reason,
                decision.window,
                thunk,
                bound.binding.number if bound is not None else None,
                _cell_of(job, decision),
                bound is not None and bound.stackless and decision.window is not None,
            )
        )
    return tuple(rows)


def _cell_of(job: PatchJob, decision: Decision) -> int | None:
    """The address of a site's cell, in the mapping that its thunk's address is of."""
    cell = job.resident.cells.get((decision.window or 0, decision.address))
    if cell is None or decision.window is None:
        return None
    inside = cell.offset - job.resident.thunk_offsets[decision.window]
    return job.resident.thunks[decision.window].address + inside


def _text(formatter: Formatter, instruction: Instruction) -> str:
    return str(formatter.format(instruction))
