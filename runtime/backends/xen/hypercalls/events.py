"""event_channel_op and its older form (xen/common/event_channel.c)."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.backends.xen.domain import Domain
from runtime.backends.xen.frames import XenError
from runtime.backends.xen.hypercalls.dispatch import handler
from runtime.backends.xen.layout import ERRNO, names

__all__: list[str] = []

COMMANDS = names("event")
ARGUMENT_BYTES = {
    "bind_interdomain": 12,
    "bind_virq": 12,
    "bind_pirq": 12,
    "close": 4,
    "send": 4,
    "status": 24,
    "alloc_unbound": 8,
    "bind_ipi": 8,
    "bind_vcpu": 8,
    "unmask": 4,
    "reset": 2,
}
COMPAT_LAST = 7


def _dword(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")


def _run(domain: Domain, command: int, address: int) -> int:
    name = COMMANDS.get(command, "")
    if name not in ARGUMENT_BYTES:
        if name in ("init_control", "expand_array", "set_priority"):
            raise XenError(ERRNO.ENOSYS, "FIFO event channels are not offered")
        raise XenError(ERRNO.ENOSYS, f"event channel command {command}")
    data = domain.space.read(address, ARGUMENT_BYTES[name])
    result = _OPERATIONS[name](domain, data)
    if isinstance(result, tuple):
        at, content = result
        domain.space.write(address + at, content)
    return 0


def _status(domain: Domain, data: bytes) -> tuple[int, bytes]:
    state, channel = domain.events.status(_dword(data, 4))
    content = state.to_bytes(4, "little") + channel.vcpu.to_bytes(4, "little")
    if channel.state == "virq":
        content += channel.virq.to_bytes(4, "little")
    elif channel.state in ("unbound", "interdomain"):
        content += channel.remote_domain.to_bytes(2, "little") + bytes(2)
        content += channel.remote_port.to_bytes(4, "little")
    return 8, content


def _bind_pirq(domain: Domain, data: bytes) -> tuple[int, bytes]:
    if _dword(data, 4) & ~1:
        raise XenError(ERRNO.EINVAL, "bind_pirq flags")
    raise XenError(ERRNO.EPERM, f"the domain has no physical interrupt {_dword(data, 0)}")


def _bind_vcpu(domain: Domain, data: bytes) -> None:
    if _dword(data, 4):
        raise XenError(ERRNO.ENOENT, f"no vcpu {_dword(data, 4)}")
    state, channel = domain.events.status(_dword(data, 0))
    if channel.state not in ("unbound", "interdomain", "pirq", "virq"):
        raise XenError(ERRNO.EINVAL, f"port {_dword(data, 0)} is {channel.state} ({state})")
    if channel.state == "virq" and channel.virq == 0:
        raise XenError(ERRNO.EINVAL, "a per-vcpu virq stays where it is bound")


def _reset(domain: Domain, data: bytes) -> None:
    if int.from_bytes(data[:2], "little") not in (0x7FF0, domain.domid):
        raise XenError(ERRNO.ESRCH, "no such domain")
    domain.events.reset()


def _port(value: int) -> bytes:
    return value.to_bytes(4, "little")


_OPERATIONS = {
    "bind_interdomain": lambda d, a: (
        8,
        _port(d.events.bind_interdomain(int.from_bytes(a[0:2], "little"), _dword(a, 4))),
    ),
    "bind_virq": lambda d, a: (8, _port(d.events.bind_virq(_dword(a, 0), _dword(a, 4)))),
    "bind_pirq": _bind_pirq,
    "close": lambda d, a: d.events.close(_dword(a, 0)),
    "send": lambda d, a: d.events.send(_dword(a, 0)),
    "status": _status,
    "alloc_unbound": lambda d, a: (
        4,
        _port(d.events.alloc_unbound(int.from_bytes(a[0:2], "little"), int.from_bytes(a[2:4], "little"))),
    ),
    "bind_ipi": lambda d, a: (4, _port(d.events.bind_ipi(_dword(a, 0)))),
    "bind_vcpu": _bind_vcpu,
    "unmask": lambda d, a: d.events.unmask(_dword(a, 0)),
    "reset": _reset,
}


@handler("event_channel_op")
def event_channel_op(domain: Domain, arguments: Sequence[int]) -> int:
    """One event-channel command with its argument structure."""
    return _run(domain, arguments[0] & 0xFFFFFFFF, arguments[1])


@handler("event_channel_op_compat")
def event_channel_op_compat(domain: Domain, arguments: Sequence[int]) -> int:
    """The 2005 form: the command stands in front of its argument in one structure."""
    command = domain.space.word(arguments[0], 4)
    if command > COMPAT_LAST:
        raise XenError(ERRNO.ENOSYS, f"compat event channel command {command}")
    return _run(domain, command, arguments[0] + (4 if domain.width == 32 else 8))
