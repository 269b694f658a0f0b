"""KVM as a guest sees it: CPUID leaves, MSRs that register shared memory, a few hypercalls.

The guest runs at privilege 0 on its own page tables. Written from the Linux documentation named in
`interface.toml`; what is not offered in the feature leaf does not work (ENOSYS, or #GP for an MSR),
so that a guest which uses it unasked fails here as it would on a host without it.
"""

from __future__ import annotations

from runtime.backends.kvm.interface import interface
from runtime.cpu import flags as fl
from runtime.cpu.delivery import Event
from runtime.devices.rtc import DEFAULT_EPOCH
from runtime.machine import Machine

__all__ = ["VMCALL_BYTES", "KvmModel"]

VMCALL_BYTES = (b"\x0f\x01\xc1", b"\x0f\x01\xd9")
"""VMCALL (Intel) and VMMCALL (AMD)."""

_ENABLED = 1
_TSC_STABLE = 1
_TICKS_PER_NS = 2
"""The machine's TSC rate."""
_MULTIPLIER = (1 << 32) // _TICKS_PER_NS
"""32-bit fraction: nanoseconds per tick."""
_NS_PER_S = 1_000_000_000
_STEAL_RESERVED = 0x3E
_REALTIME_CLOCK = 0
_HYPERVISOR_PRESENT = 1 << 31
_MASK32 = 0xFFFFFFFF
_MASK64 = (1 << 64) - 1


class KvmModel:
    """The state of one virtual machine's paravirtual interface."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._interface = interface()
        self._registers: dict[int, int] = {}
        self._memory = machine.memory

    # -- CPUID ---------------------------------------------------------------------------------

    def cpuid(self, leaf: int, bare: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
        """The hypervisor leaves; leaf 1 says that there is a hypervisor."""
        known = self._interface
        if leaf == 1:
            return bare[0], bare[1], bare[2] | _HYPERVISOR_PRESENT, bare[3]
        if leaf == known.leaf_base:
            b, c, d = (int.from_bytes(known.signature[at : at + 4], "little") for at in (0, 4, 8))
            return known.leaf_features, b, c, d
        if leaf == known.leaf_features:
            return known.feature_word, 0, 0, 0
        return bare

    # -- hypercalls ----------------------------------------------------------------------------

    def hypercall(self) -> None:
        """VMCALL or VMMCALL; RIP is on it and is moved past it."""
        cpu = self.machine.cpu
        state = cpu.state
        mask = _MASK64 if cpu.code_width == 64 else _MASK32
        number, *args = (state.gpr[index] & mask for index in (fl.RAX, fl.RBX, fl.RCX, fl.RDX, fl.RSI))
        result = -self._interface.errors["EPERM"] if cpu.cpl else self._dispatch(number, args)
        name = self._interface.hypercalls.get(number, ("unknown", ""))[0]
        self.count(f"hypercall_{name}")
        state.gpr[fl.RAX] = result & mask
        state.rip += len(VMCALL_BYTES[0])

    def _dispatch(self, number: int, args: list[int]) -> int:
        errors = self._interface.errors
        if not self._interface.has_hypercall(number):
            return -errors["ENOSYS"]
        name = self._interface.hypercalls[number][0]
        if name == "vapic_poll_irq":
            return 0
        if name == "clock_pairing":
            return self._clock_pairing(args[0], args[1])
        return -errors["ENOSYS"]

    def _clock_pairing(self, address: int, clock_type: int) -> int:
        """Wall clock and TSC of one moment."""
        errors, layout = self._interface.errors, self._interface.structures["clock_pairing"]
        if clock_type != _REALTIME_CLOCK:
            return -errors["EOPNOTSUPP"]
        if not self._memory.contains(address, layout["size"]):
            return -errors["EFAULT"]
        now = self.machine.clock.now_ns
        wall = self.boot_wall_ns + now
        record = bytearray(layout["size"])
        moment = {"sec": wall // _NS_PER_S, "nsec": wall % _NS_PER_S, "tsc": now * _TICKS_PER_NS}
        for name, value in moment.items():
            record[layout[name] : layout[name] + 8] = value.to_bytes(8, "little")
        self._memory.store(address, bytes(record))
        return 0

    # -- MSRs ----------------------------------------------------------------------------------

    def read_msr(self) -> bool:
        """RDMSR; True if the index is KVM's (then it is answered, with #GP where not offered)."""
        state = self.machine.cpu.state
        index = state.gpr[fl.RCX] & _MASK32
        if not self._interface.is_ours(index):
            return False
        self.count("msr_read")
        if self.machine.cpu.cpl or not self._interface.has_register(index):
            self.machine.deliver(Event(fl.GP))
            return True
        value = self._registers.get(self._canonical(index), 0)
        state.gpr[fl.RAX], state.gpr[fl.RDX] = value & _MASK32, value >> 32
        return True

    def write_msr(self) -> bool:
        """WRMSR; as for `read_msr`."""
        state = self.machine.cpu.state
        index = state.gpr[fl.RCX] & _MASK32
        if not self._interface.is_ours(index):
            return False
        self.count("msr_write")
        value = (state.gpr[fl.RDX] & _MASK32) << 32 | state.gpr[fl.RAX] & _MASK32
        allowed = not self.machine.cpu.cpl and self._interface.has_register(index)
        if not allowed or not self._write(self._interface.registers[index][0], value):
            self.machine.deliver(Event(fl.GP))
            return True
        self._registers[self._canonical(index)] = value
        return True

    def _canonical(self, index: int) -> int:
        """Old and new clock MSRs are one register each."""
        name = self._interface.registers[index][0].removesuffix("_old")
        return self._interface.register_index(name)

    def _write(self, name: str, value: int) -> bool:
        """Do what writing the register asks; False is #GP. A page outside memory is never written."""
        name = name.removesuffix("_old")
        if name == "wall_clock":
            self._publish_wall_clock(value)
        elif name == "system_time":
            if value & _ENABLED:
                self._publish_time(value & ~_ENABLED)
        elif name == "steal_time":
            if value & _STEAL_RESERVED:
                return False
            if value & _ENABLED:
                return self._publish_steal(value & ~_ENABLED)
        return True

    @property
    def boot_wall_ns(self) -> int:
        """Wall clock when the machine started, ns since 1970."""
        return int(DEFAULT_EPOCH.timestamp()) * _NS_PER_S

    def _store(self, address: int, structure: str, fields: dict[str, tuple[int, int]]) -> bool:
        """Write a structure: field -> (value, bytes). False if it is not inside guest memory."""
        layout = self._interface.structures[structure]
        if not self._memory.contains(address, layout["size"]):
            return False
        record = bytearray(layout["size"])
        for name, (value, size) in fields.items():
            record[layout[name] : layout[name] + size] = value.to_bytes(size, "little")
        self._memory.store(address, bytes(record))
        return True

    def _next_version(self, address: int) -> int:
        """The even number after the one that is there: a reader sees that something changed."""
        return (self._memory.load_u32(address) | 1) + 1 & _MASK32 if self._memory.contains(address, 4) else 0

    def _publish_wall_clock(self, address: int) -> None:
        """Wall time at the start of the machine; the version is even and has changed."""
        version = self._next_version(address)
        seconds, rest = divmod(self.boot_wall_ns, _NS_PER_S)
        self._store(address, "wall_clock", {"version": (version, 4), "sec": (seconds, 4), "nsec": (rest, 4)})

    def _publish_time(self, address: int) -> None:
        """The time base. The TSC never changes its rate and nothing is migrated: once is enough."""
        version = self._next_version(address)
        now = self.machine.clock.now_ns
        self._store(
            address,
            "time_info",
            {
                "version": (version, 4),
                "tsc_timestamp": (now * _TICKS_PER_NS, 8),
                "system_time": (now, 8),
                "tsc_to_system_mul": (_MULTIPLIER, 4),
                "tsc_shift": (0, 1),
                "flags": (_TSC_STABLE, 1),
            },
        )

    def _publish_steal(self, address: int) -> bool:
        """Time stolen from the vCPU: none, since nothing else runs on this host's CPU."""
        return self._store(address, "steal_time", {"steal": (0, 8), "version": (2, 4), "flags": (0, 4)})

    def count(self, kind: str) -> None:
        """One exit to this hypervisor."""
        self.machine.stats.exits[kind] += 1
