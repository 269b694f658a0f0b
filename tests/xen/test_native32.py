"""Native i386 kernels on Xen: an unpatched one fails with the reason; the pages beside a patched one."""

from __future__ import annotations

from runtime.backends.xen.layout import struct
from runtime.backends.xen.ring1.resident import (
    CODE_PAGES,
    HOLE,
    RESIDENT_PAGES,
    caller_of,
    resident,
)
from runtime.outcome import Outcome
from tests.backends.test_patched_guests import run, sample

PAGE = 4096


def test_the_unpatched_native_sample_fails_in_xens_words() -> None:
    result = run(sample("native-i386"), "xen")
    assert result.outcome is Outcome.CRASHED
    assert result.exit_code == 4
    assert "domain_crash: d1v0 Unhandled #GP fault/trap [#13, ec=0000]" in result.detail
    assert result.stats["missed_by_instruction"] == {"cli": 1}


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
