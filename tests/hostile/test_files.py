"""Damaged and malicious files through every command that reads one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.command import files_below
from tests.hostile.files import ABSURD_ELF, HEADS, NO_KERNELS, bomb, sparse
from tests.hostile.guests import kernel
from tests.hostile.isolation import Isolated, isolated
from tests.samples.images import image

COMMANDS = ("scan", "patch", "revert", "run", "diff", "diff against")


def read_by(command: str, path: Path, good: Path) -> Isolated:
    """Give `path` to a command; outputs go beside it."""
    out = path.parent / "out"
    words: dict[str, tuple[str | Path, ...]] = {
        "scan": ("scan", path, "--json", out),
        "patch": ("patch", path, "-o", out),
        "revert": ("revert", path, "-o", out),
        "run": ("run", path, "--stats", out, "--max-time", "0.001", "--memory", "8"),
        "diff": ("diff", path, good, "--json", out),
        "diff against": ("diff", good, path, "--json", out),
    }
    ended = isolated(*words[command])
    assert ended.seconds < 20, "bounded time"
    return ended


def refused(ended: Isolated, path: Path) -> None:
    """Exit code 3, one line that names the file, nothing left behind."""
    assert ended.code == 3, ended
    lines = ended.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("pvpatch: ") and str(path) in lines[0], ended.err
    assert ended.out == b""
    assert files_below(path.parent) == [path.name]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kernel that is one."""
    path = tmp_path_factory.mktemp("good") / "good"
    path.write_bytes(kernel("cli; hlt"))
    return path


@pytest.fixture(scope="module")
def patched(good: Path) -> Path:
    """The same, patched."""
    path = good.with_name("patched")
    assert isolated("patch", good, "-o", path).code == 0
    return path


@pytest.mark.parametrize("name", NO_KERNELS)
def test_3_what_is_no_kernel(name: str, good: Path, tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_bytes(NO_KERNELS[name])
    for command in COMMANDS:
        refused(read_by(command, path, good), path)


def test_3_programs_of_this_machine(good: Path, tmp_path: Path) -> None:
    for program in (Path("/bin/ls"), Path("/bin/sh")):
        path = tmp_path / program.name
        path.write_bytes(program.read_bytes())
        refused(read_by("scan", path, good), path)
        path.unlink()


@pytest.mark.parametrize("name", ABSURD_ELF)
def test_headers_that_lie(name: str, good: Path, tmp_path: Path) -> None:
    """Refused with one line, or harmless after all; never more than one line or a file half written."""
    path = tmp_path / "input"
    path.write_bytes(ABSURD_ELF[name])
    for command in COMMANDS:
        ended = read_by(command, path, good)
        if ended.code == 3:
            refused(ended, path)
        else:
            assert command in ("scan", "patch", "run"), f"{command}: {ended}"
            assert ended.code in (0, 4, 5), f"{command}: {ended}"
            (tmp_path / "out").unlink()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("head", HEADS)
def test_3_a_file_of_8_gib(head: str, command: str, good: Path, tmp_path: Path) -> None:
    path = tmp_path / "huge"
    sparse(path, HEADS[head]())
    ended = read_by(command, path, good)
    refused(ended, path)
    assert ended.seconds < 3


@pytest.mark.parametrize("name", ["gzip members", "gzip in gzip", "lz4"])
def test_3_a_payload_without_end(name: str, good: Path, tmp_path: Path) -> None:
    path = tmp_path / "bomb"
    path.write_bytes(bomb(name))
    for command in ("scan", "patch"):
        refused(read_by(command, path, good), path)


@pytest.mark.parametrize("command", ["scan", "patch", "run", "revert"])
def test_a_kernel_cut_off_anywhere(command: str, good: Path, tmp_path: Path) -> None:
    whole = image("native-i386").read_bytes()
    path = tmp_path / "input"
    for size in (1, 51, 52, 60, 84, 4096, 5000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        ended = read_by(command, path, good)
        if ended.code == 3:
            refused(ended, path)
        else:
            assert command != "revert" and ended.code in (0, 4, 5), f"{size}: {ended}"
            (tmp_path / "out").unlink()


def test_a_patched_image_cut_off_anywhere(patched: Path, good: Path, tmp_path: Path) -> None:
    whole = patched.read_bytes()
    path = tmp_path / "input"
    for size in (100, 8192 + 100, len(whole) - 3000, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused(read_by("revert", path, good), path)
        answer = read_by("diff against", path, good)
        assert answer.code in (1, 3), answer
        (tmp_path / "out").unlink(missing_ok=True)


@pytest.mark.parametrize("at", range(0, 100, 7))
def test_a_flipped_bit_in_a_patched_image(at: int, patched: Path, good: Path, tmp_path: Path) -> None:
    """diff names it or, where the file cannot be read any more, says so; revert never gives a wrong file."""
    data = bytearray(patched.read_bytes())
    place = len(data) * at // 100
    data[place] ^= 0x10
    path = tmp_path / "input"
    path.write_bytes(data)
    answer = read_by("diff against", path, good)
    assert answer.code in (1, 3), answer
    (tmp_path / "out").unlink(missing_ok=True)
    back = read_by("revert", path, good)
    assert back.code in (0, 3), back
    if back.code == 0:
        assert (tmp_path / "out").read_bytes() == good.read_bytes()


def test_3_patched_twice_and_reverted_twice(patched: Path, good: Path, tmp_path: Path) -> None:
    refused(read_by("patch", _copy(patched, tmp_path), good), tmp_path / "input")
    refused(read_by("revert", _copy(good, tmp_path), good), tmp_path / "input")


def _copy(path: Path, folder: Path) -> Path:
    (folder / "input").write_bytes(path.read_bytes())
    return folder / "input"


def test_3_places_that_are_no_files(good: Path, tmp_path: Path) -> None:
    for command in COMMANDS:
        ended = read_by(command, tmp_path / "absent", good)
        assert ended.code == 3 and "No such file" in ended.err and files_below(tmp_path) == []
    for place in ("/dev/zero", "/dev/null", "/proc/kcore", str(tmp_path)):
        ended = isolated("scan", place)
        assert ended.code == 3 and ended.err.count("\n") == 1 and place in ended.err
