"""Kernels on all machines: run, go on behind crashes, compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from pvpatch.abi.errors import PvpatchError
from tests.fuzz.build import Kernel
from tests.fuzz.compare import Difference, differences, unexplained
from tests.fuzz.hosts import Run, backends, have_qemu, patched, run_on, run_on_qemu
from tests.fuzz.journal import Seen

__all__ = ["Failure", "Verdict", "examine", "hosts_of"]

Runner = Callable[[int], Run]
_RESTARTS = 12
"""Runs of one kernel on one machine: each goes on behind the snippet that ended the one before."""


@dataclass(frozen=True)
class Failure:
    """A snippet that a host runs differently."""

    snippet: int
    host: str
    differences: tuple[Difference, ...]


@dataclass
class Verdict:
    """What all hosts made of one kernel."""

    failures: list[Failure] = field(default_factory=list)
    rules: dict[str, int] = field(default_factory=dict)
    compared: int = 0
    """Snippets times hosts."""


def hosts_of(width: int) -> tuple[str, ...]:
    """Names of all machines for kernels of this width: QEMU (unpatched, patched) and the patched backends."""
    qemu = ("qemu", "qemu-patched") if have_qemu(width) else ()
    return (*qemu, *backends(width))


def _everything(run: Runner, count: int) -> tuple[dict[int, Seen], dict[int, str]]:
    """All snippets, over as many runs as it takes; how those ended that came to no end."""
    seen: dict[int, Seen] = {}
    ends: dict[int, str] = {}
    first = 0
    for _ in range(_RESTARTS):
        if first >= count:
            break
        result = run(first)
        seen |= result.journal.seen
        if result.journal.complete:
            break
        last = max(result.journal.seen, default=first)
        ends[last] = result.end
        first = last + 1
    return seen, ends


def _on_backend(host: str, kernel: Kernel, image: bytes, first: int) -> Run:
    return run_on(host, kernel, image, first)


def examine(kernel: Kernel, hosts: Sequence[str]) -> Verdict:
    """Run a kernel on `hosts` and compare each with the unpatched kernel on bare."""
    verdict = Verdict()
    count = len(kernel.snippets)
    own = range(kernel.symbols["_start"], kernel.symbols["log_limit"])
    reference, reference_ends = _everything(lambda first: run_on("bare", kernel, kernel.image, first), count)
    try:
        image = kernel.image if set(hosts) <= {"qemu"} else patched(kernel.image)
    except PvpatchError as error:
        verdict.failures.append(Failure(0, "patch", (Difference("patch", "refused", "patched", str(error)),)))
        return verdict
    runners: dict[str, Runner] = {
        "qemu": lambda first: run_on_qemu(kernel, kernel.image, first),
        "qemu-patched": lambda first: run_on_qemu(kernel, image, first),
    }
    for host in hosts:
        run = runners.get(host) or partial(_on_backend, host, kernel, image)
        seen, ends = _everything(run, count)
        for index, snippet in enumerate(kernel.snippets):
            if index not in reference:
                continue
            end = ends.get(index, "")
            found = differences(reference[index], seen.get(index), end, own)
            rest = unexplained(found, host, snippet.tags, verdict.rules)
            verdict.compared += 1
            if (index in ends) != (index in reference_ends) and not rest:
                rest = [Difference("run", "end", reference_ends.get(index, ""), end)]
            if rest:
                verdict.failures.append(Failure(index, host, tuple(rest)))
    return verdict
