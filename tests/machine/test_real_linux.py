"""Debian's own kernel, unpatched, to a shell and to power-off, twice the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pvpatch.bootimage import boot_image
from pvpatch.guests import build_initramfs
from rewriter.image import open_image
from runtime.backends import backend_named
from runtime.boot import BootRequest
from runtime.machine import Machine, MachineConfig
from runtime.outcome import Outcome, RunResult
from tests.conftest import GuestPath

SCRIPT = "uname -a\necho sum $((6 * 7))\npoweroff -f\n"


class _Lines(list[str]):
    def record(self, time_ns: int, kind: str, **values: int | str) -> None:
        self.append(f"{time_ns} {kind} {values}")


def boot(kernel: Path, busybox: Path, protocol: str = "") -> tuple[RunResult, list[str]]:
    initrd = build_initramfs(busybox, SCRIPT)
    config = MachineConfig(
        memory_mib=256, request=BootRequest("console=ttyS0 panic=-1 quiet", initrd), max_time_s=60
    )
    lines = _Lines()
    machine = Machine(config, boot_image(open_image(kernel), protocol), backend_named("bare"), tracer=lines)
    return machine.run(), lines


@pytest.mark.guest
@pytest.mark.slow
def test_two_boots_of_linux_are_the_same_to_the_nanosecond(guest_path: GuestPath) -> None:
    kernel, busybox = guest_path("linux-amd64"), guest_path("busybox-amd64")
    first, first_trace = boot(kernel, busybox)
    assert first.outcome is Outcome.POWERED_OFF
    assert first.exit_code == 0
    assert b"Linux (none) 6." in first.transcript
    assert b"sum 42" in first.transcript
    second, second_trace = boot(kernel, busybox)
    assert second.transcript == first.transcript
    documents = [dict(result.stats) for result in (first, second)]
    for document in documents:
        document.pop("host_seconds")
    assert json.dumps(documents[0]) == json.dumps(documents[1])
    assert first_trace == second_trace


@pytest.mark.guest
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "busybox", "protocol"),
    [("linux-amd64", "busybox-amd64", "pvh"), ("linux-i386", "busybox-i386", "")],
)
def test_other_ways_into_linux(guest_path: GuestPath, kernel: str, busybox: str, protocol: str) -> None:
    result, _ = boot(guest_path(kernel), guest_path(busybox), protocol)
    assert result.outcome is Outcome.POWERED_OFF
    assert b"sum 42" in result.transcript
