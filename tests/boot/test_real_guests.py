"""Real kernels, unpatched, through each boot protocol to what they print at their end."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pvpatch.bootimage import boot_image
from pvpatch.guests import build_initramfs
from rewriter.image import open_image
from runtime.backends import backend_named
from runtime.boot import BootRequest
from runtime.machine import Machine, MachineConfig
from runtime.outcome import Outcome

GuestPath = Callable[[str], Path]
pytestmark = [pytest.mark.guest, pytest.mark.slow]


def machine(path: Path, config: MachineConfig, protocol: str = "") -> Machine:
    return Machine(config, boot_image(open_image(path), protocol), backend_named("bare"))


def test_gnumach_amd64_by_multiboot(guest_path: GuestPath) -> None:
    config = MachineConfig(128, BootRequest("console=com0"), until="No bootstrap code", max_time_s=20)
    result = machine(guest_path("gnumach-amd64"), config).run()
    text = result.transcript.decode()
    assert result.outcome is Outcome.UNTIL, text
    assert "000000000000000000:00000000000009f000, available" in text  # whole pages of our map
    assert "000000000000100000:000000000008000000, available" in text
    assert "RTC time is 2024-01-01 00:00:0" in text


@pytest.mark.parametrize("name", ["memtest-ia32", "memtest-x64"])
def test_memtest_draws_on_screen_and_serial_line(guest_path: GuestPath, name: str) -> None:
    config = MachineConfig(8, BootRequest("console=ttyS0,115200"), max_time_s=4.5)
    under_test = machine(guest_path(name), config)
    result = under_test.run()
    screen = "\n".join(under_test.platform.screen())
    assert result.outcome is Outcome.TIME_LIMIT
    assert re.search(r"Time: +0:00:0[1-9]", screen), screen
    assert re.search(r"Errors: 0", screen), screen
    number = re.search(r"Test #(\d+)", screen)
    assert number and int(number[1]) >= 3, screen
    assert b"Memtest86+" in result.transcript


@pytest.mark.parametrize("protocol", ["linux64", "pvh"])
def test_linux_to_a_shell_that_is_typed_to(guest_path: GuestPath, protocol: str) -> None:
    initramfs = build_initramfs(guest_path("busybox-amd64"), "exec sh")
    config = MachineConfig(256, BootRequest("console=ttyS0 panic=-1", initramfs), max_time_s=30)
    under_test = machine(guest_path("linux-amd64"), config, protocol)
    under_test.platform.console_input(b"uname -a\npoweroff -f\n")
    result = under_test.run()
    text = result.transcript.decode(errors="replace")
    assert result.outcome is Outcome.POWERED_OFF, text[-2000:]
    assert re.search(r"# uname -a\r\nLinux \(none\) \d.* x86_64 GNU/Linux", text), text[-2000:]
    assert "clocksource: Switched to clocksource tsc" in text
