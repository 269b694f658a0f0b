"""Alarms in order, cancelled alarms forgotten, and the deadline that machine code compares with."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtime.clock import NEVER, VirtualClock
from runtime.cpu.native import UNITS_PER_NS, ControlBlock


@given(st.lists(st.tuples(st.integers(0, 1000), st.booleans()), max_size=30))
def test_alarms_run_once_in_order_of_time_then_of_scheduling(plan: list[tuple[int, bool]]) -> None:
    control = ControlBlock()
    clock = VirtualClock(control)
    ran: list[tuple[int, int]] = []
    handles = [
        clock.schedule_at(due, lambda due=due, index=index: ran.append((due, index)))  # type: ignore[misc]
        for index, (due, _) in enumerate(plan)
    ]
    for handle, (_, cancelled) in zip(handles, plan, strict=True):
        if cancelled:
            clock.cancel(handle)
    kept = [(due, index) for index, (due, cancelled) in enumerate(plan) if not cancelled]
    assert control.deadline == (min(kept)[0] * UNITS_PER_NS if kept else NEVER)
    clock.skip_to(500)
    clock.run_due()
    assert ran == sorted(entry for entry in kept if entry[0] <= 500)
    clock.skip_to(1000)
    clock.run_due()
    assert ran == sorted(kept)
    assert control.deadline == NEVER


def test_a_callback_may_schedule_for_now() -> None:
    clock = VirtualClock(ControlBlock())
    ran: list[str] = []
    clock.schedule_at(5, lambda: (ran.append("first"), clock.schedule_at(3, lambda: ran.append("second"))))
    clock.skip_to(5)
    clock.run_due()
    assert ran == ["first", "second"]


def test_background_alarms_wake_nobody() -> None:
    clock = VirtualClock(ControlBlock())
    clock.schedule_in_background(10, lambda: None)
    assert clock.next_due_ns is None
    handle = clock.schedule_at(20, lambda: None)
    assert clock.next_due_ns == 10, "what the host asked for happens on the way"
    clock.cancel(handle)
    assert clock.next_due_ns is None


def test_cancelled_alarms_take_no_room() -> None:
    """A guest that sets its timer anew in a loop filled the queue: 200 MiB per guest second."""
    clock = VirtualClock(ControlBlock())
    clock.schedule_at(1, lambda: None)
    last = clock.schedule_at(10**9, lambda: None)
    for due in range(10_000):
        clock.cancel(last)
        last = clock.schedule_at(10**9 + due, lambda: None)
    assert len(clock._queue) < 10
    assert clock.next_due_ns == 1
    clock.skip_to(1)
    clock.run_due()
    assert clock.next_due_ns == 10**9 + 9999


def test_only_background_alarms_are_nothing_to_wait_for() -> None:
    clock = VirtualClock(ControlBlock())
    clock.schedule_in_background(5, lambda: None)
    handle = clock.schedule_at(7, lambda: None)
    assert clock.next_due_ns == 5
    clock.cancel(handle)
    clock.cancel(handle)
    assert clock.next_due_ns is None
