"""The hypercalls: one method per number (hypercalls.c of lguest). A bad one kills the guest."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from runtime.backends.lguest.errors import GuestKilled
from runtime.backends.lguest.interface import Shutdown
from runtime.cpu import flags as fl
from runtime.deprivileged.shadow import PAGE

if TYPE_CHECKING:
    from runtime.backends.lguest.model import LguestModel

__all__ = ["Hypercalls"]

_ROOT_ENTRIES = 1024
_PAE_ROOT_ENTRIES = 4
_FIRST_TLS, _TLS_ENTRIES = 6, 3
_MESSAGE_LIMIT = 128
_NOTIFY_LIMIT = PAGE
"""Longest console string that one NOTIFY prints, bytes."""

Arguments = tuple[int, int, int, int]


class Hypercalls:
    """Dispatch by number, the ring included."""

    def __init__(self, model: LguestModel) -> None:
        self._model = model
        self._interface = model.interface
        self._next_in_ring = 0
        table: dict[str, Callable[[Arguments], None]] = {
            "flush_async": lambda _: None,
            "lguest_init": self._again,
            "shutdown": self._shutdown,
            "new_pgtable": self._new_pgtable,
            "flush_tlb": lambda _: model.shadow.flush(),
            "load_idt_entry": lambda args: model.gates.load(args[0], args[1], args[2]),
            "set_stack": lambda args: model.traps.set_stack(args[0], args[1], args[2]),
            "ts": lambda args: model.set_task_switched(bool(args[0])),
            "set_clockevent": lambda args: model.interrupts.set_clock(args[0]),
            "halt": lambda _: model.halt(),
            "set_pmd": self._set_pmd,
            "set_pte": self._set_pte,
            "set_pgd": self._set_pgd,
            "load_tls": self._load_tls,
            "notify": self._notify,
            "load_gdt_entry": lambda args: model.gdt.load(args[0], args[1], args[2]),
            "send_interrupts": lambda _: model.interrupts.send(),
        }
        self._handlers = {number: table[call.name] for number, call in self._interface.hypercalls.items()}

    def call(self, number: int, arguments: Arguments) -> None:
        """One INT 0x1F: the ring first, then the call itself."""
        if self._model.shared.address is None:
            self._first(number, arguments)
            return
        self._drain_ring()
        self._do(number, arguments)

    def _do(self, number: int, arguments: Arguments) -> None:
        handler = self._handlers.get(number)
        if handler is None:
            raise GuestKilled(f"bad hypercall {number}")
        self._model.count(f"hypercall_{self._interface.hypercalls[number].name}")
        handler(arguments)

    def _first(self, number: int, arguments: Arguments) -> None:
        """Nothing works before LGUEST_INIT."""
        if number != self._interface.number("lguest_init"):
            raise GuestKilled(f"hypercall {number} before LGUEST_INIT")
        model, address = self._model, arguments[0]
        if not address and model.machine.cpu.state.gpr[fl.RDX] & 0xFFFFFFFF:
            raise GuestKilled("LGUEST_INIT with its argument in EDX: a guest of Linux before 2.6.31")
        if address & 3 or not model.space.physical.contains(address, model.shared.interface.data_size):
            raise GuestKilled(f"bad guest page {address:#x} for lguest_data")
        model.count("hypercall_lguest_init")
        model.shared.address = address
        model.register_shared_page()

    def _again(self, arguments: Arguments) -> None:
        raise GuestKilled("already have lguest_data")

    def _drain_ring(self) -> None:
        """Asynchronous calls, in order, at most once around."""
        interface, model = self._interface, self._model
        base = model.shared.address
        assert base is not None  # call() checked
        status = base + interface.offset("hcall_status")
        calls = base + interface.offset("hcalls")
        memory = model.space.physical
        for _ in range(interface.ring_entries):
            slot = self._next_in_ring
            if memory.load(status + slot, 1)[0] == interface.ring_free:
                return
            self._next_in_ring = (slot + 1) % interface.ring_entries
            words = memory.load(calls + slot * interface.ring_entry_words * 4, interface.ring_entry_words * 4)
            number, *rest = (int.from_bytes(words[at : at + 4], "little") for at in range(0, len(words), 4))
            memory.store(status + slot, bytes([interface.ring_free]))
            model.count("async_calls")
            self._do(number, (rest[0], rest[1], rest[2], rest[3]))

    def _shutdown(self, args: Arguments) -> None:
        """The end: 1 power off, 2 restart; anything else is the older CRASH with its message."""
        raw = self._model.space.load(args[0], 1) and self._model.space.physical.load(args[0], _MESSAGE_LIMIT)
        message = raw.split(b"\0")[0].decode("latin-1")
        if args[1] == Shutdown.POWEROFF:
            self._model.machine.power_off(message or "SHUTDOWN")
        elif args[1] == Shutdown.RESTART:
            self._model.machine.reset(message or "SHUTDOWN (restart)")
        else:
            raise GuestKilled(f"CRASH: {message}")

    def _new_pgtable(self, args: Arguments) -> None:
        self._model.check_root(args[0])
        self._model.look_at_format(args[0])
        self._model.shadow.set_root(args[0])

    def _is_current(self, root: int) -> bool:
        return root & ~0xFFF == self._model.shadow.root & ~0xFFF

    def _set_pte(self, args: Arguments) -> None:
        """The entry is in the guest's table already: only what was cached of it must go."""
        root, linear = args[0], args[1]
        if self._is_current(root) or linear >= self._model.shared.read("kernel_address"):
            self._model.shadow.invalidate(linear)

    def _set_pgd(self, args: Arguments) -> None:
        entries = _PAE_ROOT_ENTRIES if self._model.pae else _ROOT_ENTRIES
        if args[1] >= entries:
            raise GuestKilled(f"attempt to set pgd {args[1]}/{entries}")
        if self._is_current(args[0]):
            self._model.shadow.flush()

    def _set_pmd(self, args: Arguments) -> None:
        if not self._model.pae:
            raise GuestKilled(f"bad hypercall {self._interface.number('set_pmd')} (not PAE)")
        self._model.space.check(args[0], 8)
        self._model.shadow.flush()

    def _load_tls(self, args: Arguments) -> None:
        raw = self._model.space.load(args[0], _TLS_ENTRIES * 8)
        for index in range(_TLS_ENTRIES):
            low = int.from_bytes(raw[index * 8 : index * 8 + 4], "little")
            high = int.from_bytes(raw[index * 8 + 4 : index * 8 + 8], "little")
            self._model.gdt.load(_FIRST_TLS + index, low, high)

    def _notify(self, args: Arguments) -> None:
        """A string for the console, or a kick for a device, of which this launcher has none."""
        memory = self._model.space.physical
        if not memory.contains(args[0]):
            raise GuestKilled(f"bad NOTIFY {args[0]:#x}")
        room = min(_NOTIFY_LIMIT, memory.size - args[0])
        self._model.machine.console.write(memory.load(args[0], room).split(b"\0")[0])
