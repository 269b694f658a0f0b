"""A translated domain under a hostile guest: hypercalls, and what it can map."""

from __future__ import annotations

import pytest

from pvpatch.bootimage import boot_image
from rewriter.image import open_image
from runtime.backends import backend_named
from runtime.backends.xen.domain import WORK_LIMIT
from runtime.backends.xen.frames import PageType
from runtime.backends.xen.hypercalls import Continue, call
from runtime.backends.xen.layout import ERRNO, PAGE_SIZE, numbers, struct
from runtime.backends.xen.ring1.model import GDT, XenRing1
from runtime.machine import Machine, MachineConfig
from tests.backends.test_patched_guests import sample

HYPERCALL = numbers("hypercall")
DOMID_SELF = 0x7FF0
SCRATCH = 0x20_0000


@pytest.fixture
def model() -> XenRing1:
    """A domain that is loaded and has not run; everything is mapped to itself."""
    image = boot_image(open_image(sample("native-i386")))
    machine = Machine(MachineConfig(memory_mib=16), image, backend_named("xen"))
    hypervisor = machine.hypervisor
    assert isinstance(hypervisor, XenRing1)
    hypervisor.start(hypervisor.load())
    return hypervisor


def own_state(model: XenRing1) -> bytes:
    """The guest's page of the GDT and Xen's behind it."""
    return model.domain.memory.load(model.gdt_frame * PAGE_SIZE, 2 * PAGE_SIZE)


@pytest.mark.parametrize("number", sorted(HYPERCALL.values()))
def test_wild_arguments_get_a_defined_answer(model: XenRing1, number: int) -> None:
    domain = model.domain
    gdt = model.gdt_frame
    before = own_state(model)
    values = [
        0, 1, 2, 7, 0x7FF0, 1 << 31, (1 << 32) - 1, SCRATCH, SCRATCH + 4093, GDT, GDT + 0xE000, gdt,
        gdt * PAGE_SIZE, gdt * PAGE_SIZE + 8, domain.frames.frames, domain.shared_info, 0xFFC06000,
    ]  # fmt: skip
    for index, first in enumerate(values):
        domain.work_done = 0
        arguments = [first] + [values[(index * (k + 2) + 3 * k) % len(values)] for k in range(1, 6)]
        answer = call(domain, number, arguments)
        assert isinstance(answer, Continue) or -200 < answer < 1 << 32
        assert domain.work_done <= WORK_LIMIT + 512
    if number != HYPERCALL["update_descriptor"]:
        assert own_state(model) == before
    assert domain.frames.kind[gdt] == PageType.SEGMENT
    assert domain.frames.owned(gdt)


def test_page_table_commands_of_direct_paging_are_refused_or_ignored(model: XenRing1) -> None:
    domain = model.domain
    domain.space.write(SCRATCH, (0x300000).to_bytes(8, "little") + (7).to_bytes(8, "little"))
    assert call(domain, HYPERCALL["mmu_update"], (SCRATCH, 1, 0, DOMID_SELF)) == -ERRNO.EINVAL
    assert call(domain, HYPERCALL["update_va_mapping"], (SCRATCH, 7, 0, 0, 0)) == -ERRNO.EINVAL
    pin = struct("mmuext_op", 32).pack(cmd=0, arg1=5)
    domain.space.write(SCRATCH, bytes(pin))
    assert call(domain, HYPERCALL["mmuext_op"], (SCRATCH, 1, 0, DOMID_SELF)) == 0
    reservation = struct("memory_reservation", 32).pack(extent_start=SCRATCH, nr_extents=1, domid=DOMID_SELF)
    domain.space.write(SCRATCH, bytes(reservation))
    assert call(domain, HYPERCALL["memory_op"], (1, SCRATCH)) == 0


def test_the_gdt_can_be_read_and_not_written(model: XenRing1) -> None:
    shadow = model.shadow
    table = shadow._host_tables[GDT >> 21]
    for page in (0, 14):
        entry = shadow._words[(table >> 3) + ((GDT >> 12) + page & 0x1FF)]
        assert entry & 3 == 1, "present and read-only"
    assert call(model.domain, HYPERCALL["xen_version"], (1, GDT)) == -ERRNO.EFAULT


def test_frames_of_xens_answer_like_an_empty_bus(model: XenRing1) -> None:
    gdt = model.gdt_frame * PAGE_SIZE
    assert model.domain.tables.walk(0, gdt) is None


def test_descriptors_get_privilege_1_and_no_system_descriptor_gets_in(model: XenRing1) -> None:
    domain = model.domain
    at = model.gdt_frame * PAGE_SIZE + 8 * 5
    update = HYPERCALL["update_descriptor"]
    assert call(domain, update, (at, 0, 0x0000FFFF, 0x00CF9A00)) == 0
    stored = int.from_bytes(domain.memory.load(at, 8), "little")
    assert stored >> 45 & 3 == 1
    assert call(domain, update, (at, 0, 0x67, 0x00008900)) == -ERRNO.EINVAL
    reserved = (model.gdt_frame + 1) * PAGE_SIZE + 0x18
    assert call(domain, update, (reserved, 0, 0xFFFF, 0x00CF9A00)) == -ERRNO.EINVAL, "Xen's own page"
    assert call(domain, update, (0x1000, 0, 0xFFFF, 0x00CF9A00)) == 0, "a plain page of the guest's"


def test_the_pin_of_the_controllers_is_interrupt_0_and_comes_once_until_its_end(model: XenRing1) -> None:
    domain = model.domain
    bind = numbers("event")["bind_pirq"]
    domain.space.write(SCRATCH, (1).to_bytes(4, "little") + bytes(8))
    assert call(domain, HYPERCALL["event_channel_op"], (bind, SCRATCH)) == -ERRNO.EINVAL
    domain.space.write(SCRATCH, bytes(12))
    assert call(domain, HYPERCALL["event_channel_op"], (bind, SCRATCH)) == 0
    assert call(domain, HYPERCALL["event_channel_op"], (bind, SCRATCH)) == -ERRNO.EEXIST
    port = domain.space.word(SCRATCH + 8, 4)
    platform = model.machine.platform
    for chip, value in ((0x20, 0x11), (0x21, 8), (0x21, 4), (0x21, 1), (0x21, 0xFD)):
        platform.write_port(chip, 1, value)
    platform.pic.set_irq(1, True)  # type: ignore[attr-defined]
    domain.upcall_mask = False
    assert model.interrupt_waiting()
    domain.events.form.clear_pending(port)
    model.interrupt_waiting()
    assert not domain.events.pending(port), "not again before the end of interrupt"
    domain.space.write(SCRATCH, bytes(4))
    assert call(domain, HYPERCALL["physdev_op"], (12, SCRATCH)) == 0
    assert domain.events.pending(port)
