"""The virtual CPU: Unicorn executes, everything that leaves the instruction stream comes here.

One engine serves both widths: a CPU with long mode, started in whatever mode the boot protocol
asks for, that goes through the guest's own mode changes. Registers are read and written in place
through `CpuState`. Callbacks never stop the emulator in the middle of a block (that would run half
a block twice); they set `ControlBlock.force`, and the machine-code block hook stops at the next
block's start.
"""

from __future__ import annotations

import ctypes
import enum
import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

import unicorn
from unicorn import unicorn_const as uc_const
from unicorn import x86_const
from unicorn.unicorn_py3.unicorn import uclib

from runtime.cpu import flags as fl
from runtime.cpu.calibrate import engine_facts
from runtime.cpu.layout import CpuState, UnknownCpuLayout, locate_state
from runtime.cpu.native import UNITS_PER_NS, ControlBlock, NativeCode
from runtime.cpu.prices import MOST_TRANSLATED, helper_prices
from runtime.cpu.translator import BUFFER_SIZE, translator_facts
from runtime.cpu.walker_code import PAGE_FAULT
from runtime.memory import GuestMemory

__all__ = ["CpuEvents", "Stop", "VCpu"]

_INTR = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p)
_CODE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_void_p)
_IN = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_void_p)
_OUT = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint32, ctypes.c_void_p
)
_PLAIN = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p, ctypes.c_void_p)
_EDGE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)

DEVICE_WINDOW = (0xFEC0_0000, 0xFEF0_0000)
"""Where a PC has devices' registers: mapped apart from the rest of the open bus, whose pages are too many to
be taken out one by one."""

TSC_READ_COST_NS = 200
"""Virtual cost of RDTSC; keeps the guest's polling loops short without changing what it measures."""


DESCRIPTOR_READERS = 64
"""Instructions of user code that read descriptors without an exit; each costs every translation a look."""


_CONTROL_REGISTERS = {
    0: x86_const.UC_X86_REG_CR0,
    3: x86_const.UC_X86_REG_CR3,
    4: x86_const.UC_X86_REG_CR4,
}


class _TranslatedBlock(ctypes.Structure):
    _fields_ = (("pc", ctypes.c_uint64), ("instructions", ctypes.c_uint16), ("size", ctypes.c_uint16))
    pc: int
    instructions: int
    size: int


_APART = fl.ARITHMETIC | fl.DF
"""Flags that the emulator keeps apart from EFLAGS while it runs, and adds to it when it ends. A hook on an
instruction leaves a copy of them in EFLAGS, which is out of date from the next change on."""


class Stop(enum.Enum):
    """Why `VCpu.run` returned."""

    BOUNDARY = "block boundary"
    HALTED = "halted"
    FETCH_NOWHERE = "instruction fetch outside memory"
    STUCK = "the emulator refused to go on"


class CpuEvents(Protocol):
    """What the machine answers. All run inside the emulator: they return quickly and never stop it."""

    def exception(self, vector: int, error_code: int, software: bool) -> None:
        """An exception or INT n. RIP is where the frame must point: at the instruction for faults,
        after it for traps and software interrupts."""

    def page_fault(self, address: int, error_code: int) -> None:
        """An access that the page tables do not allow; RIP is on the instruction, CR2 not yet set."""

    def invalid_opcode(self) -> None:
        """An instruction that this CPU does not have; RIP is on it."""

    def executed_in(self, port: int, size: int) -> int:
        """IN."""

    def executed_out(self, port: int, size: int, value: int) -> None:
        """OUT."""

    def cpuid(self) -> None:
        """CPUID: read EAX and ECX, fill EAX, EBX, ECX, EDX."""

    def syscall(self) -> None:
        """SYSCALL; RIP is on the instruction, which is 2 bytes long and is added afterwards."""

    def sysenter(self) -> None:
        """SYSENTER; as for `syscall`."""


class VCpu:
    """One emulated CPU with `memory` at physical address 0."""

    def __init__(self, memory: GuestMemory, events: CpuEvents) -> None:
        self.memory = memory
        self.events = events
        self.uc = unicorn.Uc(uc_const.UC_ARCH_X86, uc_const.UC_MODE_64)
        self.uc.ctl_set_tcg_buffer_size(BUFFER_SIZE)
        self.handle = self.uc._uch
        self.state: CpuState = locate_state(self.uc)
        self.registers: memoryview[int] = memoryview(self.state.gpr).cast("B").cast("Q")
        """`state.gpr`, several times quicker to read and write."""
        eflags = ctypes.addressof(self.state) + CpuState.eflags.offset  # type: ignore[attr-defined]
        self.native = NativeCode(engine_facts().check, eflags)
        self.control = ControlBlock()
        self.failure: BaseException | None = None
        """An error raised inside a callback; `run` raises it."""
        self._executing = False
        """Inside the emulator, which keeps the arithmetic flags and DF apart from EFLAGS meanwhile."""
        self.last_error = 0
        self._reads_descriptors: set[int] = set()
        self._hooked: Counter[int] = Counter()
        self._hook_addresses: dict[int, int] = {}
        self._hooked_ranges: list[range] = []
        self._keep: list[Any] = []
        self._reached: dict[int, Any] = {}
        """Functions of the hooks on single instructions."""
        self._flags_word = ctypes.c_uint64()
        self._register_word = ctypes.c_uint64()
        self._prepare_control()
        self._map_memory()
        self.uc.ctl_exits_enabled(True)
        self.uc.ctl_set_exits([])
        self._install_hooks()
        self.reset()

    def _prepare_control(self) -> None:
        control = self.control
        control.cpu = ctypes.addressof(self.state)
        control.emu_stop = ctypes.cast(uclib.uc_emu_stop, ctypes.c_void_p).value or 0
        control.deadline = control.limit = (1 << 64) - 1
        control.tsc_cost = TSC_READ_COST_NS * UNITS_PER_NS
        control.engine = self.handle.value
        control.uc_ctl = ctypes.cast(uclib.uc_ctl, ctypes.c_void_p).value or 0
        control.ram = self.memory.host_address
        control.last_entry = self.memory.total - 8
        pages = self.memory.total >> 12
        self._executed = (ctypes.c_uint8 * pages)()
        control.executed, control.executed_pages = ctypes.addressof(self._executed), pages
        facts = engine_facts()
        cpu = ctypes.addressof(self.state)
        control.large_marks = (ctypes.c_uint64 * 3)(*(cpu + offset for offset in facts.large_marks))
        context = self.handle.value + translator_facts().context
        control.translator = ctypes.c_uint64.from_address(context).value
        prices = helper_prices()
        control.price_base, control.price_count = prices.base, prices.count
        control.price_table = ctypes.addressof(prices.table)
        self._missed_address = ctypes.c_uint64.from_address(self.handle.value + facts.missed_address)
        # Only two hooks ever stop the emulator, and they ask for themselves.
        ctypes.c_uint8.from_address(self.handle.value + facts.unchecked).value = 1
        self.use_guest_interrupt_flag()

    def _map_memory(self) -> None:
        self.uc.mem_map_ptr(0, self.memory.total, uc_const.UC_PROT_ALL, self.memory.host_address)
        edges = (self.memory.total, *DEVICE_WINDOW, 1 << 52)
        for begin, end in itertools.pairwise(edges):
            self.map_registers(begin, end - begin, self.native.open_bus_read, self.native.open_bus_write)

    def map_registers(self, address: int, size: int, on_read: Any, on_write: Any) -> None:
        """Let callbacks (C, of the emulator's form) answer for the pages from physical `address` on."""
        status = uclib.uc_mmio_map(
            self.handle,
            ctypes.c_uint64(address),
            ctypes.c_size_t(size),
            ctypes.cast(on_read, ctypes.c_void_p),
            ctypes.c_void_p(0),
            ctypes.cast(on_write, ctypes.c_void_p),
            ctypes.c_void_p(0),
        )
        if status:
            raise unicorn.UcError(status)
        self._keep += [on_read, on_write]

    # -- hooks ---------------------------------------------------------------------------------

    def add_hook(
        self, kind: int, callback: Any, data: int = 0, begin: int = 1, end: int = 0, insn: int = 0
    ) -> int:
        """Register a C callback (address or ctypes function) and return its handle for `remove_hook`."""
        hook = ctypes.c_size_t()
        pointer = callback if isinstance(callback, int) else ctypes.cast(callback, ctypes.c_void_p).value
        extra = (ctypes.c_int(insn),) if kind == uc_const.UC_HOOK_INSN else ()
        status = uclib.uc_hook_add(
            self.handle,
            ctypes.byref(hook),
            ctypes.c_int(kind),
            ctypes.c_void_p(pointer),
            ctypes.c_void_p(data),
            ctypes.c_uint64(begin),
            ctypes.c_uint64(end),
            *extra,
        )
        if status:
            raise unicorn.UcError(status)
        self._keep.append(callback)
        if kind == uc_const.UC_HOOK_CODE:
            if begin == end:
                self._hooked[begin] += 1
                self._hook_addresses[hook.value] = begin
            else:
                self._hooked_ranges.append(range(begin, end + 1))
        return hook.value

    def remove_hook(self, hook: int) -> None:
        """Take a hook away. Blocks translated with it go on calling it: drop them, before if it is Python."""
        uclib.uc_hook_del(self.handle, hook)
        self._reached.pop(hook, None)
        address = self._hook_addresses.pop(hook, None)
        if address is not None:
            self._hooked[address] -= 1
            if not self._hooked[address]:
                del self._hooked[address]

    def guarded(self, function: Callable[..., Any], default: Any) -> Callable[..., Any]:
        """A callback for the emulator. Python errors must not cross the C frame: the first is remembered, and
        ends the run at the next block."""

        def call(*arguments: Any) -> Any:
            try:
                return function(*arguments)
            except BaseException as error:
                if self.failure is None:
                    self.failure = error
                self.request_stop()
                return default

        return call

    def _install_hooks(self) -> None:
        control = ctypes.addressof(self.control)
        events = self.events
        state = self.state

        def interrupt(_uc: int, vector: int, _data: int) -> None:
            software = bool(state.exception_is_int)
            error_code = state.error_code
            state.old_exception = -1
            if not software and vector != fl.DB:  # those come when an instruction is over, or none began
                self._computed_flags()
            events.exception(vector, error_code, software)

        def invalid(_uc: int, _data: int) -> int:
            state.old_exception = -1
            self._computed_flags()
            events.invalid_opcode()
            return 1

        def port_in(_uc: int, port: int, size: int, _data: int) -> int:
            return events.executed_in(port & 0xFFFF, size)

        def port_out(_uc: int, port: int, size: int, value: int, _data: int) -> None:
            events.executed_out(port & 0xFFFF, size, value)

        def cpuid(_uc: int, _data: int) -> int:
            events.cpuid()
            return 1

        def syscall(_uc: int, _data: int) -> int:
            events.syscall()
            return 1

        def sysenter(_uc: int, _data: int) -> int:
            events.sysenter()
            return 1

        insn = uc_const.UC_HOOK_INSN
        self.uc.ctl_set_tlb_mode(uc_const.UC_TLB_VIRTUAL)
        self.add_hook(uc_const.UC_HOOK_TLB_FILL, self.native.fill_tlb, control)
        self.add_hook(uc_const.UC_HOOK_BLOCK, self.native.block, control)
        self.add_hook(uc_const.UC_HOOK_INTR, _INTR(self.guarded(interrupt, None)))
        self.add_hook(uc_const.UC_HOOK_INSN_INVALID, _PLAIN(self.guarded(invalid, 1)))
        self.add_hook(insn, _IN(self.guarded(port_in, 0)), insn=x86_const.UC_X86_INS_IN)
        self.add_hook(insn, _OUT(self.guarded(port_out, None)), insn=x86_const.UC_X86_INS_OUT)
        self.add_hook(insn, _PLAIN(self.guarded(cpuid, 1)), insn=x86_const.UC_X86_INS_CPUID)
        self.add_hook(insn, _PLAIN(self.guarded(syscall, 1)), insn=x86_const.UC_X86_INS_SYSCALL)
        self.add_hook(insn, _PLAIN(self.guarded(sysenter, 1)), insn=x86_const.UC_X86_INS_SYSENTER)
        self.add_hook(insn, self.native.rdtsc, control, insn=x86_const.UC_X86_INS_RDTSC)
        self.add_hook(insn, self.native.rdtscp, control, insn=x86_const.UC_X86_INS_RDTSCP)

    def note_execution(self, address: int, place: int) -> int:
        """Note in machine code that the instruction at linear `address` runs.

        The address goes into the 64-bit word at host address `place`.
        """
        return self.add_hook(uc_const.UC_HOOK_CODE, self.native.note, place, address, address)

    def count_each(self, address: int, counters: ctypes.Array[ctypes.c_uint64]) -> None:
        """Count in machine code how often the instruction at each linear address from `address` on runs.

        There is one counter per byte."""
        told = (ctypes.c_uint64 * 2)(address, ctypes.addressof(counters))
        self._keep += [told, counters]
        last = address + len(counters) - 1
        self.add_hook(uc_const.UC_HOOK_CODE, self.native.count_each, ctypes.addressof(told), address, last)

    def on_instruction(self, address: int, callback: Callable[[], None]) -> int:
        """Call `callback` before each execution of the instruction at linear `address`.

        Costs nothing elsewhere. Translations made earlier do not have the hook: call
        `drop_translation` for the range.
        """

        def reached(_uc: int, _address: int, _size: int, _data: int) -> None:
            callback()

        function = _CODE(self.guarded(reached, None))
        data = ctypes.cast(function, ctypes.c_void_p).value or 0
        hook = self.add_hook(uc_const.UC_HOOK_CODE, self.native.arrived, data, address, address)
        self._reached[hook] = function
        return hook

    def on_new_block(self, callback: Callable[[int, int], None], level: int = 0) -> int:
        """Call `callback(linear address, size)` when a block has been translated, before it runs.

        Only for code at privilege level `level` or a higher number. The emulator does not report the
        first block after `run` enters; the caller looks at that one itself.
        """

        def generated(_uc: int, current: int, _previous: int, _data: int) -> None:
            block = _TranslatedBlock.from_address(current)
            callback(block.pc, block.size)

        function = _EDGE(self.guarded(generated, None))
        self._keep.append(function)
        self.control.watch_level = level
        self.control.watch_callback = ctypes.cast(function, ctypes.c_void_p).value or 0
        return self.add_hook(
            uc_const.UC_HOOK_EDGE_GENERATED, self.native.new_block, ctypes.addressof(self.control)
        )

    def drop_translation(self, begin: int, end: int) -> None:
        """Forget translated code for linear addresses [begin, end)."""
        self.uc.ctl_remove_cache(begin, end)

    def drop_all_translations(self) -> None:
        """Forget all translated code."""
        self.uc.ctl_flush_tb()
        self.control.translated = self.control.translated_to = 0

    def jump(self, rip: int) -> None:
        """Go on at `rip` instead of running the instruction that an `on_instruction` callback is for."""
        self._register_word.value = rip
        uclib.uc_reg_write(self.handle, x86_const.UC_X86_REG_RIP, ctypes.byref(self._register_word))

    def flush_tlb(self) -> None:
        """Forget all cached address translations."""
        uclib.uc_ctl(self.handle, ctypes.c_int(uc_const.UC_CTL_TLB_FLUSH | 1 << 30))

    def _computed_flags(self, missed_page: int = -1) -> None:
        """After a fault: in front of a hook on an instruction the emulator computes the flags, but when that
        very instruction faults it still names the operation that they come from. Where the page that was
        missed is the instruction's own, it did not begin."""
        state = self.state
        base = 0 if self.code_width == 64 else state.segments[fl.CS].base
        at = base + state.rip
        if at & ~0xFFF == missed_page:
            return
        if state.cc_op != 1 and (at in self._hooked or any(at in hooked for hooked in self._hooked_ranges)):
            state.cc_op = 1

    # -- registers -----------------------------------------------------------------------------

    def reset(self) -> None:
        """Protected mode, paging off, privilege 0, flat 32-bit segments, interrupts off."""
        state = self.state
        state.efer = 0
        state.cr[0], state.cr[2], state.cr[3], state.cr[4] = 0x11, 0, 0, 0
        state.hflags = fl.HF_PE | fl.HF_CS32 | fl.HF_SS32
        for index in range(6):
            segment = state.segments[index]
            segment.selector, segment.base, segment.limit = 0, 0, 0xFFFFFFFF
            segment.flags = 0x00CF9B00 if index == fl.CS else 0x00CF9300
        self.rflags = 2
        state.hflags2 |= fl.HF2_VINTR  # without a local APIC, CR8 then keeps its value
        state.old_exception = -1

    @property
    def rflags(self) -> int:
        """RFLAGS with the arithmetic flags computed."""
        state = self.state
        if not self._executing:
            return state.eflags & 0x3FFFFF | 2
        state.eflags &= ~_APART
        if state.cc_op == 1:
            # While the emulator executes, what a hook left of these in EFLAGS is out of date.
            own = state.eflags & ~(fl.ARITHMETIC | fl.DF) if self._executing else state.eflags
            return own | (state.cc_src & fl.ARITHMETIC) | (fl.DF if state.df == -1 else 0) | 2
        uclib.uc_reg_read(self.handle, x86_const.UC_X86_REG_EFLAGS, ctypes.byref(self._flags_word))
        return self._flags_word.value & 0x3FFFFF | 2

    @rflags.setter
    def rflags(self, value: int) -> None:
        state = self.state
        state.cc_src = value & fl.ARITHMETIC
        state.cc_op = 1
        state.df = -1 if value & fl.DF else 1
        apart = _APART if self._executing else 0  # the emulator takes them in as it begins
        state.eflags = value & 0x3FFFFF & ~apart | 2

    @property
    def cpl(self) -> int:
        """Current privilege level."""
        return self.state.hflags & fl.HF_CPL

    @property
    def long_mode(self) -> bool:
        """EFER.LMA: 64-bit or compatibility mode."""
        return bool(self.state.hflags & fl.HF_LMA)

    @property
    def code_width(self) -> int:
        """16, 32 or 64: the width of the code that runs."""
        hflags = self.state.hflags
        return 64 if hflags & fl.HF_CS64 else 32 if hflags & fl.HF_CS32 else 16

    @property
    def in_nmi(self) -> bool:
        """True from the delivery of an NMI to the next IRET (which the emulator notices)."""
        return bool(self.state.hflags2 & fl.HF2_NMI)

    @in_nmi.setter
    def in_nmi(self, value: bool) -> None:
        self.state.hflags2 = self.state.hflags2 & ~fl.HF2_NMI | (fl.HF2_NMI if value else 0)

    def write_control(self, number: int, value: int) -> None:
        """Write CR0, CR3 or CR4 with all side effects (mode change, TLB flush)."""
        register = _CONTROL_REGISTERS[number]
        self._register_word.value = value
        uclib.uc_reg_write(self.handle, register, ctypes.byref(self._register_word))

    def write_msr(self, index: int, value: int) -> None:
        """Write a model-specific register of the emulated CPU."""
        self.uc.msr_write(index, value)

    def read_msr(self, index: int) -> int:
        """Read a model-specific register of the emulated CPU."""
        return int(self.uc.msr_read(index))

    # -- running -------------------------------------------------------------------------------

    def request_stop(self) -> None:
        """Return from `run` at the start of the next block."""
        self.control.force = 1
        self.control.limit = 0

    def set_waiting(self, waiting: bool) -> None:
        """An event waits for the guest to accept interrupts: stop at the first block where it does."""
        control = self.control
        control.waiting = waiting
        control.limit = 0 if waiting or control.force else control.deadline

    def use_guest_interrupt_flag(self) -> None:
        """Interrupts are enabled when RFLAGS.IF is set (the default)."""
        self.set_interrupt_window(ctypes.addressof(self.state) + CpuState.eflags.offset, fl.IF, 0)  # type: ignore[attr-defined]

    def set_interrupt_window(self, host_address: int, mask: int, flip: int) -> None:
        """Name the 32-bit word in host memory that says whether the guest accepts interrupts."""
        self.control.window = host_address
        self.control.window_mask = mask
        self.control.window_flip = flip

    @property
    def window_open(self) -> bool:
        """True if the guest accepts an interrupt at this instruction boundary."""
        control = self.control
        word = ctypes.c_uint32.from_address(control.window).value
        if not (word ^ control.window_flip) & control.window_mask:
            return False
        return not self.state.hflags & fl.HF_INHIBIT_IRQ

    def stop_after_block(self) -> None:
        """Let the next `run` end behind one block (more for what it does by itself in between)."""
        self.control.blocks_left, self.control.limit = 2, 0

    def _refused(self) -> None:
        """The walker found no way for an access: RIP is on the instruction."""
        control = self.control
        kind, control.fault = control.fault, 0
        try:
            if kind == PAGE_FAULT:
                address = self._missed_address.value
                if address & ~0xFFF != control.fault_page:
                    address = control.fault_page  # the second page of an access that crosses a boundary
                self.events.page_fault(address, control.fault_code)
            else:
                self.events.exception(fl.GP, 0, False)
        except BaseException as error:
            self.failure = error

    def let_read_descriptors(self, address: int) -> bool:
        """From now on the instruction at linear `address`, run by user code, reads the GDT and the LDT.

        The access counts as a supervisor's (Intel SDM vol. 3, 4.6.1). False if it did so already, or if there
        are so many of these instructions that finding them would cost too much.
        """
        if address in self._reads_descriptors or len(self._reads_descriptors) >= DESCRIPTOR_READERS:
            return False
        self._reads_descriptors.add(address)
        data = ctypes.addressof(self.control)
        self.add_hook(uc_const.UC_HOOK_CODE, self.native.descriptors, data, address, address)
        self.drop_translation(address, address + 1)
        return True

    def run_as_supervisor(self, address: int, size: int, transfers: bool) -> bool:
        """Run the instruction of `size` bytes at linear `address` with a supervisor's rights.

        `transfers` says that it is a control transfer, which is a block by itself; any other is stopped
        behind. (The emulator's own count of instructions would make it drop all translations.) False if it
        faulted even so; nothing is delivered. After a transfer the emulator may begin the next instruction
        too: if that one faults, RIP has moved, and it will fault again by itself.
        """
        control, stop, behind = self.control, 0, address + size
        control.supervisor = 1
        start = self.state.rip
        if transfers:
            control.blocks_left, control.limit = 2, 0
        else:
            data = ctypes.addressof(control)
            stop = self.add_hook(uc_const.UC_HOOK_CODE, self.native.stop_here, data, behind, behind)
            self.drop_translation(address, behind + 1)
        error = self._execute(start)
        control.supervisor = control.blocks_left = 0
        if stop:
            self.remove_hook(stop)
            self.drop_translation(address, behind + 1)
        self.set_waiting(bool(control.waiting))
        self.flush_tlb()
        faulted = error == uc_const.UC_ERR_EXCEPTION and control.fault and self.state.rip == start
        control.fault = 0
        return not faulted

    def _execute(self, start: int) -> int:
        """Let the emulator run from `start` on; its error code."""
        self._executing = True
        error = uclib.uc_emu_start(self.handle, start, 0, 0, 0)
        if error == uc_const.UC_ERR_EXCEPTION and self.control.fault == PAGE_FAULT:
            self._computed_flags(self.control.fault_page)
        flags = self.rflags
        self._executing = False
        self.state.eflags = flags
        return int(error)

    def run(self) -> Stop:
        """Execute until a block boundary where something is to be done, or a halt.

        Raises whatever a callback raised.
        """
        control = self.control
        control.stopped = 0
        error = self._execute(self.state.rip)
        while error == uc_const.UC_ERR_EXCEPTION and control.fault and self.failure is None:
            self._refused()
            if control.now >= control.limit:  # faults without a block between them must not outlast the limit
                control.stopped, error = 1, 0
                break
            error = self._execute(self.state.rip)
        control.force = control.blocks_left = 0
        if control.translated >= MOST_TRANSLATED:
            self.drop_all_translations()
        if control.unpriced:
            raise UnknownCpuLayout("this Unicorn calls hooks in another way", "install unicorn==2.1.4")
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        if error in (uc_const.UC_ERR_FETCH_PROT, uc_const.UC_ERR_FETCH_UNMAPPED):
            return Stop.FETCH_NOWHERE
        if error:
            self.last_error = error
            return Stop.STUCK
        return Stop.BOUNDARY if control.stopped else Stop.HALTED
