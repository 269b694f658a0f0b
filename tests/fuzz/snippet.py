"""What a snippet is: a few lines of assembly with the registers it starts with."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

__all__ = ["REGISTERS", "Snippet"]

REGISTERS = {
    32: ("edi", "esi", "ebp", "ebx", "edx", "ecx", "eax"),
    64: (
        "rdi",
        "rsi",
        "rbp",
        "rbx",
        "rdx",
        "rcx",
        "rax",
        "r8",
        "r9",
        "r10",
        "r11",
        "r12",
        "r13",
        "r14",
        "r15",
    ),
}
"""Registers that a snippet starts with, in the order of the harness' table."""


@dataclass(frozen=True)
class Snippet:
    """One snippet. In its lines `@` stands for a label prefix of its own.

    A register's start value is a number or an expression for the assembler (`data + 64`). `tags` say what is
    in it, for the rules; `armed` means that a timer interrupt waits in the 8259 when it starts.
    """

    lines: tuple[str, ...]
    registers: dict[str, str] = field(default_factory=dict)
    flags: int = 2
    armed: bool = False
    tags: frozenset[str] = frozenset()

    def with_lines(self, lines: tuple[str, ...]) -> Snippet:
        """The same with other lines."""
        return replace(self, lines=lines)
