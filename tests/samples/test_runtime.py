"""Every sample on the backend that it is written for: the transcript, byte for byte."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.samples.images import expected, image

RUNS = [
    ("native-i386", "bare"),
    ("native-i386", "kvm"),
    ("native-x86_64", "bare"),
    ("native-x86_64", "kvm"),
    ("pc-x86_64", "bare"),
    ("pc-x86_64", "kvm"),
    ("kvm-x86_64", "kvm"),
    ("lguest-i386", "lguest"),
    ("vmi-i386", "vmi"),
    ("xen-i386", "xen"),
    ("xen-x86_64", "xen"),
]


@pytest.mark.parametrize(("name", "backend"), RUNS)
def test_transcript(name: str, backend: str, tmp_path: Path) -> None:
    transcript = tmp_path / "transcript.txt"
    done = subprocess.run(
        [sys.executable, "-m", "pvpatch", "run", str(image(name)), "--backend", backend,
         "--max-time", "20", "--transcript", str(transcript)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert transcript.read_text(encoding="ascii") == expected(name), done.stderr
    assert done.returncode == 0
