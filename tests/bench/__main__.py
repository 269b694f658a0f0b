"""`make bench`: every figure of the README and the docs, each beside a peer measured in the same run."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pvpatch.abi.errors import PvpatchError
from pvpatch.guests import build_initramfs, fetch
from rewriter.image import open_image
from runtime.backends import all_backends
from tests.bench.calls import OPERATIONS, TRAPPING, Bench
from tests.bench.measure import Figure, measure_in_turn
from tests.bench.storms import GOAL, STORMS, cost
from tests.bench.sweep import executable_sections

PVPATCH = [sys.executable, "-m", "pvpatch"]
SCRIPT = "uname -a\npoweroff -f\n"
BOOT_APPEND = "console=ttyS0 panic=-1"
XEN_APPEND = "console=hvc0 panic=-1"


def _table(console: Console, title: str, figures: Sequence[Figure], note: str = "") -> None:
    columns = ("what", "wall s", "CPU s", "peak MiB", "exit")
    table = Table(*columns, title=title, title_justify="left", caption=note)
    for one in figures:
        table.add_row(one.name, f"{one.wall_s:.2f}", f"{one.cpu_s:.2f}", one.peak, str(one.exit_code))
    console.print(table)


def _scan(console: Console, guest: Path, folder: Path) -> None:
    elf = folder / "vmlinux"
    image = open_image(guest)
    elf.write_bytes(image.payload)
    code = sum(section.file_size for section in executable_sections(image))
    commands: dict[str, Sequence[str]] = {
        "pvpatch scan": [*PVPATCH, "scan", str(elf), "--json", str(folder / "scan.json")],
        "objdump -d": ["objdump", "-d", str(elf)],
        "capstone, plain sweep": [sys.executable, "-m", "tests.bench.sweep", str(elf)],
    }
    figures = measure_in_turn(commands)
    note = f"{code / 1e6:.1f} MB of code, {code / 1e6 / figures[0].wall_s:.1f} MB/s by pvpatch"
    _table(console, "scan of linux-amd64", figures, note)


def _patch(console: Console, folder: Path) -> None:
    figures = []
    for name in ("gnumach-i386", "gnumach-amd64", "memtest-ia32", "memtest-x64"):
        command = [*PVPATCH, "patch", str(fetch(name).path), "-o", str(folder / name)]
        figures += measure_in_turn({name: command})
    _table(console, "patch", figures)


def _boot(console: Console, guest: Path, folder: Path) -> None:
    initrd = folder / "initramfs"
    initrd.write_bytes(build_initramfs(fetch("busybox-amd64").path, SCRIPT))
    boot = [*PVPATCH, "run", str(guest), "--memory", "512", "--initrd", str(initrd)]
    commands: dict[str, Sequence[str]] = {
        "pvpatch run (bare)": [*boot, "--append", BOOT_APPEND],
        "pvpatch run (xen, its Xen entry)": [*boot, "--backend", "xen", "--append", XEN_APPEND],
    }
    qemu = shutil.which("qemu-system-x86_64")
    if qemu:
        commands["qemu-system-x86_64 -accel tcg"] = [
            qemu, "-accel", "tcg", "-m", "512", "-nographic", "-no-reboot", "-nic", "none",
            "-kernel", str(guest), "-initrd", str(initrd), "-append", BOOT_APPEND,
        ]  # fmt: skip
    figures = measure_in_turn(commands)
    note = f"CPU time: xen / bare {figures[1].cpu_s / figures[0].cpu_s:.2f}"
    if len(figures) > 2:
        note += f", bare / QEMU {figures[0].cpu_s / figures[2].cpu_s:.2f}"
    _table(console, "linux-amd64, unpatched, to power-off", figures, note)


def _calls(console: Console, folder: Path) -> None:
    bench, in_guest = Bench(folder), 0.0
    for width, title in ((32, "i386"), (64, "x86_64")):
        backends = [name for name, one in all_backends().items() if width in one.capabilities.privilege]
        table = Table(
            "ns each", *backends, title=f"one operation of a patched {title} kernel", title_justify="left"
        )
        for operation in OPERATIONS:
            row = {backend: bench.cost(operation, width, backend) for backend in backends}
            if operation.define == "OP_FLAG" and width == 32:
                in_guest = row[TRAPPING]
            table.add_row(operation.title, *(f"{row[backend]:,.0f}" for backend in backends))
        console.print(table)
    trapped = bench.trap_and_emulate()
    console.print(
        f"unpatched, the same cli by trap-and-emulate on {TRAPPING}: {trapped:,.0f} ns,"
        f" {trapped / in_guest:.0f} times the call answered in the guest"
    )


def _storms(console: Console) -> None:
    backends = [name for name, one in all_backends().items() if 32 in one.capabilities.privilege]
    table = Table(
        "the guest does nothing but", *backends, title="host seconds per guest second", title_justify="left",
        caption=f"goal: at most {GOAL}",
    )  # fmt: skip
    for name in STORMS:
        row = (cost(name, backend) for backend in backends)
        table.add_row(name, *("" if one is None else f"{one:.0f}" for one in row))
    console.print(table)


def main() -> int:
    """Print every table. Exit code 1 when a peer or a guest is missing."""
    console = Console(width=100)
    if not shutil.which("objdump") or not shutil.which("gcc"):
        console.print("objdump and gcc are needed (Debian packages binutils, gcc-multilib)")
        return 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        linux = fetch("linux-amd64").path
        _scan(console, linux, folder)
        _patch(console, folder)
        _boot(console, linux, folder)
        try:
            _calls(console, folder)
        except (subprocess.CalledProcessError, PvpatchError) as error:
            console.print(f"the call benchmark failed: {error}")
            return 1
        _storms(console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
