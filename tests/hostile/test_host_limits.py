"""Limits of the host hold for every guest: its time, its memory, and that Ctrl-C is heard."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.command import COMMAND, environment, process
from tests.hostile.guests import kernel
from tests.hostile.isolation import isolated

GENEROUS_S = 20
"""On a machine that does other work as well; it takes a fraction of a second on an idle one."""
MEMORY_MIB = 64
OWN_MEMORY = 200 << 20
NEW_CODE = {
    "zeroed memory": "mov eax, 0x200000; jmp eax",
    "functions called once": """
        start: mov edi, 0x200000
        next: mov dword ptr [edi], 0x00c34090
        call edi
        add edi, 16
        cmp edi, 0x3f00000
        jb next
        jmp start
    """,
    "a changing immediate": "again: mov eax, 1\n inc dword ptr [again + 1]\n jmp again",
}
NEW = pytest.mark.parametrize("text", NEW_CODE.values(), ids=list(NEW_CODE))


@NEW
def test_code_that_is_always_new_costs_guest_time_and_bounded_memory(text: str, tmp_path: Path) -> None:
    """0.05 guest seconds of it took minutes and a gigabyte."""
    path = tmp_path / "kernel"
    path.write_bytes(kernel(text))
    words = ("run", path, "--memory", MEMORY_MIB, "--max-time", "0.05")
    ended = isolated(*(str(word) for word in words))
    assert ended.code == 5
    assert ended.seconds < GENEROUS_S
    assert ended.peak < (MEMORY_MIB << 20) + OWN_MEMORY


@NEW
def test_5_at_the_limit_of_host_time(text: str, tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(kernel(text))
    ended = isolated("run", path, "--memory", "64", "--max-host-time", "0.3")
    assert ended.code == 5
    assert "the limit of host time was reached (0.3 s of host time)" in ended.err
    assert ended.seconds < GENEROUS_S


def test_the_limit_of_host_time_does_not_change_a_run_that_ends_before(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(kernel("mov ecx, 100000\n again: loop again\n mov al, 0\n out 0xf4, al"))
    ends = []
    for more in ((), ("--max-host-time", "1000")):
        ends.append(isolated("run", path, *more).err.rpartition(" in ")[0])
    assert ends[0] == ends[1]


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "1e12"])
def test_2_for_a_time_that_is_none(seconds: str, tmp_path: Path) -> None:
    ended = process("run", tmp_path / "kernel", "--max-host-time", seconds)
    assert ended.code == 2 and "--max-host-time" in ended.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130)])
@NEW
def test_signals_are_heard(text: str, number: signal.Signals, code: int, tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(kernel("mov dx, 0x3f8\n mov al, 0x21\n out dx, al\n mov al, 10\n out dx, al\n" + text))
    command = [*COMMAND, "run", str(path), "--memory", str(MEMORY_MIB)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, env=environment()) as guest:
        assert guest.stdout is not None
        assert guest.stdout.readline() == b"!\n"
        sent = time.monotonic()
        guest.send_signal(number)
        assert guest.wait(GENEROUS_S) == code
        assert time.monotonic() - sent < GENEROUS_S
