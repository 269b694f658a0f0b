"""Guests that mean ill, on every backend that takes them: the defined exit code, bounded time and memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pvpatch.abi.spec import load_spec
from tests.hostile.guests import BASE, kernel
from tests.hostile.isolation import Isolated, isolated

TARGETS = [(32, "bare"), (32, "kvm"), (32, "lguest"), (64, "bare"), (64, "kvm")]
EVERYWHERE = pytest.mark.parametrize(("width", "backend"), TARGETS, ids=[f"{b}-{w}" for w, b in TARGETS])
MACHINE_LIMITS = ("--memory", "16", "--max-time", "0.02")


def run(folder: Path, text: str, width: int, backend: str, *options: str | Path) -> Isolated:
    """Run a kernel made of `text`; registers are written as in 64-bit code and narrowed for 32 bits."""
    if width == 32:
        for wide, narrow in (("rax", "eax"), ("rbx", "ebx"), ("rcx", "ecx"), ("rdx", "edx"),
                             ("rsi", "esi"), ("rdi", "edi"), ("rsp", "esp"), ("rbp", "ebp")):  # fmt: skip
            text = text.replace(wide, narrow)
    (folder / "kernel").write_bytes(kernel(text, width))
    ended = isolated("run", folder / "kernel", "--backend", backend, *MACHINE_LIMITS, *options)
    assert ended.err.splitlines()[-1].startswith("pvpatch: "), ended.err
    assert ended.seconds < 20
    return ended


CRASHES = {
    "jump to nowhere": "mov eax, 0x3f000000; jmp rax",
    "invalid instruction, no table": "ud2",
    "fault in every handler": (
        "sub rsp, 16; mov dword ptr [rsp], -1; mov dword ptr [rsp+4], 0xb8000; lidt [rsp]; ud2"
    ),
    "return to nowhere": "push 0x3f000000; ret",
    "paging on over nothing": (
        "mov rax, -1; mov cr3, rax; mov rax, cr0; or eax, 0x80000000; mov cr0, rax; nop"
    ),
    "every bit of CR4": "mov rax, -1; mov cr4, rax; mov rax, cr0; or eax, 0x80000000; mov cr0, rax; ud2",
    "division by zero": "xor ecx, ecx; xor edx, edx; div ecx",
    "a task that is none": "mov eax, 0xfff8; ltr ax",
    "a segment that is none": "mov eax, 0xfff8; mov ss, eax",
}


@EVERYWHERE
@pytest.mark.parametrize("text", CRASHES.values(), ids=list(CRASHES))
def test_4_a_crash(text: str, width: int, backend: str, tmp_path: Path) -> None:
    ended = run(tmp_path, text, width, backend)
    assert ended.code == 4, ended.err
    assert "guest crashed" in ended.err and "cr3" in ended.err
    assert ("unhandled trap" if backend == "lguest" else "  vector ") in ended.err


ENDLESS = {
    "a loop with interrupts off": "cli; here: jmp here",
    "rep lods": "mov esi, 0x200000; mov rcx, -1; here: rep lodsb; jmp here",
    "rep movs over itself": "mov edi, 0x200000; mov esi, 0x200001; mov rcx, -1; rep movsb; here: jmp here",
    "rep outs": "mov esi, 0x200000; mov rcx, -1; mov edx, 0x80; rep outsb; here: jmp here",
    "rep ins": "mov edi, 0x200000; mov ecx, 0x100000; mov edx, 0x80; rep insb; here: jmp here",
    "cpuid": "here: cpuid; jmp here",
    "a read of the clock": "here: rdtsc; jmp here",
    "code that changes itself": "mov ebx, 0x100030; here: inc byte ptr [rbx]; mov al, 1; jmp here",
    "invalidations": "here: invlpg [rax]; mov rax, cr3; mov cr3, rax; jmp here",
}


@EVERYWHERE
@pytest.mark.parametrize("text", ENDLESS.values(), ids=list(ENDLESS))
def test_5_work_without_end(text: str, width: int, backend: str, tmp_path: Path) -> None:
    ended = run(tmp_path, text, width, backend)
    if backend == "lguest" and ended.code == 4:  # privileged instructions without a patch end the guest there
        assert "unhandled trap" in ended.err
        return
    assert ended.code == 5, ended.err
    assert "limit of guest time" in ended.err


ANYTHING = {
    "recursion without end": "here: push rax; call here",
    "stores over all memory": "xor edi, edi; mov rcx, -1; mov al, 0x90; rep stosb; hlt",
    "stores of invalid code over all memory": "xor edi, edi; mov rcx, -1; mov al, 0x0f; rep stosb; hlt",
    "stores over the code behind the code": "mov edi, 0x100030; mov ecx, 4096; mov al, 0xf4; rep stosb; ud2",
    "accesses all over the address space": (
        "xor ebx, ebx; here: mov eax, [rbx]; mov [rbx+0x7ffff], eax; add ebx, 0x10000; jnz here; hlt"
    ),
    "every model-specific register": (
        "xor ecx, ecx; here: rdmsr; not eax; not edx; wrmsr; inc ecx; cmp ecx, 0x200; jne here; hlt"
    ),
    "every port": (
        "xor edx, edx; here: cmp dl, 0xf4; je next; in al, dx; not al; out dx, al; in eax, dx; out dx, eax;"
        "next: inc dx; jnz here; hlt"
    ),
    "a timer as fast as it goes": (
        "mov al, 0x34; out 0x43, al; mov al, 1; out 0x40, al; xor eax, eax; out 0x40, al; out 0x21, al;"
        "sti; here: hlt; jmp here"
    ),
    "zeros as code": "mov eax, 0xff0000; jmp rax",
}


@EVERYWHERE
@pytest.mark.parametrize("text", ANYTHING.values(), ids=list(ANYTHING))
def test_no_harm_done(text: str, width: int, backend: str, tmp_path: Path) -> None:
    """What happens is the guest's own business, as long as it is one of the ends there are."""
    stats = tmp_path / "stats"
    ended = run(tmp_path, text, width, backend, "--stats", stats)
    assert ended.code in (0, 4, 5), ended.err
    assert json.loads(stats.read_text())["exit_code"] == ended.code


@pytest.mark.parametrize("width", [32, 64])
def test_5_printing_without_end_is_bounded(width: int, tmp_path: Path) -> None:
    ended = run(tmp_path, "mov edx, 0x3f8; mov al, 65; here: out dx, al; jmp here", width, "bare")
    assert ended.code == 5 and set(ended.out) == {65}


@pytest.mark.parametrize("backend", ["bare", "kvm", "lguest"])
@pytest.mark.parametrize("word", [0x0B0F0B0F, 0, 0xCCCCCCCC, 0xFFFFFFFF], ids=hex)
def test_a_guest_that_writes_its_own_call_page(word: int, backend: str, tmp_path: Path) -> None:
    """The resident lies behind the image; the next patched instruction meets what was written there."""
    fill = f"mov edi, {BASE + 0x2000}; mov ecx, 0x4000; mov eax, {word}; cld; rep stosd"
    stop = "mov eax, 0x90909090; stosd; stosd; mov eax, 0x0b0f0b0f; stosd"  # what runs through it ends in #UD
    text = f"{fill}; {stop}; cli; sti; cli; hlt"
    (tmp_path / "kernel").write_bytes(kernel(text))
    where = ("--block-at", hex(BASE + 0x2000))
    assert isolated("patch", tmp_path / "kernel", "-o", tmp_path / "patched", *where).code == 0
    ended = isolated(
        "run", tmp_path / "patched", "--backend", backend, "--memory", "4", "--max-time", "0.001"
    )
    assert ended.code in ((4, 5) if word == 0 else (4,)), ended.err


WILD = (0, 1, 0x1000, 0xFFF, 0x7FFFFFFF, 0xC0000000, 0xFFFFFFFF, 0xFFFFF000)


def calls(invoke: str, number: str, registers: tuple[str, ...], numbers: int) -> str:
    """Code that makes every call with every wild value in every argument register."""
    text = ""
    for value in WILD:
        loads = "".join(f"mov {register}, {value};" for register in registers)
        text += f"xor ebp, ebp; at{value}: {loads} mov {number}, ebp; {invoke};"
        text += f"inc ebp; cmp ebp, {numbers}; jne at{value};"
    return text + "cli; hlt"


@pytest.mark.parametrize("width", [32, 64])
def test_wild_hypercalls_of_kvm(width: int, tmp_path: Path) -> None:
    arguments = ("ebx", "ecx", "edx", "esi")
    text = calls("vmcall", "eax", arguments, 16).replace("ebp", "edi")
    stats = tmp_path / "stats"
    ended = run(tmp_path, text, width, "kvm", "--stats", stats)
    assert ended.code in (0, 4), ended.err
    assert sum(json.loads(stats.read_text())["exits"].values()) > 5


@pytest.mark.parametrize("width", [32, 64])
def test_wild_clock_registers_of_kvm(width: int, tmp_path: Path) -> None:
    writes = ""
    for register in (0x11, 0x12, *range(0x4B564D00, 0x4B564D09)):
        for value in WILD:
            writes += f"mov ecx, {register}; mov eax, {value}; mov edx, {value}; wrmsr; rdmsr;"
    ended = run(tmp_path, writes + "rdtsc; cli; hlt", width, "kvm")
    assert ended.code in (0, 4), ended.err


@pytest.mark.parametrize("number", range(20))
def test_wild_hypercalls_of_lguest(number: int, tmp_path: Path) -> None:
    """Each in a guest of its own: lguest ends a guest at the first pointer that is none."""
    text = ""
    for value in WILD:
        text += "".join(f"mov {register}, {value};" for register in ("ebx", "ecx", "edx", "esi"))
        text += f"mov eax, {number}; int 0x1f;"
    ended = run(tmp_path, text + "cli; hlt", 32, "lguest")
    assert ended.code in (0, 4, 5), ended.err


def test_every_slot_of_the_call_page_with_nonsense(tmp_path: Path) -> None:
    """The guest calls into its own call page with wild arguments: a crash of the guest at most."""
    text = (
        f"mov esi, {BASE + 0x2000}; find: add esi, 16; cmp dword ptr [esi], 0x41505650; jne find;"  # "PVPA"
        "cmp dword ptr [esi+4], 0x484354; jne find; mov eax, {value}; mov edx, {value}; mov ecx, {value};"
        "mov ebx, {value}; lea ebp, [esi + 64 + 32 * {number}]; cli; call ebp; sti; cli; hlt"
    )
    for number in range(0, len(load_spec().calls), 11):
        (tmp_path / "kernel").write_bytes(kernel(text.format(value=WILD[number % len(WILD)], number=number)))
        assert isolated("patch", tmp_path / "kernel", "-o", tmp_path / "patched").code == 0
        backend = ("bare", "kvm", "lguest")[number % 3]
        ended = isolated("run", tmp_path / "patched", "--backend", backend, *MACHINE_LIMITS)
        assert ended.code in (0, 4, 5), ended.err


def test_a_guest_in_a_small_address_space_is_refused_not_killed(tmp_path: Path) -> None:
    """Memory that the host does not have: exit code 5 and one line."""
    (tmp_path / "kernel").write_bytes(kernel("hlt"))
    ended = isolated("run", tmp_path / "kernel", "--memory", "3072", memory=2 << 30)
    assert ended.code == 5 and ended.err == "pvpatch: out of memory\n", ended.err
