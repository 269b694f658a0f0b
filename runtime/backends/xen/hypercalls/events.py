"""event_channel_op and its older form (xen/common/event_channel.c)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from runtime.backends.xen.domain import Domain
from runtime.backends.xen.event_fifo import LINK_BITS
from runtime.backends.xen.events import Channel, check_domain
from runtime.backends.xen.frames import XenError
from runtime.backends.xen.hypercalls.dispatch import handler
from runtime.backends.xen.layout import ERRNO, names

__all__: list[str] = []

COMMANDS = names("event")
COMPAT_LAST = 7
Reply = tuple[int, bytes]
"""Where in the argument structure the answer goes, and the answer."""


def _word(data: bytes, at: int, size: int = 4) -> int:
    return int.from_bytes(data[at : at + size], "little")


def _at(offset: int, port: int) -> Reply:
    return offset, port.to_bytes(4, "little")


def _bind_interdomain(domain: Domain, data: bytes) -> Reply:
    """struct {remote_dom u16, remote_port u32, local_port u32 out}."""
    return _at(8, domain.events.bind_interdomain(_word(data, 0, 2), _word(data, 4)))


def _bind_virq(domain: Domain, data: bytes) -> Reply:
    """struct {virq u32, vcpu u32, port u32 out}."""
    return _at(8, domain.events.bind_virq(_word(data, 0), _word(data, 4)))


def _bind_pirq(domain: Domain, data: bytes) -> Reply:
    """struct {pirq u32, flags u32, port u32 out}: only a domain that was given one has interrupt 0."""
    line = domain.physical_interrupt
    if line is None or _word(data, 0):
        raise XenError(ERRNO.EINVAL, f"no physical interrupt {_word(data, 0)}")
    if any(channel.state == "pirq" for channel in domain.events.ports.values()):
        raise XenError(ERRNO.EEXIST, "the interrupt is bound already")
    port = domain.events.allocate(Channel("pirq"))
    line.bind(port)
    return _at(8, port)


def _close(domain: Domain, data: bytes) -> None:
    domain.events.close(_word(data, 0))


def _send(domain: Domain, data: bytes) -> None:
    domain.events.send(_word(data, 0))


def _status(domain: Domain, data: bytes) -> Reply:
    """struct {dom u16, port u32, status u32 out, vcpu u32 out, union out}."""
    check_domain(_word(data, 0, 2), domain.domid)
    state, channel = domain.events.status(_word(data, 4))
    content = state.to_bytes(4, "little") + channel.vcpu.to_bytes(4, "little")
    if channel.state == "virq":
        content += channel.virq.to_bytes(4, "little")
    elif channel.state in ("unbound", "interdomain"):
        content += channel.remote_domain.to_bytes(2, "little") + bytes(2)
        content += channel.remote_port.to_bytes(4, "little")
    return 8, content


def _alloc_unbound(domain: Domain, data: bytes) -> Reply:
    """struct {dom u16, remote_dom u16, port u32 out}."""
    return _at(4, domain.events.alloc_unbound(_word(data, 0, 2), _word(data, 2, 2)))


def _bind_ipi(domain: Domain, data: bytes) -> Reply:
    """struct {vcpu u32, port u32 out}."""
    return _at(4, domain.events.bind_ipi(_word(data, 0)))


def _bind_vcpu(domain: Domain, data: bytes) -> None:
    domain.events.bind_vcpu(_word(data, 0), _word(data, 4))


def _unmask(domain: Domain, data: bytes) -> None:
    domain.events.unmask(_word(data, 0))


def _reset(domain: Domain, data: bytes) -> None:
    check_domain(_word(data, 0, 2), domain.domid)
    domain.events.reset()


def _init_control(domain: Domain, data: bytes) -> Reply:
    """struct {control_gfn u64, offset u32, vcpu u32, link_bits u8 out}."""
    domain.events.init_control(_word(data, 12), _word(data, 0, 8), _word(data, 8))
    return 16, bytes([LINK_BITS])


def _expand_array(domain: Domain, data: bytes) -> None:
    """struct {array_gfn u64}."""
    domain.events.expand_array(_word(data, 0, 8))


def _set_priority(domain: Domain, data: bytes) -> None:
    """struct {port u32, priority u32}."""
    domain.events.set_priority(_word(data, 0), _word(data, 4))


_OPERATIONS: dict[str, tuple[int, Callable[[Domain, bytes], Reply | None]]] = {
    "bind_interdomain": (12, _bind_interdomain),
    "bind_virq": (12, _bind_virq),
    "bind_pirq": (12, _bind_pirq),
    "close": (4, _close),
    "send": (4, _send),
    "status": (24, _status),
    "alloc_unbound": (8, _alloc_unbound),
    "bind_ipi": (8, _bind_ipi),
    "bind_vcpu": (8, _bind_vcpu),
    "unmask": (4, _unmask),
    "reset": (2, _reset),
    "init_control": (24, _init_control),
    "expand_array": (8, _expand_array),
    "set_priority": (8, _set_priority),
}
"""Bytes of the argument structure, and what carries the command out."""


def _run(domain: Domain, command: int, address: int) -> int:
    known = _OPERATIONS.get(COMMANDS.get(command, ""))
    if known is None:
        return -ERRNO.ENOSYS
    size, operation = known
    reply = operation(domain, domain.space.read(address, size))
    if reply is not None:
        offset, content = reply
        domain.space.write(address + offset, content)
    return 0


@handler("event_channel_op")
def event_channel_op(domain: Domain, arguments: Sequence[int]) -> int:
    """One event-channel command with its argument structure."""
    return _run(domain, arguments[0] & 0xFFFFFFFF, arguments[1])


@handler("event_channel_op_compat")
def event_channel_op_compat(domain: Domain, arguments: Sequence[int]) -> int:
    """The 2005 form: the command stands in front of its argument in one structure."""
    command = domain.space.word(arguments[0], 4)
    if command > COMPAT_LAST:
        return -ERRNO.ENOSYS
    return _run(domain, command, arguments[0] + 4)
