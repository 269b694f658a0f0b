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
from tests.backends.images import DATA, run_text
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


def test_a_patched_native_guest_is_not_told_of_xen() -> None:
    """GRUB for PVH takes the signature for leave to use a hypercall page, which native guests have not."""
    text = "mov esp, 0x9000\nmov eax, 0x40000000\nmov ecx, 0\ncall slot_cpuid\n"
    text += "or eax, ebx\nor eax, ecx\nor eax, edx\nadd eax, 5\nmov [DATA], eax\nhlt\n"
    assert run_text(text, "xen", patched=True).dword(DATA) == 5
