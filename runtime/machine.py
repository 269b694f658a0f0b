"""The machine: CPU, memory, clock, devices, one backend and one guest, put together and run.

Reads like a table of contents: build (`__init__`), load (`_load`), the run loop (`_loop`), then what
the CPU reports (`CpuEvents`) and what devices may ask (`MachineControl`).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import iced_x86

from pvpatch.abi.errors import UsageError
from runtime.backends import Backend, Hypervisor
from runtime.boot import BootImage, BootRequest, EntryState
from runtime.callpages import CallCounter, find_patched_image, install_page
from runtime.clock import VirtualClock
from runtime.cpu import flags as fl
from runtime.cpu.cpuid import answer
from runtime.cpu.delivery import Deliverer, Event, TripleFault, software_interrupt
from runtime.cpu.device_memory import map_device
from runtime.cpu.fastcall import FAST_CALL_LENGTH, enter_syscall, enter_sysenter
from runtime.cpu.implicit import DescriptorUse, descriptor_use
from runtime.cpu.linear import LinearMemory
from runtime.cpu.realmode import deliver_real, in_real_mode, no_bios
from runtime.cpu.start import enter_guest
from runtime.cpu.vcpu import Stop, VCpu
from runtime.cpu.watch import Site, Watcher
from runtime.cpu.watchpoints import DataWatchpoints
from runtime.crash import crash_report
from runtime.devices import build_platform
from runtime.intercepts import Intercepts
from runtime.memory import GuestMemory
from runtime.memory.paging import ERROR_PRESENT, ERROR_USER
from runtime.outcome import CrashReport, Outcome, RunResult
from runtime.stats import Stats
from runtime.trace import Tracer
from runtime.transcript import OUTPUT_LIMIT, Transcript
from runtime.unwind.presenter import Presenter
from runtime.watchdog import Watchdog

__all__ = ["Machine", "MachineConfig"]

PORT_COST_NS = 1000
"""Virtual time of one port access: what the ISA bus takes."""
MEMORY_DEVICE_COST_NS = 500
"""Virtual time of an access to a device's registers in memory: uncached, and over the chip set for some."""
EXCEPTION_COST_NS = 2000
"""Virtual time of delivering an event, and of what a hypervisor answers: an exit and an entry of a guest."""
EMULATION_COST_NS = 4000
"""Virtual time, at least, of an instruction that the hypervisor decodes and carries out for the guest."""
HEARTBEAT_NS = 20_000_000
"""The longest stretch of guest time without a return to Python, so that Ctrl-C is heard."""

_CODES_BY_OUTCOME = {
    Outcome.UNTIL: 0,
    Outcome.POWERED_OFF: 0,
    Outcome.REBOOTED: 0,
    Outcome.HALTED: 0,
    Outcome.FAILED: 1,
    Outcome.CRASHED: 4,
    Outcome.TIME_LIMIT: 5,
    Outcome.HOST_TIME_LIMIT: 5,
    Outcome.OUTPUT_LIMIT: 5,
    Outcome.INTERRUPTED: 130,
}

LAST_WORDS_NS = 1_000_000_000
"""How long a guest that has said that it failed goes on, so that its message is whole."""

_USER = 3
_EMULATED = (fl.UD, fl.GP)
"""Faults by which instructions reach a hypervisor that carries them out."""
_ENDS_OF_ITS_OWN = (Outcome.POWERED_OFF, Outcome.REBOOTED, Outcome.HALTED, Outcome.EXITED)
_ENDS_OF_A_FAILURE = (*_ENDS_OF_ITS_OWN, Outcome.TIME_LIMIT)


@dataclass(frozen=True)
class MachineConfig:
    """What the person chose for this run."""

    memory_mib: int = 128
    request: BootRequest = field(default_factory=BootRequest)
    until: str = ""
    fail_on: tuple[str, ...] = ()
    """Texts by which a guest says that it has failed; `until` wins over them."""
    max_time_s: float | None = None
    """Guest (virtual) seconds."""
    max_host_time_s: float | None = None
    """Seconds of host time."""
    output_limit: int = OUTPUT_LIMIT
    typed: bytes = b""
    """Typed at the guest's console, as fast as the guest takes it."""
    typed_after: str = ""
    """The typing begins when the console has shown this."""


class Machine:
    """One guest on one backend; `run` once."""

    def __init__(
        self,
        config: MachineConfig,
        image: BootImage,
        backend: Backend,
        show: Callable[[bytes], None] | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self.config = config
        self.patched = find_patched_image(image.segments)
        self.image = image if self.patched is None else replace(image, width=self.patched.width)
        self.capabilities = backend.capabilities
        self._check_width()
        size = config.memory_mib << 20
        self.memory = GuestMemory(size, backend.hidden_memory(size))
        self.stats = Stats()
        self.tracer = tracer
        self._end: tuple[Outcome, str, int | None] | None = None
        self._crash: CrashReport | None = None
        self.cpu = VCpu(self.memory, self)
        self.linear = LinearMemory(self.cpu)
        self.deliverer = Deliverer(self.cpu, self.linear)
        self.watchpoints = DataWatchpoints(self.cpu, self.linear)
        self.clock = VirtualClock(self.cpu.control)
        self.console = Transcript(
            config.until.encode(),
            on_found=lambda: self.end(Outcome.UNTIL, config.until),
            on_full=lambda: self.end(Outcome.OUTPUT_LIMIT, f"{config.output_limit} bytes of console output"),
            show=show,
            limit=config.output_limit,
        )
        self._failure = ""
        for text in config.fail_on:
            self.console.when(text.encode(), functools.partial(self._failed, text.strip()))
        self._started = False
        self.platform = build_platform(
            self.clock, self.memory, self.console, self, self.capabilities.apics
        )
        for device in self.platform.memory_devices:
            map_device(self.cpu, device, self._device_accessed)
        self._nmi = False
        self.hypervisor: Hypervisor = backend.attach(self)
        self._started = True
        self._intercepts = Intercepts(self)
        self._watcher = self._build_watcher()
        self._calls: CallCounter | None = None
        self.presenter: Presenter | None = None

    def _check_width(self) -> None:
        if self.image.width not in self.capabilities.widths:
            widths = " and ".join(f"{width}-bit" for width in self.capabilities.widths)
            raise UsageError(
                f"backend {self.capabilities.name} runs {widths} guests, {self.image.name} is"
                f" {self.image.width}-bit"
            )

    def _build_watcher(self) -> Watcher:
        """What the backend watches, and what is done for the CPU itself."""
        return Watcher(
            self.cpu,
            self.hypervisor.code_reader(),
            self.hypervisor.watched() | self._intercepts.mnemonics,
            self._watched,
            self.hypervisor.is_own_code,
            outer=self._intercepts.outer,
        )

    # -- running -------------------------------------------------------------------------------

    def run(self) -> RunResult:
        """Load the image, run it to its end, and say how it went.

        Raises `ImageError` when the image cannot be loaded.
        """
        started = time.perf_counter()
        host_limit = self.config.max_host_time_s
        with Watchdog(self.cpu.request_stop, host_limit, self._host_time_is_up):
            self._load()
            self._schedule_limits()
            self._loop()
        return self._result(time.perf_counter() - started)

    def interrupt(self) -> None:
        """The user wants the run to end (safe from a signal handler)."""
        self.end(Outcome.INTERRUPTED, "Ctrl-C")

    def _host_time_is_up(self) -> None:
        """From the watchdog's thread."""
        self.end(Outcome.HOST_TIME_LIMIT, f"{self.config.max_host_time_s:g} s of host time")

    def _load(self) -> None:
        entry = self.hypervisor.load()
        if self.patched is not None:
            for page in self.patched.pages:
                code = self.hypervisor.page_code(page.width)
                if code is not None:
                    install_page(self.memory, page, code)
            keeps_privilege = not any(self.capabilities.privilege.values())
            self._calls = CallCounter(self.cpu, self.patched, cells_run=keeps_privilege)
            own = self.hypervisor.is_own_code
            self.presenter = Presenter(self.patched, self.cpu, self.memory, self.linear, own)
        self._enter(self.hypervisor.start(entry))
        if self.config.typed:
            self.console.when(
                self.config.typed_after.encode(), lambda: self.hypervisor.console_input(self.config.typed)
            )

    def _enter(self, entry: EntryState) -> None:
        enter_guest(self.cpu, entry)
        self.hypervisor.entered()

    def _schedule_limits(self) -> None:
        limit = self.config.max_time_s
        if limit is not None:
            self.clock.schedule_in_background(
                int(limit * 1e9), lambda: self.end(Outcome.TIME_LIMIT, f"{limit:g} s of guest time")
            )
        self._heartbeat()

    def _heartbeat(self) -> None:
        self.clock.schedule_in_background(self.clock.now_ns + HEARTBEAT_NS, self._heartbeat)

    def _loop(self) -> None:
        cpu, clock = self.cpu, self.clock
        while self._end is None:
            if self.watchpoints.hits:
                self._deliver_watchpoint()
            if self._nmi and not cpu.in_nmi:
                self._deliver_nmi()
            waiting = self.hypervisor.interrupt_waiting()
            cpu.set_waiting(waiting)
            if waiting and cpu.window_open:
                since = clock.now_ns
                self.hypervisor.deliver_interrupt()
                self._charge(since)
                continue
            if self._nmi:
                cpu.stop_after_block()  # the last one's IRET lets it in
            self.watchpoints.settle()
            self._watcher.before_run()
            stop = cpu.run()
            self._watcher.settle()
            self.console.flush()
            clock.run_due()
            if stop is Stop.HALTED:
                self._halted()
            elif stop is Stop.FETCH_NOWHERE:
                self.invalid_opcode()
            elif stop is Stop.STUCK:
                self.crash(f"the emulator cannot go on (error {cpu.last_error})")

    def _halted(self) -> None:
        """HLT was executed: wait if the guest can be woken at all."""
        self.hypervisor.on_halt()
        if self.cpu.window_open or self._nmi:
            self.halt()
        else:
            self.end(Outcome.HALTED, "HLT with interrupts off")

    def halt(self) -> bool:
        """Let virtual time jump from event to event until an interrupt waits.

        False (and the end of the run) when nothing can come any more.
        """
        self.stats.exits["halt"] += 1
        self.trace("halt", rip=self.cpu.state.rip)
        while not (self._nmi or self.hypervisor.interrupt_waiting()):
            if not self.pass_time():
                self.end(Outcome.HALTED, "halted with nothing to wait for")
                return False
        return self._end is None

    def pass_time(self) -> bool:
        """Let virtual time jump to the next event and run it; False when none can come, or the run ends."""
        due = self.clock.next_due_ns
        if due is None or self._end is not None:
            return False
        self.clock.skip_to(due)
        self.clock.run_due()
        return self._end is None

    @property
    def is_ending(self) -> bool:
        """True once something has ended the run."""
        return self._end is not None

    def end(self, outcome: Outcome, detail: str, code: int | None = None) -> None:
        """End the run at the next block; the first reason stands."""
        if self._end is None:
            self._end = (outcome, detail, code)
        self.cpu.request_stop()

    def _failed(self, text: str) -> None:
        """The console has shown that the guest failed: however it ends now, that is its end."""
        self._failure = self._failure or text
        self.clock.schedule_in_background(
            self.clock.now_ns + LAST_WORDS_NS, lambda: self.end(Outcome.FAILED, self._failure)
        )

    def crash(self, reason: str, event: Event | None = None) -> None:
        """The guest cannot go on."""
        if self._end is None:
            self._crash = crash_report(self.cpu, self.linear, self.image, reason, event)
            self.end(Outcome.CRASHED, reason)

    def _result(self, host_seconds: float) -> RunResult:
        assert self._end is not None
        self.console.flush()
        outcome, detail, code = self._end
        if self._failure and outcome in _ENDS_OF_A_FAILURE:
            outcome, detail, code = Outcome.FAILED, self._failure, None
        if code is None:
            code = _CODES_BY_OUTCOME[outcome]
        if self.config.until and outcome in _ENDS_OF_ITS_OWN:
            code = 1
        run = {
            "backend": self.capabilities.name,
            "outcome": outcome.name.lower(),
            "exit_code": code,
            "guest_seconds": self.clock.now_ns / 1e9,
            "host_seconds": round(host_seconds, 3),
            "guest_blocks": self.cpu.control.blocks,
            "patched": self.patched is not None,
        }
        return RunResult(
            outcome=outcome,
            detail=detail,
            exit_code=code,
            backend=self.capabilities.name,
            guest_ns=self.clock.now_ns,
            host_seconds=host_seconds,
            transcript=self.console.content,
            stats=self.stats.document(run, self._call_counts(), self.hypervisor.counters()),
            crash=self._crash,
        )

    def _call_counts(self) -> dict[str, dict[str, int]]:
        """ABI calls by name: those that needed an exit, and the rest."""
        if self._calls is None:
            return {}
        exits = self.hypervisor.call_exits()
        return {
            name: {"in_guest": max(0, count - exits.get(name, 0)), "exit": min(count, exits.get(name, 0))}
            for name, count in self._calls.entries().items()
        }

    def call_entries(self) -> dict[str, int]:
        """How often the guest entered each ABI call so far, by name."""
        return self._calls.entries() if self._calls is not None else {}

    def trace(self, kind: str, **values: int | str) -> None:
        """Report one event to the trace, if there is one."""
        if self.tracer is not None:
            self.tracer.record(self.clock.now_ns, kind, **values)

    # -- delivery ------------------------------------------------------------------------------

    def deliver(self, event: Event) -> None:
        """Deliver through the guest's IDT; a triple fault ends the run."""
        self.clock.spend_ns(EXCEPTION_COST_NS)
        if self.presenter is not None:
            self.presenter.present(event)
            self.clock.spend_ns(self.presenter.cost_ns())
        if event.external:
            self.stats.interrupts[event.vector] += 1
        self.trace(
            "interrupt" if event.external else "exception",
            vector=event.vector,
            error_code=event.error_code,
            rip=self.cpu.state.rip,
            software=int(event.software),
        )
        if in_real_mode(self.cpu):
            if not deliver_real(self.cpu, self.linear, event):
                self.crash(no_bios(self.cpu, event), event)
            return
        try:
            self.deliverer.deliver(event)
        except TripleFault as fault:
            self.crash(str(fault), event)

    def deliver_external(self, vector: int) -> None:
        """Deliver a hardware interrupt."""
        self.deliver(Event(vector, external=True))

    # -- CpuEvents -----------------------------------------------------------------------------

    def exception(self, vector: int, error_code: int, software: bool) -> None:
        """From the CPU: see `CpuEvents.exception`."""
        if software:
            event = software_interrupt(vector, lambda: self.linear.try_read(self._code_address(-1), 1))
        else:
            event = Event(vector, error_code)
            if vector == fl.DB and self.presenter is not None and self.presenter.steps.hidden():
                self.clock.spend_ns(EXCEPTION_COST_NS)
                return
        self.stats.exceptions[vector] += 1
        self._give(event)

    def _give(self, event: Event) -> None:
        """To the hypervisor, or through the guest's IDT."""
        since = self.clock.now_ns
        if not self.hypervisor.on_event(event):
            self.deliver(event)
            return
        self._charge(since, emulated=not event.software and event.vector in _EMULATED)

    def _charge(self, since: int, emulated: bool = False) -> None:
        """What the hypervisor did without a price of its own costs what delivering an event costs: no loop of
        faults and exits is free, whoever answers them."""
        spent = self.clock.now_ns - since
        if emulated:
            self.clock.spend_ns(max(0, EMULATION_COST_NS - spent))
        elif not spent:
            self.clock.spend_ns(EXCEPTION_COST_NS)

    def page_fault(self, address: int, error_code: int) -> None:
        """From the CPU: see `CpuEvents.page_fault`."""
        present, in_tables = bool(error_code & ERROR_PRESENT), self._in_tables(address)
        if self.cpu.cpl == _USER and (present or in_tables):
            instruction = self._instruction()
            use = descriptor_use(instruction)
            if present and self._by_itself(in_tables, instruction, use):
                self.clock.spend_ns(EXCEPTION_COST_NS)
                return
            if in_tables and use is not DescriptorUse.NONE:
                error_code &= ~ERROR_USER
        self.cpu.state.cr[2] = address
        self.exception(fl.PAGE_FAULT, error_code, False)

    def _instruction(self) -> iced_x86.Instruction:
        """The one at RIP."""
        code = self.linear.try_read(self._code_address(0), 15)
        return iced_x86.Decoder(self.cpu.code_width, code).decode()

    def _in_tables(self, address: int) -> bool:
        """True for addresses of the GDT and the LDT."""
        state = self.cpu.state
        return any(0 <= address - table.base <= table.limit for table in (state.gdt, state.ldt))

    def _by_itself(self, in_tables: bool, instruction: iced_x86.Instruction, use: DescriptorUse) -> bool:
        """Has the instruction a supervisor's rights for this access, and is it done, or allowed by now?"""
        if use is DescriptorUse.NONE:
            return False
        at = self._code_address(0)
        if in_tables and self.cpu.let_read_descriptors(at):
            return True
        return self.cpu.run_as_supervisor(at, instruction.len, use is DescriptorUse.TRANSFER)

    def _code_address(self, offset: int) -> int:
        """Linear address of RIP + `offset`."""
        state = self.cpu.state
        base = 0 if self.cpu.code_width == 64 else state.segments[fl.CS].base
        return int(base + state.rip + offset)

    def invalid_opcode(self) -> None:
        """From the CPU: see `CpuEvents.invalid_opcode`."""
        since = self.clock.now_ns
        if self.hypervisor.on_invalid_opcode():
            self._charge(since, emulated=True)
            return
        self.stats.exceptions[fl.UD] += 1
        self._give(Event(fl.UD))

    def executed_in(self, port: int, size: int) -> int:
        """From the CPU: IN; the port floats for code that slipped past the watcher by a stale translation."""
        return self.port_in(port, size) if self.hypervisor.ports_execute else (1 << 8 * size) - 1

    def executed_out(self, port: int, size: int, value: int) -> None:
        """From the CPU: OUT; as for IN."""
        if self.hypervisor.ports_execute:
            self.port_out(port, size, value)

    def port_in(self, port: int, size: int) -> int:
        """Read a port for the guest."""
        self.clock.spend_ns(PORT_COST_NS)
        self.stats.exits["port_in"] += 1
        value = self.platform.read_port(port, size)
        if self.tracer is not None:
            self.trace("in", port=port, size=size, value=value)
        return value

    def port_out(self, port: int, size: int, value: int) -> None:
        """Write a port for the guest."""
        self.clock.spend_ns(PORT_COST_NS)
        self.stats.exits["port_out"] += 1
        if self.tracer is not None:
            self.trace("out", port=port, size=size, value=value)
        self.platform.write_port(port, size, value)

    def cpuid(self) -> None:
        """From the CPU: CPUID."""
        gpr = self.cpu.state.gpr
        leaf, subleaf = gpr[fl.RAX] & 0xFFFFFFFF, gpr[fl.RCX] & 0xFFFFFFFF
        self.stats.exits["cpuid"] += 1
        self.clock.spend_ns(EXCEPTION_COST_NS)
        bare = answer(leaf, subleaf, self.cpu.state.cr[4], self.platform.local_apic)
        values = self.hypervisor.on_cpuid(leaf, subleaf, bare)
        gpr[fl.RAX], gpr[fl.RBX], gpr[fl.RCX], gpr[fl.RDX] = values
        self.trace("cpuid", leaf=leaf, subleaf=subleaf)

    def syscall(self) -> None:
        """From the CPU: SYSCALL."""
        since = self.clock.now_ns
        if self.hypervisor.on_syscall():
            self._charge(since)
            return
        if enter_syscall(self.cpu):
            return
        self.deliver(Event(fl.UD))
        self.cpu.state.rip -= FAST_CALL_LENGTH

    def sysenter(self) -> None:
        """From the CPU: SYSENTER."""
        since = self.clock.now_ns
        if self.hypervisor.on_sysenter():
            self._charge(since)
            return
        if enter_sysenter(self.cpu):
            return
        self.deliver(Event(fl.GP))
        self.cpu.state.rip -= FAST_CALL_LENGTH

    def _watched(self, site: Site) -> bool:
        """From the watcher: a watched instruction is about to run."""
        if site.mnemonic in self.hypervisor.watched():
            self.clock.spend_ns(EMULATION_COST_NS)
            done = self.hypervisor.on_watched(site)
            if done or site.mnemonic not in self._intercepts.mnemonics:
                return done
        return self._intercepts.reached(site)

    def _device_accessed(self, kind: str, address: int, size: int, value: int) -> None:
        """From the CPU: an access to a device's registers in memory."""
        self.clock.spend_ns(MEMORY_DEVICE_COST_NS)
        self.stats.exits[f"device_{kind}"] += 1
        if self.tracer is not None:
            self.trace(kind, address=address, size=size, value=value)

    # -- MachineControl ------------------------------------------------------------------------

    def power_off(self, reason: str) -> None:
        """A device or the hypervisor switches the machine off."""
        self.end(Outcome.POWERED_OFF, reason)

    def reset(self, reason: str) -> None:
        """A device or the hypervisor reboots the machine, which ends the run."""
        self.end(Outcome.REBOOTED, reason)

    def exit(self, code: int) -> None:
        """The guest wrote `code` to the debug-exit port: 0 is success."""
        self.end(Outcome.EXITED, f"exit code {code}", 0 if code == 0 else 1)

    def set_interrupt_line(self, level: bool) -> None:
        """The interrupt controller's output changed."""
        if self._started:
            self.cpu.set_waiting(self.hypervisor.interrupt_waiting())

    def nmi(self) -> None:
        """A non-maskable interrupt: delivered at the next block, once the last one has ended."""
        self._nmi = True
        self.cpu.request_stop()

    def _deliver_watchpoint(self) -> None:
        """The last instruction accessed what a debug register names: a trap, with DR6 adding up."""
        state = self.cpu.state
        state.dr[6] = state.dr[6] | self.watchpoints.hits | fl.DR6_ONES
        self.watchpoints.hits = 0
        self.exception(fl.DB, 0, False)

    def _deliver_nmi(self) -> None:
        self._nmi = False
        self.cpu.in_nmi = True
        self.deliver(Event(fl.NMI, external=True))
