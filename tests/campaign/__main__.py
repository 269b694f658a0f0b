"""`python -m tests.campaign BUDGET [SEED]`: cases until the seconds are spent; exit code 1 when one fails."""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.campaign.guests import guest_case
from tests.campaign.images import forged_case, image_case
from tests.campaign.judge import Problem

__all__ = ["KINDS", "run_case"]

KINDS: dict[str, Callable[[random.Random, Path], None]] = {
    "image": image_case,
    "forged": forged_case,
    "guest": guest_case,
}
KEPT = Path("build/campaign")
"""Where the inputs of failed cases go."""


def run_case(name: str, folder: Path) -> None:
    """Run the case `KIND-SEED-NUMBER` in an empty folder. Raises `Problem`."""
    KINDS[name.partition("-")[0]](random.Random(name), folder)


def _one(name: str) -> bool:
    with tempfile.TemporaryDirectory() as place:
        try:
            run_case(name, Path(place))
        except Problem as problem:
            kept = KEPT / name
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(place, kept)
            sys.stdout.write(f"FAILED {name} (kept in {kept}): {problem}\n")
            sys.stdout.flush()
            return False
    return True


def main(words: list[str]) -> int:
    """Cases of each kind in turn, or the ones that are named."""
    if words and words[0].partition("-")[0] in KINDS:
        failures = [name for name in words if not _one(name)]
        return 1 if failures else 0
    budget, seed = float(words[0]) if words else 60.0, words[1] if len(words) > 1 else "1"
    sys.stdout.write(f"seed {seed}; a case again: python -m tests.campaign KIND-{seed}-NUMBER\n")
    end, number, failed = time.monotonic() + budget, 0, 0
    while time.monotonic() < end:
        for kind in KINDS:
            failed += not _one(f"{kind}-{seed}-{number}")
        number += 1
    sys.stdout.write(f"{number * len(KINDS)} cases, {failed} failed\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
