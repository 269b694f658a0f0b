"""The interface file against the published layout, and the two host builds."""

from __future__ import annotations

from runtime.backends.lguest.interface import ABI_HOST, LINUX_HOST, interface

OFFSETS = {
    "irq_enabled": 0x000,
    "blocked_interrupts": 0x004,
    "cr2": 0x008,
    "time_sec": 0x00C,
    "irq_pending": 0x014,
    "hcall_status": 0x018,
    "hcalls": 0x058,
    "reserve_mem": 0x558,
    "tsc_khz": 0x55C,
    "noirq_start": 0x560,
    "noirq_end": 0x564,
    "kernel_address": 0x568,
    "syscall_vec": 0x56C,
}
"""struct lguest_data of Linux 3.x and 4.x."""


def test_layout_of_the_shared_page() -> None:
    known = interface()
    for name, offset in OFFSETS.items():
        assert known.offset(name) == offset, name
    assert known.data_size == 0x570


def test_fields_do_not_overlap_and_fill_the_page() -> None:
    known = interface()
    at = 0
    for _, (offset, size) in sorted(known.fields.items(), key=lambda item: item[1]):
        assert offset == at
        at = offset + size
    assert at == known.data_size


def test_ring_fits_its_field() -> None:
    known = interface()
    assert known.ring_entries * known.ring_entry_words * 4 == known.fields["hcalls"][1]
    assert known.ring_entries == known.fields["hcall_status"][1]


def test_numbers_of_linux_3() -> None:
    numbers = {call.name: number for number, call in interface().hypercalls.items()}
    assert numbers["lguest_init"] == 1
    assert numbers["set_clockevent"] == 9
    assert numbers["notify"] == 17
    assert numbers["send_interrupts"] == 19
    assert len(numbers) == 17


def test_host_builds_keep_their_entries_apart() -> None:
    for build in (LINUX_HOST, ABI_HOST):
        entries = [
            build.kernel_code, build.kernel_data, build.host_code, build.host_data,
            build.task_state, build.double_fault,
        ]  # fmt: skip
        assert len(set(entries)) == len(entries)
        assert max(entries) < build.gdt_entries
    assert min(ABI_HOST.owned) == 26
