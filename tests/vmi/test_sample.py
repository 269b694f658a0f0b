"""The guest written for VMI, unpatched, in both page-table formats; and how guests begin."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvpatch.bootimage import boot_image
from rewriter.image import open_image
from runtime.backends import backend_named
from runtime.backends.vmi.interface import interface
from runtime.boot.model import BootRequest
from runtime.machine import Machine, MachineConfig
from runtime.outcome import Outcome, RunResult
from tests.backends.images import run_text

SAMPLE = Path(__file__).resolve().parents[2] / "samples" / "vmi-i386"


def run(append: str = "", backend: str = "vmi") -> RunResult:
    config = MachineConfig(memory_mib=32, request=BootRequest(cmdline=append), max_time_s=20)
    return Machine(config, boot_image(open_image(SAMPLE / "vmi-i386.elf")), backend_named(backend)).run()


@pytest.mark.parametrize("append", ["", "pae"])
def test_the_conformance_suite_passes(append: str) -> None:
    result = run(append)
    assert result.outcome is Outcome.POWERED_OFF, result.detail
    assert result.transcript == (SAMPLE / "expected.txt").read_bytes()


def test_it_makes_every_call_that_a_run_can_make() -> None:
    exits = run("pae").stats["exits"]
    assert isinstance(exits, dict)
    made = {name.removeprefix("vmi_") for name in exits if name.startswith("vmi_")}
    known = {call.name for call in interface().calls.values()}
    in_rom = {
        "DisableInterrupts", "GetInterruptMask", "SetInterruptMask", "GetCR0", "GetCR2", "GetCR3", "GetCR4",
        "WBINVD", "RDTSC", "IODelay", "SetCallbacks",
    }  # fmt: skip
    other_format = {"UpdatePxE"}
    assert known - made == in_rom | other_format | {"Reboot"}


def test_on_bare_it_finds_no_rom() -> None:
    result = run(backend="bare")
    assert b"FAIL rom.header" in result.transcript
    assert result.outcome is Outcome.POWERED_OFF


def test_runs_repeat_to_the_nanosecond() -> None:
    first, second = run(), run()
    assert (first.guest_ns, first.transcript) == (second.guest_ns, second.transcript)


def test_a_guest_with_the_signature_begins_natively() -> None:
    ran = run_text("mov eax, cr0\n mov al, 0\n out 0xf4, al\n .long 0x696d5663", "vmi")
    assert ran.result.outcome is Outcome.EXITED
    assert ran.result.stats["missed"] == 0


def test_any_other_guest_begins_at_privilege_1() -> None:
    ran = run_text("mov edx, cs\n mov eax, cr0\n", "vmi")
    assert ran.result.outcome is Outcome.CRASHED
    assert ran.register(2) & 3 == 1
    assert "mov" in ran.result.detail
    assert "VMI_Init" in ran.result.detail
