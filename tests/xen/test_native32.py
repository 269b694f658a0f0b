"""Native i386 kernels on Xen: unpatched they fail with the reason, patched they live as on bare."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvpatch.transcripts import compare
from runtime.backends.xen.layout import struct
from runtime.backends.xen.ring1.resident import (
    CODE_PAGES,
    HOLE,
    RESIDENT_PAGES,
    caller_of,
    resident,
)
from runtime.outcome import Outcome
from tests.backends.test_patched_guests import MACH_END, patched, run, sample
from tests.conftest import GuestPath

PAGE = 4096


def test_the_unpatched_native_sample_fails_in_xens_words() -> None:
    result = run(sample("native-i386"), "xen")
    assert result.outcome is Outcome.CRASHED
    assert result.exit_code == 4
    assert "domain_crash: d1v0 Unhandled #GP fault/trap [#13, ec=0000]" in result.detail
    assert result.stats["missed_by_instruction"] == {"cli": 1}


def test_the_patched_native_sample_runs_as_on_bare(tmp_path: Path) -> None:
    image = patched(sample("native-i386"), tmp_path)
    there, here = run(image, "bare"), run(image, "xen")
    assert here.outcome is Outcome.POWERED_OFF, here.detail
    assert here.transcript == there.transcript


def test_runs_repeat_to_the_byte(tmp_path: Path) -> None:
    image = patched(sample("native-i386"), tmp_path)
    first, second = run(image, "xen"), run(image, "xen")
    assert first.guest_ns == second.guest_ns
    assert first.transcript == second.transcript
    assert first.stats["exits"] == second.stats["exits"]


def test_the_resident_pages_fit_below_xens_hole() -> None:
    assert len(resident().code) == CODE_PAGES * PAGE
    assert HOLE + RESIDENT_PAGES * PAGE <= 0xFFE0_0000
    assert struct("shared_info", 32).size <= PAGE


def test_hypercalls_are_counted_for_the_call_that_makes_them() -> None:
    labels = resident().labels
    assert caller_of(labels["load_descriptor"]) == "segment_load"
    assert caller_of(labels["alarm_set"] + 3) == "alarm_set"
    assert caller_of(HOLE - 1) is None
    assert caller_of(HOLE + CODE_PAGES * PAGE) is None


@pytest.mark.guest
def test_gnumach_unpatched_fails_on_xen(guest_path: GuestPath) -> None:
    result = run(guest_path("gnumach-i386"), "xen", memory=128, append="console=com0", until=MACH_END)
    assert result.outcome is Outcome.CRASHED
    assert result.stats["missed_by_instruction"] == {"lgdt": 1}


@pytest.mark.guest
@pytest.mark.slow
def test_gnumach_patched_prints_the_same_on_xen(guest_path: GuestPath, tmp_path: Path) -> None:
    original = guest_path("gnumach-i386")
    image = patched(original, tmp_path)
    there = run(original, "bare", memory=128, append="console=com0", until=MACH_END)
    here = run(image, "xen", memory=128, append="console=com0", until=MACH_END)
    assert here.outcome is Outcome.UNTIL, here.detail
    assert here.stats["missed"] == 0, here.stats["missed_sites"]
    assert compare(there.transcript, here.transcript, MACH_END).equal
    calls = here.stats["calls"]
    assert isinstance(calls, dict)
    assert calls["irq_disable"]["exit"] == 0
    assert calls["irq_disable"]["in_guest"] > 1000


@pytest.mark.guest
@pytest.mark.slow
def test_memtest_patched_finds_no_error_on_xen(guest_path: GuestPath, tmp_path: Path) -> None:
    image = patched(guest_path("memtest-ia32"), tmp_path)
    result = run(image, "xen", memory=8, append="console=ttyS0,115200", until="#5  [")
    assert result.outcome is Outcome.UNTIL, result.detail
    assert result.stats["missed"] == 0, result.stats["missed_sites"]
