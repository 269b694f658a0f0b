"""Whole guests, unpatched and patched: deprivileging needs the rewriting, and the rewriting is enough."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from pvpatch.bootimage import boot_image
from pvpatch.transcripts import compare
from rewriter.emit.produce import patch_image
from rewriter.image import open_image
from runtime.backends import backend_named
from runtime.boot.model import BootRequest
from runtime.machine import Machine, MachineConfig
from runtime.outcome import Outcome, RunResult
from tests.conftest import GuestPath

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
DEPRIVILEGING = ("lguest", "vmi", "xen")
"""Backends on which an i386 kernel runs at privilege 1."""
MACH_END = "No bootstrap code loaded with the kernel!"


def run(image: Path, backend: str, *, memory: int = 32, append: str = "", until: str = "") -> RunResult:
    """One run of an image file."""
    config = MachineConfig(memory_mib=memory, request=BootRequest(cmdline=append), until=until, max_time_s=60)
    return Machine(config, boot_image(open_image(image)), backend_named(backend)).run()


@cache
def patched_bytes(image: Path) -> bytes:
    return patch_image(open_image(image)).file


def patched(image: Path, folder: Path) -> Path:
    """The image with its sites replaced, as a file in `folder`."""
    out = folder / f"{image.name}.patched"
    out.write_bytes(patched_bytes(image))
    return out


def expected(name: str) -> bytes:
    """What a sample prints where it finds no fault."""
    return (SAMPLES / name / "expected.txt").read_bytes()


def sample(name: str) -> Path:
    return SAMPLES / name / f"{name}.elf"


def test_the_unpatched_native_sample_fails_and_the_stats_say_why() -> None:
    result = run(sample("native-i386"), "lguest")
    assert result.outcome is Outcome.CRASHED
    assert result.exit_code == 4
    assert "unhandled trap 13" in result.detail
    assert result.stats["missed_by_instruction"] == {"cli": 1, "lgdt": 1}


@pytest.mark.parametrize("backend", DEPRIVILEGING)
def test_the_patched_native_sample_runs_as_on_bare(backend: str, tmp_path: Path) -> None:
    image = patched(sample("native-i386"), tmp_path)
    there, here = run(image, "bare"), run(image, backend)
    assert here.outcome is Outcome.POWERED_OFF, here.detail
    assert here.transcript == there.transcript == expected("native-i386")
    assert here.stats["missed"] == 0, here.stats["missed_sites"]


@pytest.mark.parametrize("name", ["native-i386", "native-x86_64", "pc-x86_64"])
def test_the_patched_native_samples_run_on_kvm_as_on_bare(name: str, tmp_path: Path) -> None:
    image = patched(sample(name), tmp_path)
    assert run(image, "kvm").transcript == run(image, "bare").transcript == expected(name)


@pytest.mark.parametrize("backend", DEPRIVILEGING)
def test_runs_repeat_to_the_byte(backend: str, tmp_path: Path) -> None:
    image = patched(sample("native-i386"), tmp_path)
    first, second = run(image, backend), run(image, backend)
    assert first.transcript == second.transcript
    assert first.guest_ns == second.guest_ns
    drop = {"host_seconds"}
    assert {k: v for k, v in first.stats.items() if k not in drop} == {
        k: v for k, v in second.stats.items() if k not in drop
    }


@pytest.mark.guest
@pytest.mark.parametrize("backend", DEPRIVILEGING)
def test_gnumach_unpatched_fails(backend: str, guest_path: GuestPath) -> None:
    result = run(guest_path("gnumach-i386"), backend, memory=128, append="console=com0", until=MACH_END)
    assert result.outcome is Outcome.CRASHED
    assert result.stats["missed_by_instruction"] == {"lgdt": 1}


@pytest.mark.guest
@pytest.mark.slow
@pytest.mark.parametrize("backend", DEPRIVILEGING)
def test_gnumach_patched_prints_the_same(backend: str, guest_path: GuestPath, tmp_path: Path) -> None:
    original = guest_path("gnumach-i386")
    image = patched(original, tmp_path)
    there = run(original, "bare", memory=128, append="console=com0", until=MACH_END)
    here = run(image, backend, memory=128, append="console=com0", until=MACH_END)
    assert here.outcome is Outcome.UNTIL, here.detail
    assert here.stats["missed"] == 0, here.stats["missed_sites"]
    assert compare(there.transcript, here.transcript, MACH_END).equal
    calls = here.stats["calls"]
    assert isinstance(calls, dict)
    assert calls["irq_disable"]["exit"] == 0
    assert calls["irq_disable"]["in_guest"] > 1000


@pytest.mark.guest
@pytest.mark.slow
@pytest.mark.parametrize("backend", DEPRIVILEGING)
def test_memtest_patched_finds_no_error(backend: str, guest_path: GuestPath, tmp_path: Path) -> None:
    image = patched(guest_path("memtest-ia32"), tmp_path)
    result = run(image, backend, memory=8, append="console=ttyS0,115200", until="#5  [")
    assert result.outcome is Outcome.UNTIL, result.detail
    assert result.stats["missed"] == 0, result.stats["missed_sites"]
