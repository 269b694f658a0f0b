"""From a file of somebody else's to a running domain: what the toolstack makes of an image's notes."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvpatch.abi.asm import assemble
from pvpatch.bootimage import boot_image
from rewriter.image import parse_image
from runtime.backends import backend_named
from runtime.backends.xen.model import XenHypervisor
from runtime.machine import Machine, MachineConfig
from runtime.outcome import Outcome
from tests.image.builders import Load, elf, note
from tests.xen.kernels import call32, call64

PLACE = 0x100000
HYPERCALL_PAGE = PLACE + 0x1000
TEXTS = {5: b"xen-3.0\0", 6: b"tests\0", 8: b"generic\0", 9: b"yes\0"}


@pytest.mark.parametrize("width", [32, 64])
def test_a_guest_without_an_entry_note_starts_at_its_elf_entry(width: int) -> None:
    """The notes of public test suites and small systems: no ENTRY, no VIRT_BASE, a hypercall page."""
    registers = ("eax", "esi", "ebx") if width == 32 else ("rax", "rsi", "rbx")
    mark, info, base = registers
    call = call32 if width == 32 else call64
    code = assemble(
        f"""
        hlt
        start:
        mov {base}, {PLACE + 0x2000}
        mov dword ptr [{base}], 0
        mov {mark}, [{info}+{0x20}]
        mov [{base}+8], {mark}
        {call("sched_op", 2, PLACE + 0x2000)}
        """,
        width,
        PLACE,
    )
    content = code.code.ljust(0x3000, b"\0")
    notes = b"".join(note(b"Xen", kind, text) for kind, text in TEXTS.items())
    notes += note(b"Xen", 2, HYPERCALL_PAGE.to_bytes(width // 8, "little"))
    data = elf(width, (Load(PLACE, PLACE, content),), entry=code.labels["start"], notes=notes)
    image = boot_image(parse_image(data, Path("guest.elf")))
    machine = Machine(MachineConfig(memory_mib=8, max_time_s=1.0), image, backend_named("xen"))
    model = machine.hypervisor
    assert isinstance(model, XenHypervisor)
    result = machine.run()
    assert result.outcome is Outcome.POWERED_OFF, result.detail
    domain = model.domain
    assert domain.space.word(PLACE + 0x2008, 4) == 8 << 8, "start_info was where the register said"
    assert domain.space.read(HYPERCALL_PAGE, 1) == (b"\xb8" if width == 32 else b"\x51")
