"""Targets, block ends, functions and windows of a whole image, from every source at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from iced_x86 import Decoder, FlowControl, OpKind, Register
from numpy.typing import NDArray

from rewriter.decode.opcode_tables import ByteArray
from rewriter.image import Image
from rewriter.scan.codemap import FlowFacts, RegionMap, Window
from rewriter.scan.contested import contested_windows, other_readings
from rewriter.scan.explore import Explorer
from rewriter.scan.flow import sweep_flow
from rewriter.scan.frames import function_frames
from rewriter.scan.kernel_tables import KernelTables, patch_windows
from rewriter.scan.pointers import absolute_pointers, relative_pointers, relocation_addends
from rewriter.scan.recursion import Recursion
from rewriter.scan.space import Region, Space
from rewriter.scan.sweeping import Sweep

__all__ = ["compute_flow"]

NOT_POINTERS = (
    ".orc_unwind_ip",
    ".orc_unwind",
    ".smp_locks",
    ".retpoline_sites",
    ".return_sites",
    ".eh_frame",
)
"""Tables of code addresses that lead no control: their entries are windows, or nothing at all."""


class _Targets:
    def __init__(self, space: Space) -> None:
        self.space = space
        self.bits = [np.zeros(region.size, np.uint8) for region in space.regions]

    def add(self, addresses: NDArray[np.uint64]) -> None:
        for region in self.space.regions:
            offset = addresses - np.uint64(region.vaddr)
            self.bits[region.index][offset[offset < np.uint64(region.size)].astype(np.int64)] = 1

    def add_all(self, addresses: Iterable[int]) -> None:
        self.add(np.array(sorted(addresses), np.uint64))


def compute_flow(
    image: Image,
    space: Space,
    maps: tuple[RegionMap, ...],
    swept: Mapping[int, Sweep],
    recursion: Recursion,
    tables: KernelTables,
) -> FlowFacts:
    """Everything that `CodeMap` answers beyond boundaries."""
    explorer = recursion.explorer
    windows, table_targets = patch_windows(image, space, tables)
    windows += [Window(at, at + image.bits // 8, "relocation") for at in image.relocated or ()]
    windows += contested_windows(maps, recursion)
    indirect = _Targets(space)
    indirect.add_all(table_targets | set(explorer.references))
    for table in recursion.tables.values():
        indirect.add_all(table.targets)
    indirect.add_all(entry.address for entry in image.entries)
    indirect.add_all(address for address, _ in recursion.got_references())
    indirect.add_all(relocation_addends(space))
    indirect.add_all(symbol.address for symbol in image.symbols if symbol.kind in ("function", "notype"))
    skip = [(t.address, t.address + t.size) for name in NOT_POINTERS if (t := image.table(name)) is not None]
    indirect.add(_without_numbers(explorer, *_outside(*absolute_pointers(space), skip)))
    if tables.present:
        indirect.add(relative_pointers(space, skip)[1])
    targets = _Targets(space)
    targets.add_all(explorer.targets)
    functions: list[NDArray[np.uint64]] = [np.array(sorted(recursion.functions), np.uint64)]
    functions.append(np.array([frame.start for frame in function_frames(image)], np.uint64))
    unresolved: list[NDArray[np.uint64]] = []
    ends: list[ByteArray] = []
    for built in maps:
        region = built.region
        sweep = swept.get(region.index)
        if sweep is None:
            ends.append(_decoded_ends(image, built))
            continue
        flow = sweep_flow(sweep)
        ends.append(flow.ends | _decoded_ends(image, built, image.bits))
        targets.add(_absolute(flow.branch_targets, region, image.bits))
        windows += other_readings(image, built, flow.branch_targets)
        indirect.add(_absolute(flow.taken, region, image.bits))
        indirect.add(flow.immediates.astype(np.uint64) & np.uint64((1 << image.bits) - 1))
        functions.append(_absolute(flow.call_targets, region, image.bits))
        unresolved.append(_absolute(flow.unresolved, region, image.bits))
    unknown = [
        at for at in explorer.indirect if at not in recursion.tables and not _through_pointer(recursion, at)
    ]
    unresolved.append(np.array(sorted(unknown), np.uint64))
    starts = np.unique(np.concatenate(functions))
    return FlowFacts(
        tuple(direct | other for direct, other in zip(targets.bits, indirect.bits, strict=True)),
        tuple(indirect.bits),
        tuple(ends),
        starts,
        np.unique(np.concatenate(unresolved)),
        tuple(windows),
    )


def _absolute(offsets: NDArray[np.int64], region: Region, bits: int) -> NDArray[np.uint64]:
    result: NDArray[np.uint64] = (offsets.astype(np.uint64) + np.uint64(region.vaddr)) & np.uint64(
        (1 << bits) - 1
    )
    return result


def _outside(
    places: NDArray[np.uint64], values: NDArray[np.uint64], skip: list[tuple[int, int]]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    keep = np.ones(places.size, np.bool_)
    for start, end in skip:
        keep &= (places < np.uint64(start)) | (places >= np.uint64(end))
    return places[keep], values[keep]


def _without_numbers(
    explorer: Explorer, places: NDArray[np.uint64], values: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """The values without those that are numbers rather than pointers.

    Where code lies at 1 MiB, a mask like 100001h looks like its address. A value counts as a number if it
    names the middle of an instruction that recursion found, and is none of three in a row that do: tables of
    places inside instructions (relocation records) are long runs of such values.
    """
    middle = np.zeros(values.size, np.bool_)
    for region in explorer.space.regions:
        inside = np.flatnonzero(values - np.uint64(region.vaddr) < np.uint64(region.size))
        offsets = (values[inside] - np.uint64(region.vaddr)).astype(np.int64)
        covered = np.frombuffer(explorer.covered[region.index], np.uint8)
        lengths = np.frombuffer(explorer.lengths[region.index], np.uint8)
        middle[inside] = (covered[offsets] > 0) & (lengths[offsets] == 0)
    word = np.int64(explorer.space.image.bits // 8)
    places = places.astype(np.int64)
    before, after = (np.isin(places + step, places[middle]) for step in (-word, word))
    before_that, after_that = (np.isin(places + step, places[middle]) for step in (-2 * word, 2 * word))
    run = before & after | before & before_that | after & after_that
    kept: NDArray[np.uint64] = values[~middle | run]
    return kept


def _decoded_ends(image: Image, built: RegionMap, without: int = 0) -> ByteArray:
    """1 at known instructions that transfer control, decoded one by one; `without` skips one width."""
    result = np.zeros(built.region.size, np.uint8)
    decoders = {width: Decoder(width, image.payload) for width in (16, 32, 64)}
    chosen = (built.widths != 0) & (built.widths != without)
    for offset in np.flatnonzero(chosen).tolist():
        decoder = decoders[int(built.widths[offset])]
        decoder.position = built.region.file_offset + offset
        decoder.ip = built.region.vaddr + offset
        instruction = decoder.decode()
        if instruction.flow_control != FlowControl.NEXT:
            result[offset] = 1
    return result


def _through_pointer(recursion: Recursion, address: int) -> bool:
    """`jmp [address]`: a call through a function pointer in tail position, never a switch."""
    explorer = recursion.explorer
    region = explorer.space.find(address)
    if region is None:
        return False
    jump = explorer.decoder.instruction_at(address, explorer.indirect[address], region)
    if jump.op0_kind != OpKind.MEMORY:
        return False
    plain = jump.memory_base in (Register.NONE, Register.RIP)
    return bool(plain and jump.memory_index == Register.NONE)
