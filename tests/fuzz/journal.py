"""The log that a harness writes, taken apart: what each snippet saw, and how it left the machine."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["Journal", "Seen", "read_journal"]

_EVENT, _START, _FINAL, _DONE = (
    struct.unpack("<I", name)[0] for name in (b"EVNT", b"STRT", b"FINL", b"DONE")
)
_GENERAL = {
    32: ("edi", "esi", "ebp", "esp", "ebx", "edx", "ecx", "eax"),
    64: (
        "r15",
        "r14",
        "r13",
        "r12",
        "r11",
        "r10",
        "r9",
        "r8",
        "rdi",
        "rsi",
        "rbp",
        "rbx",
        "rdx",
        "rcx",
        "rax",
    ),
}
_FRAME = ("vector", "error", "ip", "cs", "flags", "outer_sp", "outer_ss", "cr2", "dr6")
_SELECTORS = {
    32: ("ss", "gs", "fs", "es", "ds"),
    64: ("fsbase", "gsbase", "ss", "gs", "fs", "es", "ds"),
}
_SELECTOR_NAMES = frozenset(("ss", "gs", "fs", "es", "ds", "cs", "outer_ss", "ldtr", "tr"))
_LEFT = {
    32: ("cr0", "cr2", "cr3", "cr4", "dr7", "ldtr", "tr", "gdtr0", "gdtr1", "idtr0", "idtr1"),
    64: ("cr0", "cr2", "cr3", "cr4", "dr7", "ldtr", "tr", "gdtr0", "gdtr1", "idtr0", "idtr1"),
}
MEMORY = 2048
"""Bytes of stack and data in a last record."""
STACK = 1024
"""Of these, the stack's."""
_PAGE_FAULT, _DEBUG = 14, 1

Values = dict[str, int]


@dataclass
class Seen:
    """What one snippet showed: events in order, and the state behind it (None: it never came back)."""

    events: list[Values] = field(default_factory=list)
    left: Values | None = None
    memory: bytes = b""


@dataclass
class Journal:
    """All snippets of a run by number; `complete` when the kernel came to its end."""

    seen: dict[int, Seen] = field(default_factory=dict)
    complete: bool = False


def _words(data: bytes, at: int, names: tuple[str, ...], width: int) -> Values:
    kind = "I" if width == 32 else "Q"
    values = struct.unpack_from(f"<{len(names)}{kind}", data, at)
    return {
        name: value & 0xFFFF if name in _SELECTOR_NAMES else value
        for name, value in zip(names, values, strict=True)
    }


def _plain(event: Values) -> Values:
    """Without what means nothing in this event."""
    if not event["cs"] & 3 and "rax" not in event:
        event["outer_sp"] = event["outer_ss"] = 0
    if event["vector"] != _PAGE_FAULT:
        event["cr2"] = 0
    if event["vector"] != _DEBUG:
        event["dr6"] = 0
    return event


def _above_stack_pointer(memory: bytes, stack_base: int, events: list[Values]) -> bytes:
    """The memory with zeros for what lies below the last stack pointer: interrupts may use it."""
    last = events[-1] if events else {}
    if last.get("cs", 3) & 3:
        return memory
    pointer = last["outer_sp"] if "rax" in last else last["esp"] + 20
    dead = max(0, min(STACK, pointer - stack_base))
    return bytes(dead) + memory[dead:]


def _records(data: bytes, width: int) -> Iterator[tuple[int, int, int]]:
    """(kind, snippet, offset of the content)."""
    size = width // 8
    event_size = size * len(_SELECTORS[width] + _GENERAL[width] + _FRAME)
    left_size = size * len(_LEFT[width]) + MEMORY
    at = 0
    while at + 2 * size <= len(data):
        kind, index = struct.unpack_from("<2I" if width == 32 else "<2Q", data, at)
        at += 2 * size
        content = {_EVENT: event_size, _FINAL: left_size, _START: 0}.get(kind)
        if content is None or at + content > len(data):
            if kind == _DONE:
                yield kind, 0, at
            return
        yield kind, index, at
        at += content


def read_journal(data: bytes, width: int, stack_base: int) -> Journal:
    """Take a log apart; it may end anywhere. `stack_base` is the address of the recorded stack."""
    journal = Journal()
    for kind, index, at in _records(data, width):
        if kind == _DONE:
            journal.complete = True
            continue
        seen = journal.seen.setdefault(index, Seen())
        if kind == _EVENT:
            names = _SELECTORS[width] + _GENERAL[width] + _FRAME
            seen.events.append(_plain(_words(data, at, names, width)))
        elif kind == _FINAL:
            seen.left = _words(data, at, _LEFT[width], width)
            after = at + len(_LEFT[width]) * width // 8
            memory = data[after : after + MEMORY]
            seen.memory = _above_stack_pointer(memory, stack_base, seen.events)
    return journal
