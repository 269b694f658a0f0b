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
from rewriter.emit.produce import patch_image
from rewriter.image import open_image
from tests.conftest import GuestPath
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


def screen(kernel: bytes, seconds: float) -> list[str]:
    """The 25 lines of the VGA text screen after some seconds of a machine's time."""
    program = shutil.which("qemu-system-i386")
    if program is None:
        pytest.skip("qemu-system-i386 is not installed")
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "kernel"
        path.write_bytes(kernel)
        command = [program, "-display", "none", "-nic", "none", "-m", "32", "-kernel", str(path),
                   "-monitor", "stdio"]  # fmt: skip
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as machine:
            time.sleep(seconds)
            shown, _ = machine.communicate("xp /2000hx 0xb8000\nquit\n", timeout=60)
    cells = [int(word, 16) & 0xFF for word in re.findall(r"0x([0-9a-f]{4})\b", shown)]
    text = "".join(chr(cell) if 32 <= cell < 127 else " " for cell in cells)
    return [text[at : at + 80] for at in range(0, 2000, 80)]


@pytest.mark.guest
def test_a_game_with_address_fields_comes_up(guest_path: GuestPath) -> None:
    """GRUB Invaders: its program headers leave its own memory out, so only the fields load it right."""
    image = open_image(guest_path("grub-invaders"))
    original, patched = screen(image.original, 6.0), screen(patch_image(image).file, 6.0)
    assert any("-*-" in line for line in patched[:11])  # invaders, on their way
    ship = [line for line in original[11:] if line.strip()]
    assert ship and [line for line in patched[11:] if line.strip()] == ship
