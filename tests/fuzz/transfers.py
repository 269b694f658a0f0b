"""Snippets about transfers and paging: far jumps, calls and returns, gates, user mode, page tables."""

from __future__ import annotations

from tests.fuzz.draw import Draw
from tests.fuzz.families import Lines, family, quiet

__all__ = ["CODE_SELECTORS"]

CODE_SELECTORS = (
    "KERNEL_CODE",
    "OTHER_CODE",
    "KERNEL_CODE",
    "CONFORMING",
    "KERNEL_DATA",
    "0",
    "0xfc",
    "ABSENT",
    "USER_CODE",
    "LDT",
    "KERNEL_CODE | 3",
    "LOCAL_CODE",
)
"""For transfers, right ones and others."""


def _word(draw: Draw) -> str:
    return "l" if draw.width == 32 else "q"


@family("far-jump")
def _far_jump(draw: Draw, tags: set[str]) -> Lines:
    """Direct and through memory, 16 and 32 bits (64 too)."""
    target, selector = draw.label(), draw.one(CODE_SELECTORS)
    tail = [
        *draw.plains(1),
        f"{target}:",
        "mov %cs, %edx",
        *quiet(draw, tags),
        "ljmp $KERNEL_CODE, $@9" if draw.width == 32 else "pushq $KERNEL_CODE; pushq $@9; lretq",
        "@9:",
    ]
    if draw.width == 32 and draw.chance(50):
        # JECXZ: the target's width is known, whatever the selector is
        return [f"jecxz {target}", f"ljmp ${selector}, ${target}", *tail]
    store = f"movl ${target}, data + 48; movl ${selector}, data + 52"
    return [store, "ljmp *data + 48", *tail]


@family("far-call")
def _far_call(draw: Draw, tags: set[str]) -> Lines:
    """To a routine that returns far; CS and the stack pointer show in registers."""
    selector = draw.one(("KERNEL_CODE", "OTHER_CODE", *CODE_SELECTORS))
    before = draw.plains(1)
    if draw.width == 32 and draw.chance(50):
        return [*before, f"lcall ${selector}, $far_target", *quiet(draw, tags)]
    size = draw.one((32, 64)) if draw.width == 64 else 32
    if size == 64:
        call = [f"movq $far_target64, data + 48; movq ${selector}, data + 56", "rex.w lcall *data + 48"]
    else:
        call = [f"movl $far_target, data + 48; movl ${selector}, data + 52", "lcall *data + 48"]
    return [*before, *call, *quiet(draw, tags)]


@family("far-return")
def _far_return(draw: Draw, tags: set[str]) -> Lines:
    """Far returns with and without bytes to release."""
    target, selector, word = draw.label(), draw.one(CODE_SELECTORS), _word(draw)
    release = 8 * draw.below(3)
    fill = [f"push{word} ${number}" for number in range(release * 8 // draw.width)]
    back = draw.one((f"lret{word}", f"lret{word} ${release}"))
    return [
        *fill,
        f"push{word} ${selector}",
        f"push{word} ${target}",
        *draw.plains(1),
        back,
        "nop",
        f"{target}:",
        "mov %cs, %edx",
        *quiet(draw, tags),
    ]


@family("interrupt-return")
def _interrupt_return(draw: Draw, tags: set[str]) -> Lines:
    """IRET within the kernel, with flags and selectors of all kinds."""
    target, word = draw.label(), _word(draw)
    selector = draw.one(("KERNEL_CODE", "KERNEL_CODE", *CODE_SELECTORS))
    flags = draw.one((0x2, 0x202, 0xED7, 0x40002, 0x3002, 0x10002, 0x200002, 0x102))
    if flags & 0x100:
        tags.add("single-step")
    outer = ["mov %rsp, %r8", f"pushq ${draw.one(('KERNEL_DATA', 'KERNEL_DATA', '0', 'ABSENT'))}", "push %r8"]
    frame = [f"push{word} ${flags:#x}", f"push{word} ${selector}", f"push{word} ${target}"]
    return [
        *(outer if draw.width == 64 else []),
        *frame,
        f"iret{word if word == 'q' else ''}",
        "nop",
        f"{target}:",
        "pushf",
        f"pop {draw.native('edx')}",
        *quiet(draw, tags),
    ]


@family("narrow-transfer")
def _narrow_transfer(draw: Draw, tags: set[str]) -> Lines:
    """16-bit operand size: far calls push four bytes; IRETW and far returns pop words."""
    tags.add("operand-16")
    if draw.width == 64:
        return ["pushw $KERNEL_CODE; pushw $0", "popw %ax; popw %dx", *quiet(draw, tags)]
    kind = draw.below(3)
    if kind == 0:
        return ["movw $0x1234, data + 48; movw $0xfc, data + 50", "ljmpw *data + 48"]
    if kind == 1:
        return ["movw $0x10, data + 48; movw $CODE16, data + 50", "data16 lcall *data + 48"]
    return ["pushw $2; pushw $0xfc; pushw $0x10", draw.one(("iretw", "lretw", "lretw $2"))]


@family("call-gate")
def _call_gate(draw: Draw, tags: set[str]) -> Lines:
    """Far calls and jumps through call gates."""
    gate = draw.one(("CALL_GATE", "USER_GATE", *(("ABSENT_GATE",) if draw.width == 32 else ())))
    if draw.width == 32 and draw.chance(60):
        return [*draw.plains(1), f"lcall ${gate}, $0", *quiet(draw, tags)]
    return [f"movl $0, data + 48; movl ${gate}, data + 52", "lcall *data + 48", *quiet(draw, tags)]


@family("task-switch")
def _task_switch(draw: Draw, tags: set[str]) -> Lines:
    """Calls to a TSS, to a task gate, and an interrupt through one."""
    if draw.width == 64:
        return [f"movl $0, data + 48; movl ${draw.one(('TSS', 'OTHER_TSS'))}, data + 52", "lcall *data + 48"]
    way = draw.one(
        ("lcall $OTHER_TSS, $0", "lcall $TASK_GATE, $0", "int $0x37", "lcall $TSS, $0", "ljmp $TSS, $0")
    )
    return [*draw.plains(1), way, *quiet(draw, tags)]


@family("bad-gate")
def _bad_gate(draw: Draw, tags: set[str]) -> Lines:
    """INT through gates that are absent or name a wrong selector, and other ways into the IDT."""
    way = draw.one(
        (
            "int $0x33",
            "int $0x34",
            "int $0x36",
            "int3",
            "int $4",
            "ud2",
            "into" if draw.width == 32 else "int $0x31",
            "xor %edx, %edx; mov $0, %ecx; div %ecx",
            "bound %eax, data" if draw.width == 32 else "ud2",
        )
    )
    return [*draw.plains(2), way, *quiet(draw, tags)]


@family("user-mode")
def _user_mode(draw: Draw, tags: set[str]) -> Lines:
    """Down to privilege 3 by IRET; there something sensitive, then INT 80 or a fault."""
    target, word = draw.label(), _word(draw)
    level = draw.one(("0x2", "0x202", "0x3202"))
    probe = draw.one(
        (
            "cli",
            "sti",
            "hlt",
            "in $0x21, %al",
            "out %al, $0x80",
            "mov %cr0, " + draw.native("eax"),
            "clts",
            "lgdt data",
            "smsw %ax",
            "str %eax",
            "sldt %eax",
            "sgdt data",
            "pushf; pop " + draw.native("eax"),
            "push $0x3202; popf",
            "mov %cs, %eax",
            "mov %ss, %eax",
            "int $0x30",
            "int3",
            "mov $KERNEL_DATA, %eax; mov %eax, %ds",
            "mov $USER_DATA, %eax; mov %eax, %es",
            "mov $KERNEL_CODE, %eax; lar %eax, %edx",
            "rdtsc; xor %eax, %eax; cltd",
            "mov WINDOW + 0x32000, %eax",
            "mov %eax, WINDOW + 0x20000",
            "mov WINDOW + 0x64000, %eax",
            "invlpg data",
            "ud2",
        )
    )
    return [
        f"push{word} $USER_DATA",
        f"push{word} $user_stack",
        f"push{word} ${level}",
        f"push{word} $USER_CODE",
        f"push{word} ${target}",
        f"iret{word if word == 'q' else ''}",
        f"{target}:",
        *(line for line in draw.plains(1) if "%fs" not in line and "%gs" not in line),  # null there
        probe,
        f"mov ${draw.number():#x}, %eax",
        "int $0x80",
    ]


@family("page-table")
def _page_table(draw: Draw, tags: set[str]) -> Lines:
    """An entry changes; the translation is forgotten by INVLPG or a load of CR3, and the page is used."""
    page = draw.below(64)
    size = draw.width // 8
    entry, address = f"page_table + {page * size}", f"WINDOW + {page << 12:#x}"
    change = draw.one(
        (
            f"andl $~1, {entry}",
            f"orl $1, {entry}",
            f"andl $~2, {entry}",
            f"orl $2, {entry}",
            f"andl $~0x60, {entry}",
            f"movl $frames + {draw.below(16) << 12:#x} + 7, {entry}",
            f"xorl $4, {entry}",
        )
    )
    flush = draw.one(
        (
            [f"invlpg {address}"],
            [f"mov %cr3, {draw.native('eax')}", f"mov {draw.native('eax')}, %cr3"],
        )
    )
    touch = draw.one(
        (f"mov {address}, %edx", f"mov %eax, {address}", f"incl {address}", f"xchg %edx, {address} + 8")
    )
    first = [touch] if draw.chance(50) else []
    return [
        *first,
        change,
        *flush,
        touch,
        f"mov {entry}, %eax",
        f"mov {draw.native('eax')}, data + 72",
        *quiet(draw, tags),
    ]


@family("fault-operand")
def _fault_operand(draw: Draw, tags: set[str]) -> Lines:
    """Sensitive instructions whose operand lies on pages of all kinds, or crosses into one."""
    page = draw.one((20, 40, 50, 70, 100, 15))
    address = f"WINDOW + {(page << 12) + draw.one((0, 8, 0xFFC, 0xFFE)):#x}"
    probe = draw.one(
        (
            f"smsw {address}",
            f"sgdt {address}",
            f"sidt {address}",
            f"str {address}",
            f"sldt {address}",
            f"lmsw {address}",
            f"mov %ds, {address}",
            f"verr {address}",
            f"lar {address}, %eax",
            f"lldt {address}",
            f"invlpg {address}",
            f"mov $0x3ff, %edx; cld; mov ${address}, %edi; insb",
            f"mov ${address}, %esi; mov $0x80, %edx; cld; outsb",
            f"mov ${address}, {draw.native('eax')}; push ({draw.native('eax')}); popf"
            if draw.chance(10)
            else f"lsl {address}, %ax",
        )
    )
    return [*draw.plains(2), probe, *quiet(draw, tags)]


@family("other-stack")
def _other_stack(draw: Draw, tags: set[str]) -> Lines:
    """The stack at another place."""
    sp = "%esp" if draw.width == 32 else "%rsp"
    place = draw.one(("WINDOW + 0x2000", "WINDOW + 0x2ff8", "WINDOW + 0xf008"))
    made = draw.one(
        ("pushf", "push %fs", "cli", "push $2; popf", "mov %ds, %eax", "int3" if draw.chance(20) else "sti")
    )
    return [
        f"mov {sp}, {draw.native('edx')}",
        f"mov ${place}, {sp}",
        made,
        f"mov {draw.native('edx')}, {sp}",
        *quiet(draw, tags),
    ]


@family("local-table")
def _local_table(draw: Draw, tags: set[str]) -> Lines:
    """Selectors of the LDT."""
    use = draw.one(
        (
            ["mov $LOCAL_DATA, %eax", "mov %eax, %es", "mov %es:data, %edx"],
            ["mov $LOCAL_DATA, %eax", "mov %eax, %fs", "mov %fs, %edx"],
            ["mov $LOCAL_CODE, %eax", "lar %eax, %edx"],
            ["mov $LOCAL_DATA, %eax", "verw %ax"],
            ["push $LOCAL_DATA", "pop %gs"],
        )
    )
    return ["mov $LDT, %eax", "lldt %ax", *use, "xor %eax, %eax", "mov %eax, %fs", *draw.plains(1)]


@family("descriptor-change")
def _descriptor_change(draw: Draw, tags: set[str]) -> Lines:
    """The kernel changes a descriptor that is loaded, then loads it again; accessed bits are read back."""
    name = draw.one(("BASED", "READ_ONLY", "EXPAND_DOWN"))
    change = draw.one(
        (
            f"xorb $0x80, gdt + {name} + 5",
            f"movb $0x10, gdt + {name} + 3",
            f"andb $0xfe, gdt + {name} + 5",
            f"xorb $2, gdt + {name} + 5",
        )
    )
    return [
        f"mov ${name}, %eax",
        *(["mov %eax, %es"] if draw.chance(50) else []),
        change,
        "mov %eax, %es",
        f"mov gdt + {name} + 4, %edx",
        *quiet(draw, tags),
    ]
