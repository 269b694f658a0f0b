"""A guest that panics has not succeeded, however it ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.machine.test_run_command import EXIT_0, kernel, run

SHORT = "--max-time", "0.5"


def printing(text: str) -> str:
    return "mov edx, 0x3f8;" + "".join(f"mov al, {byte}; out dx, al;" for byte in text.encode())


LINUX = printing("[1.0] Kernel panic - not syncing: Attempted to kill init!\n")
MACH = printing("up\r\npanic ../kern/bootstrap.c:181: No bootstrap code\n")
OFF = "mov edx, 0x604; mov eax, 0x2000; out dx, ax; hlt;"
LOOP = "here: jmp here"


@pytest.mark.parametrize(
    ("code", "arguments", "expected"),
    [
        (LINUX + EXIT_0, (), 1),
        (LINUX + OFF, (), 1),
        (LINUX + "cli; hlt", (), 1),
        (LINUX + LOOP, (), 1),
        (LINUX + LOOP, SHORT, 1),
        (LINUX + "ud2", (), 4),
        (LINUX + EXIT_0, ("--fail-on", ""), 0),
        (LINUX + EXIT_0, ("--fail-on", "other"), 0),
        (MACH + EXIT_0, (), 1),
        (MACH + LOOP, ("--until", "No bootstrap code"), 0),
        (MACH + EXIT_0, ("--until", "login:"), 1),
        (printing("a panic here is none\n") + EXIT_0, (), 0),
        (printing("panic=-1 console=com0\n") + EXIT_0, (), 0),
        (printing("no such thing\n") + EXIT_0, ("--fail-on", "thing", "--fail-on", "x"), 1),
    ],
)
def test_exit_codes(tmp_path: Path, code: str, arguments: tuple[str, ...], expected: int) -> None:
    done = run(kernel(tmp_path / "k", code), *arguments)
    assert done.returncode == expected, done.stderr


def test_the_closing_line_says_which_text_it_was(tmp_path: Path) -> None:
    done = run(kernel(tmp_path / "k", LINUX + printing("---[ end ]---") + LOOP))
    assert "the guest said that it failed (Kernel panic - not syncing)" in done.stderr
    assert "---[ end ]---" in done.stdout, "it had time for its last words"
