"""Patched images outside our runtime: QEMU shows the same banner and the same end."""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from pvpatch.transcripts import compare
from tests.patch.conftest import SAMPLES, Patches

pytestmark = pytest.mark.slow


def boot(width: str, kernel: bytes, until: str, *options: str, limit: float = 60.0) -> bytes:
    """Serial output of a boot, up to ``until`` or the end of the machine."""
    program = shutil.which(f"qemu-system-{width}")
    if program is None:
        pytest.skip(f"qemu-system-{width} is not installed")
    with tempfile.TemporaryDirectory() as place:
        path, out = Path(place) / "kernel", Path(place) / "serial"
        path.write_bytes(kernel)
        command = [program, "-display", "none", "-no-reboot", "-nic", "none", "-serial", f"file:{out}",
                   "-rtc", "base=2024-01-01", "-kernel", str(path), *options]  # fmt: skip
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as machine:
            end = time.monotonic() + limit
            while machine.poll() is None and time.monotonic() < end:
                if out.exists() and until.encode() in out.read_bytes():
                    break
                time.sleep(0.2)
            machine.kill()
        return out.read_bytes() if out.exists() else b""


@pytest.mark.guest
def test_gnumach_boots_to_the_same_end(patch_of: Patches) -> None:
    image, produced = patch_of("gnumach-i386")
    end = "No bootstrap code loaded with the kernel!"
    options = ("-m", "128", "-append", "console=com0")
    original = boot("i386", image.payload, end, *options)
    patched = boot("i386", gzip.decompress(produced.file), end, *options)
    assert end.encode() in original
    result = compare(original, patched, end)
    assert result.equal, result.differences
    assert result.lines > 20


@pytest.mark.guest
def test_memtest_tests_memory(patch_of: Patches) -> None:
    _, produced = patch_of("memtest-x64")
    options = ("-m", "8", "-append", "console=ttyS0,115200")
    screen = boot("x86_64", produced.file, "#9  [", *options).decode("ascii", "replace")
    assert "Memtest86+" in screen
    assert "#9  [" in screen  # tests run in order: nine of them are finished
    assert re.search(r"Time:\s+0:00:0[1-9]", screen)
    assert re.search(r"Errors: 0\b", screen)
    assert not re.search(r"Errors: [1-9]", screen)


@pytest.mark.parametrize("name", ["native-i386", "native-x86_64", "pc-x86_64"])
def test_a_sample_reports_the_same_as_unpatched(name: str, patch_of: Patches) -> None:
    image, produced = patch_of(name)
    width = name.split("-", 1)[1]
    original = boot(width, image.original, "DONE", "-m", "32")
    patched = boot(width, produced.file, "DONE", "-m", "32")
    assert b"DONE passed=" in original
    assert [line for line in patched.splitlines() if b"FAIL" in line] == [
        line for line in original.splitlines() if b"FAIL" in line
    ]
    assert (SAMPLES / name).is_dir()
