"""The last look at a patched file, before it is written: as boot loaders see it, and as `revert` does.

A patch is right when every loader that could boot the original still puts the same bytes at the same
places, but for the recorded changes, puts the resident block where its locator says, on top of nothing, and
enters at the stub; and when the original comes back bit for bit. Whatever fails here is our own fault: an
image that cannot carry a patch was refused before.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from pvpatch.abi.errors import ImageError, SelfCheckError
from pvpatch.abi.layout import find_locators, unpack_locator
from rewriter.emit.boot_fields import zeroed_range
from rewriter.emit.entries import uncovered_entry
from rewriter.emit.patch import PatchJob
from rewriter.image import Image, LoadRange, parse_image
from rewriter.image.loaders import BootPlan, boot_plans
from rewriter.manifest import Manifest, read_manifest
from rewriter.manifest.restore import restore

__all__ = ["check_file", "check_loaders", "check_output"]


def check_output(image: Image, job: PatchJob, manifest: Manifest, file: bytes) -> None:
    """SelfCheckError unless a finished file boots as its original and reverts to it."""
    payload = check_file(image, file).payload
    if read_manifest(payload) != manifest:
        raise SelfCheckError("the manifest that was written reads otherwise")
    check_loaders(job, manifest, payload)


def check_loaders(job: PatchJob, manifest: Manifest, payload: bytes) -> None:
    """SelfCheckError unless each loader of the original loads the same, and the block, and enters a stub."""
    original = job.image.payload
    before = {plan.loader: plan for plan in boot_plans(original)}
    try:
        after = {plan.loader: plan for plan in boot_plans(payload)}
    except ImageError as error:
        raise SelfCheckError(f"no loader would take the patched file: {error}") from error
    if set(after) != set(before):
        raise SelfCheckError(f"loaders differ: {sorted(before)} became {sorted(after)}")
    expected = _with_changes(original, manifest)
    for name, plan in after.items():
        _check_apart(plan)
        for item in before[name].ranges:
            _check_range(job, plan, item, expected, payload)
        _check_block(job, plan, payload)
        _check_entry(job, before[name], plan, payload)


def check_file(image: Image, file: bytes) -> Image:
    """Open a patched file with the reader that every command uses, and get the original back from it."""
    try:
        patched = parse_image(file, Path(image.path.name))
        original = restore(patched)
    except ImageError as error:
        raise SelfCheckError(f"the patched file cannot be opened again: {error}") from error
    if original != image.original:
        raise SelfCheckError("the patched file does not revert to the original")
    return patched


def _with_changes(payload: bytes, manifest: Manifest) -> bytes:
    data = bytearray(payload)
    for change in manifest.changes:
        new = bytes.fromhex(change.new)
        data[change.offset : change.offset + len(new)] = new
    return bytes(data)


def _check_apart(plan: BootPlan) -> None:
    """Each range has room for its bytes, and no two share memory, at physical or at virtual addresses."""
    for item in plan.ranges:
        if item.file_size > item.mem_size:
            raise SelfCheckError(f"{plan.loader}: more bytes than memory are loaded at {item.address:#x}")
    physical = [(item.address, item.mem_size) for item in plan.ranges]
    virtual = [(at, item.mem_size) for at, item in zip(plan.virtual, plan.ranges, strict=False)]
    for spans in (physical, virtual):
        for (one, size), (two, _) in pairwise(sorted(spans)):
            if one + size > two:
                raise SelfCheckError(f"{plan.loader}: ranges at {one:#x} and {two:#x} overlap")


def _check_range(job: PatchJob, plan: BootPlan, item: LoadRange, expected: bytes, patched: bytes) -> None:
    """What the original loads comes to the same place, zeros included."""
    holder = plan.holder(item.address, item.mem_size)
    if holder is None:
        raise SelfCheckError(f"{plan.loader}: what is loaded at {item.address:#x} is no longer")
    offset = holder.file_offset + item.address - holder.address
    if patched[offset : offset + item.file_size] != expected[item.file_offset :][: item.file_size]:
        raise SelfCheckError(f"{plan.loader}: other bytes are loaded at {item.address:#x}")
    stop = min(item.address + item.mem_size, holder.address + holder.file_size)
    filled = patched[offset + item.file_size : offset + stop - item.address]
    cleared = zeroed_range(job.image) == (item.address + item.file_size, item.mem_size - item.file_size)
    if filled.strip(b"\0") and not cleared:
        raise SelfCheckError(f"{plan.loader}: memory behind {item.address + item.file_size:#x} is not clear")


def _check_block(job: PatchJob, plan: BootPlan, patched: bytes) -> None:
    """The block lies where its locator says, and all of its memory is the image's."""
    block = job.resident
    holder = plan.holder(block.physical, block.memory_size)
    if holder is None:
        raise SelfCheckError(f"{plan.loader}: the resident block is not loaded as a whole")
    offset = holder.file_offset + block.physical - holder.address
    data = patched[offset : offset + block.size]
    if block.physical + block.size > holder.address + holder.file_size or data != block.data():
        raise SelfCheckError(f"{plan.loader}: the resident block is loaded with other bytes")
    if 0 not in find_locators(data, block.physical):
        raise SelfCheckError(f"{plan.loader}: no locator at {block.physical:#x}")
    locator = unpack_locator(data)
    if (locator.resident_phys, locator.resident_size) != (block.physical, block.memory_size):
        raise SelfCheckError(f"{plan.loader}: the locator names another place than {block.physical:#x}")


def _check_entry(job: PatchJob, original: BootPlan, plan: BootPlan, patched: bytes) -> None:
    """The entry is the stub of the original's entry, or a jump to it."""
    stubs = [stub for point, stub in job.resident.stub.starts if point.physical == original.entry]
    if plan.entry in stubs or _jump_at(plan, patched) in stubs:
        return
    if plan.entry == original.entry and plan.loader == "elf" and uncovered_entry(job.image):
        return
    raise SelfCheckError(f"{plan.loader}: {original.entry:#x} became {plan.entry:#x}, which is no entry stub")


def _jump_at(plan: BootPlan, patched: bytes) -> int | None:
    """Where the JMP rel32 at the entry leads; None when there is none."""
    holder = plan.holder(plan.entry, 5)
    if holder is None:
        return None
    offset = holder.file_offset + plan.entry - holder.address
    code = patched[offset : offset + 5]
    if code[:1] != b"\xe9":
        return None
    return plan.entry + 5 + int.from_bytes(code[1:], "little", signed=True)
