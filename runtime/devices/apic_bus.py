"""The interrupt bus: what local and I/O APICs say to each other.

Every interrupt on it is one message with a destination. Each local APIC that the destination names takes
it; nothing here knows how many there are.
Source: Intel SDM vol. 3, chapter "Advanced Programmable Interrupt Controller".
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

__all__ = ["ApicBus", "ApicMessage", "BusAgent", "Delivery", "Shorthand"]


class Delivery(enum.IntEnum):
    """Delivery modes: bits 8 to 10 of the ICR, of an LVT entry and of a redirection entry."""

    FIXED = 0
    LOWEST = 1
    SMI = 2
    NMI = 4
    INIT = 5
    STARTUP = 6
    EXTINT = 7


class Shorthand(enum.IntEnum):
    """Destination shorthands: bits 18 and 19 of the ICR."""

    NONE = 0
    SELF = 1
    ALL = 2
    OTHERS = 3


@dataclass(frozen=True)
class ApicMessage:
    """One interrupt: what it is and whom it is for."""

    vector: int
    delivery: Delivery
    destination: int
    logical: bool = False
    level: bool = False
    """Level triggered: its end is told to the I/O APICs."""
    shorthand: Shorthand = Shorthand.NONE


class BusAgent(Protocol):
    """A local APIC, as the bus sees it."""

    @property
    def arbitration(self) -> int:
        """Priority of what it works on: the lowest takes a message in lowest-priority mode."""

    def is_addressed(self, message: ApicMessage) -> bool:
        """Does the message's destination name this one?"""

    def take(self, message: ApicMessage) -> bool:
        """Accept the message; False if it cannot be accepted now."""

    def expects(self, vector: int) -> bool:
        """True while the vector is requested and not yet taken by the processor."""


class ApicBus:
    """Carries messages to local APICs, and ends of level interrupts to I/O APICs."""

    def __init__(self) -> None:
        self.agents: list[BusAgent] = []
        self.on_end: list[Callable[[int], None]] = []
        """Called with the vector of each level-triggered interrupt that a processor has ended."""
        self.on_taken: list[Callable[[], None]] = []
        """Called when a processor has taken an interrupt: another request of its vector would be seen."""

    def send(self, message: ApicMessage, sender: BusAgent | None = None) -> bool:
        """Deliver to every agent that is addressed; False if none has accepted."""
        targets = self._targets(message, sender)
        if message.delivery is Delivery.LOWEST:
            targets = sorted(targets, key=lambda agent: agent.arbitration)[:1]
        return any(tuple(agent.take(message) for agent in targets))

    def _targets(self, message: ApicMessage, sender: BusAgent | None) -> list[BusAgent]:
        if message.shorthand is Shorthand.SELF:
            return [sender] if sender is not None else []
        if message.shorthand is Shorthand.ALL:
            return list(self.agents)
        if message.shorthand is Shorthand.OTHERS:
            return [agent for agent in self.agents if agent is not sender]
        return [agent for agent in self.agents if agent.is_addressed(message)]

    def is_requested(self, vector: int) -> bool:
        """True while some agent still has the vector to take: an edge more would change nothing."""
        return any(agent.expects(vector) for agent in self.agents)

    def end(self, vector: int) -> None:
        """A processor has ended a level-triggered interrupt."""
        for told in self.on_end:
            told(vector)

    def taken(self) -> None:
        """A processor has taken an interrupt."""
        for told in self.on_taken:
            told()
