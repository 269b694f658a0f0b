"""Small fixed campaigns, the corpus of what failed once, and the fuzzer's own parts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.build import build
from tests.fuzz.campaign import examine, hosts_of
from tests.fuzz.compare import load_rules
from tests.fuzz.corpus import CORPUS, load, saved
from tests.fuzz.generate import snippets
from tests.fuzz.hosts import backends, have_qemu, run_on
from tests.fuzz.snippet import Snippet

WIDTHS = (32, 64)
SEED = 1
SEEDS = (1, 2)
COUNT = 60
PRIVILEGED = ("bare", "kvm")
"""Backends that leave the kernel its privilege: on the others some kinds still differ (docs/fuzzing.md)."""


def told(verdict_failures: list[object]) -> str:
    """What differs, one line for each."""
    return "\n".join(str(failure) for failure in verdict_failures)


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.toml")), ids=lambda path: path.stem)
def test_what_failed_once(path: Path) -> None:
    width, snippet = load(path)
    verdict = examine(build((snippet,), width), backends(width))
    assert verdict.compared == len(backends(width))
    assert not verdict.failures, told([*verdict.failures])


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_unpatched_kernels_run_as_under_qemu(width: int) -> None:
    if not have_qemu(width):
        pytest.skip("QEMU is not installed")
    verdict = examine(build(snippets(SEED, width, COUNT), width), ("qemu",))
    assert verdict.compared == COUNT
    assert not verdict.failures, told([*verdict.failures])


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("seed", SEEDS)
def test_patched_kernels_run_as_unpatched(seed: int, width: int) -> None:
    verdict = examine(build(snippets(seed, width, COUNT), width, stripped=bool(seed & 1)), PRIVILEGED)
    assert verdict.compared == COUNT * len(PRIVILEGED)
    assert not verdict.failures, told([*verdict.failures])


@pytest.mark.parametrize("width", WIDTHS)
def test_a_seed_gives_the_same_kernel(width: int) -> None:
    made = snippets(SEED, width, COUNT)
    assert made == snippets(SEED, width, COUNT)
    assert made != snippets(SEED + 1, width, COUNT)
    assert build(made, width).image == build(made, width).image


@pytest.mark.parametrize("width", WIDTHS)
def test_a_kernel_that_dies_is_gone_on_with_behind(width: int) -> None:
    """A snippet that gives the CPU an empty IDT ends the machine; the others are seen all the same."""
    word = "l" if width == 32 else "q"
    fatal = Snippet((f".data; @p: .word 0; .{'long' if width == 32 else 'quad'} 0; .text", "lidt @p", "ud2"))
    kernel = build((Snippet((f"mov{word} $1, data",)), fatal, Snippet(("nop",))), width)
    first = run_on("bare", kernel, kernel.image)
    assert first.end.startswith("crashed: triple fault")
    assert sorted(first.journal.seen) == [0, 1]
    assert first.journal.seen[1].left is None
    verdict = examine(kernel, ("bare",))
    assert verdict.compared == 3
    assert not verdict.failures, told([*verdict.failures])


def test_a_difference_is_found() -> None:
    """The time stamp is no constant: a snippet that shows it must fail where code runs longer."""
    verdict = examine(build((Snippet(("rdtsc",)),), 32), ("bare",))
    assert [difference.field for difference in verdict.failures[0].differences][-1:] == ["eax"]


def test_rules_name_machines_that_exist() -> None:
    names = {host for width in WIDTHS for host in backends(width)} | {"qemu", "qemu-patched"}
    for rule in load_rules():
        assert rule.reason and rule.source
        assert rule.hosts and names.issuperset(rule.hosts)
    assert hosts_of(32)


def test_a_snippet_survives_its_file(tmp_path: Path) -> None:
    for snippet in snippets(SEED, 32, 20):
        path = tmp_path / "one.toml"
        path.write_text(saved(snippet, 32, "why"), encoding="utf-8")
        width, read = load(path)
        kept = {name: value for name, value in snippet.registers.items() if value != "0"}
        assert (width, read.lines, read.registers, read.flags) == (32, snippet.lines, kept, snippet.flags)
