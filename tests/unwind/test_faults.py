"""What a handler is shown of a fault in patched code: what the unpatched kernel's handler is shown."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from pvpatch.bootimage import boot_image
from rewriter.emit.produce import Produced, patch_image
from rewriter.image import parse_image
from runtime.backends import backend_named
from runtime.machine import Machine, MachineConfig
from runtime.outcome import Outcome, RunResult
from tests.unwind.kernels import REGISTERS, UNMAPPED, fields, kernel

Record = dict[str, int]

RING0 = [(32, "bare"), (32, "kvm"), (64, "bare"), (64, "kvm")]
OUTER = [(32, "xen"), (32, "lguest"), (32, "vmi"), (64, "xen")]
FLAGS = 0x250FD5
"""All but IOPL and NT."""

FAR = f"[{UNMAPPED}]"
KEPT32 = "\n".join(f" mov [scratch], {name}" for name in ("eax", "ecx", "edx", "ebx", "ebp", "esi", "edi"))
KEPT64 = "\n".join(f" push {name}" for name in REGISTERS[64])
"""A load of SS may keep what is live in registers that are not."""
_SYSTEM = {
    f"{name}, {what}": f"mov eax, {selector}\n {name} ax"
    for name in ("lldt", "ltr")
    for what, selector in (
        ("data", 0x10), ("code, absent", 0x20), ("local", 0x0C), ("behind the table", 0x78),
        ("another kind", 0x30 if name == "lldt" else 0x40), ("absent", 0x50 if name == "lldt" else 0x60),
    )
}  # fmt: skip
"""Selectors of the kernel's table that are no local descriptor table, or no task that is free."""
_NO_REGISTER = {
    "mov from cr1": ".byte 0x0f, 0x20, 0xc8",
    "mov to cr1": ".byte 0x0f, 0x22, 0xc9",
    "mov from cr5": ".byte 0x0f, 0x20, 0xeb",
    "mov to cr6": ".byte 0x0f, 0x22, 0xf0",
    "mov to cr7": ".byte 0x0f, 0x22, 0xf8",
}
"""Invalid instructions: what stands behind them is not known to be code."""
SNIPPETS32 = {
    "mov ds": "mov ds, bx",
    "mov es": "mov es, bx",
    "mov fs": "mov fs, si",
    "mov gs": "mov gs, di",
    "mov ss": f"mov ss, bx\n nop\n{KEPT32}",
    "mov ss, nothing live": "mov ss, bx",
    "not present": "mov eax, 0x18\n mov ds, ax",
    "mov ds, memory": f"mov ds, {FAR}",
    "pop ds": "push 0x33\n pop ds",
    "pop es": "push 0x33\n pop es",
    "les": f"les edx, {FAR}",
    "lds": "mov dword ptr [scratch], 0x12345678\n mov word ptr [scratch+4], 0x33\n lds edx, [scratch]",
    "lgdt": f"lgdt {FAR}",
    "lidt": f"lidt {FAR}",
    "sgdt": f"sgdt {FAR}",
    "sidt": f"sidt {FAR}",
    "smsw": f"smsw {FAR}",
    "lmsw": f"lmsw {FAR}",
    "sldt": f"sldt {FAR}",
    "str": f"str {FAR}",
    "lldt": "lldt bx",
    "ltr": "ltr cx",
    **_SYSTEM,
    "lldt, memory": f"lldt {FAR}",
    "ljmp": "ljmp 0x28, here\nhere:\n nop",
    "lcall": "lcall 0x2b, here\nhere:\n nop",
    "retf": "push 0x33\n push here\n retf\nhere:\n nop",
    "iretd": "push 2\n push 0x33\n push here\n iretd\nhere:\n nop",
    "iretd, not present": "push 2\n push 0x20\n push here\n iretd\nhere:\n nop",
    "insb": f"mov edi, {UNMAPPED}\n mov edx, 0x3fd\n insb",
    "outsb": f"mov esi, {UNMAPPED}\n mov edx, 0x80\n outsb",
    "rep insd": f"mov edi, {UNMAPPED}\n mov edx, 0x80\n mov ecx, 3\n rep insd",
    "int": "int 0x77",
    "in front": f"mov ebx, {FAR}\n cli\n nop\n nop",
    "behind": f"cli\n mov ebx, {FAR}\n nop",
    "between": f"cli\n mov {FAR}, ebx\n clts\n cli\n nop",
    "push, then": f"push ebx\n push ecx\n cli\n mov eax, [esp+0xc0000000+{UNMAPPED & 0xFFF}]\n nop",
    "division": "mov ecx, 0\n cli\n div ecx\n nop",
    "flags": f"mov eax, 5\n cmp eax, 7\n std\n cli\n mov bl, {FAR}\n nop",
    "out": f"out dx, al\n mov eax, {FAR}\n nop",
    "pushfd": f"pushfd\n mov eax, {FAR}\n nop",
    "cr": f"mov eax, cr0\n mov edx, {FAR}\n nop",
    "lea": f"mov eax, cr4\n lea edi, [eax+ecx*2]\n cli\n xchg ebx, {FAR}\n nop",
    **_NO_REGISTER,
}  # fmt: skip
SNIPPETS64 = {
    "mov ds": "mov ds, bx",
    "mov fs": "mov fs, si",
    "mov ss": f"mov ss, bx\n nop\n{KEPT64}",
    "not present": "mov eax, 0x18\n mov ds, ax",
    "mov ds, memory": "mov r9d, UNMAPPED\n mov ds, [r9]",
    "pop fs": "push 0x33\n pop fs",
    "lgdt": "mov r10d, UNMAPPED\n lgdt [r10]",
    "sgdt": "mov r10d, UNMAPPED\n sgdt [r10+8]",
    "sidt": "mov eax, UNMAPPED\n sidt [rax]",
    "smsw": "mov eax, UNMAPPED\n smsw [rax]",
    "lldt": "lldt bx",
    "ltr": "ltr cx",
    **_SYSTEM,
    "retfq": "push 0x33\n lea rax, [rip+here]\n push rax\n retfq\nhere:\n nop",
    "iretq": "push 0x10\n push STACK\n push 2\n push 0x33\n lea rax, [rip+here]\n push rax\n iretq\n"
    "here:\n nop",
    "insb": "mov edi, UNMAPPED\n mov edx, 0x3fd\n insb",
    "rep outsd": "mov esi, UNMAPPED\n mov edx, 0x80\n mov ecx, 3\n rep outsd",
    "int": "int 0x77",
    "in front": "mov r9d, UNMAPPED\n mov rbx, [r9]\n cli\n nop\n nop",
    "behind": "mov r9d, UNMAPPED\n cli\n mov rbx, [r9]\n nop",
    "between": "mov r9d, UNMAPPED\n cli\n mov [r9], rbx\n clts\n cli\n nop",
    "division": "mov ecx, 0\n cli\n div rcx\n nop",
    "rip": "mov r9d, UNMAPPED\n mov rax, [rip+here]\n cli\n mov rax, [r9+rax]\nhere:\n nop",
    **_NO_REGISTER,
    "mov from cr9": ".byte 0x44, 0x0f, 0x20, 0xc8",
    "mov to cr15": ".byte 0x45, 0x0f, 0x22, 0xf8",
    "mov from dr8": ".byte 0x44, 0x0f, 0x21, 0xc0",
}  # fmt: skip
SNIPPETS = {32: SNIPPETS32, 64: SNIPPETS64}
UNCHECKED = {(bits, backend, "mov ss, nothing live") for bits, backend in OUTER}
"""A load of SS keeps registers in those that nobody reads any more (docs/patch.md)."""
CASES = [
    (bits, backend, name)
    for bits, backend in (*RING0, *OUTER)
    for name in SNIPPETS[bits]
    if (bits, backend, name) not in UNCHECKED
]


@cache
def original(bits: int) -> bytes:
    return kernel(bits, tuple(SNIPPETS[bits].values()))


@cache
def patched(bits: int) -> Produced:
    return patch_image(parse_image(original(bits), Path("kernel")))


@cache
def moving(*, unpatched: bool = False, backend: str = "bare") -> dict[int, list[Record]]:
    """Of a kernel whose sites reach their thunks by a call through memory."""
    data = kernel(32, tuple(SNIPPETS32.values()), moves=True)
    if not unpatched:
        made = patch_image(parse_image(data, Path("kernel")))
        assert made.job.reach.kind == "absolute"
        data = made.file
    return records(run(data, backend).transcript, 32)


def run(data: bytes, backend: str) -> RunResult:
    config = MachineConfig(memory_mib=16, max_time_s=1.0)
    image = boot_image(parse_image(data, Path("kernel")))
    result = Machine(config, image, backend_named(backend)).run()
    assert result.outcome is Outcome.EXITED, f"{result.detail}\n{result.crash}"
    return result


def records(text: bytes, bits: int) -> dict[int, list[Record]]:
    """What the handlers saw, by snippet."""
    names, word = fields(bits), bits // 8
    found: dict[int, list[Record]] = {}
    values = [int.from_bytes(text[at : at + word], "little") for at in range(0, len(text), word)]
    for at in range(0, len(values), len(names)):
        record = dict(zip(names, values[at : at + len(names)], strict=True))
        record["flags"] &= FLAGS
        for name, vector in (("cr2", 14), ("dr6", 1)):
            if record["vector"] != vector:
                del record[name]
        found.setdefault(record["snippet"], []).append(record)
    return found


@cache
def seen(bits: int, backend: str, *, unpatched: bool = False) -> dict[int, list[Record]]:
    data = original(bits) if unpatched else patched(bits).file
    return records(run(data, backend).transcript, bits)


def text_of(record: Record) -> dict[str, str]:
    return {name: f"{value:#x}" for name, value in record.items()}


@pytest.mark.parametrize("bits", [32, 64])
def test_every_snippet_faults_once(bits: int) -> None:
    plain = seen(bits, "bare", unpatched=True)
    faults = {name: len(plain.get(index, ())) for index, name in enumerate(SNIPPETS[bits])}
    assert faults == dict.fromkeys(SNIPPETS[bits], 1)


@pytest.mark.parametrize(("bits", "backend", "name"), CASES)
def test_a_fault_is_shown_at_the_site_with_the_sites_registers(bits: int, backend: str, name: str) -> None:
    number = list(SNIPPETS[bits]).index(name)
    expected = [text_of(record) for record in seen(bits, "bare", unpatched=True)[number]]
    assert [text_of(record) for record in seen(bits, backend).get(number, ())] == expected


@pytest.mark.parametrize("name", SNIPPETS32)
@pytest.mark.parametrize("backend", ["bare", "kvm", "xen", "lguest", "vmi"])
def test_it_is_so_where_the_site_calls_its_thunk(backend: str, name: str) -> None:
    number = list(SNIPPETS32).index(name)
    if (32, backend, name) in UNCHECKED:
        return
    expected = [text_of(record) for record in moving(unpatched=True)[number]]
    assert [text_of(record) for record in moving(backend=backend).get(number, ())] == expected


_STORES = ("sgdt", "sidt", "smsw")


@pytest.mark.parametrize(("bits", "backend"), OUTER)
def test_a_site_that_stays_faults_as_a_store(bits: int, backend: str) -> None:
    texts = (_NO_REGISTER["mov from cr1"], *(SNIPPETS[bits][name] for name in _STORES))
    data = kernel(bits, texts)
    made = patch_image(parse_image(data, Path("kernel"))).file
    expected = records(run(data, "bare").transcript, bits)
    assert len(expected) == len(texts)
    assert records(run(made, backend).transcript, bits) == expected
