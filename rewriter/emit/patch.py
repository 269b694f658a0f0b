"""Patch a payload: bind the sites, plan, encode, write, record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from pvpatch.abi.errors import ImageError
from rewriter.bind_sites import Bound, bind_sites
from rewriter.emit import elf_writer, flat_writer
from rewriter.emit.boot_fields import extended_ranges, range_reason, write_fields, zeroed_range
from rewriter.emit.edits import Edits
from rewriter.emit.entries import redirections, stub_entries, uncovered_entry
from rewriter.emit.entry import Entry
from rewriter.emit.memory_use import asks_for_map, named_addresses
from rewriter.emit.pieces import Moved, pieces_of
from rewriter.emit.placement import Placement, Requirement, place
from rewriter.emit.reach import FILL, Reach, enter_absolute, enter_relative, enter_short
from rewriter.emit.resident import Resident, ThunkRequest, build_resident
from rewriter.emit.thunk import Thunk, compose_absolute, compose_relative
from rewriter.image import Image
from rewriter.image.loading import load_ranges
from rewriter.plan import Plan, make_plan
from rewriter.tactics import Context, Window, Windows
from rewriter.tactics.view import CodeView
from rewriter.tactics.window import needs_return_address

__all__ = ["PatchJob", "may_move", "patch_payload"]

_ENTRY_SIZE = 5


@dataclass
class PatchJob:
    """Everything about one patch: what was known, what was decided, what came out."""

    image: Image
    view: CodeView
    reach: Reach
    bound: Bound
    plan: Plan
    moved: dict[int, Moved]
    resident: Resident
    edits: Edits
    block_offset: int
    warnings: tuple[str, ...] = ()
    """What a person must know of the patch; one sentence each."""

    def payload(self) -> bytes:
        """The patched payload, without its manifest."""
        return self.edits.apply()


def patch_payload(
    image: Image,
    view: CodeView,
    addresses: Iterable[int],
    foreign: Mapping[int, str],
    block_at: int | None = None,
) -> PatchJob:
    """Patch the payload of an image; ImageError when it cannot carry the resident block.

    ``block_at`` is the physical address wished for the block.
    """
    reach = Reach("absolute" if may_move(image) else "relative")
    reason = (flat_writer.flat_reason(image) if image.kind == "flat" else "") or range_reason(image)
    if reason:
        raise ImageError(f"the image cannot be extended: {reason}")
    bound = bind_sites(view, reach, addresses, foreign)
    plan = make_plan(view, reach, bound)
    _refuse_unloaded(image, plan)
    context = Context(view, reach, bound.sites, bound.kept, Windows())
    windows = Windows.of(plan.windows)
    called = reach.kind == "absolute"
    moved = {
        window.start: pieces_of(view, bound, windows, window, called=called) for window in plan.windows
    }
    requests = tuple(_request(image, context, window, moved[window.start]) for window in plan.windows)
    entries = tuple(Entry(point) for point in stub_entries(image))
    edits = Edits(image.payload)
    if image.kind == "flat" and image.setup_header is not None:
        entries = tuple(Entry(entry.point, bytes(_ENTRY_SIZE)) for entry in entries)
    placement = _place(image, view, _widths(plan), requests, entries, block_at)
    build = partial(_build, image, placement, _widths(plan), requests)
    resident = build(entries)
    _write_windows(image, context, plan, resident, edits)
    delta = _segment_delta(image)
    if image.kind == "flat":
        if image.setup_header is not None:
            entries = tuple(_restoring(image, entry, edits) for entry in entries)
            resident = build(entries)
        block_offset = flat_writer.add_resident(image, resident, edits)
    else:
        block_offset = elf_writer.add_resident(image, resident, delta, edits)
    _redirect_code(image, resident, edits)
    write_fields(image, extended_ranges(image, resident) + redirections(image, resident, delta), edits)
    warnings = tuple(filter(None, (placement.warning, uncovered_entry(image))))
    return PatchJob(image, view, reach, bound, plan, moved, resident, edits, block_offset, warnings)


def _refuse_unloaded(image: Image, plan: Plan) -> None:
    """Code behind load_end is in no loader's memory that follows the address fields."""
    for item in load_ranges(image):
        for window in plan.windows:
            start = image.paddr_of(window.start)
            if start is not None and start + window.end - window.start > item.address + item.file_size:
                raise ImageError(
                    "the address fields of its multiboot header do not load the code at "
                    f"{image.describe(window.start)}"
                )


def may_move(image: Image) -> bool:
    """Whether the code may run somewhere else than where it is linked, away from the resident block.

    Flat images do, and ELF images of type ET_DYN, which relocate themselves wherever they are. The block
    is reached by physical addresses then; so an image that is linked at others must stay where it is.
    """
    if image.kind == "flat":
        return True
    return image.relocated is not None and all(item.vaddr == item.paddr for item in image.segments)


# ---- what is asked of the resident block ----------------------------------------------------


def _place(
    image: Image,
    view: CodeView,
    widths: tuple[int, ...],
    requests: tuple[ThunkRequest, ...],
    entries: tuple[Entry, ...],
    asked: int | None,
) -> Placement:
    """The place of a block of the size that these parts need; the size does not depend on the place."""
    start = min(segment.paddr for segment in image.segments)
    delta = _main_delta(image)
    size = build_resident(start, delta, widths, requests, entries, 0).memory_size
    learns = asks_for_map(image, view, tuple(entry.point for entry in entries))
    deltas = (_segment_delta(image), delta)
    return place(image, Requirement(size, deltas, learns, partial(named_addresses, view)), asked)


def _build(
    image: Image,
    placement: Placement,
    widths: tuple[int, ...],
    requests: tuple[ThunkRequest, ...],
    entries: tuple[Entry, ...],
) -> Resident:
    return build_resident(
        placement.physical,
        _main_delta(image),
        widths,
        requests,
        entries,
        placement.image_end,
        zeroed_range(image),
    )


def _segment_delta(image: Image) -> int:
    """Virtual - physical of the block's own segment: that of the first entry, whose code runs first."""
    return image.entries[0].address - image.entries[0].physical


def _main_delta(image: Image) -> int:
    """Virtual - physical of the largest executable segment."""
    main = max(image.executable_segments(), key=lambda segment: segment.file_size)
    return main.vaddr - main.paddr


def _widths(plan: Plan) -> tuple[int, ...]:
    return tuple(sorted({window.bits for window in plan.windows})) or (32,)


def _request(image: Image, context: Context, window: Window, moved: Moved) -> ThunkRequest:
    segment = image.segment_at(window.start)
    assert segment is not None
    compose: Callable[[Callable[[int], int]], Thunk]
    if context.reach.kind == "relative":
        compose = partial(compose_relative, window.bits, moved.pieces, moved.end)
        delta = segment.vaddr - segment.paddr
        return ThunkRequest(window.start, window.bits, delta, compose, end=window.end, cave=window.cave)
    anchor = window.entry + context.reach.size(window.bits)
    called = needs_return_address(context, window)
    compose = partial(_compose_absolute, window.bits, moved, anchor, called)
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
    bits: int, moved: Moved, anchor: int, called: bool, slot: Callable[[int], int]
) -> Thunk:
    return compose_absolute(bits, moved.pieces, anchor, moved.end, slot, called=called)


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


def _restoring(image: Image, entry: Entry, edits: Edits) -> Entry:
    """The entry with the bytes that the stub must put back: those that patching left there."""
    offset = image.offset_of(entry.point.address)
    assert offset is not None
    return Entry(entry.point, edits.overlay(offset, bytes(_ENTRY_SIZE)))


def _redirect_code(image: Image, resident: Resident, edits: Edits) -> None:
    """The entries of a Linux boot image are where they are: a jump over their first instruction."""
    if image.kind != "flat" or image.setup_header is None:
        return
    for point, stub in resident.stub.starts:
        offset = image.offset_of(point.address)
        assert offset is not None
        why = f"the {point.protocol} entry goes through the entry stub"
        jump = enter_relative(point.width, point.address, stub)
        edits.change(offset, jump, "entry", why, point.address)
