"""Event channels, two-level form (xen/common/event_channel.c, event_2l.c).

A port is pending in shared_info.evtchn_pending, masked in evtchn_mask; an unmasked pending port sets its
word's bit in vcpu_info.pending_sel and then upcall_pending. Port 0 is never used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from runtime.backends.xen.frames import PhysicalMemory, XenError
from runtime.backends.xen.layout import ERRNO, numbers, struct

__all__ = ["DOMID_SELF", "Channel", "EventChannels", "check_domain"]

DOMID_SELF = 0x7FF0
DOMID_CONTROL = 0
VIRQ_LAST = 23
PER_VCPU_VIRQS = frozenset(numbers("virq")[name] for name in ("timer", "debug", "xenoprof", "xenpmu"))
STATUS = {"closed": 0, "unbound": 1, "interdomain": 2, "pirq": 3, "virq": 4, "ipi": 5}
PORTS_PER_BUCKET = 64
"""Xen makes room for ports in steps of one page of its own structures."""


def check_domain(domid: int, own: int) -> None:
    """Is this the domain itself, by number or as DOMID_SELF? Raises XenError: EPERM for the control domain,
    which exists and is none of the guest's business, ESRCH for any other."""
    if domid in (DOMID_SELF, own):
        return
    raise XenError(ERRNO.EPERM if domid == DOMID_CONTROL else ERRNO.ESRCH, f"domain {domid}")


@dataclass(frozen=True)
class Channel:
    """One port: its state, the remote domain or the VIRQ it is bound to, and who hears a send."""

    state: str = "closed"
    remote_domain: int = 0
    remote_port: int = 0
    virq: int = 0
    vcpu: int = 0
    listener: Callable[[], None] | None = None
    """The back end of a port to the control domain."""


class EventChannels:
    """The ports of one domain, over its shared_info page at a machine address."""

    def __init__(
        self, memory: PhysicalMemory, shared_info: int, width: int, domid: int, on_pending: Callable[[], None]
    ) -> None:
        self.memory = memory
        self.shared_info = shared_info
        self.width = width
        self.domid = domid
        self.on_pending = on_pending
        """Called when upcall_pending becomes set, and when a polled port becomes pending."""
        self.limit = 1024 if width == 32 else 4096
        self.ports: dict[int, Channel] = {}
        self.polled: tuple[int, ...] = ()
        self._valid = PORTS_PER_BUCKET
        self._shared = struct("shared_info", width)
        self._vcpu = struct("vcpu_info", width)
        self.vcpu_info = shared_info

    # -- allocation --------------------------------------------------------------------------

    def allocate(self, channel: Channel) -> int:
        """The lowest closed port, opened as `channel`. Raises XenError(ENOSPC)."""
        for port in range(1, self.limit):
            if port not in self.ports:
                self.ports[port] = channel
                self._valid = max(self._valid, (port // PORTS_PER_BUCKET + 1) * PORTS_PER_BUCKET)
                return port
        raise XenError(ERRNO.ENOSPC, "every event channel is in use")

    def check_port(self, port: int) -> None:
        """port_is_valid: is there a structure for it, open or not? Raises XenError(EINVAL)."""
        if not 0 <= port < self._valid:
            raise XenError(ERRNO.EINVAL, f"no port {port}")

    def bind_virq(self, virq: int, vcpu: int) -> int:
        """EVTCHNOP_bind_virq. Raises XenError: EINVAL unknown or global virq off vcpu 0, ENOENT, EEXIST."""
        if not 0 <= virq <= VIRQ_LAST:
            raise XenError(ERRNO.EINVAL, f"no virq {virq}")
        if virq not in PER_VCPU_VIRQS and vcpu:
            raise XenError(ERRNO.EINVAL, f"virq {virq} is global: only vcpu 0 can bind it")
        if vcpu:
            raise XenError(ERRNO.ENOENT, f"no vcpu {vcpu}")
        if any(c.state == "virq" and c.virq == virq for c in self.ports.values()):
            raise XenError(ERRNO.EEXIST, f"virq {virq} is bound already")
        return self.allocate(Channel("virq", virq=virq))

    def bind_ipi(self, vcpu: int) -> int:
        """EVTCHNOP_bind_ipi. Raises XenError(ENOENT) for a vcpu that does not exist."""
        if vcpu:
            raise XenError(ERRNO.ENOENT, f"no vcpu {vcpu}")
        return self.allocate(Channel("ipi"))

    def alloc_unbound(self, domain: int, remote: int) -> int:
        """EVTCHNOP_alloc_unbound for the domain itself. Raises XenError: ESRCH no domain, EPERM not ours."""
        check_domain(domain, self.domid)
        return self.allocate(Channel("unbound", remote_domain=self.domid if remote == DOMID_SELF else remote))

    def bind_interdomain(self, remote_domain: int, remote_port: int) -> int:
        """EVTCHNOP_bind_interdomain; only the domain itself has ports to bind to."""
        if remote_domain not in (DOMID_SELF, self.domid, DOMID_CONTROL):
            raise XenError(ERRNO.ESRCH, f"no domain {remote_domain}")
        other = self.ports.get(remote_port)
        waiting = other is not None and other.state == "unbound" and other.remote_domain == self.domid
        if other is None or not waiting or remote_domain == DOMID_CONTROL:
            raise XenError(ERRNO.EINVAL, f"port {remote_port} is not waiting for this domain")
        port = self.allocate(Channel("interdomain", remote_domain=self.domid, remote_port=remote_port))
        self.ports[remote_port] = replace(other, state="interdomain", remote_port=port)
        self.set_pending(port)
        return port

    def bind_vcpu(self, port: int, vcpu: int) -> None:
        """EVTCHNOP_bind_vcpu. Raises XenError: ENOENT no such vcpu, EINVAL a port that cannot move."""
        if vcpu:
            raise XenError(ERRNO.ENOENT, f"no vcpu {vcpu}")
        channel = self._open(port)
        fixed = channel.state == "ipi" or (channel.state == "virq" and channel.virq in PER_VCPU_VIRQS)
        if fixed:
            raise XenError(ERRNO.EINVAL, f"port {port} stays where it is bound")

    def close(self, port: int) -> None:
        """EVTCHNOP_close; the other end of a pair goes back to waiting. Raises XenError(EINVAL)."""
        channel = self._open(port)
        if channel.state == "interdomain" and channel.remote_port in self.ports and not channel.listener:
            self.ports[channel.remote_port] = replace(self.ports[channel.remote_port], state="unbound")
        del self.ports[port]
        self._bit("evtchn_pending", port, False)

    def reset(self) -> None:
        """EVTCHNOP_reset: close every port."""
        for port in sorted(self.ports):
            self.close(port)

    def _open(self, port: int) -> Channel:
        channel = self.ports.get(port)
        if channel is None:
            raise XenError(ERRNO.EINVAL, f"port {port} is closed")
        return channel

    # -- delivery ----------------------------------------------------------------------------

    def send(self, port: int) -> None:
        """EVTCHNOP_send. Raises XenError(EINVAL) for ports that cannot be sent on."""
        channel = self._open(port)
        if channel.listener is not None:
            channel.listener()
        elif channel.state == "interdomain":
            self.set_pending(channel.remote_port)
        elif channel.state == "ipi":
            self.set_pending(port)
        elif channel.state != "unbound":
            raise XenError(ERRNO.EINVAL, f"port {port} is a {channel.state}")

    def notify(self, port: int) -> None:
        """The back end of `port` has news for the guest, which may have closed the port."""
        channel = self.ports.get(port)
        if channel is not None and channel.listener is not None:
            self.set_pending(port)

    def status(self, port: int) -> tuple[int, Channel]:
        """EVTCHNOP_status: the state's number and the channel. Raises XenError(EINVAL)."""
        self.check_port(port)
        channel = self.ports.get(port, Channel())
        return STATUS[channel.state], channel

    def raise_virq(self, virq: int) -> None:
        """Make the port of a virq pending, if the guest bound one."""
        for port, channel in self.ports.items():
            if channel.state == "virq" and channel.virq == virq:
                self.set_pending(port)
                return

    def set_pending(self, port: int) -> None:
        """Mark a port pending; if it is not masked, tell the vcpu."""
        if self._bit("evtchn_pending", port, True):
            return
        if not self._test("evtchn_mask", port):
            self._tell(port)
        if port in self.polled:
            self.on_pending()

    def unmask(self, port: int) -> None:
        """EVTCHNOP_unmask: clear the mask; a pending port tells the vcpu. Raises XenError(EINVAL)."""
        self.check_port(port)
        if (
            port in self.ports
            and self._bit("evtchn_mask", port, False)
            and self._test("evtchn_pending", port)
        ):
            self._tell(port)

    def pending(self, port: int) -> bool:
        """Is the port pending (whatever its mask)?"""
        return self._test("evtchn_pending", port)

    def _tell(self, port: int) -> None:
        offset, size = self._vcpu.place("pending_sel")
        address = self.vcpu_info + offset
        word = int.from_bytes(self.memory.load(address, size), "little")
        bit = 1 << port // self.width
        if not word & bit:
            self.memory.store(address, (word | bit).to_bytes(size, "little"))
            self.mark_upcall()

    def mark_upcall(self) -> None:
        """Set upcall_pending, and wake the vcpu if it was not."""
        address = self.vcpu_info + self._vcpu.offsets["upcall_pending"]
        if self.memory.load(address, 1) == b"\0":
            self.memory.store(address, b"\1")
            self.on_pending()

    def select_all(self) -> None:
        """Have the guest look at every word: nothing may get lost when vcpu_info moves."""
        offset, size = self._vcpu.place("pending_sel")
        self.memory.store(self.vcpu_info + offset, b"\xff" * size)
        self.mark_upcall()

    def _address(self, field: str, port: int) -> int:
        return self.shared_info + self._shared.offsets[field] + port // 8

    def _test(self, field: str, port: int) -> bool:
        return bool(self.memory.load(self._address(field, port), 1)[0] & 1 << port % 8)

    def _bit(self, field: str, port: int, value: bool) -> bool:
        """Set or clear a port's bit; the old value."""
        address = self._address(field, port)
        byte = self.memory.load(address, 1)[0]
        bit = 1 << port % 8
        self.memory.store(address, bytes([byte | bit if value else byte & ~bit & 0xFF]))
        return bool(byte & bit)
