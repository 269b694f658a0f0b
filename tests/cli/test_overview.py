"""The list of commands is complete, says what each command is, and needs none of their libraries."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pvpatch.cli import COMMANDS
from tests.cli.command import environment, process

HEAVY = ("lief", "capstone", "keystone", "unicorn", "iced_x86", "numpy")


def test_each_command_has_a_whole_line() -> None:
    lines = process("--help").text.split("Commands:")[1].strip().splitlines()
    assert [line.split()[0] for line in lines] == list(COMMANDS)
    assert all(line.endswith(".") and not line.endswith("...") for line in lines)


def test_a_wrong_word_gets_a_suggestion() -> None:
    finished = process("scna")
    assert finished.code == 2
    assert "'scan'" in finished.err


@pytest.mark.parametrize("words", [("--help",), ("scna",)])
def test_the_list_loads_no_large_library(words: tuple[str, ...]) -> None:
    program = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('LOADED', *(name for name in {HEAVY} if name in sys.modules)))\n"
        "from pvpatch.cli import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", program, *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.stdout.splitlines()[-1] == "LOADED"
