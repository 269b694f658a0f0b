"""The sample on three hosts: our model, real Xen as first domain, real Xen as an unprivileged guest."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from pvpatch.guests import build_initramfs, fetch
from tests.oracle.packages import libraries_of, tree, xen_image

__all__ = ["SAMPLE", "dom0", "domu", "model", "verdicts"]

SAMPLE = Path(__file__).resolve().parents[2] / "samples" / "xen-x86_64" / "xen-x86_64.elf"
VERDICT = re.compile(r"^(PASS|FAIL) (\S+)(?: = (-?\d+))?(.*)$")
QEMU = [
    "qemu-system-x86_64", "-accel", "tcg", "-cpu", "qemu64", "-smp", "1",
    "-nographic", "-no-reboot", "-nic", "none",
]  # fmt: skip
XEN_OPTIONS = "console=com1 com1=115200 dom0_mem={memory}M loglvl=all guest_loglvl=all dom0=pv noreboot=1"
BEGIN, END = "=== guest console begins", "=== guest console ends"
MODULES = ("xen-evtchn", "xen-privcmd", "xen-gntdev", "xen-gntalloc", "xenfs")
PROGRAMS = ("xl", "xenstored", "xenconsoled", "xen-init-dom0", "libxl-save-helper")
GUEST_CONFIG = """type = "pv"
name = "guest"
kernel = "/guest.elf"
memory = 64
vcpus = 1
on_poweroff = "preserve"
on_crash = "preserve"
"""
SCRIPT = f"""
mount -t devtmpfs dev /dev
mkdir -p /dev/pts
mount -t devpts devpts /dev/pts
mkdir -p /run /var/run/xen /var/run/xenstored /var/lib/xen /var/lib/xenstored /var/log/xen/console /var/lock
mkdir -p /run/xen /run/xenstored /var/lib/xenstored
for m in {" ".join(MODULES)}; do insmod /modules/$m.ko; done
mount -t xenfs xenfs /proc/xen
export LD_LIBRARY_PATH=/lib PATH=/bin:/xen
ln -s /xen /usr/lib/xen-4.17/bin
xenstored --pid-file=/run/xenstored.pid
sleep 1
xen-init-dom0
xenconsoled --log=guest --log-dir=/var/log/xen/console
echo creating
xl create /guest.cfg
for i in $(seq 1 60); do
  grep -q "^DONE" /var/log/xen/console/*.log 2>/dev/null && break
  sleep 1
done
sleep 1
xl list


echo "{BEGIN}"
cat /var/log/xen/console/*.log
echo "{END}"
poweroff -f
"""


def verdicts(transcript: str) -> dict[str, str]:
    """Check name -> verdict with its number, in order."""
    found: dict[str, str] = {}
    for raw in transcript.replace("\r", "").split("\n"):
        line = re.sub(r"^\(XEN\) (\[[^\]]*\] )?", "", raw.strip())
        match = VERDICT.match(line)
        if match:
            verdict, name, number, rest = match.groups()
            found[name] = verdict + (f" {number}" if number is not None else rest)
    return found


def model(folder: Path) -> str:
    """On our model."""
    command = [sys.executable, "-m", "pvpatch", "run", str(SAMPLE), "--backend", "xen", "--memory", "64"]
    done = subprocess.run(command, capture_output=True, cwd=folder, check=False)
    return done.stdout.decode(errors="replace")


def _xen(folder: Path, kernel: Path, memory: int, initrd: Path | None, arguments: str, seconds: int) -> str:
    xen = xen_image(folder / "xen")
    modules = f"{kernel} {arguments}" + (f",{initrd}" if initrd else "")
    options = XEN_OPTIONS.format(memory=memory)
    command = [*QEMU, "-m", "1024", "-kernel", str(xen), "-append", options, "-initrd", modules]
    try:
        done = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, timeout=seconds, check=False
        )
        return done.stdout.decode(errors="replace")
    except subprocess.TimeoutExpired as late:
        return (late.stdout or b"").decode(errors="replace")


def dom0(folder: Path) -> str:
    """On real Xen, as its first domain."""
    return _xen(folder, SAMPLE, 256, None, "", 120)


def domu(folder: Path) -> str:
    """On real Xen, as a guest made by `xl` in a small Linux first domain."""
    root = tree()
    tools = root / "usr" / "lib" / "xen-4.17" / "bin"
    programs = [tools / name for name in PROGRAMS]
    files = {f"xen/{path.name}": path.read_bytes() for path in programs}
    for soname, path in libraries_of(root, programs).items():
        files[f"lib/{soname}"] = path.read_bytes()
    loader = next(root.rglob("ld-linux-x86-64.so.2"))
    files["lib64/ld-linux-x86-64.so.2"] = loader.read_bytes()
    for module in MODULES:
        files[f"modules/{module}.ko"] = next(root.rglob(f"{module}.ko")).read_bytes()
    files["guest.elf"] = SAMPLE.read_bytes()
    files["guest.cfg"] = GUEST_CONFIG.encode()
    files["usr/lib/xen-4.17/.keep"] = b""
    initrd = folder / "dom0.cpio"
    initrd.write_bytes(build_initramfs(fetch("busybox-amd64").path, SCRIPT, files))
    kernel = next((root / "boot").glob("vmlinuz-*"))
    text = _xen(folder, kernel, 512, initrd, "console=hvc0 panic=-1", 300)
    if BEGIN not in text:
        return ""
    return text.split(BEGIN, 1)[1].split(END, 1)[0]
