"""The transcript rules mask what follows from time and memory, and nothing else."""

from __future__ import annotations

from pvpatch.transcripts import compare, load_rules, normalise
from runtime.terminal import is_screen, screen

BOOT = b"kernel 1.0\r\nmap: 0000000000100000:0000000020000000, available\r\nCPU at 2000 MHz\r\nhello\r\n"


def test_clock_and_memory_do_not_count() -> None:
    other = (
        b"kernel 1.0\nmap: 0000000000100000:0000000010000000, available\n"
        b"map: 0000000010000000:0000000010005000, reserved\nCPU at 1870 MHz\nhello\n"
    )
    result = compare(BOOT, other)
    assert result.equal, result.differences
    assert {"clock rate", "physical memory range"} <= set(result.rules_used)


def test_a_real_difference_is_found() -> None:
    result = compare(BOOT, BOOT.replace(b"hello", b"panic"))
    assert result.differences == (("hello", "panic"),)


def test_a_missing_line_is_found() -> None:
    assert not compare(BOOT, BOOT.replace(b"hello\r\n", b"")).equal


def test_what_follows_the_end_text_does_not_count() -> None:
    assert compare(BOOT + b"tail one", BOOT + b"tail two", until="hello").equal


def test_a_drawn_screen_is_compared_as_it_looks() -> None:
    rows = b"".join(b"\x1b[%d;1Hrow %d" % (row, row) for row in range(1, 24))
    slow = rows + b"\x1b[1;20HTime: 0:00:01" + b"\x1b[1;20HTime: 0:00:09"
    assert is_screen(rows) and is_screen(slow)
    assert screen(slow)[0].endswith("0:00:09")
    assert compare(rows + b"\x1b[1;20HTime: 0:00:02", slow).equal
    assert not compare(rows, rows + b"\x1b[5;1Hbad 5").equal


def test_every_rule_gives_its_reason_and_is_not_empty() -> None:
    for rule in load_rules():
        assert rule.why
        assert not rule.pattern.fullmatch("")


def test_plain_text_passes_unchanged() -> None:
    lines = normalise(b"PASS cli_sti\nDONE passed=12 failed=0\n")
    assert lines == ["PASS cli_sti", "DONE passed=12 failed=0", ""]
