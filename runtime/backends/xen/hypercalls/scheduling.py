"""sched_op, set_timer_op, vcpu_op (xen/common/schedule.c, domain.c, arch/x86/domain.c)."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.backends.xen.domain import Domain
from runtime.backends.xen.frames import XenError
from runtime.backends.xen.hypercalls.dispatch import handler
from runtime.backends.xen.layout import ERRNO, PAGE_SIZE, names, struct

__all__: list[str] = []

SCHED = names("sched")
VCPU = names("vcpu")
SHUTDOWN = names("shutdown")
MAX_POLL_PORTS = 128


@handler("sched_op")
def sched_op(domain: Domain, arguments: Sequence[int]) -> int:
    """yield, block, shutdown, poll, and what only a toolstack may do."""
    command, address = SCHED.get(arguments[0], ""), arguments[1]
    if command == "yield":
        return 0
    if command == "block":
        _block(domain)
        return 0
    if command == "shutdown":
        return _shutdown(domain, domain.space.word(address, 4))
    if command == "poll":
        return _poll(domain, address)
    if command == "remote_shutdown":
        data = domain.space.read(address, 8)
        target = int.from_bytes(data[:2], "little")
        raise XenError(ERRNO.EPERM if target in (domain.domid, 0) else ERRNO.ESRCH, "remote shutdown")
    if command == "shutdown_code":
        if domain.space.word(address, 4) not in SHUTDOWN:
            raise XenError(ERRNO.EINVAL, "shutdown code")
        return 0
    if command == "watchdog":
        return _watchdog(domain.space.word(address, 4), domain.space.word(address + 4, 4))
    if command == "pin_override":
        raise XenError(ERRNO.EPERM, "pin_override is for the hardware domain")
    return -ERRNO.ENOSYS


@handler("sched_op_compat")
def sched_op_compat(domain: Domain, arguments: Sequence[int]) -> int:
    """The 2005 form: the reason of a shutdown is the argument itself."""
    command = SCHED.get(arguments[0], "")
    if command == "yield":
        return 0
    if command == "block":
        _block(domain)
        return 0
    if command == "shutdown":
        return _shutdown(domain, arguments[1] & 0xFFFFFFFF)
    return -ERRNO.ENOSYS


def _block(domain: Domain) -> None:
    """Unmask events and sleep, in one step."""
    domain.upcall_mask = False
    if not domain.upcall_pending:
        domain.blocked = True


def _shutdown(domain: Domain, reason: int) -> int:
    if reason not in SHUTDOWN:
        raise XenError(ERRNO.EINVAL, f"shutdown reason {reason}")
    domain.shutdown = SHUTDOWN[reason]
    return 0


def _poll(domain: Domain, address: int) -> int:
    """struct sched_poll {ports*, nr_ports u32, timeout u64}: sleep until a port is pending or then."""
    size = domain.width // 8
    ports_at = domain.space.word(address, size)
    count = domain.space.word(address + size, 4)
    timeout = domain.space.word(address + (8 if domain.width == 32 else 16), 8)
    if count > MAX_POLL_PORTS:
        raise XenError(ERRNO.EINVAL, f"{count} ports to poll")
    ports = tuple(domain.space.word(ports_at + 4 * i, 4) for i in range(count))
    if any(port >= domain.events.limit for port in ports):
        raise XenError(ERRNO.EINVAL, "a port out of range")
    if any(domain.events.pending(port) for port in ports):
        return 0
    domain.poll_ports = ports
    domain.blocked = True
    if timeout:
        domain.timers.clock.schedule_at(max(timeout, domain.timers.now_ns), lambda: _wake(domain))
    return 0


def _wake(domain: Domain) -> None:
    domain.poll_ports = ()
    domain.blocked = False


def _watchdog(identifier: int, timeout_s: int) -> int:
    if identifier > 2:
        raise XenError(ERRNO.EINVAL, f"no watchdog {identifier}")
    if identifier == 0 and timeout_s == 0:
        raise XenError(ERRNO.EINVAL, "a watchdog without a time")
    return 1 if identifier == 0 else 0


@handler("set_timer_op")
def set_timer_op(domain: Domain, arguments: Sequence[int]) -> int:
    """One-shot timer at an absolute system time in ns; 0 cancels."""
    due = arguments[0] | arguments[1] << 32 if domain.width == 32 else arguments[0]
    domain.timers.set_timer(due)
    return 0


@handler("vcpu_op")
def vcpu_op(domain: Domain, arguments: Sequence[int]) -> int:
    """Commands on one vcpu; this domain has vcpu 0 only."""
    command, vcpu, address = VCPU.get(arguments[0], ""), arguments[1] & 0xFFFFFFFF, arguments[2]
    if vcpu:
        raise XenError(ERRNO.ENOENT, f"no vcpu {vcpu}")
    if command in ("initialise", "up", "down", "is_up"):
        return _bring(domain, command, address)
    if command in ("get_runstate_info", "register_runstate_memory_area"):
        domain.space.write(address, domain.timers.runstate(domain.width)) if (
            command == "get_runstate_info"
        ) else _register_runstate(domain, address)
        return 0
    if command == "set_periodic_timer":
        domain.timers.set_periodic(domain.space.word(address, 8))
    elif command == "stop_periodic_timer":
        domain.timers.stop_periodic()
    elif command == "set_singleshot_timer":
        due, flags = domain.space.word(address, 8), domain.space.word(address + 8, 4)
        if flags & 1 and due < domain.timers.now_ns:
            return -ETIME
        domain.timers.set_single_shot(due, bool(flags & 1))
    elif command == "stop_singleshot_timer":
        domain.timers.stop_single_shot()
    elif command == "register_vcpu_info":
        _register_vcpu_info(domain, domain.space.word(address, 8), domain.space.word(address + 8, 4))
    elif command == "send_nmi":
        return 0
    elif command == "register_vcpu_time_memory_area":
        raise XenError(ERRNO.EINVAL, "the time area is for vsyscalls")
    elif command == "get_physid":
        raise XenError(ERRNO.EINVAL, "vcpus are not bound to processors")
    else:
        raise XenError(ERRNO.ENOSYS, f"vcpu command {arguments[0]}")
    return 0


ETIME = 62


def _bring(domain: Domain, command: str, address: int) -> int:
    if command == "is_up":
        return 1
    if command == "initialise":
        domain.space.read(address, struct("vcpu_guest_context", domain.width).size)
        raise XenError(ERRNO.EEXIST, "vcpu 0 is running")
    if command == "down":
        domain.shutdown = "crash"
    return 0


def _register_runstate(domain: Domain, address: int) -> None:
    size = domain.width // 8
    area = domain.space.word(address, size)
    if not domain.space.accessible(area, struct("runstate_info", domain.width).size):
        raise XenError(ERRNO.EFAULT, f"run-state area {area:#x}")
    domain.runstate_area = area
    try:
        domain.space.write(area, domain.timers.runstate(domain.width))
    except XenError:
        return


def _register_vcpu_info(domain: Domain, mfn: int, offset: int) -> None:
    size = struct("vcpu_info", domain.width).size
    if offset > PAGE_SIZE - size:
        raise XenError(ERRNO.EINVAL, f"vcpu_info at offset {offset:#x}")
    if domain.events.vcpu_info != domain.shared_info:
        raise XenError(ERRNO.EINVAL, "vcpu_info is registered already")
    if not domain.frames.owned(mfn):
        raise XenError(ERRNO.EINVAL, f"frame {mfn:#x} is not the domain's")
    try:
        domain.frames.get_writable(mfn)
    except XenError as error:
        raise XenError(ERRNO.EINVAL, error.why) from None
    domain.frames.get(mfn)
    old = domain.memory.load(domain.events.vcpu_info, size)
    domain.events.vcpu_info = mfn * PAGE_SIZE + offset
    domain.memory.store(domain.events.vcpu_info, old)
