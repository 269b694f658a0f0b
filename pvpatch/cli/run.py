"""`pvpatch run`: boot an image, patched or not, on a backend."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated, BinaryIO

import typer

from pvpatch.abi.errors import UsageError
from pvpatch.bootimage import boot_image
from pvpatch.cli.limits import check_guest_seconds, check_host_seconds
from pvpatch.report.outfile import OutputFile, outputs
from pvpatch.report.run import render_crash, render_end
from rewriter.image import open_image
from runtime.backends import backend_named
from runtime.boot.model import BootRequest
from runtime.machine import Machine, MachineConfig
from runtime.memory.ram import MAX_MEMORY_MIB, MIN_MEMORY_MIB
from runtime.outcome import RunResult
from runtime.trace import JsonLinesTracer

__all__ = ["run_command"]

_INTERRUPTED = 130
PANIC_TEXTS = ("Kernel panic - not syncing", "\npanic ", "\npanic: ")
"""What Linux says (kernel/panic.c), and GNU Mach and older Mach (kern/debug.c), at a line's beginning."""


def _read(path: str, what: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {what} {path}: {error.strerror}") from error


def _module(argument: str) -> tuple[str, bytes]:
    """`FILE` or `FILE ARGUMENTS`: the module's command line is the whole argument."""
    path = argument.split(" ", 1)[0]
    return argument, _read(path, "module")


@contextlib.contextmanager
def _interruptible(machine: Machine) -> Iterator[None]:
    """Ctrl-C (or a polite kill) ends the guest at its next block boundary instead of wherever Python is."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        machine.interrupt()

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _shower(console: BinaryIO) -> Callable[[bytes], None]:
    """What shows the guest's console as it appears."""

    def show(data: bytes) -> None:
        console.write(data)
        console.flush()

    return show


def _fill(files: dict[str, OutputFile], result: RunResult) -> None:
    """Write the output files; the trace is already in its stream."""
    if "transcript" in files:
        files["transcript"].write_bytes(result.transcript)
    if "stats" in files:
        files["stats"].stream.write(json.dumps(result.stats, indent=2) + "\n")


def run_command(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="kernel image, patched or not")],
    backend: Annotated[str, typer.Option(metavar="NAME", help="see `pvpatch backends`")] = "bare",
    append: Annotated[str, typer.Option(metavar="CMDLINE", help="kernel command line")] = "",
    initrd: Annotated[str, typer.Option(metavar="FILE", help="initial ramdisk")] = "",
    module: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="multiboot module, with arguments after a space")
    ] = None,
    memory: Annotated[int, typer.Option(metavar="MIB", help=f"{MIN_MEMORY_MIB} to {MAX_MEMORY_MIB}")] = 512,
    until: Annotated[str, typer.Option(metavar="TEXT", help="end with 0 when the console shows it")] = "",
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="end with 1 when the console shows it, instead of the panics of Linux and Mach; '' for none",
        ),
    ] = None,
    max_time: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="end with 5 after this much guest time")
    ] = None,
    max_host_time: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="end with 5 after this much time on the host")
    ] = None,
    typed: Annotated[
        str, typer.Option("--input", metavar="FILE", help="bytes typed at the guest's console")
    ] = "",
    typed_after: Annotated[
        str, typer.Option("--input-after", metavar="TEXT", help="type only when the console has shown it")
    ] = "",
    transcript: Annotated[str, typer.Option(metavar="FILE", help="console output, - is stdout")] = "",
    stats: Annotated[str, typer.Option(metavar="FILE", help="counters as JSON, - is stdout")] = "",
    trace: Annotated[str, typer.Option(metavar="FILE", help="events as JSON lines, - is stdout")] = "",
    protocol: Annotated[str, typer.Option(metavar="NAME", help="boot protocol, if not the usual one")] = "",
) -> None:
    """Boot IMAGE on a backend; its console appears on standard output."""
    check_guest_seconds(max_time)
    check_host_seconds(max_host_time)
    chosen = backend_named(backend)
    parsed = boot_image(open_image(image), protocol)
    request = BootRequest(
        cmdline=append,
        initrd=_read(initrd, "initial ramdisk") if initrd else b"",
        modules=tuple(_module(entry) for entry in module or ()),
    )
    keys = _read(typed, "console input") if typed else b""
    config = MachineConfig(
        memory_mib=memory,
        request=request,
        until=until,
        fail_on=tuple(filter(None, PANIC_TEXTS if fail_on is None else fail_on)),
        max_time_s=max_time,
        max_host_time_s=max_host_time,
        typed=keys,
        typed_after=typed_after,
    )
    with outputs(transcript=transcript, stats=stats, trace=trace) as files:
        console = sys.stderr if any(file.is_stdout for file in files.values()) else sys.stdout
        tracer = JsonLinesTracer(files["trace"].stream) if "trace" in files else None
        machine = Machine(config, parsed, chosen, _shower(console.buffer), tracer)
        try:
            with _interruptible(machine):
                result = machine.run()
        except BrokenPipeError:
            raise typer.Exit(_INTERRUPTED) from None
        _fill(files, result)
    if result.transcript and not result.transcript.endswith(b"\n"):
        sys.stderr.write("\n")  # the guest left the cursor inside a line
    if result.crash is not None:
        sys.stderr.write(render_crash(result.crash))
    sys.stderr.write(render_end(result, until))
    raise typer.Exit(result.exit_code)
