"""KVM: the guest keeps privilege 0 and its tables; time comes through KVM's shared structures."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from pvpatch.abi.layout import HEADER
from pvpatch.abi.page import bare_slots, build_page
from pvpatch.abi.spec import load_spec
from runtime.backends import Capabilities, Hypervisor
from runtime.backends.kvm.interface import interface
from runtime.backends.kvm.model import VMCALL_BYTES, KvmModel
from runtime.backends.slotfile import read_slot_file
from runtime.callpages import PORT_CALLS

if TYPE_CHECKING:
    from runtime.cpu.cpuid import CpuidAnswer
    from runtime.cpu.watch import Site
    from runtime.machine import Machine

__all__ = ["BACKEND", "KvmBackend"]

_BACKEND_ID = 1
_FEATURES = ("clock", "stolen")
_ALWAYS_EXIT = PORT_CALLS | {"cpuid", "halt", "safe_halt"}
"""ABI calls whose instruction always leaves a KVM guest."""


@functools.cache
def call_page(width: int) -> bytes:
    """The call page for `width`."""
    spec, known = load_spec(), interface()
    text = read_slot_file(Path(__file__).with_name(f"slots{width}.s"))
    time_info, wall = known.structures["time_info"], known.structures["wall_clock"]
    symbols = {
        "MSR_SYSTEM_TIME": known.register_index("system_time"),
        "MSR_WALL_CLOCK": known.register_index("wall_clock"),
        "MSR_STEAL_TIME": known.register_index("steal_time"),
        "SELF_PHYS": HEADER.offset("self_phys"),
        "VERSION": time_info["version"],
        "TSC_TIMESTAMP": time_info["tsc_timestamp"],
        "SYSTEM_TIME": time_info["system_time"],
        "TSC_MUL": time_info["tsc_to_system_mul"],
        "TSC_SHIFT": time_info["tsc_shift"],
        "WALL_SEC": wall["sec"],
        "WALL_NSEC": wall["nsec"],
        "STEAL_VERSION": known.structures["steal_time"]["version"],
    }
    slots = {**bare_slots(width, spec), **text.slots}
    features = spec.feature_mask(*_FEATURES)
    return build_page(width, _BACKEND_ID, slots, text.routines, features=features, symbols=symbols)


class KvmHypervisor(Hypervisor):
    """Hands the machine's events to the model."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self.model = KvmModel(machine)

    def page_code(self, width: int) -> bytes | None:
        """Bare code, plus the clock."""
        return call_page(width)

    def on_invalid_opcode(self) -> bool:
        """VMCALL and VMMCALL are not instructions of the emulated CPU."""
        state = self.machine.cpu.state
        linear = state.segments[1].base + state.rip
        if self.machine.linear.try_read(linear, 3) not in VMCALL_BYTES:
            return False
        self.model.hypercall()
        return True

    def on_watched(self, site: Site) -> bool:
        """RDMSR and WRMSR: the indices of KVM's are answered, others go to the CPU."""
        if site.mnemonic == "rdmsr":
            return self.model.read_msr()
        return self.model.write_msr()

    def on_cpuid(self, leaf: int, subleaf: int, bare: CpuidAnswer) -> CpuidAnswer:
        """The hypervisor's leaves."""
        return self.model.cpuid(leaf, bare)

    def call_exits(self) -> dict[str, int]:
        """Calls that are an exit each time, and the registrations of shared structures."""
        entries = self.machine.call_entries()
        return {name: count for name, count in entries.items() if name in _ALWAYS_EXIT}


class KvmBackend:
    """Capabilities and factory."""

    capabilities = Capabilities(
        name="kvm",
        backend_id=_BACKEND_ID,
        privilege={32: 0, 64: 0},
        memory="guest tables",
        time_source="kvmclock (ns)",
        apics=True,
        summary="KVM's guest interface: CPUID leaves, kvmclock and steal time MSRs, VMCALL",
        watched=frozenset({"rdmsr", "wrmsr"}),
    )

    def hidden_memory(self, memory_size: int) -> int:
        """None: what KVM shares lies in the guest's own memory."""
        return 0

    def attach(self, machine: Machine) -> KvmHypervisor:
        """A KVM for one machine."""
        return KvmHypervisor(machine)


BACKEND = KvmBackend()
