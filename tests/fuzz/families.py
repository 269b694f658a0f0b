"""Snippets about one thing: shadows, copied and overlapping code, tables in text, red zones, stepping."""

from __future__ import annotations

from collections.abc import Callable

from tests.fuzz.draw import Draw
from tests.fuzz.sites import SITES, site

__all__ = ["FAMILIES", "Lines"]

Lines = list[str]
Family = Callable[[Draw, set[str]], Lines]
FAMILIES: dict[str, Family] = {}
"""What makes lines, by the tag that its snippets get."""

_QUIET = (
    "irq-flag",
    "pushf",
    "clts",
    "control-read",
    "segment-store",
    "machine-status",
    "table-store",
    "port",
    "task-local-store",
    "inspect",
    "time-stamp",
    "identification",
    "cache",
    "adjust-level",
)
"""Sites that change neither tables nor segments."""


def family(name: str) -> Callable[[Family], Family]:
    """Register a family under its tag."""

    def register(make: Family) -> Family:
        FAMILIES[name] = make
        return make

    return register


def quiet(draw: Draw, tags: set[str]) -> Lines:
    """A site that leaves tables and segments alone."""
    name = draw.one(_QUIET)
    tags.add(name)
    return SITES[name](draw)


def _marks(draw: Draw) -> Lines:
    """Instructions that tell how far execution came."""
    return [f"mov ${draw.number():#x}, %eax", f"lea 1({draw.native('eax')}), {draw.native('edx')}"]


@family("shadow")
def _shadow(draw: Draw, tags: set[str]) -> Lines:
    """STI, POPF or a load of SS with an interrupt waiting: when it comes shows in the registers."""
    tags.add("armed")
    stack = ["mov $KERNEL_DATA, %ecx", "mov %ecx, %ss"]
    if draw.width == 32 and draw.chance(50):
        stack = ["push $KERNEL_DATA", "pop %ss"]
    opening = draw.one(
        (
            ["sti"],
            ["sti"],
            ["push $0x202", "popf"],
            ["sti", *stack],
            [stack[0], "sti", *stack[1:]],
            ["sti; sti"],
        )
    )
    shadowed = draw.one(
        (
            ["cli"],
            ["hlt"],
            ["nop"],
            ["sti"],
            ["pushf", "pop %eax" if draw.width == 32 else "pop %rax"],
            [draw.plain()],
            ["int $0x30"],
            ["ud2"],
            ["int3"],
            quiet(draw, tags),
            quiet(draw, tags),
            stack,
        )
    )
    if draw.chance(30):
        function, over = draw.label(), draw.label()
        return [
            f"jmp {over}",
            f"{function}:",
            *_marks(draw),
            *opening,
            "ret",
            f"{over}:",
            "cli",
            f"call {function}",
            *shadowed,
            *_marks(draw),
        ]
    start = ["cli"] if draw.chance(80) else []
    return [*start, *draw.plains(2), *opening, *shadowed, *_marks(draw), *_marks(draw), *draw.plains(2)]


@family("return-shadow")
def _return_shadow(draw: Draw, tags: set[str]) -> Lines:
    """STI before IRET, and IRET itself setting IF, with an interrupt waiting."""
    tags.add("armed")
    target = draw.label()
    word = "q" if draw.width == 64 else "l"
    frame = [
        f"push{word} $0x{draw.one(('2', '202', '203'))}",
        f"push{word} $KERNEL_CODE",
        f"push{word} ${target}",
    ]
    if draw.width == 64:
        frame = ["mov %rsp, %r8", "pushq $KERNEL_DATA", "push %r8", *frame]
    return [
        *frame,
        *([draw.one(("sti", "cli"))] if draw.chance(60) else []),
        f"iret{word if word == 'q' else ''}",
        *draw.plains(2),
        f"{target}:",
        *_marks(draw),
        *quiet(draw, tags),
    ]


@family("red-zone")
def _red_zone(draw: Draw, tags: set[str]) -> Lines:
    """Live data below the stack pointer, in a leaf function or straight."""
    if draw.width == 32:
        return [*quiet(draw, tags), *draw.plains(2)]
    offset = 8 * (1 + draw.below(15))
    body = [
        f"movq ${draw.number() & 0x7FFFFFFF:#x}, -{offset}(%rsp)",
        "cli",
        *draw.plains(1),
        *quiet(draw, tags),
        *draw.plains(1),
        f"mov -{offset}(%rsp), %r9",
    ]
    if draw.chance(50):
        function, over = draw.label(), draw.label()
        return [f"call {function}", f"jmp {over}", f"{function}:", *body, "ret", f"{over}:", *draw.plains(1)]
    return body


@family("single-step")
def _single_step(draw: Draw, tags: set[str]) -> Lines:
    """The trap flag over sites: each step's place and registers."""
    name, lines = site(draw)
    if name in ("popf", "software-interrupt"):
        name, lines = "segment-store", ["mov %ds, %eax"]
    tags.add(name)
    return [
        "push $0x102",
        "popf",
        *draw.plains(1),
        *lines,
        *draw.plains(1),
        "push $2",
        "popf",
        *draw.plains(1),
    ]


@family("breakpoint")
def _breakpoint(draw: Draw, tags: set[str]) -> Lines:
    """A debug register on an instruction or on data."""
    at, word = draw.label(), draw.native("eax")
    if draw.chance(50):
        control, address, target = "0x401", at, [f"{at}:"]
    else:
        tags.add("watchpoint")
        control, address, target = draw.one(("0xd0401", "0xf0401")), "data + 32", []
    number = draw.below(4)
    shifted = f"{0x400 | (int(control, 16) & 0xF0000) << 4 * number | 1 << 2 * number:#x}"
    middle = (
        [*target, *quiet(draw, tags)]
        if target
        else [*quiet(draw, tags), f"mov {draw.free()}, data + 32", "nop"]
    )
    return [
        f"mov ${address}, %eax",
        f"mov {word}, %db{number}",
        f"mov ${shifted}, %eax",
        f"mov {word}, %db7",
        *draw.plains(1),
        *middle,
        *draw.plains(1),
        "xor %eax, %eax",
        f"mov {word}, %db7",
    ]
