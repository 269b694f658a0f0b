"""Kernels of others that want a local APIC, on `bare`; Xen beside what it says under QEMU."""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
import threading
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

pytestmark = [pytest.mark.guest, pytest.mark.slow]

DOM0 = Path(__file__).resolve().parents[2] / "samples" / "xen-x86_64" / "xen-x86_64.elf"
XEN_OPTIONS = "console=com1 com1=115200 loglvl=all guest_loglvl=all dom0=pv noreboot=1 dom0_mem=256M"
HALTED = "Hardware Dom0 halted"
QEMU_SECONDS = 120


def run(path: Path, config: MachineConfig) -> RunResult:
    return Machine(config, boot_image(open_image(path), ""), backend_named("bare")).run()


def test_real_time_linux(guest_path: GuestPath) -> None:
    script = "uname -v\ncat /proc/interrupts\npoweroff -f\n"
    initrd = build_initramfs(guest_path("busybox-amd64"), script)
    request = BootRequest("console=ttyS0 panic=-1", initrd)
    result = run(guest_path("linux-rt-amd64"), MachineConfig(256, request, max_time_s=30))
    text = result.transcript.decode(errors="replace")
    assert result.outcome is Outcome.POWERED_OFF and result.exit_code == 0, text[-2000:]
    assert "PREEMPT_RT" in text
    assert re.search(r"0: +\d+ +IO-APIC +2-edge +timer", text), text[-2000:]
    ticks = re.search(r"LOC: +(\d+)", text)
    assert ticks and int(ticks[1]) > 50


@pytest.mark.parametrize("name", ["gnumach-smp-i386", "gnumach-smp-amd64"])
def test_mach_for_several_cpus(guest_path: GuestPath, name: str) -> None:
    config = MachineConfig(128, BootRequest("console=com0"), until="No bootstrap code", max_time_s=20)
    result = run(guest_path(name), config)
    text = result.transcript.decode()
    assert result.outcome is Outcome.UNTIL, text
    assert "CPU 0 - APIC ID 0" in text and "IOAPIC 0 configured with GSI 0-23" in text
    assert "IRQ override: pin=0 gsi=2" in text
    assert "timer calibration... done" in text


def verdicts(text: str) -> list[str]:
    """What the first domain says, and its end."""
    return re.findall(r"^(?:PASS|FAIL|DONE).*|Hardware Dom0 \w+", text.replace("\r", ""), re.MULTILINE)


def xen_under_qemu(xen: Path) -> str:
    command = [
        "qemu-system-x86_64", "-accel", "tcg", "-cpu", "qemu64", "-m", "512", "-nographic", "-no-reboot",
        "-nic", "none", "-kernel", str(xen), "-append", XEN_OPTIONS, "-initrd", str(DOM0),
    ]  # fmt: skip
    said = ""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        late = threading.Timer(QEMU_SECONDS, process.kill)
        late.start()
        for line in process.stdout:
            said += line.decode(errors="replace")
            if "Hardware Dom0" in said:
                break
        late.cancel()
        process.kill()
    return said


@pytest.mark.timeout(300)
def test_xen_comes_to_its_first_domain_as_under_qemu(guest_path: GuestPath, tmp_path: Path) -> None:
    packed = guest_path("xen-amd64")
    request = BootRequest(f"{XEN_OPTIONS} no-real-mode", modules=(("", DOM0.read_bytes()),))
    result = run(packed, MachineConfig(512, request, until=HALTED, max_time_s=20))
    said = result.transcript.decode(errors="replace")
    assert result.outcome is Outcome.UNTIL, said[-2000:]
    assert "Enabling APIC mode.  Using 1 I/O APICs" in said
    assert re.fullmatch(r"DONE passed=\d+ failed=0", verdicts(said)[-2])
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("qemu-system-x86_64 is not installed: compared with nothing")
    xen = tmp_path / "xen"
    xen.write_bytes(gzip.decompress(packed.read_bytes()))
    there = verdicts(xen_under_qemu(xen))
    assert verdicts(said) == there
    assert len(there) > 200
