"""sched_op, set_timer_op, vcpu_op (xen/common/sched/core.c, common/domain.c, arch/x86/domain.c)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from runtime.backends.xen.domain import Domain
from runtime.backends.xen.frames import XenError
from runtime.backends.xen.hypercalls.dispatch import handler
from runtime.backends.xen.layout import ERRNO, PAGE_SIZE, names, struct

__all__: list[str] = []

SCHED = names("sched")
VCPU = names("vcpu")
SHUTDOWN = names("shutdown")
MAX_POLL_PORTS = 128
FUTURE_ONLY = 1


@handler("sched_op")
def sched_op(domain: Domain, arguments: Sequence[int]) -> int:
    """yield, block, shutdown, poll, and what only a toolstack may do."""
    command, address = SCHED.get(arguments[0] & 0xFFFFFFFF, ""), arguments[1]
    word = domain.space.word
    if command in ("yield", "block"):
        _rest(domain, command)
    elif command == "shutdown":
        _shut_down(domain, word(address, 4))
    elif command == "poll":
        _poll(domain, address)
    elif command == "remote_shutdown":
        target = word(address, 8) & 0xFFFF
        raise XenError(ERRNO.EPERM if target in (domain.domid, 0) else ERRNO.ESRCH, "remote shutdown")
    elif command == "shutdown_code":
        word(address, 4)
    elif command == "watchdog":
        return domain.timers.watchdog(word(address, 4), word(address + 4, 4))
    elif command == "pin_override":
        word(address, 4)
        raise XenError(ERRNO.EPERM, "pin_override is for the hardware domain")
    else:
        return -ERRNO.ENOSYS
    return 0


@handler("sched_op_compat")
def sched_op_compat(domain: Domain, arguments: Sequence[int]) -> int:
    """The 2005 form: the reason of a shutdown is the argument itself."""
    command = SCHED.get(arguments[0] & 0xFFFFFFFF, "")
    if command in ("yield", "block"):
        _rest(domain, command)
    elif command == "shutdown":
        _shut_down(domain, arguments[1])
    else:
        return -ERRNO.ENOSYS
    return 0


def _rest(domain: Domain, command: str) -> None:
    """yield changes nothing where nobody else runs; block unmasks events and sleeps, in one step."""
    if command == "block":
        domain.upcall_mask = False
        if not domain.upcall_pending:
            domain.sleep()


def _shut_down(domain: Domain, reason: int) -> None:
    domain.shutdown = SHUTDOWN.get(reason & 0xFF, f"unknown reason {reason & 0xFF}")


def _poll(domain: Domain, address: int) -> None:
    """struct sched_poll {ports*, nr_ports u32, timeout u64}: sleep until a port is pending or until then."""
    size = domain.width // 8
    ports_at = domain.space.word(address, size)
    count = domain.space.word(address + size, 4)
    timeout = domain.space.word(address + (8 if domain.width == 32 else 16), 8)
    if count > MAX_POLL_PORTS:
        raise XenError(ERRNO.EINVAL, f"{count} ports to poll")
    if not domain.space.accessible(ports_at, 4 * count):
        raise XenError(ERRNO.EFAULT, f"list of ports at {ports_at:#x}")
    if domain.upcall_pending and not domain.upcall_mask:
        return
    ports = tuple(domain.space.word(ports_at + 4 * i, 4) for i in range(count))
    for port in ports:
        domain.events.check_port(port)
    if not any(domain.events.pending(port) for port in ports):
        domain.sleep(ports, timeout or None)


@handler("set_timer_op")
def set_timer_op(domain: Domain, arguments: Sequence[int]) -> int:
    """One-shot timer at an absolute system time in ns; 0 cancels."""
    due = arguments[0] | arguments[1] << 32 if domain.width == 32 else arguments[0]
    domain.timers.set_timer(due)
    return 0


def _is_up(_domain: Domain, _address: int) -> int:
    return 1


def _up(_domain: Domain, _address: int) -> int:
    return 0


def _down(domain: Domain, _address: int) -> int:
    """The last vcpu goes down: the domain powers off."""
    domain.shutdown = "poweroff"
    return 0


def _initialise(domain: Domain, address: int) -> int:
    domain.space.read(address, struct("vcpu_guest_context", domain.width).size)
    return -ERRNO.EEXIST


def _get_runstate(domain: Domain, address: int) -> int:
    domain.space.write(address, domain.timers.runstate(domain.width))
    return 0


def _area(domain: Domain, address: int, size: int) -> int:
    """The guest virtual address in a registration. Raises XenError(EFAULT) for one out of reach."""
    area = domain.space.word(address, domain.width // 8)
    if not domain.space.accessible(area, size):
        raise XenError(ERRNO.EFAULT, f"area at {area:#x}")
    return area


def _register_runstate(domain: Domain, address: int) -> int:
    domain.runstate_area = _area(domain, address, struct("runstate_info", domain.width).size)
    domain.publish_runstate()
    return 0


def _register_time(domain: Domain, address: int) -> int:
    domain.time_area = _area(domain, address, struct("vcpu_time_info", domain.width).size)
    domain.publish_time()
    return 0


def _set_periodic(domain: Domain, address: int) -> int:
    domain.timers.set_periodic(domain.space.word(address, 8))
    return 0


def _stop_periodic(domain: Domain, _address: int) -> int:
    domain.timers.stop_periodic()
    return 0


def _set_single_shot(domain: Domain, address: int) -> int:
    """struct {timeout_abs_ns u64, flags u32}."""
    due, flags = domain.space.word(address, 8), domain.space.word(address + 8, 4)
    if flags & FUTURE_ONLY and due < domain.timers.now_ns:
        return -ERRNO.ETIME
    domain.timers.set_single_shot(due)
    return 0


def _stop_single_shot(domain: Domain, _address: int) -> int:
    domain.timers.stop_single_shot()
    return 0


def _register_vcpu_info(domain: Domain, address: int) -> int:
    """struct {mfn u64, offset u32, rsvd u32}: from now on vcpu_info lies in a frame of the guest's."""
    mfn, offset = domain.space.word(address, 8), domain.space.word(address + 8, 4)
    size = struct("vcpu_info", domain.width).size
    if offset > PAGE_SIZE - size:
        raise XenError(ERRNO.EINVAL, f"vcpu_info at offset {offset:#x}")
    if domain.events.vcpu_info != domain.shared_info:
        raise XenError(ERRNO.EINVAL, "vcpu_info is registered already")
    domain.frames.get(mfn)
    try:
        domain.frames.get_writable(mfn)
    except XenError as error:
        domain.frames.put(mfn)
        raise XenError(ERRNO.EINVAL, error.why) from None
    old = domain.memory.load(domain.events.vcpu_info, size)
    domain.events.vcpu_info = mfn * PAGE_SIZE + offset
    domain.memory.store(domain.events.vcpu_info, old)
    domain.events.select_all()
    return 0


def _send_nmi(domain: Domain, address: int) -> int:
    if address:
        return -ERRNO.EINVAL
    domain.nmi_pending = True
    return 0


def _get_physid(_domain: Domain, _address: int) -> int:
    """Only a pinned vcpu of the hardware domain has a processor of its own."""
    return -ERRNO.EINVAL


_VCPU_OPERATIONS: dict[str, Callable[[Domain, int], int]] = {
    "initialise": _initialise,
    "up": _up,
    "down": _down,
    "is_up": _is_up,
    "get_runstate_info": _get_runstate,
    "register_runstate_memory_area": _register_runstate,
    "set_periodic_timer": _set_periodic,
    "stop_periodic_timer": _stop_periodic,
    "set_singleshot_timer": _set_single_shot,
    "stop_singleshot_timer": _stop_single_shot,
    "register_vcpu_info": _register_vcpu_info,
    "send_nmi": _send_nmi,
    "get_physid": _get_physid,
    "register_vcpu_time_memory_area": _register_time,
}


@handler("vcpu_op")
def vcpu_op(domain: Domain, arguments: Sequence[int]) -> int:
    """Commands on one vcpu; this domain has vcpu 0 only."""
    command, vcpu, address = arguments[0] & 0xFFFFFFFF, arguments[1] & 0xFFFFFFFF, arguments[2]
    if vcpu:
        raise XenError(ERRNO.ENOENT, f"no vcpu {vcpu}")
    operation = _VCPU_OPERATIONS.get(VCPU.get(command, ""))
    return operation(domain, address) if operation else -ERRNO.ENOSYS
