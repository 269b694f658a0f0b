"""Ctrl-C: exit code 130, a word about it, and files that are complete or absent."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.command import COMMAND, environment, files_below
from tests.cli.terminal import Terminal, plain
from tests.cli.test_exit_codes import kernel
from tests.image.builders import Load, elf, multiboot1_header

CTRL_C = b"\x03"
PRINTS_AND_LOOPS = bytes.fromhex("ba f8030000 b0 4f ee b0 4b ee b0 0a ee eb fe".replace(" ", ""))


@pytest.fixture(scope="module")
def slow_to_scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kernel with enough code that nobody misses the moment."""
    code = multiboot1_header() + b"\xfa" + b"\x55\x89\xe5\x90\x8b\x45\x08\x90\x5d\xc3" * 1_200_000
    path = tmp_path_factory.mktemp("large") / "large"
    path.write_bytes(elf(32, (Load(0x100000, 0x100000, code),), entry=0x10000C))
    return path


def test_a_run_ends_with_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "k").write_bytes(kernel(PRINTS_AND_LOOPS))
    names = [part for name in ("transcript", "stats", "trace") for part in (f"--{name}", f"{name}")]
    shown = Terminal("run", "k", *names, cwd=tmp_path)
    shown.wait_for("OK")
    shown.type(CTRL_C)
    assert shown.end() == 130
    assert "pvpatch: interrupted by the user (Ctrl-C)" in plain(shown.shown)
    assert (tmp_path / "transcript").read_bytes() == b"OK\n"
    assert json.loads((tmp_path / "stats").read_text())["exit_code"] == 130
    assert json.loads((tmp_path / "trace").read_text().splitlines()[-1])["value"] == 10
    assert files_below(tmp_path) == ["k", "stats", "trace", "transcript"]


@pytest.mark.parametrize("words", [("scan", "--json"), ("patch", "-o")], ids=["scan", "patch"])
def test_long_work_ends_with_nothing(words: tuple[str, str], slow_to_scan: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("before")
    shown = Terminal(words[0], slow_to_scan, words[1], "out", cwd=tmp_path)
    shown.wait_for("sweeping")
    shown.type(CTRL_C)
    assert shown.end() == 130, shown.shown
    assert plain(shown.shown).rstrip().endswith("pvpatch: interrupted")
    assert (tmp_path / "out").read_text() == "before" and files_below(tmp_path) == ["out"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_while_the_program_itself_loads(number: signal.Signals, native: Path) -> None:
    running = subprocess.Popen(
        [*COMMAND, "scan", str(native)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    )
    maps = Path(f"/proc/{running.pid}/maps")
    while running.poll() is None and "_iced_x86" not in maps.read_text():
        time.sleep(0.002)
    running.send_signal(number)
    _, errors = running.communicate(timeout=60)
    assert b"Traceback" not in errors, errors
    assert running.returncode in (130, 143, -signal.SIGTERM)


def test_a_polite_kill_is_an_interrupt_too(tmp_path: Path) -> None:
    (tmp_path / "k").write_bytes(kernel(PRINTS_AND_LOOPS))
    running = subprocess.Popen(
        [*COMMAND, "run", "k", "--stats", "stats"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert running.stdout is not None and running.stdout.readline() == b"OK\n"
    running.terminate()
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130 and b"interrupted" in errors
    assert json.loads((tmp_path / "stats").read_text())["outcome"] == "interrupted"
