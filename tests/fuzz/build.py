"""From snippets to a bootable kernel, with `as` and `ld`."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from elftools.elf.elffile import ELFFile

from tests.fuzz.snippet import REGISTERS, Snippet

__all__ = ["BuildError", "Kernel", "build"]

HERE = Path(__file__).parent
_ARMED = 1
_WORD = {32: ".long", 64: ".quad"}


class BuildError(Exception):
    """The assembler or the linker does not take the text."""


@dataclass(frozen=True)
class Kernel:
    """A built kernel: its file and the addresses of all its symbols."""

    width: int
    image: bytes
    symbols: dict[str, int]
    snippets: tuple[Snippet, ...]

    def place(self, address: int) -> str:
        """An address as snippet and offset, for people."""
        near = [
            (at, name) for name, at in self.symbols.items() if name.startswith("snippet_") and at <= address
        ]
        if not near:
            return f"{address:#x}"
        at, name = max(near)
        return f"{name}+{address - at:#x}"


def _text(snippet: Snippet, index: int) -> str:
    lines = (line.replace("@", f".Ls{index}_") for line in snippet.lines)
    return "\n".join(
        (
            "\t.text",
            f"\t.type snippet_{index}, @function",
            f"snippet_{index}:",
            *(line if line.endswith(":") else f"\t{line}" for line in lines),
            "\t.text",
            f"snippet_{index}_end:",
            "\tint3",
            f"\t.size snippet_{index}, . - snippet_{index}",
        )
    )


def _row(snippet: Snippet, index: int, width: int) -> str:
    word = _WORD[width]
    values = [snippet.registers.get(name, "0") for name in REGISTERS[width]]
    values.insert(3, "0")  # the stack pointer's place
    numbers = ", ".join(values)
    return (
        f"\t{word} snippet_{index}, snippet_{index}_end, {_ARMED * snippet.armed}, {snippet.flags:#x}\n"
        f"\t{word} {numbers}"
    )


def source(snippets: Sequence[Snippet], width: int) -> str:
    """The assembly source of a kernel."""
    harness = (HERE / f"harness{width}.S").read_text(encoding="ascii")
    texts = [_text(snippet, index) for index, snippet in enumerate(snippets)]
    rows = [_row(snippet, index, width) for index, snippet in enumerate(snippets)]
    count = f"snippet_count:\n\t{_WORD[width]} {len(snippets)}"
    return "\n".join((harness, *texts, "\t.data\n\t.p2align 4\nsnippets:", *rows, count, ""))


def _run(command: Sequence[str | Path], text: str = "") -> None:
    done = subprocess.run(command, input=text, text=True, capture_output=True, check=False)
    if done.returncode:
        raise BuildError(done.stderr.strip())


def build(snippets: Sequence[Snippet], width: int, *, stripped: bool = False) -> Kernel:
    """Assemble and link. Raises BuildError with the tools' words."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        unlinked, linked = folder / "kernel.o", folder / "kernel.elf"
        _run(["as", f"--{width}", "-o", unlinked, "-"], source(snippets, width))
        emulation = "elf_i386" if width == 32 else "elf_x86_64"
        script = HERE / f"kernel{width}.ld"
        _run(
            [
                "ld",
                "-m",
                emulation,
                "-T",
                script,
                "-z",
                "max-page-size=4096",
                "-z",
                "noexecstack",
                "--no-warn-rwx-segments",
                "--build-id=none",
                "-o",
                linked,
                unlinked,
            ]
        )
        with linked.open("rb") as stream:
            table = ELFFile(stream).get_section_by_name(".symtab")
            symbols = {symbol.name: int(symbol["st_value"]) for symbol in table.iter_symbols()}
        if stripped:
            _run(["objcopy", "--strip-all", linked])
        return Kernel(width, linked.read_bytes(), symbols, tuple(snippets))
