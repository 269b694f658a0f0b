"""A hostile native guest speaks to Xen directly: the defined error, no effect outside its own memory."""

from __future__ import annotations

import pytest

from runtime.backends.xen.layout import ERRNO, PAGE_SIZE, numbers
from runtime.backends.xen.native.resident import HOLE, page_of
from runtime.memory import MemoryRange
from runtime.outcome import Outcome
from tests.backends.images import CODE, DATA, MEMORY_MIB, Ran, run_text

KEPT = DATA + 0x3000
LIST = DATA
"""A list of hypercall arguments, given as data."""
FRAMES = MEMORY_MIB << 8
GDT_FRAME = FRAMES + page_of("gdt") // PAGE_SIZE
XEN_FRAME = FRAMES + 64
"""One of Xen's own frames: the shadow tables lie there."""
CALLS, MMUEXT = numbers("hypercall"), numbers("mmuext")


def quads(*values: int) -> bytes:
    return b"".join(value.to_bytes(8, "little") for value in values)


def call(name: str, *arguments: int, data: bytes = b"") -> Ran:
    """One hypercall from the guest's own code; its result is kept at KEPT."""
    registers = ("rdi", "rsi", "rdx", "r10", "r8")
    text = f"mov rsp, {CODE - 0x1000}\n"
    pairs = zip(registers, arguments, strict=False)
    text += "".join(f"mov {register}, {value}\n" for register, value in pairs)
    text += f"mov eax, {CALLS[name]}\nsyscall\nmov r15, {KEPT}\nmov [r15], rax\n"
    text += "mov eax, 0\ncall slot_shutdown\n"
    return run_text(text, "xen", width=64, patched=True, data=data)


def result(ran: Ran) -> int:
    value = ran.machine.memory.load_u64(KEPT)
    return value - (1 << 64) if value >> 63 else value


def gdt(ran: Ran) -> bytes:
    memory: MemoryRange = ran.machine.memory.whole
    return memory.load(GDT_FRAME * PAGE_SIZE, PAGE_SIZE)


CALL_GATE = 0x0000_EC00_E033_0000
RING_0 = 0x00AF_9B00_0000_FFFF


@pytest.mark.parametrize(
    ("name", "arguments", "data", "error"),
    [
        ("mmu_update", (LIST, 1, 0, 0x7FF0), quads(GDT_FRAME << 12 | 8, RING_0), ERRNO.EINVAL),
        ("mmu_update", (LIST, 1, 0, 0x7FF0), quads(XEN_FRAME << 12, 7), ERRNO.EINVAL),
        ("mmuext_op", (LIST, 1, 0, 0x7FF0), quads(MMUEXT["new_baseptr"], XEN_FRAME, 0), ERRNO.EINVAL),
        ("mmuext_op", (LIST, 1, 0, 0x7FF0), quads(MMUEXT["new_baseptr"], GDT_FRAME, 0), ERRNO.EINVAL),
        ("mmuext_op", (LIST, 1, 0, 0x7FF0), quads(MMUEXT["new_user_baseptr"], 1 << 40, 0), ERRNO.EINVAL),
        ("mmuext_op", (LIST, 1, 0, 0x7FF0), quads(MMUEXT["copy_page"], GDT_FRAME, DATA >> 12), ERRNO.EINVAL),
        ("mmuext_op", (LIST, 1, 0, 0x7FF0), quads(MMUEXT["clear_page"], XEN_FRAME, 0), ERRNO.EINVAL),
        ("mmuext_op", (LIST, 1, 0, 0x7FF0), quads(MMUEXT["pin_l4_table"], XEN_FRAME, 0), ERRNO.EINVAL),
        ("mmuext_op", (LIST, 1, 0, 0x7FF0), quads(99, 0, 0), ERRNO.ENOSYS),
        ("set_gdt", (LIST, 512), quads(XEN_FRAME), ERRNO.EINVAL),
        ("set_gdt", (LIST, 8192), quads(DATA >> 12), ERRNO.EINVAL),
        ("update_descriptor", (XEN_FRAME << 12, 0), b"", ERRNO.EINVAL),
        ("update_descriptor", (GDT_FRAME << 12 | 8, 0x0000_8B00_0000_0067), b"", ERRNO.EINVAL),
        ("set_trap_table", (HOLE - PAGE_SIZE,), b"", ERRNO.EFAULT),
        ("set_trap_table", (0xFFFF_8200_0000_0000,), b"", ERRNO.EFAULT),
        ("event_channel_op", (numbers("event")["bind_ipi"], HOLE + page_of("gdt")), b"", ERRNO.EFAULT),
        ("update_va_mapping", (DATA, 7, 0), b"", ERRNO.EINVAL),
        ("set_segment_base", (0, 1 << 63), b"", ERRNO.EINVAL),
        ("grant_table_op", (2, 0xFFFF_8000_0000_0000, 1), b"", ERRNO.EFAULT),
    ],
)  # fmt: skip
def test_wrong_arguments_get_the_defined_error(
    name: str, arguments: tuple[int, ...], data: bytes, error: int
) -> None:
    ran = call(name, *arguments, data=data)
    assert ran.result.outcome is Outcome.POWERED_OFF, ran.result.detail
    assert result(ran) == -error
    assert not any(gdt(ran))


def test_a_call_gate_loses_its_privilege() -> None:
    ran = call("update_descriptor", GDT_FRAME << 12 | 8, CALL_GATE)
    assert gdt(ran)[8:16] == (CALL_GATE & ~(3 << 45)).to_bytes(8, "little")


def test_a_descriptor_never_gives_ring_0() -> None:
    ran = call("update_descriptor", GDT_FRAME << 12 | 8, RING_0)
    assert result(ran) == 0
    assert gdt(ran)[13] & 0x60 == 0x60


def test_the_descriptors_cannot_be_written_through_a_mapping_of_ones_own() -> None:
    """The guest's tables map the page, writable; Xen's do not."""
    text = f"mov rsp, {CODE - 0x1000}\nmov rax, {GDT_FRAME << 12 | 8}\nmov rcx, {RING_0}\nmov [rax], rcx\n"
    ran = run_text(text, "xen", width=64, patched=True)
    assert ran.result.outcome is Outcome.CRASHED
    assert not any(gdt(ran))
