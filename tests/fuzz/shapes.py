"""How sites stand among their neighbours: straight, in loops, in functions, at branch targets."""

from __future__ import annotations

from tests.fuzz.draw import Draw
from tests.fuzz.sites import site

__all__ = ["SHAPES", "shaped"]

Lines = list[str]


def _sites(draw: Draw, tags: set[str], most: int = 3) -> Lines:
    lines: Lines = []
    for _ in range(1 + draw.below(most)):
        tag, made = site(draw)
        tags.add(tag)
        lines += [*draw.plains(2), *made]
    return lines


def _straight(draw: Draw, tags: set[str]) -> Lines:
    return [*_sites(draw, tags, 4), *draw.plains()]


def _looped(draw: Draw, tags: set[str]) -> Lines:
    """The site is a branch target."""
    top, counter = draw.label(), "scratch + 0x800"
    return [
        f"movl ${1 + draw.below(3)}, {counter}",
        f"{top}:",
        *_sites(draw, tags, 1),
        f"decl {counter}",
        f"jnz {top}",
        *draw.plains(1),
    ]


def _skipped(draw: Draw, tags: set[str]) -> Lines:
    """A condition decides whether the site is reached, and the code behind it is a target."""
    after, site_itself = draw.label(), draw.label()
    return [
        *draw.plains(1),
        f"j{draw.condition()} {draw.one((after, site_itself))}",
        *draw.plains(1),
        f"{site_itself}:",
        *_sites(draw, tags, 1),
        f"{after}:",
        *draw.plains(2),
    ]


def _between(draw: Draw, tags: set[str]) -> Lines:
    """A branch goes to the instruction right behind a short site, once before it runs and once not at all."""
    behind, out = draw.label(), draw.label()
    short = draw.one(
        ("cli", "sti", "pushf; pop %eax" if draw.width == 32 else "clts", "mov %ds, %eax", "in $0x21, %al")
    )
    return [
        f"jmp {behind}",
        short,
        f"{behind}:",
        *draw.plains(1),
        f"j{draw.condition()} {out}",
        short,
        f"{out}:",
        *_sites(draw, tags, 1),
    ]


def _called(draw: Draw, tags: set[str]) -> Lines:
    """In a function, with a return or a tail call behind."""
    function, over, tail = draw.label(), draw.label(), draw.label()
    way = draw.one(("ret", f"jmp {tail}", "ret $0", "rep ret"))
    return [
        f"call {function}",
        *draw.plains(1),
        f"jmp {over}",
        f"{function}:",
        *_sites(draw, tags, 2),
        way,
        f"{tail}:",
        *draw.plains(1),
        draw.one(("ret", "cli; ret", "sti; ret")),
        f"{over}:",
        *draw.plains(1),
    ]


def _calling(draw: Draw, tags: set[str]) -> Lines:
    """With calls right before and behind; the callee looks at its return address."""
    function, over = draw.label(), draw.label()
    call = f"call {function}"
    sp = draw.native("esp") if draw.width == 32 else "%rsp"
    return [
        f"jmp {over}",
        f"{function}:",
        f"mov ({sp}), {draw.native('edx')}",
        draw.one(("ret", "cli; ret", "nop; ret")),
        f"{over}:",
        *([call] if draw.chance(50) else []),
        draw.one(("cli", "sti", "clts", "mov %ds, %eax", "smsw %ax")),
        call,
        *_sites(draw, tags, 1),
        *([call] if draw.chance(50) else []),
    ]


def _repaired(draw: Draw, tags: set[str]) -> Lines:
    """A fault goes on at a place behind, in the same function."""
    onward = draw.label()
    word = "l" if draw.width == 32 else "q"
    return [
        f"mov{word} ${onward}, fixup",
        *_sites(draw, tags, 3),
        *draw.plains(1),
        f"{onward}:",
        f"mov{word} $0, fixup",
        *_sites(draw, tags, 1),
    ]


def _aligned(draw: Draw, tags: set[str]) -> Lines:
    """With padding behind, and a neighbour function right before."""
    over = draw.label()
    return [
        f"jmp {over}",
        *draw.plains(1),
        "ret",
        *([".p2align 4"] if draw.chance(50) else []),
        f"{over}:",
        *_sites(draw, tags, 2),
        *([".p2align 4"] if draw.chance(50) else []),
    ]


SHAPES = (
    _straight,
    _straight,
    _straight,
    _looped,
    _skipped,
    _between,
    _called,
    _called,
    _calling,
    _repaired,
    _repaired,
    _aligned,
)


def shaped(draw: Draw, tags: set[str]) -> Lines:
    """A snippet's lines; `tags` gets what is in them."""
    return draw.one(SHAPES)(draw, tags)
