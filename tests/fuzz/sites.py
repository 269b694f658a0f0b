"""Every sensitive instruction in every operand form and size, as lines that leave the stack as it was."""

from __future__ import annotations

from collections.abc import Callable

from tests.fuzz.draw import Draw

__all__ = ["SITES", "site"]

Lines = list[str]
Site = Callable[[Draw], Lines]
SITES: dict[str, Site] = {}
"""What makes lines, by the tag that its snippets get."""

_SEGMENTS = ("ds", "es", "fs", "gs")
_PREFIXES = ("0x66", "0xf3", "0xf2", "0x2e", "0x36", "0x3e", "0x26", "0x64", "0x65", "0x67")
_REX = ("0x40", "0x41", "0x44", "0x48", "0x4f")


def _named(name: str) -> Callable[[Site], Site]:
    def register(make: Site) -> Site:
        SITES[name] = make
        return make

    return register


def site(draw: Draw) -> tuple[str, Lines]:
    """A random one with its tag."""
    name = draw.one(tuple(SITES))
    return name, SITES[name](draw)


def _suffix(bits: int) -> str:
    return {16: "w", 32: "l", 64: "q"}[bits]


def _size(draw: Draw) -> int:
    return draw.one((16, 32, 32) if draw.width == 32 else (16, 32, 64))


@_named("irq-flag")
def _irq_flag(draw: Draw) -> Lines:
    return [draw.one(("cli", "sti", "cli; sti", "cli; cli", "sti; cli"))]


@_named("pushf")
def _pushf(draw: Draw) -> Lines:
    if draw.chance(25):
        return ["pushfw", f"pop {draw.free(16)}"]
    return ["pushf", f"pop {draw.free(draw.width)}"]


@_named("popf")
def _popf(draw: Draw) -> Lines:
    value = draw.random.getrandbits(22) & 0x267ED5 & ~draw.one((0x4000, 0x44000, 0x247000))
    if draw.chance(25):
        return [f"pushw ${value & 0x3FFF:#x}", "popfw"]
    return [f"push ${value:#x}", "popf"]


@_named("machine-status")
def _machine_status(draw: Draw) -> Lines:
    if draw.chance(40):
        value = draw.one((0x31, 0x33, 0x3B, 0x3D, 0x11, 0x13))
        if draw.chance(50):
            return [f"movw ${value}, data + 8", "lmsw data + 8"]
        return [f"mov ${value}, %eax", "lmsw %ax"]
    if draw.chance(40):
        return [f"smsw {draw.memory(faulting=20)}"]
    size = 16 if draw.width == 32 else _size(draw)  # the upper half of a 32-bit one is undefined: SDM, SMSW
    return [f"smsw %{draw.sized(draw.one(('eax', 'edx')), size)}"]


@_named("clts")
def _clts(draw: Draw) -> Lines:
    return ["clts"]


@_named("control-read")
def _control_read(draw: Draw) -> Lines:
    number = draw.one((0, 0, 2, 3, 4))
    return [f"mov %cr{number}, {draw.free(draw.width)}"]


@_named("control-absent")
def _control_absent(draw: Draw) -> Lines:
    number, direction = draw.one((1, 5, 6, 7, 9, 15)), draw.one((0x20, 0x22))
    if number > 7 and draw.width == 32:
        number = 1
    prefix = "0x44, " if number > 7 else ""
    return [f".byte {prefix}0x0f, {direction:#x}, {0xC0 | (number & 7) << 3:#x}"]


@_named("control-write")
def _control_write(draw: Draw) -> Lines:
    full = draw.native("eax")
    kind = draw.below(4)
    if kind == 0:
        bits = draw.one((0x8, 0x2, 0x20, 0x10000, 0x40000, 0x4))
        return [f"mov %cr0, {full}", f"xor ${bits:#x}, %eax", f"mov {full}, %cr0"]
    if kind == 1:
        return [f"mov ${draw.number():#x}, %eax", f"mov {full}, %cr2"]
    if kind == 2:
        return [f"mov %cr3, {full}", f"xor ${draw.one((0, 8, 16, 24)):#x}, %eax", f"mov {full}, %cr3"]
    bits = draw.one((0x4, 0x8, 0x80, 0x100, 0x200, 0x400))
    return [f"mov %cr4, {full}", f"xor ${bits:#x}, %eax", f"mov {full}, %cr4"]


@_named("debug-registers")
def _debug_registers(draw: Draw) -> Lines:
    number = draw.one((0, 1, 2, 3, 6, 7, 4, 5))
    full = draw.native("eax")
    if draw.chance(50):
        return [f"mov %db{number}, {draw.free(draw.width)}"]
    value = (
        draw.one(("0x400", "0") if number & 1 else ("0xffff0ff0", "0"))
        if number > 3
        else draw.one(("data", "0x1234"))
    )
    return [f"mov ${value}, %eax", f"mov {full}, %db{number}", f"mov %db{number}, {draw.native('edx')}"]


@_named("table-store")
def _table_store(draw: Draw) -> Lines:
    prefix = "data16 " if draw.chance(20) else ""
    return [f"{prefix}{draw.one(('sgdt', 'sidt'))} {draw.memory(faulting=20)}"]


@_named("table-load")
def _table_load(draw: Draw) -> Lines:
    name = draw.one(("gdt", "idt"))
    prefix = "data16 " if draw.width == 32 and draw.chance(30) else ""
    if draw.chance(20):
        return [f"{prefix}l{name} WINDOW + {draw.one((20, 100)) * 4096:#x}"]
    word = ".long" if draw.width == 32 else ".quad"
    pointer = draw.label()
    limit = draw.one(("0xffff", f"{'gdt_master_end - gdt_master - 1' if name == 'gdt' else '0xfff'}"))
    return [
        f".data; {pointer}: .word {limit}; {word} {name}; .text",
        f"{prefix}l{name} {pointer}",
        f"s{name} {draw.memory(faulting=0)}",
    ]


@_named("task-local-store")
def _task_local_store(draw: Draw) -> Lines:
    name = draw.one(("sldt", "str"))
    if draw.chance(40):
        return [f"{name} {draw.memory(faulting=20)}"]
    return [f"{name} {draw.free(_size(draw))}"]


@_named("local-load")
def _local_load(draw: Draw) -> Lines:
    selector = draw.one(("LDT", "LDT", "0", "KERNEL_DATA", "TSS", "0xf8", "LOCAL_DATA", "ABSENT", "LDT | 3"))
    if draw.chance(40):
        return [f"movw ${selector}, data + 12", "lldt data + 12"]
    return [f"mov ${selector}, %eax", "lldt %ax"]


@_named("task-load")
def _task_load(draw: Draw) -> Lines:
    selector = draw.one(("OTHER_TSS", "OTHER_TSS", "TSS", "0", "KERNEL_DATA", "0xf8", "LDT", "ABSENT"))
    if draw.chance(40):
        return [f"movw ${selector}, data + 12", "ltr data + 12"]
    return [f"mov ${selector}, %eax", "ltr %ax"]


@_named("segment-store")
def _segment_store(draw: Draw) -> Lines:
    name = draw.one(("cs", "ss", *_SEGMENTS))
    if draw.chance(35):
        return [f"mov %{name}, {draw.memory(faulting=20)}"]
    return [f"mov %{name}, {draw.free(_size(draw))}"]


@_named("segment-push")
def _segment_push(draw: Draw) -> Lines:
    name = draw.one(("cs", "ss", *_SEGMENTS) if draw.width == 32 else ("fs", "gs"))
    if draw.chance(25):
        return [f"pushw %{name}", f"pop {draw.free(16)}"]
    return [f"push %{name}", f"pop {draw.free(draw.width)}", "movzwl %ax, %eax"]


@_named("segment-pop")
def _segment_pop(draw: Draw) -> Lines:
    name = draw.one(_SEGMENTS if draw.width == 32 else ("fs", "gs"))
    if draw.chance(25):
        return [f"pushw ${draw.selector()}", f"popw %{name}"]
    return [f"push ${draw.selector()}", f"pop %{name}"]


@_named("segment-load")
def _segment_load(draw: Draw) -> Lines:
    name, selector = draw.one(_SEGMENTS), draw.selector()
    if draw.chance(30):
        return [f"movw ${selector}, data + 16", f"mov data + 16, %{name}"]
    if draw.chance(10):
        return [f"mov {draw.memory(faulting=100)}, %{name}"]
    prefix = draw.one(("", "", ".byte 0x66; ")) if draw.width == 32 else draw.one(("", "", ".byte 0x48; "))
    return [f"mov ${selector}, %eax", f"{prefix}mov %eax, %{name}"]


@_named("stack-segment-load")
def _stack_segment_load(draw: Draw) -> Lines:
    selector = draw.one(
        ("KERNEL_DATA", "KERNEL_DATA", "KERNEL_DATA", "0", "ABSENT", "READ_ONLY", "USER_DATA", "0xf8")
    )
    lines = [f"mov ${selector}, %eax", draw.one(("mov %eax, %ss", "mov %ax, %ss"))]
    if draw.width == 32 and draw.chance(40):
        lines = [f"push ${selector}", "pop %ss"]
    return lines + draw.plains(1)


@_named("code-segment-load")
def _code_segment_load(draw: Draw) -> Lines:
    return [draw.one((".byte 0x8e, 0xc8", ".byte 0x8e, 0xf0", ".byte 0x8c, 0xf0", ".byte 0x8e, 0x0b"))]


@_named("far-pointer-load")
def _far_pointer_load(draw: Draw) -> Lines:
    names = ("ds", "es", "fs", "gs", "ss") if draw.width == 32 else ("fs", "gs", "ss")
    name = draw.one(names)
    selector = "KERNEL_DATA" if name == "ss" else draw.selector()
    size = _size(draw)
    place = draw.memory(faulting=100) if draw.chance(15) else "data + 24"
    load = f"rex.w l{name} {place}, %eax" if size == 64 else f"l{name} {place}, {draw.free(size)}"
    return [f"movl ${draw.number():#x}, data + 24; movl ${selector}, data + {24 + size // 8}", load]


@_named("inspect")
def _inspect(draw: Draw) -> Lines:
    name = draw.one(("lar", "lsl", "verr", "verw"))
    selector = draw.selector(60)
    size = _size(draw)
    target = "" if name.startswith("v") else f", {draw.free(size)}"
    if draw.chance(40):
        return [f"movw ${selector}, data + 28", f"{name} data + 28{target}"]
    source = "%ax" if name.startswith("v") or size == 16 else f"%{draw.sized('eax', size)}"
    return [f"mov ${selector}, %eax", f"{name} {source}{target}"]


@_named("adjust-level")
def _adjust_level(draw: Draw) -> Lines:
    if draw.width == 64:
        return [f"movslq {draw.memory()}, {draw.free(64)}"]
    return [f"arpl {draw.free(16)}, {draw.place(16)}"]


@_named("port")
def _port(draw: Draw) -> Lines:
    if draw.chance(50):
        register = draw.one(("%al", "%ax", "%eax"))
        if draw.chance(50):
            return (
                [f"mov $0x80, %edx; out {register}, %dx"] if draw.chance(50) else [f"out {register}, $0x80"]
            )
        return [f"mov $0x5000, %edx; in %dx, {register}"]
    if draw.chance(50):
        return [f"in ${draw.one((0x21, 0xA1))}, %al"]
    return ["mov $0x3ff, %edx", "out %al, %dx", "in %dx, %al"]


@_named("port-string")
def _port_string(draw: Draw) -> Lines:
    prefix = draw.one(("", "rep ", "rep ", "addr32 " if draw.width == 64 else ""))
    direction = ["cld"] if draw.chance(60) else ["std"]
    port = ["mov $0x3ff, %edx"]
    size = draw.one("bbwl")
    if draw.chance(50):
        if size != "b":
            port = ["mov $0x80, %edx"]
        override = draw.one(("", "", "%es:", "%fs:" if draw.width == 32 else "%ds:"))
        source = f"{override}({draw.native('esi')})" if override else f"({draw.native('esi')})"
        return [*port, *direction, f"{prefix.replace('addr32 ', '')}outs{size} {source}, %dx", "cld"]
    return [
        *port,
        "mov $0x5a, %al",
        "out %al, %dx",
        *direction,
        f"{prefix.replace('addr32 ', '')}insb",
        "cld",
    ]


@_named("model-specific")
def _model_specific(draw: Draw) -> Lines:
    known: tuple[int, ...] = (0x174, 0x175, 0x176, 0x277)
    if draw.width == 64:
        known = (*known, 0xC0000080, 0xC0000081, 0xC0000082, 0xC0000084, 0xC0000100, 0xC0000101, 0xC0000102)
    number = draw.one(known)
    if draw.chance(50):
        return [f"mov ${number:#x}, %ecx", "rdmsr", "mov $3, %ecx"]
    values = {0x277: ("0x00070406", "0x00070406"), 0xC0000080: ("0x901", "0")}
    low, high = values.get(number, (f"{draw.below(1 << 31) & ~3:#x}", "0"))
    return [
        f"mov ${number:#x}, %ecx; mov ${low}, %eax; mov ${high}, %edx",
        "wrmsr",
        "xor %eax, %eax",
        "rdmsr",
        "mov $3, %ecx",
    ]


@_named("identification")
def _identification(draw: Draw) -> Lines:
    """Only that it happens and what it leaves alone: the values are the backend's."""
    leaf = draw.one((0, 1, 7, 0x80000000, 0x80000001))
    if draw.width == 64:
        return [f"mov ${leaf:#x}, %eax", "cpuid", "xor %eax, %eax; mov $data + 200, %ebx; mov $1, %ecx; cltd"]
    return [
        f"mov ${leaf:#x}, %eax",
        "cpuid",
        "mov $0, %eax; mov $data + 200, %ebx; mov $1, %ecx; mov $0, %edx",
    ]


@_named("time-stamp")
def _time_stamp(draw: Draw) -> Lines:
    return ["rdtsc", "mov $0, %eax; mov $0, %edx"]


@_named("translation")
def _translation(draw: Draw) -> Lines:
    return [f"invlpg {draw.memory(faulting=30)}"]


@_named("cache")
def _cache(draw: Draw) -> Lines:
    return [draw.one(("wbinvd", "wbinvd", "invd"))]


@_named("undefined-here")
def _undefined_here(draw: Draw) -> Lines:
    """Instructions whose feature or switch is off on this processor."""
    memory = f"{4 * draw.below(16)}({draw.pointer()})"
    return [draw.one(("xgetbv", "xsetbv", "stac", "clac", f"invpcid {memory}, {draw.native('eax')}"))]


@_named("software-interrupt")
def _software_interrupt(draw: Draw) -> Lines:
    return [
        draw.one((f"int ${draw.one((0x30, 0x31, 0x35, 0x80, 0xFF, 0x40)):#x}", "int3", "int $3", "int $0x32"))
    ]


@_named("prefixed")
def _prefixed(draw: Draw) -> Lines:
    """Prefixes that mean nothing, or #UD, before instructions of one form."""
    prefixes = [draw.one(_PREFIXES) for _ in range(1 + draw.below(2))]
    if draw.width == 64 and draw.chance(50):
        prefixes.append(draw.one(_REX))
    bare = draw.one(
        (
            "cli",
            "sti",
            "clts",
            "wbinvd",
            "rdtsc; mov $0, %eax; mov $0, %edx",
            "mov %ds, %eax",
            "mov %cr0, " + draw.native("eax"),
            "str %eax",
            "sldt %eax",
            "in $0x21, %al",
            "int $0x30",
            "mov %eax, %ds" if draw.chance(10) else "mov %ss, %edx",
            "pushf; lea 4(%esp), %esp" if draw.width == 32 else "cli",
        )
    )
    return [f".byte {', '.join(prefixes)}; {bare}"]


def _sixty_four() -> None:
    @_named("exchange-gs")
    def _exchange_gs(draw: Draw) -> Lines:
        return ["swapgs"] if draw.width == 64 else ["lar %ax, %edx"]

    @_named("task-priority")
    def _task_priority(draw: Draw) -> Lines:
        if draw.width == 32:
            return ["str %eax"]
        if draw.chance(50):
            return ["mov %cr8, %rax"]
        return [
            f"mov ${draw.below(16)}, %eax",
            "mov %rax, %cr8",
            "mov %cr8, %rdx",
            "xor %eax, %eax; mov %rax, %cr8",
        ]


_sixty_four()
