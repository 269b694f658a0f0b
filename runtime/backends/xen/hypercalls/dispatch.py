"""Hypercall numbers to handlers, and multicall. An unknown number is -ENOSYS, an error its negative code.

Work is bounded as in Xen: a call over a long list does a part of it and asks to be made again with what is
left (hypercall_create_continuation), so that the guest cannot hold the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from runtime.backends.xen.domain import Domain
from runtime.backends.xen.frames import XenError
from runtime.backends.xen.layout import ERRNO, numbers, struct

__all__ = ["Continue", "Handler", "Leave", "call", "handler"]

MULTICALL, IRET = (numbers("hypercall")[name] for name in ("multicall", "iret"))


@dataclass(frozen=True)
class Continue:
    """The call is not done: make it again with these arguments."""

    arguments: tuple[int, ...]


@dataclass(frozen=True)
class Leave:
    """The guest leaves by HYPERVISOR_iret in the middle of a multicall, at this entry's address."""

    entry: int


Handler = Callable[[Domain, Sequence[int]], int | Continue | Leave]
H = TypeVar("H", bound=Handler)
_HANDLERS: dict[int, Handler] = {}


def handler(name: str) -> Callable[[H], H]:
    """Register the handler of one hypercall by its name in interface.toml."""

    def register(function: H) -> H:
        _HANDLERS[numbers("hypercall")[name]] = function
        return function

    return register


def call(domain: Domain, number: int, arguments: Sequence[int]) -> int | Continue | Leave:
    """Carry out one hypercall; the result as a signed number (negative: an error code)."""
    function = _HANDLERS.get(number)
    if function is None:
        return -ERRNO.ENOSYS
    domain.work()
    try:
        return function(domain, arguments)
    except XenError as error:
        domain.log(f"hypercall {number}: {error}")
        return -int(error.errno)


@handler("multicall")
def multicall(domain: Domain, arguments: Sequence[int]) -> int | Continue | Leave:
    """Run a list of calls in order, each with its own result; multicall itself cannot be nested, and `iret`
    ends the list (arch_do_multicall_call: mc_exit)."""
    address, count = arguments[0], arguments[1] & 0xFFFFFFFF
    layout = struct("multicall_entry", domain.width)
    size = domain.width // 8
    if not domain.space.accessible(address, count * layout.size):
        raise XenError(ERRNO.EFAULT, f"multicall list at {address:#x}")
    for index in range(count):
        at = address + index * layout.size
        if index and domain.exhausted:
            return Continue((at, count - index))
        data = domain.space.read(at, layout.size)
        words = [int.from_bytes(data[i : i + size], "little") for i in range(0, layout.size, size)]
        if words[0] == IRET:
            return Leave(at)
        nested = words[0] == MULTICALL
        result = -ERRNO.EINVAL if nested else call(domain, words[0], words[2:8])
        assert not isinstance(result, Leave), "only a multicall leaves"
        if isinstance(result, Continue):
            left = b"".join(word.to_bytes(size, "little") for word in result.arguments)
            domain.space.write(at + layout.offsets["args"], left)
            return Continue((at, count - index))
        domain.space.set_field(at, layout, "result", result)
        if domain.shutdown:
            break
    return 0
