"""Patch a payload: bind the sites, plan, encode, write, record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from pvpatch.abi.errors import ImageError
from rewriter.bind_sites import Bound, bind_sites
from rewriter.emit import elf_writer, flat_writer
from rewriter.emit.assembly import Assembly
from rewriter.emit.edits import Edits
from rewriter.emit.entry import Entry
from rewriter.emit.reach import FILL, Reach, enter_absolute, enter_relative, enter_short
from rewriter.emit.resident import CellRequest, Resident, ThunkRequest, build_resident
from rewriter.emit.thunk import Piece, compose_absolute, compose_relative
from rewriter.image import EntryPoint, Image
from rewriter.plan import Plan, make_plan
from rewriter.tactics import Context, Window, Windows
from rewriter.tactics.liveness import dead_registers, red_zone_live
from rewriter.tactics.view import CodeView
from rewriter.tactics.window import needs_return_address

__all__ = ["PatchJob", "patch_payload", "stub_entries"]

_PAGE = 4096
_LOWEST = 2 << 20  # physical address below which firmware and old devices have their places
_CONVENTIONAL = 0x90000  # physical address from which boot loaders and the BIOS keep data (Linux boot.rst)
_ENTRY_SIZE = 5
_STUB_PROTOCOLS = ("multiboot1", "multiboot2", "linux32", "linux64", "pvh", "elf")


@dataclass
class PatchJob:
    """Everything about one patch: what was known, what was decided, what came out."""

    image: Image
    view: CodeView
    reach: Reach
    bound: Bound
    plan: Plan
    pieces: dict[int, tuple[Piece, ...]]
    resident: Resident
    edits: Edits
    block_offset: int

    def payload(self) -> bytes:
        """The patched payload, without its manifest."""
        return self.edits.apply()


def patch_payload(
    image: Image, view: CodeView, addresses: Iterable[int], foreign: Mapping[int, str]
) -> PatchJob:
    """Patch the payload of an image; ImageError when it cannot carry the resident block."""
    reach = Reach("absolute" if _may_move(image) else "relative")
    if image.kind == "flat" and (reason := flat_writer.flat_reason(image)):
        raise ImageError(f"the image cannot be extended: {reason}")
    bound = bind_sites(view, reach, addresses, foreign)
    plan = make_plan(view, reach, bound)
    context = Context(view, reach, bound.sites, bound.kept, Windows())
    pieces = {window.start: _pieces(view, bound, window) for window in plan.windows}
    requests = tuple(_request(image, context, window, pieces[window.start]) for window in plan.windows)
    entries = tuple(Entry(point) for point in stub_entries(image))
    build = partial(_build, image, _widths(plan), requests)
    edits = Edits(image.payload)
    if image.kind == "flat":
        entries = tuple(Entry(entry.point, bytes(_ENTRY_SIZE)) for entry in entries)
    resident = build(entries)
    _write_windows(image, context, plan, resident, edits)
    if image.kind == "flat":
        entries = tuple(_restoring(image, entry, edits) for entry in entries)
        resident = build(entries)
        block_offset = flat_writer.add_resident(image, resident, edits)
    else:
        delta = image.entries[0].address - image.entries[0].physical
        block_offset = elf_writer.add_resident(image, resident, delta, edits)
    _redirect_entries(image, resident, edits)
    return PatchJob(image, view, reach, bound, plan, pieces, resident, edits, block_offset)


def _may_move(image: Image) -> bool:
    """Whether the code may run somewhere else than where it is linked, away from the resident block.

    Flat images do, and ELF images of type ET_DYN, which relocate themselves wherever they are. The block
    is reached by physical addresses then; so an image that is linked at others must stay where it is.
    """
    if image.kind == "flat":
        return True
    return image.relocated is not None and all(item.vaddr == item.paddr for item in image.segments)


# ---- what is asked of the resident block ----------------------------------------------------


def _build(
    image: Image, widths: tuple[int, ...], requests: tuple[ThunkRequest, ...], entries: tuple[Entry, ...]
) -> Resident:
    """The block behind the image, or below it where there is room.

    Below is better: kernels take the memory behind their end for their first allocations, some
    by numbers that the memory map does not change. For an ELF image in conventional memory it is
    the top of that: boot loaders would fill a gap up to 2 MiB with all that the adapters have there.
    """
    end = max(segment.paddr + segment.mem_size for segment in image.segments)
    behind = -(-end // _PAGE) * _PAGE
    if behind >= 1 << 31:
        raise ImageError(
            "the image ends above 2 GiB of physical memory", hint="the resident block must lie below"
        )
    delta = _main_delta(image)
    resident = build_resident(behind, delta, widths, requests, entries, 0)
    start = min(segment.paddr for segment in image.segments)
    top = (_CONVENTIONAL - resident.memory_size) // _PAGE * _PAGE
    if image.kind != "flat" and behind < top:
        return build_resident(top, delta, widths, requests, entries, 0)
    below = (start - resident.memory_size) // _PAGE * _PAGE
    if image.kind == "flat" or below < _LOWEST:
        return resident
    return build_resident(below, delta, widths, requests, entries, end)


def _main_delta(image: Image) -> int:
    """Virtual - physical of the largest executable segment."""
    main = max(image.executable_segments(), key=lambda segment: segment.file_size)
    return main.vaddr - main.paddr


def _widths(plan: Plan) -> tuple[int, ...]:
    return tuple(sorted({window.bits for window in plan.windows})) or (32,)


def _pieces(view: CodeView, bound: Bound, window: Window) -> tuple[Piece, ...]:
    pieces: list[Piece] = []
    for address in window.instructions:
        if address in bound.paired:
            continue
        instruction = view.at(address)
        assert instruction is not None
        site = bound.sites.get(address)
        if site is None:
            pieces.append(Piece(instruction))
            continue
        if site.stackless:
            pieces.append(Piece(instruction, site.binding, cell=True))
            continue
        dead = dead_registers(view, site.end, window.bits) if site.binding.loads_ss else ()
        live = not site.binding.jump and red_zone_live(view, site.end)
        pieces.append(Piece(instruction, site.binding, live, dead))
    return tuple(pieces)


def _request(image: Image, context: Context, window: Window, pieces: tuple[Piece, ...]) -> ThunkRequest:
    segment = image.segment_at(window.start)
    assert segment is not None
    end = window.end if window.returns else None
    compose: Callable[[Callable[[int], int]], Assembly]
    if context.reach.kind == "relative":
        compose = partial(compose_relative, window.bits, pieces, end)
        cells = tuple(
            CellRequest(address, site.binding.number, site.form)
            for address, site in ((address, context.sites[address]) for address in window.sites)
            if site.stackless
        )
        delta = segment.vaddr - segment.paddr
        return ThunkRequest(
            window.start, window.bits, delta, compose, cells=cells, end=window.end, cave=window.cave
        )
    anchor = window.entry + context.reach.size(window.bits)
    called = needs_return_address(context, window)
    compose = partial(_compose_absolute, window.bits, pieces, anchor, end, called)
    return ThunkRequest(
        window.start,
        window.bits,
        0,
        compose,
        pointer=True,
        end=window.end,
        cave=window.cave,
        anchor=anchor if called else None,
    )


def _compose_absolute(
    bits: int,
    pieces: tuple[Piece, ...],
    anchor: int,
    end: int | None,
    called: bool,
    slot: Callable[[int], int],
) -> Assembly:
    return compose_absolute(bits, pieces, anchor, end, slot, called=called)


# ---- what is written over the image ---------------------------------------------------------


def _write_windows(image: Image, context: Context, plan: Plan, resident: Resident, edits: Edits) -> None:
    for window in plan.windows:
        long_jump = _long_jump(image, context, window, resident)
        first = long_jump if window.cave is None else enter_short(window.start, window.cave)
        data = first.ljust(window.end - window.start, bytes([FILL]))
        _write(image, edits, window.start, data, "window", window)
    for window in plan.windows:
        if window.cave is not None:
            _write(image, edits, window.cave, _long_jump(image, context, window, resident), "cave", window)


def _write(image: Image, edits: Edits, address: int, data: bytes, kind: str, window: Window) -> None:
    offset = image.offset_of(address)
    assert offset is not None
    if kind == "cave":
        edits.overlay(offset, data)
    why = f"{window.tactic}: to the thunk of {window.start:#x}"
    edits.change(offset, data, kind, why, address, window.start)


def _long_jump(image: Image, context: Context, window: Window, resident: Resident) -> bytes:
    if context.reach.kind == "absolute":
        called = needs_return_address(context, window)
        return enter_absolute(window.bits, resident.pointers[window.start], jump=not called)
    segment = image.segment_at(window.start)
    assert segment is not None
    target = resident.physical + resident.thunk_offsets[window.start] + segment.vaddr - segment.paddr
    return enter_relative(window.bits, window.entry, target)


# ---- entries --------------------------------------------------------------------------------


def stub_entries(image: Image) -> tuple[EntryPoint, ...]:
    """Entries that go through the stub, each physical address and protocol family once."""
    if any(entry.protocol == "xen" for entry in image.entries):
        raise ImageError(
            "the image has a Xen entry, which the patch does not cover yet",
            hint="native entries (multiboot, Linux, PVH) are supported",
        )
    chosen: dict[tuple[int, bool], EntryPoint] = {}
    order = {name: rank for rank, name in enumerate(_STUB_PROTOCOLS)}
    for entry in sorted(image.entries, key=lambda entry: order.get(entry.protocol, 99)):
        if entry.protocol in _STUB_PROTOCOLS:
            chosen.setdefault((entry.physical, entry.protocol == "pvh"), entry)
    entries = tuple(chosen.values())
    if any(entry.protocol != "elf" for entry in entries):
        entries = tuple(entry for entry in entries if entry.protocol != "elf")
    if image.kind != "flat" and any(entry.width == 64 for entry in entries):
        raise ImageError("the ELF entry point is 64-bit code", hint="multiboot and PVH enter in 32-bit code")
    if not entries:
        raise ImageError("the image has no entry that the patch could go through")
    if not any(image.executable_segments()):
        raise ImageError("no segment of the image is executable", hint="there is no code to patch")
    return entries


def _restoring(image: Image, entry: Entry, edits: Edits) -> Entry:
    """The entry with the bytes that the stub must put back: those that patching left there."""
    offset = image.offset_of(entry.point.address)
    assert offset is not None
    return Entry(entry.point, edits.overlay(offset, bytes(_ENTRY_SIZE)))


def _redirect_entries(image: Image, resident: Resident, edits: Edits) -> None:
    for point, stub in resident.stub.starts:
        why = f"the {point.protocol} entry goes through the entry stub"
        if image.kind == "flat" and image.setup_header is None:
            flat_writer.redirect_multiboot(image, stub, edits, why)
        elif image.kind == "flat":
            offset = image.offset_of(point.address)
            assert offset is not None
            jump = enter_relative(point.width, point.address, stub)
            edits.change(offset, jump, "entry", why, point.address)
        elif point.protocol == "pvh":
            elf_writer.redirect_pvh(image, stub, edits, why)
        else:
            elf_writer.redirect_entry(image, stub + point.address - point.physical, edits, why)
