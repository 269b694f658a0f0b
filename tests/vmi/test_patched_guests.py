"""Whole native guests on VMI: unpatched they fail and the stats say why, patched they run as on bare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pvpatch.transcripts import compare
from runtime.outcome import Outcome
from tests.backends.test_patched_guests import MACH_END, patched, run, sample
from tests.conftest import GuestPath


def test_the_unpatched_native_sample_fails_and_the_report_says_why() -> None:
    result = run(sample("native-i386"), "vmi")
    assert result.outcome is Outcome.CRASHED
    assert result.exit_code == 4
    assert "cli" in result.detail and "not patched" in result.detail
    assert result.stats["missed_by_instruction"] == {"cli": 1}


def test_the_patched_native_sample_runs_as_on_bare(tmp_path: Path) -> None:
    image = patched(sample("native-i386"), tmp_path)
    there, here = run(image, "bare"), run(image, "vmi")
    assert here.outcome is Outcome.POWERED_OFF, here.detail
    assert here.transcript == there.transcript


def test_hot_calls_are_answered_in_the_guest(tmp_path: Path) -> None:
    calls: Any = run(patched(sample("native-i386"), tmp_path), "vmi").stats["calls"]
    assert calls["irq_disable"]["exit"] == calls["flags_read"]["exit"] == calls["cr2_read"]["exit"] == 0
    assert calls["irq_disable"]["in_guest"] > 100
    assert calls["irq_enable"]["exit"] < calls["irq_enable"]["in_guest"] // 10
    assert calls["cr0_write"]["in_guest"] == 0


@pytest.mark.guest
@pytest.mark.slow
def test_gnumach_patched_prints_the_same(guest_path: GuestPath, tmp_path: Path) -> None:
    original = guest_path("gnumach-i386")
    options: dict[str, Any] = {"memory": 128, "append": "console=com0", "until": MACH_END}
    here = run(patched(original, tmp_path), "vmi", **options)
    assert here.outcome is Outcome.UNTIL, here.detail
    assert here.stats["missed"] == 0, here.stats["missed_sites"]
    assert compare(run(original, "bare", **options).transcript, here.transcript, MACH_END).equal


@pytest.mark.guest
def test_gnumach_unpatched_fails(guest_path: GuestPath) -> None:
    result = run(guest_path("gnumach-i386"), "vmi", memory=128, append="console=com0", until=MACH_END)
    assert result.outcome is Outcome.CRASHED
    assert result.stats["missed_by_instruction"] == {"lgdt": 1}


@pytest.mark.guest
@pytest.mark.slow
def test_memtest_patched_finds_no_error(guest_path: GuestPath, tmp_path: Path) -> None:
    image = patched(guest_path("memtest-ia32"), tmp_path)
    result = run(image, "vmi", memory=8, append="console=ttyS0,115200", until="#5  [")
    assert result.outcome is Outcome.UNTIL, result.detail
    assert result.stats["missed"] == 0, result.stats["missed_sites"]
