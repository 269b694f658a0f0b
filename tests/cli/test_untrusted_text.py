"""Text that others wrote has no effect on the terminal, nor on a page: each control is shown as an escape."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvpatch.report.shown import shown
from tests.cli.command import Finished, inside, process
from tests.cli.terminal import Terminal, plain
from tests.hostile.forged import EVIL, forged_text
from tests.hostile.guests import BASE, kernel
from tests.image.builders import Load, elf, multiboot1_header

NAME = "a\x1b[31m\x9b\u202e\x7fb"
"""As a file's name: no end of line."""
CRASH = b"\xfa\x0f\x0b"  # cli; ud2


def effects(text: str) -> set[str]:
    """Characters that a terminal obeys or hides."""
    return {one for one in text if unicodedata.category(one) in ("Cc", "Cf", "Cs", "Zl", "Zp")} - {"\n", "\t"}


def harmless(ended: Finished) -> Finished:
    """Nothing on either stream has an effect."""
    assert not effects(ended.text), ended.text[:500]
    assert not effects(ended.err), ended.err[:500]
    return ended


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kernel whose name and symbols are evil."""
    path = tmp_path_factory.mktemp("evil") / NAME
    symbols = ((EVIL.replace("\0", ""), BASE, 64),)
    content = multiboot1_header().ljust(32, b"\x90") + CRASH + bytes(64)
    path.write_bytes(elf(32, (Load(BASE, BASE, content, flags=7),), entry=BASE + 32, symbols=symbols))
    return path


@given(st.text())
def test_it_is_one_line_without_effects(text: str) -> None:
    line = shown(text)
    assert not effects(line) and "\n" not in line and "\t" not in line
    assert shown(line) == line


@given(st.text(st.characters(categories=("L", "N", "P", "S"))))
def test_letters_of_any_script_stay(text: str) -> None:
    assert shown(text) == text


def test_names_of_files_and_symbols(named: Path, tmp_path: Path) -> None:
    out = tmp_path / NAME
    assert harmless(inside("scan", named)).code == 0
    assert harmless(inside("run", named)).code == 4
    assert harmless(inside("patch", named, "-o", out)).code == 0
    assert harmless(inside("diff", named, out)).code == 0
    assert harmless(inside("revert", out, "-o", tmp_path / (NAME + "2"))).code == 0
    assert "\\x1b[31m" in inside("scan", named).text


@pytest.mark.parametrize("command", ["scan", "run", "revert"])
def test_error_lines(command: str, tmp_path: Path) -> None:
    words = ("-o", tmp_path / "out") if command == "revert" else ()
    ended = harmless(process(command, tmp_path / NAME, *words))
    assert ended.code == 3 and "\\u202e" in ended.err and ended.err.count("\n") == 1


def test_names_that_are_no_text(tmp_path: Path) -> None:
    """A file name of bytes that are no UTF-8."""
    path = Path(str(tmp_path) + "/\udcff\udc9b31m")
    path.write_bytes(kernel("cli; hlt"))
    ended = harmless(process("scan", path))
    assert ended.code == 0 and "\\udcff" in ended.text


def test_strings_of_a_forged_manifest(named: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "patched", tmp_path / "page"
    assert inside("patch", named, "-o", out).code == 0
    out.write_bytes(forged_text(out.read_bytes()))
    ended = harmless(inside("diff", named, out, "--html", page))
    assert "\\x1b]0;owned\\x07" in ended.text
    assert not effects(page.read_text())
    terminal = Terminal("diff", named, out, columns=120)
    terminal.end()
    assert not re.search("\x1b[^\\[]", terminal.shown) and "\x1b[2J" not in terminal.shown
    assert not effects(plain(terminal.shown))
    for words in (("scan", out), ("run", out)):
        harmless(inside(*words))


def test_markup_of_the_terminal_library(tmp_path: Path) -> None:
    """rich reads words in brackets as styles and links."""
    path = tmp_path / "[red]name[bold] [link=http:example]x"
    path.write_bytes(kernel("cli; hlt"))
    terminal = Terminal("scan", path, columns=120)
    assert terminal.end() == 0 and "[red]name[bold] [link=http:example]x" in plain(terminal.shown)
