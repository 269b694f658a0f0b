"""Xen's own guests, unpatched."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pvpatch.bootimage import boot_image
from pvpatch.guests import build_initramfs
from rewriter.image import open_image
from runtime.backends import backend_named
from runtime.boot.model import BootRequest
from runtime.machine import Machine, MachineConfig
from runtime.outcome import Outcome, RunResult
from tests.conftest import GuestPath

pytestmark = pytest.mark.guest

ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


def run(path: Path, **config: object) -> RunResult:
    image = boot_image(open_image(path))
    machine = Machine(MachineConfig(max_time_s=60.0, **config), image, backend_named("xen"))  # type: ignore[arg-type]
    return machine.run()


@pytest.mark.parametrize("name", ["grub-xen-amd64", "grub-xen-i386"])
def test_grub_obeys_typed_commands(guest_path: GuestPath, name: str) -> None:
    result = run(guest_path(name), typed=b"ls\recho hello world\rhalt\r", typed_after="grub>")
    text = ESCAPES.sub(b"", result.transcript)
    assert result.outcome is Outcome.POWERED_OFF, result.detail
    assert b"(memdisk) (proc)" in text
    assert b"\nhello world" in text.replace(b"\r", b"")


@pytest.mark.slow
def test_linux_boots_through_its_xen_entry(guest_path: GuestPath) -> None:
    request = BootRequest(
        cmdline="console=hvc0 panic=-1", initrd=build_initramfs(guest_path("busybox-amd64"))
    )
    result = run(guest_path("linux-amd64"), memory_mib=256, request=request)
    text = result.transcript.decode("utf-8", "replace")
    assert result.outcome is Outcome.POWERED_OFF, result.detail
    assert "Booting kernel on Xen" in text
    assert "Checked W+X mappings: passed" in text
    assert not re.search(r"WARNING|BUG|Oops|Call Trace", text)
    assert "Linux (none)" in text
