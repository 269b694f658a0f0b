"""Outputs are complete or absent, and what was at their place before stays until then."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from pvpatch.abi.errors import UsageError
from pvpatch.report.outfile import OutputFile, outputs, write_output
from tests.cli.command import complaint, files_below, inside, process

Fill = Callable[[tuple[str, ...], Path | str], list[str]]
OLD = b"what was here before"

# Every option that names an output, with the rest of its command.
PLACES = {
    "scan --json": ("scan", "{native}", "--json", "{out}"),
    "patch -o": ("patch", "{native}", "-o", "{out}"),
    "patch --json": ("patch", "{native}", "-o", "{other}", "--json", "{out}"),
    "revert -o": ("revert", "{patched}", "-o", "{out}"),
    "diff --json": ("diff", "{native}", "{patched}", "--json", "{out}"),
    "diff --html": ("diff", "{native}", "{patched}", "--html", "{out}"),
    "run --stats": ("run", "{native}", "--stats", "{out}"),
    "run --trace": ("run", "{native}", "--trace", "{out}"),
    "run --transcript": ("run", "{native}", "--transcript", "{out}"),
    "abi list": ("abi", "list", "--json", "{out}"),
    "abi header": ("abi", "header", "-o", "{out}"),
    "abi reference": ("abi", "reference", "-o", "{out}"),
    "backends": ("backends", "--json", "{out}"),
}
EVERY_PLACE = pytest.mark.parametrize("words", PLACES.values(), ids=list(PLACES))


@pytest.fixture(scope="module", autouse=True)
def devices_are_safe() -> None:
    """Root can rename files over devices: before any test tries, see that no output would."""
    for device in ("/dev/null", "/dev/full"):
        output = OutputFile(device)
        safe = output.in_place
        output.discard()
        if not safe:
            pytest.exit(f"an output would replace {device}")


@pytest.fixture
def fill(native: Path, patched: Path) -> Fill:
    """Give the words of a command with the images and the output's place in them."""

    def filled(words: tuple[str, ...], out: Path | str) -> list[str]:
        names = {"native": native, "patched": patched, "out": out, "other": "/dev/null"}
        return [word.format(**names) for word in words]

    return filled


def writable(out: Path) -> None:
    """The place holds the whole new document."""
    assert out.is_file() and out.read_bytes() != OLD and out.stat().st_size > 100


@EVERY_PLACE
def test_a_file_is_replaced_whole_and_keeps_its_mode(
    words: tuple[str, ...], fill: Fill, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.write_bytes(OLD)
    out.chmod(0o640)
    held = out.open("rb")
    assert inside(*fill(words, out)).code == 0
    writable(out)
    assert held.read() == OLD, "a reader of the old file keeps it"
    held.close()
    assert stat.S_IMODE(out.stat().st_mode) == 0o640
    assert files_below(tmp_path) == ["out"]


@EVERY_PLACE
@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("{tmp}/absent/out", errno.ENOENT),
        ("{tmp}/file/out", errno.ENOTDIR),
        ("{tmp}", errno.EISDIR),
        ("{tmp}/" + "x" * 300, errno.ENAMETOOLONG),
        ("/dev/full", errno.ENOSPC),
    ],
    ids=["no-directory", "below-a-file", "a-directory", "long-name", "full"],
)
def test_an_unwritable_place_is_one_clear_line(
    words: tuple[str, ...], place: str, reason: int, fill: Fill, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(OLD)
    out = place.format(tmp=tmp_path)
    ended = inside(*fill(words, out))
    assert ended.code == 2, ended
    assert ended.err.splitlines()[-1].startswith(f"pvpatch: cannot write {out}: "), ended.err
    if reason != errno.EISDIR:
        assert os.strerror(reason) in ended.err
    assert files_below(tmp_path) == ["file"], "nothing is left behind"
    assert Path("/dev/full").is_char_device()


@EVERY_PLACE
def test_a_device_stays_a_device(words: tuple[str, ...], fill: Fill, tmp_path: Path) -> None:
    """Renaming a file over /dev/null would break the machine, and root can do that."""
    assert inside(*fill(words, "/dev/null")).code == 0
    assert Path("/dev/null").is_char_device()


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(OLD)
    (tmp_path / "link").symlink_to("real")
    write_output(str(tmp_path / "link"), "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"


def test_a_failing_command_leaves_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_bytes(OLD)
    (tmp_path / "text").write_text("no kernel")
    for words in (("scan", tmp_path / "text", "--json", out), ("patch", tmp_path / "text", "-o", out)):
        assert inside(*words).code == 3
        assert out.read_bytes() == OLD
    assert files_below(tmp_path) == ["out", "text"]


def test_all_outputs_appear_or_none(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), outputs(stats=str(tmp_path / "a"), trace=str(tmp_path / "b")) as files:
        files["stats"].stream.write("half")
        raise RuntimeError
    assert files_below(tmp_path) == []


def test_two_outputs_need_two_places(native: Path, tmp_path: Path) -> None:
    same = str(tmp_path / "same")
    for place, shown in (("-", "standard output"), (same, same)):
        line = complaint(inside("run", native, "--stats", place, "--trace", place))
        assert line == f"--stats and --trace both go to {shown}"


def test_writers_in_the_same_folder_do_not_meet(tmp_path: Path) -> None:
    first, second = OutputFile(str(tmp_path / "out")), OutputFile(str(tmp_path / "out"))
    first.stream.write("first")
    second.stream.write("second")
    second.commit()
    first.commit()
    assert (tmp_path / "out").read_text() == "first"
    assert files_below(tmp_path) == ["out"]


def test_a_pipe_is_written_where_it_is(tmp_path: Path) -> None:
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    write_output(str(fifo), "through the pipe")
    assert os.read(reader, 100) == b"through the pipe"
    os.close(reader)
    assert stat.S_ISFIFO(fifo.stat().st_mode)


def test_a_nameless_place_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot write"):
        write_output("\0", "x")


@pytest.mark.parametrize("words", [("scan", "{native}"), ("run", "{native}"), ("abi", "list")], ids=" ".join)
def test_standard_output_that_is_full(words: tuple[str, ...], native: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        ended = process(*(word.format(native=native) for word in words), stdout=full.fileno())
    assert ended.code == 2
    assert ended.err == "pvpatch: cannot write: No space left on device\n"


def test_a_reader_that_goes_away_is_no_traceback(native: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    ended = process("scan", native, "--json", "-", stdout=write)
    os.close(write)
    assert ended.code == 1 and ended.err == ""


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no tmpfs under /dev")
def test_a_failed_command_leaves_nothing_on_a_tmpfs_under_dev(tmp_path: Path) -> None:
    """A device is what its file type says, not what lies under /dev."""
    place = Path(f"/dev/shm/pvpatch-test-{os.getpid()}")
    try:
        assert inside("patch", tmp_path / "absent", "-o", place).code == 3
        assert not place.exists()
        place.write_bytes(b"before")
        assert inside("patch", tmp_path / "absent", "-o", place).code == 3
        assert place.read_bytes() == b"before"
    finally:
        place.unlink(missing_ok=True)


def test_a_file_that_is_open_is_written_where_it_is(native: Path, tmp_path: Path) -> None:
    """/dev/fd and /dev/stdout lead to it; the one who opened it reads what was written."""
    with (tmp_path / "out").open("w+b") as opened:
        link = tmp_path / "link"
        link.symlink_to(f"/dev/fd/{opened.fileno()}")
        assert inside("scan", native, "--json", link).code == 0
        assert opened.read().startswith(b"{")
