"""Small guests from assembly text, plain or with a call page, and machines to run them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pvpatch.abi.asm import assemble
from pvpatch.abi.layout import CALL_PAGE_SIZE, LOCATOR_SIZE, Locator, pack_locator, slot_offset
from pvpatch.abi.page import build_bare_page
from pvpatch.abi.spec import load_spec
from runtime.backends import backend_named
from runtime.boot.model import BootImage, BootKind, BootSegment
from runtime.machine import Machine, MachineConfig
from runtime.outcome import RunResult

__all__ = ["CODE", "DATA", "Ran", "run_text", "words"]

CODE = 0x10_0000
DATA = 0x12_0000
"""A page of zeroed memory for the guest's variables."""
RESIDENT = 0x20_0000
MEMORY_MIB = 16


@dataclass(frozen=True)
class Ran:
    """A finished run and its machine, for a look at registers and memory."""

    machine: Machine
    result: RunResult

    def register(self, index: int) -> int:
        """A general register, 64 bits."""
        return int(self.machine.cpu.state.gpr[index])

    def dword(self, address: int) -> int:
        """32 bits of guest memory."""
        return self.machine.memory.load_u32(address)


def run_text(
    text: str,
    backend: str,
    *,
    width: int = 32,
    patched: bool = False,
    data: bytes = b"",
    symbols: Mapping[str, int] | None = None,
    kind: BootKind = BootKind.FLAT,
    max_time_s: float = 0.2,
    memory_mib: int = MEMORY_MIB,
) -> Ran:
    """Run assembly text placed at CODE, `data` at DATA.

    With `patched` there is a call page, and the text may name its slots as `slot_NAME`.
    """
    known = {"DATA": DATA, **(symbols or {})}
    segments = [BootSegment(DATA, DATA, data, 0x4000)]
    if patched:
        page = RESIDENT + CALL_PAGE_SIZE
        known |= {f"slot_{call.name}": page + slot_offset(call.number) for call in load_spec().calls}
        offset = CALL_PAGE_SIZE
        places = {f"off_page{width}": offset}
        locator = Locator(offset + CALL_PAGE_SIZE, RESIDENT, RESIDENT, **places)
        resident = pack_locator(locator).ljust(offset, b"\0") + build_bare_page(width, page, page)
        assert len(pack_locator(locator)) == LOCATOR_SIZE
        segments.append(BootSegment(RESIDENT, RESIDENT, resident, len(resident)))
    code = assemble(text, width, CODE, known).code
    segments.append(BootSegment(CODE, CODE, code, len(code) + 0x1000))
    image = BootImage("test", kind, width, tuple(segments), {kind: CODE})
    config = MachineConfig(memory_mib=memory_mib, max_time_s=max_time_s)
    machine = Machine(config, image, backend_named(backend))
    return Ran(machine, machine.run())


def words(*values: int) -> bytes:
    """32-bit little-endian words."""
    return b"".join((value & 0xFFFFFFFF).to_bytes(4, "little") for value in values)


def descriptors(values: Iterable[int]) -> bytes:
    """64-bit descriptors."""
    return b"".join(value.to_bytes(8, "little") for value in values)
