"""`make fuzz BUDGET=SECONDS [SEED=n]`: random kernels for so long; what fails is shrunk and kept."""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from pathlib import Path

from tests.fuzz.build import build
from tests.fuzz.campaign import Failure, examine, hosts_of
from tests.fuzz.compare import load_rules
from tests.fuzz.corpus import saved
from tests.fuzz.generate import snippets
from tests.fuzz.shrink import shrink
from tests.fuzz.snippet import Snippet

KEPT = Path("build/fuzz")
_SHRUNK = 20
"""Failures that are shrunk in one campaign; the others are kept as they are."""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--budget", type=float, default=60, help="seconds")
    parser.add_argument("--seed", type=int, help="of the first kernel; the next ones count up")
    parser.add_argument("--count", type=int, default=60, help="snippets in a kernel")
    parser.add_argument(
        "--width", type=int, choices=(32, 64), action="append", help="only kernels of this width"
    )
    parser.add_argument("--host", action="append", help="only this machine")
    parser.add_argument("--whole", action="store_true", help="keep failures as they are")
    parser.add_argument("--snippets", type=int, default=0, help="end after so many, whatever the budget")
    return parser.parse_args()


def _keep(snippet: Snippet, width: int, seed: int, failure: Failure, small: bool) -> Path:
    """Write a failing snippet, shrunk where `small`."""
    if small:
        snippet, failure = shrink(snippet, width, failure)
    KEPT.mkdir(parents=True, exist_ok=True)
    path = KEPT / f"{width}-{seed}-{failure.snippet}-{failure.host}.toml"
    lines = [
        f"seed {seed}, on {failure.host}:",
        *(str(difference) for difference in failure.differences[:12]),
    ]
    path.write_text(saved(snippet, width, "\n".join(lines)), encoding="utf-8")
    return path


def main() -> int:
    """Run a campaign; 1 when there is a difference that no rule explains."""
    arguments = _arguments()
    seed = random.SystemRandom().randrange(1 << 32) if arguments.seed is None else arguments.seed
    widths = arguments.width or (32, 64)
    started = time.monotonic()
    ran = kernels = compared = failed = 0
    rules: Counter[str] = Counter()
    hosts: set[str] = set()
    while time.monotonic() - started < arguments.budget and not 0 < arguments.snippets <= ran:
        for width in widths:
            chosen = tuple(host for host in hosts_of(width) if not arguments.host or host in arguments.host)
            made = snippets(seed, width, arguments.count)
            begun = time.monotonic()
            verdict = examine(build(made, width, stripped=bool(seed & 1)), chosen)
            ran, kernels, compared = ran + len(made), kernels + 1, compared + verdict.compared
            rules.update(verdict.rules)
            hosts.update(chosen)
            print(
                f"seed {seed}, {width} bits: {len(made)} snippets, {len(verdict.failures)} differ,"
                f" {time.monotonic() - begun:.1f} s",
                flush=True,
            )
            for failure in verdict.failures:
                failed += 1
                path = _keep(
                    made[failure.snippet], width, seed, failure, failed <= _SHRUNK and not arguments.whole
                )
                print(f"  {path}: {failure.differences[0]}", flush=True)
        seed += 1
    used = sum(1 for rule in load_rules() if rules[rule.name])
    print(
        f"{ran} snippets in {kernels} kernels on {len(hosts)} machines ({', '.join(sorted(hosts))}):"
        f" {compared} comparisons, {failed} differences that no rule explains,"
        f" {sum(rules.values())} explained by {used} of {len(load_rules())} rules,"
        f" {time.monotonic() - started:.0f} s"
    )
    for name, times in rules.most_common():
        print(f"  {times} {name}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
