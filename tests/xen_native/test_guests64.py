"""Native x86-64 kernels on Xen: unpatched they fail with the reason, patched they live as on bare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pvpatch.transcripts import compare
from runtime.outcome import Outcome, RunResult
from tests.backends.test_patched_guests import MACH_END, expected, patched, run, sample
from tests.conftest import GuestPath

MEMTEST_SHOWN = "#9  ["


def stat(result: RunResult, *path: str) -> Any:
    """A figure of a run's statistics."""
    found: Any = result.stats
    for name in path:
        found = found[name]
    return found


def test_the_unpatched_native_sample_fails_in_xens_words() -> None:
    result = run(sample("native-x86_64"), "xen")
    assert result.outcome is Outcome.CRASHED
    assert result.exit_code == 4
    assert "domain_crash: d1v0 Unhandled #GP fault/trap [#13, ec=0000]" in result.detail
    assert result.stats["missed_by_instruction"] == {"cli": 1}


def test_the_patched_native_sample_prints_what_it_should(tmp_path: Path) -> None:
    result = run(patched(sample("native-x86_64"), tmp_path), "xen")
    assert result.outcome is Outcome.POWERED_OFF, result.detail
    assert result.transcript == expected("native-x86_64")


def test_nothing_is_missed(tmp_path: Path) -> None:
    result = run(patched(sample("native-x86_64"), tmp_path), "xen")
    assert stat(result, "missed") == 0, stat(result, "missed_sites")


def test_hot_calls_are_answered_without_an_exit(tmp_path: Path) -> None:
    result = run(patched(sample("native-x86_64"), tmp_path), "xen")
    for name in ("irq_disable", "flags_read", "cr0_read", "cr3_read", "segment_store"):
        calls = stat(result, "calls", name)
        assert calls["exit"] == 0 and calls["in_guest"] > 0, name
    assert stat(result, "calls", "iret", "exit") > 0


def test_runs_repeat_to_the_byte(tmp_path: Path) -> None:
    image = patched(sample("native-x86_64"), tmp_path)
    first, second = run(image, "xen"), run(image, "xen")
    assert first.guest_ns == second.guest_ns
    assert first.transcript == second.transcript
    assert first.stats["exits"] == second.stats["exits"]


@pytest.mark.guest
def test_gnumach_unpatched_dies_early(guest_path: GuestPath) -> None:
    result = run(guest_path("gnumach-amd64"), "xen", memory=128, append="console=com0", until=MACH_END)
    assert result.outcome is Outcome.CRASHED
    assert MACH_END.encode() not in result.transcript
    assert stat(result, "missed") > 0


@pytest.mark.guest
def test_gnumach_patched_says_what_it_says_on_bare(guest_path: GuestPath, tmp_path: Path) -> None:
    image = guest_path("gnumach-amd64")
    there = run(image, "bare", memory=128, append="console=com0", until=MACH_END)
    here = run(patched(image, tmp_path), "xen", memory=128, append="console=com0", until=MACH_END)
    assert here.outcome is Outcome.UNTIL, here.detail
    comparison = compare(there.transcript, here.transcript, MACH_END)
    assert comparison.equal, comparison.differences
    assert stat(here, "missed") == 0, stat(here, "missed_sites")
    # The boot code loads SS and jumps far before it has a stack.
    assert stat(here, "exits", "cell") == 2
    assert stat(here, "calls", "far_jump", "exit") == 1


@pytest.mark.guest
@pytest.mark.slow
def test_memtest_patched_finds_no_error(guest_path: GuestPath, tmp_path: Path) -> None:
    image = patched(guest_path("memtest-x64"), tmp_path)
    result = run(image, "xen", memory=8, append="console=ttyS0,115200", until=MEMTEST_SHOWN)
    assert result.outcome is Outcome.UNTIL, result.detail
    assert result.stats["missed"] == 0, result.stats["missed_sites"]
