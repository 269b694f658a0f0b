"""A raw vmlinux has no setup header: it is entered as the decompressor of a bzImage enters it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvpatch.bootimage import boot_image
from pvpatch.guests import build_initramfs
from rewriter.image import open_image
from runtime.backends import backend_named
from runtime.boot import BootKind, BootRequest
from runtime.machine import Machine, MachineConfig
from runtime.outcome import Outcome
from tests.conftest import GuestPath
from tests.image.builders import Load, elf, note

LINUX_NOTE = note(b"Linux", 0x100, b"\0\0\0\0")
KERNELS = {32: (BootKind.LINUX32, 0xC0000000), 64: (BootKind.LINUX64, 0xFFFFFFFF80000000)}


@pytest.mark.parametrize("bits", [32, 64])
def test_a_kernel_that_says_it_is_linux_has_a_linux_entry(bits: int, tmp_path: Path) -> None:
    kind, base = KERNELS[bits]
    load = Load(base + 0x1000000, 0x1000000, b"\xf4" * 64)
    path = tmp_path / "vmlinux"
    path.write_bytes(elf(bits, (load,), entry=0x1000010, notes=LINUX_NOTE))
    image = boot_image(open_image(path))
    assert image.kind is kind
    assert image.entries[kind] == 0x1000010
    path.write_bytes(elf(bits, (load,), entry=load.vaddr))
    assert kind not in boot_image(open_image(path)).entries


@pytest.mark.guest
@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["i386", "amd64"])
def test_linux_runs_without_its_boot_image(
    guest_path: GuestPath, architecture: str, tmp_path: Path
) -> None:
    raw = tmp_path / "vmlinux"
    raw.write_bytes(open_image(guest_path(f"linux-{architecture}")).payload)
    initrd = build_initramfs(guest_path(f"busybox-{architecture}"), "echo sum $((6 * 7))\npoweroff -f\n")
    request = BootRequest("console=ttyS0 panic=-1 quiet", initrd)
    config = MachineConfig(memory_mib=256, request=request, max_time_s=30)
    result = Machine(config, boot_image(open_image(raw)), backend_named("bare")).run()
    assert result.outcome is Outcome.POWERED_OFF, result.transcript[-2000:]
    assert b"sum 42" in result.transcript
