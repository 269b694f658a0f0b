"""docs/cli.md is true: every command, every option and every exit code, no more and no fewer."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import typer.main

from pvpatch.abi import errors
from pvpatch.cli import COMMANDS, build
from pvpatch.cli.failures import INTERNAL_ERROR, SHOW_TRACEBACK
from tests.cli.command import SOURCES, inside

TEXT = (SOURCES / "docs" / "cli.md").read_text(encoding="utf-8")
OPTION = re.compile(r"(?<![\w-])(--[a-z][a-z-]+)")


def commands() -> Iterator[tuple[str, set[str]]]:
    """Every command with its long options."""

    def walk(found: object, words: str) -> Iterator[tuple[str, set[str]]]:
        inner = getattr(found, "commands", None)
        if inner:
            for name, command in inner.items():
                yield from walk(command, f"{words} {name}".strip())
            return
        options = {option for parameter in found.params for option in parameter.opts}  # type: ignore[attr-defined]
        yield words, {option for option in options if option.startswith("--")} - {"--help"}

    yield from walk(typer.main.get_command(build()), "")


ALL = dict(commands())


def section(words: str) -> str:
    """What the synopsis says of a command."""
    head = words.split()[0]
    block = TEXT.split("## ")[0]
    part = re.search(rf"^    pvpatch {head}\b.*(?:\n {{8,}}.*)*", block, re.MULTILINE)
    assert part, f"no synopsis of {head}"
    return part.group()


@pytest.mark.parametrize("words", ALL)
def test_every_option_is_in_the_synopsis(words: str) -> None:
    for option in ALL[words]:
        short = {"--output": "-o"}.get(option, option)
        assert re.search(rf"(?<![\w-]){re.escape(short)}(?![\w-])", section(words)), f"{words} {option}"
    for word in words.split():
        assert word in section(words)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_synopsis_names_no_other_option(name: str) -> None:
    real = set().union(*(options for words, options in ALL.items() if words.split()[0] == name))
    assert set(OPTION.findall(section(name))) <= real


def test_every_option_mentioned_anywhere_exists() -> None:
    assert set(OPTION.findall(TEXT)) <= set().union(*ALL.values()) | {"--help"}


def test_every_command_is_explained() -> None:
    table = re.findall(r"^\| `([a-z]+)` \|", TEXT, re.MULTILINE)
    assert sorted(table) == sorted(COMMANDS)


def test_the_exit_codes_are_those_of_the_code() -> None:
    rows = {int(code) for code in re.findall(r"^\| (\d+) \|", TEXT, re.MULTILINE)}
    kinds = [getattr(errors, name) for name in errors.__all__]
    assert rows == {0, 130, INTERNAL_ERROR} | {kind.exit_code for kind in kinds}
    assert SHOW_TRACEBACK in TEXT


@pytest.mark.parametrize("words", ALL)
def test_help_explains_each_option(words: str) -> None:
    ended = inside(*words.split(), "--help")
    assert ended.code == 0 and ended.err == ""
    for option in ALL[words]:
        line = next(line for line in ended.text.splitlines() if option in line)
        assert len(line.split(option)[1].strip()) > 10 or ended.text.split(option)[1].strip(), line
