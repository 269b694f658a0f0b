"""Mutated images and forged patched files."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from rewriter.manifest import find_record, read_manifest
from tests.campaign.judge import GUEST_SECONDS, MEMORY_MIB, Problem, twice
from tests.cli.command import inside
from tests.hostile.forged import EVIL, with_document
from tests.hostile.test_fuzz import EXTREMES, seeds
from tests.samples.images import image

__all__ = ["forged_case", "image_case", "run_words"]

SAMPLES = ("native-i386", "native-x86_64", "lguest-i386")
_HOT = 0x200
_VALUES: tuple[Any, ...] = (0, -1, 1 << 63, 1 << 70, "", EVIL, "zz", None, [], {}, True, 1.5, "00" * 32)


def run_words(path: Path, backend: str) -> tuple[str | Path, ...]:
    """A short run that writes its counters."""
    limits = ("--memory", str(MEMORY_MIB), "--max-time", str(GUEST_SECONDS))
    return ("run", path, "--backend", backend, *limits, "--stats", path.parent / "stats")


@cache
def _images() -> tuple[bytes, ...]:
    return (*seeds(), *(image(name).read_bytes() for name in SAMPLES))


def _mutated(random: Random, data: bytes) -> bytes:
    """Bits flipped, fields made extreme, pieces cut off, moved or repeated; mostly in front."""
    made = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4, 8))):
        at = random.randrange(min(_HOT, len(made)) if random.random() < 0.7 else len(made))
        kind = random.randrange(6)
        if kind < 2:
            made[at] ^= 1 << random.randrange(8)
        elif kind < 4:
            value = random.choice((*EXTREMES, random.randbytes(random.randint(1, 8))))
            made[at : at + len(value)] = value[: len(made) - at]
        elif kind == 4:
            size = random.choice((1, 4, 16, 64))
            other = random.randrange(len(made))
            made[at : at + size] = made[other : other + size]
        elif random.random() < 0.3 and len(made) > 1:
            del made[random.randrange(1, len(made)) :]
        if not made:
            made = bytearray(b"\0")
    return bytes(made)


def image_case(random: Random, folder: Path) -> None:
    """scan, run; where it can be patched: diff, revert to the same bytes, run on a backend."""
    data = _mutated(random, random.choice(_images()))
    if random.random() < 0.1:
        data = gzip.compress(data, mtime=0)
    path, patched = folder / "image", folder / "patched"
    path.write_bytes(data)
    twice(folder, "scan", path, "--json", folder / "scan.json")
    twice(folder, *run_words(path, "bare"))
    made = twice(folder, "patch", path, "-o", patched)
    if made.code:
        return
    patched.write_bytes(made.files["patched"])
    if twice(folder, "diff", path, patched).code:
        raise Problem("a fresh patch is not explained")
    if twice(folder, "revert", patched, "-o", folder / "back").files["back"] != data:
        raise Problem("revert gives another file")
    twice(folder, *run_words(patched, random.choice(("bare", "kvm", "lguest", "vmi", "xen"))))


@cache
def _patched(index: int) -> tuple[bytes, bytes]:
    """An image and its patched file."""
    sources = (_images()[0], *(image(name).read_bytes() for name in SAMPLES[:2]))
    with TemporaryDirectory() as folder:
        path, patched = Path(folder, "image"), Path(folder, "patched")
        path.write_bytes(sources[index])
        assert inside("patch", path, "-o", patched).code == 0
        return sources[index], patched.read_bytes()


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value of a document; of long lists the first and the last few."""
    found = [path] if path else []
    if isinstance(value, dict):
        for name in value:
            found += _places(value[name], (*path, name))
    elif isinstance(value, list):
        for index in sorted({*range(min(3, len(value))), *range(max(0, len(value) - 2), len(value))}):
            found += _places(value[index], (*path, index))
    return found


def _forged_document(random: Random, patched: bytes) -> bytes:
    document = json.loads(read_manifest(patched).to_json())
    for _ in range(random.choice((1, 1, 2, 5))):
        places = _places(document)
        *way, last = random.choice(places)
        target = document
        for step in way:
            target = target[step]
        old = target[last]
        number = isinstance(old, int) and not isinstance(old, bool) and random.random() < 0.6
        target[last] = old + random.choice((-4096, -1, 1, 8, 1 << 31)) if number else random.choice(_VALUES)
    return json.dumps(document).encode()


def forged_case(random: Random, folder: Path) -> None:
    """A patched file with another record, with bytes of the resident block changed, or with both."""
    original, patched = _patched(random.randrange(3))
    data = patched
    kind = random.randrange(4)
    if kind in (0, 3):
        data = with_document(data, _forged_document(random, data))
    if kind in (1, 3):
        found = find_record(data)
        assert found is not None
        body = bytearray(data)
        for _ in range(random.choice((1, 2, 8))):
            at = min(found[0] - 1, len(original) + int(random.random() ** 3 * (found[0] - len(original))))
            value = random.choice((*EXTREMES, random.randbytes(4)))[: found[0] - at]
            body[at : at + len(value)] = value
        data = bytes(body)
    if kind == 2:
        data = _mutated(random, data)
    path, first = folder / "patched", folder / "image"
    path.write_bytes(data)
    first.write_bytes(original)
    twice(folder, "diff", first, path, "--html", folder / "page", "--json", folder / "json")
    back = twice(folder, "revert", path, "-o", folder / "back")
    if back.code == 0 and back.files["back"] != original and kind != 3 and kind != 0:
        raise Problem("revert gives another file")
    twice(folder, "scan", path)
    twice(folder, *run_words(path, random.choice(("bare", "kvm", "lguest", "vmi", "xen"))))
