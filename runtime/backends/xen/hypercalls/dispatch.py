"""Hypercall numbers to handlers, and multicall. An unknown number is -ENOSYS, an error its negative code."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from runtime.backends.xen.domain import Domain
from runtime.backends.xen.frames import XenError
from runtime.backends.xen.layout import ERRNO, numbers, struct

__all__ = ["Handler", "call", "handler", "multicall"]

Handler = Callable[[Domain, Sequence[int]], int]
_HANDLERS: dict[int, Handler] = {}


def handler(name: str) -> Callable[[Handler], Handler]:
    """Register the handler of one hypercall by its name in interface.toml."""

    def register(function: Handler) -> Handler:
        _HANDLERS[numbers("hypercall")[name]] = function
        return function

    return register


def call(domain: Domain, number: int, arguments: Sequence[int]) -> int:
    """Carry out one hypercall; the result as a signed number (negative: an error code)."""
    function = _HANDLERS.get(number)
    if function is None:
        return -ERRNO.ENOSYS
    try:
        return function(domain, arguments)
    except XenError as error:
        domain.log(f"hypercall {number}: {error}")
        return -int(error.errno)


@handler("multicall")
def multicall(domain: Domain, arguments: Sequence[int]) -> int:
    """Run a list of calls in order, each with its own result; multicall itself cannot be nested."""
    address, count = arguments[0], arguments[1] & 0xFFFFFFFF
    layout = struct("multicall_entry", domain.width)
    size = domain.width // 8
    if not domain.space.accessible(address, count * layout.size):
        raise XenError(ERRNO.EFAULT, f"multicall list at {address:#x}")
    nested = numbers("hypercall")["multicall"]
    for index in range(count):
        at = address + index * layout.size
        data = domain.space.read(at, layout.size)
        words = [int.from_bytes(data[i : i + size], "little") for i in range(0, layout.size, size)]
        result = -ERRNO.ENOSYS if words[0] == nested else call(domain, words[0], words[2:8])
        domain.space.set_field(at, layout, "result", result)
        if domain.shutdown:
            break
    return 0
