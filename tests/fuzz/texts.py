"""Snippets that mix code and data: overlapping and copied code, tables, strings and numbers in text."""

from __future__ import annotations

from tests.fuzz.draw import Draw
from tests.fuzz.families import Lines, family, quiet

__all__ = ["TEXTS"]


@family("overlap")
def _overlap(draw: Draw, tags: set[str]) -> Lines:
    """One instruction hides another that is entered in its middle."""
    hidden = draw.one(
        (
            "0xfa, 0x90, 0xfb, 0x90",
            "0xfb, 0xfa, 0x90, 0x90",
            "0x8c, 0xd8, 0x90, 0x90",
            "0xe4, 0x21, 0x90, 0x90",
            "0x0f, 0x06, 0x90, 0x90",
            "0x66, 0x0f, 0x01, 0xe0",
            "0x9c, 0x58, 0x90, 0xfa",
            "0x0f, 0x20, 0xc0, 0x90",
            "0xfa, 0xfa, 0xfa, 0xfa",
            "0xcd, 0x30, 0x90, 0x90",
        )
    )
    top, behind = draw.label(), draw.label()
    counter = "scratch + 0x800"
    before = draw.one(("", "", "cli", "sti", "mov %ds, %edx"))
    return [
        f"movl $0, {counter}",
        f"jmp {top}",
        *([f".byte 0x90; {before}"] if before else []),
        f"{top}:",
        draw.one(
            (
                f".byte 0xb8, {hidden}",
                f".byte 0x05, {hidden}",
                f".byte 0x3d, {hidden}",
                f".byte 0xa9, {hidden}",
            )
        ),
        f"{behind}:",
        *([draw.one(("cli", "sti", "clts"))] if draw.chance(50) else draw.plains(1)),
        f"incl {counter}",
        f"cmpl $1, {counter}",
        f"je {top} + 1",
        *draw.plains(1),
    ]


@family("prefix-entry")
def _prefix_entry(draw: Draw, tags: set[str]) -> Lines:
    """A branch behind a prefix of an instruction that is also run with it."""
    top, out = draw.label(), draw.label()
    prefix = draw.one(("0x66", "0xf3", "0x2e", "0x3e"))
    made = draw.one(("cli", "sti", "mov %ds, %eax", "str %eax", "wbinvd", "clts", "nop"))
    return [
        f"j{draw.condition()} {top} + 1",
        f"{top}:",
        f".byte {prefix}; {made}",
        *draw.plains(2),
        f"{out}:",
        *quiet(draw, tags),
    ]


@family("copied")
def _copied(draw: Draw, tags: set[str]) -> Lines:
    """Code is copied elsewhere and runs there."""
    start, end, over = draw.label(), draw.label(), draw.label()
    source, to = draw.native("esi"), draw.native("edi")
    count = draw.native("ecx")
    body = [
        *draw.plains(1),
        *quiet(draw, tags),
        *draw.plains(1),
        *(quiet(draw, tags) if draw.chance(50) else []),
    ]
    copy = draw.one(
        (["rep movsb"], [f"1: mov ({source}), %al; mov %al, ({to}); inc {source}; inc {to}; loop 1b"])
    )
    return [
        f"jmp {over}",
        f"{start}:",
        *body,
        "ret",
        f"{end}:",
        f"{over}:",
        "cld",
        f"mov ${start}, {source}; mov $scratch, {to}; mov ${end} - {start}, {count}",
        *copy,
        "mov $data + 80, %ebx; mov $data + 96, %esi; mov $data + 112, %edi; mov $2, %ecx",
        f"mov $scratch, {draw.native('eax')}",
        f"call *{draw.native('eax')}",
        *draw.plains(1),
    ]


@family("jump-table")
def _jump_table(draw: Draw, tags: set[str]) -> Lines:
    """A table of addresses in text, bounded by a mask, a compare, or the width of what was loaded."""
    table, out = draw.label(), draw.label()
    cases = [draw.label() for _ in range(4)]
    index, size = draw.native("eax"), draw.width // 8
    word = {32: ".long", 64: ".quad"}[draw.width]
    bound = draw.one(
        (
            ["and $3, %eax"],
            ["and $7, %eax", "cmp $3, %eax", f"ja {out}"],
            ["movzbl data + 40, %eax", "shr $6, %eax"],
            ["shr $30, %eax"],
            ["and $3, %al", "movzbl %al, %eax"],
            ["mov %ecx, %eax", "and $3, %eax"],
        )
    )
    jump = draw.one(
        (
            [f"jmp *{table}(,{index},{size})"],
            [f"mov {table}(,{index},{size}), {draw.native('edx')}", f"jmp *{draw.native('edx')}"],
        )
    )
    bodies = [line for case in cases for line in (f"{case}:", *quiet(draw, tags), f"jmp {out}")]
    data = [f"{table}: {word} {', '.join(cases)}"]
    if draw.chance(40):
        return [*bound, *jump, *bodies, *data, f"{out}:", *draw.plains(1)]
    return [
        *bound,
        *jump,
        *([".p2align 2"] if draw.chance(50) else []),
        *data,
        *bodies,
        f"{out}:",
        *draw.plains(1),
    ]


@family("offset-table")
def _offset_table(draw: Draw, tags: set[str]) -> Lines:
    """Bytes or words in text that are added to a base."""
    table, base, out = draw.label(), draw.label(), draw.label()
    cases = [draw.label() for _ in range(4)]
    kind, load = draw.one(((".byte", "movzbl"), (".short", "movzwl"), (".short", "movswl")))
    scale = 1 if kind == ".byte" else 2
    short = ("cli", "sti", "clts", "mov %ds, %edx", "in $0x21, %al", "smsw %dx", "str %edx", "invlpg data")
    bodies = [line for case in cases for line in (f"{case}:", draw.one(short), "nop", f"jmp {out}")]
    return [
        "and $3, %eax",
        f"{load} {table}(,{draw.native('eax')},{scale}), %eax",
        f"add ${base}, {draw.native('eax')}",
        f"jmp *{draw.native('eax')}",
        f"{table}: {kind} {', '.join(f'{case} - {base}' for case in cases)}",
        f"{base}:",
        *bodies,
        f"{out}:",
        *draw.plains(1),
    ]


TEXTS = (
    '.asciz "hello, world"',
    '.ascii "\\372\\373\\364\\0"',
    ".byte 0xfa, 0xfb, 0x0f, 0x06, 0x9c, 0x9d, 0xf4, 0",
    '.asciz "\\017\\040\\300 number\\n"',
    ".long 0xfbfa9090, 0x0f06d88c; .byte 0",
    ".byte 0xcd, 0x80, 0xec, 0xee, 0",
)


@family("text-string")
def _text_string(draw: Draw, tags: set[str]) -> Lines:
    """Strings and numbers in text are read as data."""
    text, over, loop = draw.label(), draw.label(), draw.label()
    source = draw.native("esi")
    data = draw.one(TEXTS)
    total = [
        "xor %edx, %edx",
        "xor %eax, %eax",
        "cld",
        f"{loop}: lodsb",
        "add %eax, %edx",
        "rol $3, %edx",
        "test %al, %al",
        f"jnz {loop}",
    ]
    restored = [*total, f"mov $data + 64, {source}", *quiet(draw, tags)]
    kind = draw.below(3)
    if kind == 0:
        return [f"mov ${text}, {source}", f"jmp {over}", f"{text}: {data}", f"{over}:", *restored]
    if kind == 1:
        return [f"call {over}", f"{text}: {data}", f"{over}:", f"pop {source}", *restored]
    return [
        *quiet(draw, tags),
        f"mov ${text}, {source}",
        *restored,
        f"jmp {over}",
        f"{text}: {data}",
        f"{over}:",
    ]


@family("text-number")
def _text_number(draw: Draw, tags: set[str]) -> Lines:
    """A constant between functions, read by its address."""
    number, over = draw.label(), draw.label()
    data = draw.one(("0xfb9090fa", "0x069cfa0f", "0xf490fbfa", "0xc021200f"))
    return [
        f"jmp {over}",
        f"{number}: .long {data}, {data}",
        f"{over}:",
        *quiet(draw, tags),
        f"mov {number}, %edx",
        f"add {number} + {draw.below(2)}, %eax",
        *quiet(draw, tags),
    ]
