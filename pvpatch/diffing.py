"""The comparison behind `pvpatch diff`: bytes against the manifest, and runs against each other."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pvpatch.abi.errors import ImageError
from pvpatch.abi.layout import find_locators, unpack_locator
from pvpatch.bootimage import boot_image
from pvpatch.transcripts import compare
from rewriter.emit.produce import patch_image
from rewriter.image import Image, open_image, parse_image, rewrap
from rewriter.image.source import read_bounded
from rewriter.manifest import Manifest, Unexplained, differences, explain, read_manifest
from runtime.backends import backend_named
from runtime.boot.model import BootRequest
from runtime.machine import Machine, MachineConfig
from runtime.outcome import RunResult

__all__ = ["REFERENCE", "Difference", "Place", "RunComparison", "RunOptions", "compare_files", "run_both"]

REFERENCE = "bare"
_FEW = 0.02  # share of a file in which a damaged copy may differ from the derived one and still be that copy


@dataclass(frozen=True)
class Place:
    """Bytes that nothing explains. ``space`` says what the offset counts in: payload or file."""

    offset: int
    space: str
    address: int | None
    where: str
    expected: str
    found: str


@dataclass(frozen=True)
class RunOptions:
    """How both images are run."""

    append: str = ""
    memory_mib: int = 512
    until: str = ""
    max_time_s: float | None = None


@dataclass(frozen=True)
class RunComparison:
    """Two runs: the unpatched image on the reference backend, the patched one on the chosen backend."""

    backend: str
    original: RunResult
    patched: RunResult
    equal: bool
    differences: tuple[tuple[str, str], ...]

    def document(self) -> dict[str, Any]:
        """For the JSON document."""
        return {
            "reference": REFERENCE,
            "backend": self.backend,
            "equal": self.equal,
            "original_outcome": self.original.outcome.value,
            "patched_outcome": self.patched.outcome.value,
            "differences": [list(pair) for pair in self.differences],
            "counters": {name: list(pair) for name, pair in _counters(self.original, self.patched).items()},
        }


@dataclass(frozen=True)
class Difference:
    """Everything that a diff found. Sizes in bytes."""

    original: Image
    patched_path: Path
    original_sha256: str
    patched_sha256: str
    manifest: Manifest | None
    changed: int
    added: int
    record: int
    unexplained: tuple[Place, ...]
    run: RunComparison | None = None

    @property
    def explained(self) -> bool:
        """Whether every differing byte belongs to a manifest entry."""
        return not self.unexplained


def compare_files(original_path: Path, patched_path: Path) -> Difference:
    """Compare a patched file with its original.

    ImageError when one of them is no image, or the second was never patched.
    """
    original = open_image(original_path)
    data = read_bounded(patched_path)
    sums = hashlib.sha256(original.original).hexdigest(), hashlib.sha256(data).hexdigest()
    try:
        patched = parse_image(data, patched_path)
        manifest = read_manifest(patched.payload)
        result = explain(original.payload, patched.payload, manifest)
    except ImageError as error:
        places = _against_derived(original, data)
        if places is None:
            raise ImageError(
                f"{patched_path}: {error.message.removeprefix(f'{patched_path}: ')}", hint=error.hint
            ) from error
        return Difference(original, patched_path, *sums, None, 0, 0, 0, places)
    places = tuple(_place(original, item) for item in result.unexplained) or _container(
        original, patched, data
    )
    return Difference(
        original, patched_path, *sums, manifest, result.changed, result.added, result.record, places
    )


def _place(original: Image, item: Unexplained) -> Place:
    address = item.address if item.address is not None else original.vaddr_of_offset(item.offset)
    where = f"{item.part}+{item.part_offset:#x}" if item.part else ""
    if not where and address is not None:
        where = original.describe(address)
    return Place(
        item.offset, "payload", address, where or "no loaded part of the image", item.expected, item.found
    )


def _container(original: Image, patched: Image, data: bytes) -> tuple[Place, ...]:
    """Bytes of the container that do not follow from the original's container and the payload."""
    if [layer.kind for layer in original.container] != [layer.kind for layer in patched.container]:
        return (Place(0, "file", None, "the container", original.original[:16].hex(), data[:16].hex()),)
    if not patched.container:
        return ()
    expected = rewrap(original, patched.payload)
    return _file_places(expected, data, "the container")


def _against_derived(original: Image, data: bytes) -> tuple[Place, ...] | None:
    """The file is damaged: compare it with what patching the original gives, if it is a copy of that."""
    places_named = [unpack_locator(data, at).resident_phys for at in find_locators(data)]
    try:
        expected = patch_image(original, block_at=next(iter(places_named), None)).file
    except ImageError:
        return None
    places = _file_places(expected, data, "where the file cannot be read any more")
    wrong = sum(max(len(place.expected), len(place.found)) // 2 for place in places)
    if not places or wrong > max(len(expected) * _FEW, 16):
        return None
    return places


def _file_places(expected: bytes, data: bytes, where: str) -> tuple[Place, ...]:
    return tuple(
        Place(first, "file", None, where, expected[first:last].hex(), data[first:last].hex())
        for first, last in differences(expected, data)
    )


def run_both(original: Path, patched: Path, backend: str, options: RunOptions) -> RunComparison:
    """Run the original on the reference backend and the patched image on ``backend``."""
    first = _run(original, REFERENCE, options)
    second = _run(patched, backend, options)
    compared = compare(first.transcript, second.transcript, options.until)
    equal = compared.equal and first.outcome == second.outcome
    return RunComparison(backend, first, second, equal, compared.differences)


def _run(path: Path, backend: str, options: RunOptions) -> RunResult:
    config = MachineConfig(
        memory_mib=options.memory_mib,
        request=BootRequest(cmdline=options.append),
        until=options.until,
        max_time_s=options.max_time_s,
    )
    return Machine(config, boot_image(open_image(path)), backend_named(backend)).run()


def _counters(first: RunResult, second: RunResult) -> dict[str, tuple[object, object]]:
    """Figures of both runs, those of nested tables by dotted names; host times are left out."""
    left, right = _flat(first.stats), _flat(second.stats)
    names = [name for name in dict.fromkeys((*left, *right)) if not name.startswith("host")]
    return {
        name: (left.get(name, 0), right.get(name, 0))
        for name in names
        if left.get(name, 0) != right.get(name, 0)
    }


def _flat(stats: Any, prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in dict(stats).items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        elif isinstance(value, int | float | str):
            flat[f"{prefix}{name}"] = value
    return flat
