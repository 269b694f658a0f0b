"""One cell of the matrix: a patched guest on a backend, held against the unpatched one on bare."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from pvpatch.guests import fetch
from pvpatch.transcripts import compare

__all__ = ["Cell", "Guest", "Run", "cell", "guests", "image_of", "patch", "run"]

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
MAX_GUEST_SECONDS = 600


@dataclass(frozen=True)
class Guest:
    """A row of guests.toml."""

    name: str
    width: int
    memory: int
    append: str = ""
    until: str = ""
    sample: str = ""


@dataclass(frozen=True)
class Run:
    """One run: exit code, transcript, and the statistics document."""

    exit_code: int
    transcript: bytes
    stats: dict[str, object]
    message: str


@dataclass(frozen=True)
class Cell:
    """The verdict on one guest and backend."""

    guest: str
    backend: str
    passed: bool
    reason: str
    guest_seconds: float
    host_seconds: float
    exits: int
    missed: int


def guests() -> list[Guest]:
    """The rows, in order."""
    raw = tomllib.loads(Path(__file__).with_name("guests.toml").read_text())
    return [Guest(**row) for row in raw["guest"]]


def image_of(guest: Guest) -> Path:
    """The unpatched image: fetched, or a shipped sample."""
    return SAMPLES / guest.sample if guest.sample else fetch(guest.name).path


def patch(image: Path, folder: Path, name: str) -> Path:
    """The patched file. Raises CalledProcessError with what pvpatch said."""
    out = folder / f"{name}.patched"
    command = [sys.executable, "-m", "pvpatch", "patch", str(image), "-o", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    return out


def run(guest: Guest, image: Path, backend: str, folder: Path) -> Run:
    """Run an image as the guest's row says."""
    transcript, stats = folder / "transcript", folder / "stats.json"
    for path in (transcript, stats):
        path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pvpatch", "run", str(image), "--backend", backend]
    command += ["--memory", str(guest.memory), "--max-time", str(MAX_GUEST_SECONDS)]
    command += ["--transcript", str(transcript), "--stats", str(stats)]
    command += ["--append", guest.append] if guest.append else []
    command += ["--until", guest.until] if guest.until else []
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL)
    message = done.stderr.decode(errors="replace").strip().splitlines()
    return Run(
        done.returncode,
        transcript.read_bytes() if transcript.exists() else done.stdout,
        json.loads(stats.read_text()) if stats.exists() else {},
        message[-1] if message else "",
    )


def _number(stats: dict[str, object], name: str) -> float:
    value = stats.get(name, 0)
    return float(value) if isinstance(value, (int, float)) else 0.0


def cell(guest: Guest, reference: Run, patched: Path, backend: str, folder: Path) -> Cell:
    """Run the patched image and judge it: its end, its transcript, and that nothing was missed."""
    result = run(guest, patched, backend, folder)
    comparison = compare(reference.transcript, result.transcript, guest.until)
    missed = int(_number(result.stats, "missed"))
    if result.exit_code:
        reason = f"exit code {result.exit_code}: {result.message}"
    elif not comparison.equal:
        left, right = comparison.differences[0]
        reason = f"transcript differs: {left!r} became {right!r}"
    elif missed:
        reason = f"{missed} operations missed"
    else:
        reason = ""
    exits = result.stats.get("exits", {})
    return Cell(
        guest.name,
        backend,
        not reason,
        reason,
        _number(result.stats, "guest_seconds"),
        _number(result.stats, "host_seconds"),
        sum(exits.values()) if isinstance(exits, dict) else 0,
        missed,
    )
