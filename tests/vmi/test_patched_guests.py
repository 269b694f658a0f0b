"""Native guests on VMI: what the report says of an unpatched one, and which calls of a patched one exit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runtime.outcome import Outcome
from tests.backends.test_patched_guests import patched, run, sample


def test_the_unpatched_native_sample_fails_and_the_report_says_why() -> None:
    result = run(sample("native-i386"), "vmi")
    assert result.outcome is Outcome.CRASHED
    assert result.exit_code == 4
    assert "cli" in result.detail and "not patched" in result.detail
    assert result.stats["missed_by_instruction"] == {"cli": 1}


def test_hot_calls_are_answered_in_the_guest(tmp_path: Path) -> None:
    calls: Any = run(patched(sample("native-i386"), tmp_path), "vmi").stats["calls"]
    assert calls["irq_disable"]["exit"] == calls["flags_read"]["exit"] == calls["cr2_read"]["exit"] == 0
    assert calls["irq_disable"]["in_guest"] > 100
    assert calls["irq_enable"]["exit"] < calls["irq_enable"]["in_guest"] // 10
    assert calls["cr0_write"]["in_guest"] == 0
