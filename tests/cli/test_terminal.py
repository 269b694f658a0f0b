"""What people see: tables that fit their terminal, colour, progress; the same facts as in a pipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.command import inside
from tests.cli.terminal import Terminal, lines, plain
from tests.cli.test_exit_codes import TRIPLE_FAULT, kernel
from tests.samples.images import image

COMMANDS = {
    "backends": ("backends",),
    "guests": ("guests", "list"),
    "abi": ("abi", "list"),
    "scan": ("scan", "{native}"),
    "patch": ("patch", "{native}", "-o", "/dev/null"),
    "diff": ("diff", "{native}", "{patched}"),
}


def show(name: str, columns: int, native: Path, patched: Path) -> str:
    """Everything that a command shows on a terminal, escapes included."""
    words = [word.format(native=native, patched=patched) for word in COMMANDS[name]]
    terminal = Terminal(*words, columns=columns)
    assert terminal.end() == 0, terminal.shown
    return terminal.shown


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("name", COMMANDS)
def test_it_fits(name: str, columns: int, native: Path, patched: Path) -> None:
    shown = show(name, columns, native, patched)
    assert "\x1b[" in shown, "a terminal gets more than plain text"
    seen = lines(shown)
    assert max(map(len, seen)) <= columns
    assert len(seen) > 5


@pytest.mark.parametrize("name", ["backends", "abi"])
def test_nothing_is_cut_off(name: str, native: Path, patched: Path) -> None:
    assert "…" not in plain(show(name, 80, native, patched))


def test_names_stay_whole_on_a_narrow_terminal(native: Path, patched: Path) -> None:
    narrow = plain(show("abi", 80, native, patched))
    for row in inside("abi", "list").text.splitlines()[1:]:
        assert f" {row.split()[1]} " in narrow, row


def test_a_scan_says_what_to_do_next(native: Path, patched: Path) -> None:
    assert "pvpatch patch" in plain(show("scan", 80, native, patched))


def test_operands_in_brackets_are_shown() -> None:
    """rich reads [words] as markup unless it is told otherwise; `xsaves [r14]` keeps its instruction."""
    terminal = Terminal("patch", image("native-x86_64"), "-o", "/dev/null", columns=120)
    assert terminal.end() == 0
    assert "[r14]" in plain(terminal.shown)


def test_work_shows_progress(native: Path, patched: Path) -> None:
    assert "entry points" in plain(show("scan", 80, native, patched))


def test_wrong_words_are_framed_for_people_and_plain_for_programs() -> None:
    terminal = Terminal("scan")
    assert terminal.end() == 2 and "╭" in terminal.shown and "Missing argument" in terminal.shown
    assert inside("scan").err.isascii()


def test_a_crash_fits_too(tmp_path: Path) -> None:
    (tmp_path / "k").write_bytes(kernel(TRIPLE_FAULT))
    terminal = Terminal("run", "k", cwd=tmp_path)
    assert terminal.end() == 4
    report = [line for line in plain(terminal.shown).splitlines() if line.startswith("  ")]
    assert report and max(map(len, report)) <= 80, report


def test_the_console_of_a_guest_is_shown_as_it_is(native: Path) -> None:
    terminal = Terminal("run", native)
    assert terminal.end() == 0
    assert plain(terminal.shown).startswith("native-i386\n")
    assert "pvpatch: the guest powered off" in plain(terminal.shown)
