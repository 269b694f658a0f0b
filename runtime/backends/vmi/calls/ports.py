"""Ports. The calls keep their instructions' registers; string calls repeat ECX times, as with REP."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.cpu import flags as fl

if TYPE_CHECKING:
    from runtime.backends.vmi.calls import Handler
    from runtime.backends.vmi.model import VmiModel

__all__ = ["port_handlers"]

_SIZES = {"B": 1, "W": 2, "L": 4}


def port_handlers(model: VmiModel) -> dict[str, Handler]:
    """Call name -> handler."""
    gpr = model.machine.cpu.state.gpr
    ports = model.ports

    def reading(size: int) -> Handler:
        return lambda port: ports.input(port & 0xFFFF, size, gpr[fl.RAX])

    def writing(size: int) -> Handler:
        return lambda value, port: ports.output(port & 0xFFFF, size, value)

    def string(size: int, is_input: bool) -> Handler:
        index = fl.RDI if is_input else fl.RSI

        def run(port: int, pointer: int, count: int) -> tuple[int, ...] | None:
            segment = fl.ES if is_input else fl.DS
            if not ports.string(size, is_input, segment=segment, repeats=True):
                return None
            return gpr[index], gpr[fl.RCX]

        return run

    handlers: dict[str, Handler] = {}
    for letter, size in _SIZES.items():
        handlers[f"IN{letter}"] = reading(size)
        handlers[f"OUT{letter}"] = writing(size)
        handlers[f"INS{letter}"] = string(size, True)
        handlers[f"OUTS{letter}"] = string(size, False)
    return handlers
