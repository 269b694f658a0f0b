"""Event channels (xen/common/event_channel.c): what ports are and to whom they belong. Port 0 is never used.

How a pending port is told to the guest is one of two forms: bits in shared_info (`event_2l`), until the guest
asks for queues in pages of its own (`event_fifo`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from runtime.backends.xen.event_2l import TwoLevel
from runtime.backends.xen.event_fifo import CONTROL_BLOCK_SIZE, Fifo
from runtime.backends.xen.frames import FrameTable, PhysicalMemory, XenError
from runtime.backends.xen.layout import ERRNO, PAGE_SIZE, numbers, struct

__all__ = ["DOMID_SELF", "Channel", "EventChannels", "check_domain"]

DOMID_SELF = 0x7FF0
DOMID_CONTROL = 0
VIRQ_LAST = 23
PER_VCPU_VIRQS = frozenset(numbers("virq")[name] for name in ("timer", "debug", "xenoprof", "xenpmu"))
STATUS = {"closed": 0, "unbound": 1, "interdomain": 2, "pirq": 3, "virq": 4, "ipi": 5}
MAX_PORTS = 1024
"""What the toolstack gives a domain unless told otherwise (xl.cfg: event_channels=1023)."""
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
        self,
        memory: PhysicalMemory,
        frames: FrameTable,
        shared_info: int,
        width: int,
        domid: int,
        on_pending: Callable[[], None],
    ) -> None:
        self.memory = memory
        self.frames = frames
        self.domid = domid
        self.on_pending = on_pending
        """Called when upcall_pending becomes set, and when a polled port becomes pending."""
        self.ports: dict[int, Channel] = {}
        self.polled: tuple[int, ...] = ()
        self._valid = PORTS_PER_BUCKET
        self._upcall_pending = struct("vcpu_info", width).offsets["upcall_pending"]
        self.vcpu_info = shared_info
        """Machine address of the vcpu's structure, which the guest may move."""
        self.two_level = TwoLevel(memory, shared_info, width, lambda: self.vcpu_info, self.mark_upcall)
        self.fifo: Fifo | None = None

    # -- the form ------------------------------------------------------------------------------

    @property
    def form(self) -> TwoLevel | Fifo:
        """How events are told to the guest now."""
        return self.fifo or self.two_level

    def init_control(self, vcpu: int, mfn: int, offset: int) -> None:
        """EVTCHNOP_init_control: the FIFO form, whose control block lies at `offset` of a frame.

        Raises XenError: ENOENT no such vcpu, EINVAL a place that is not the guest's, not aligned or taken.
        """
        if vcpu:
            raise XenError(ERRNO.ENOENT, f"no vcpu {vcpu}")
        if offset > PAGE_SIZE - CONTROL_BLOCK_SIZE or offset & 7:
            raise XenError(ERRNO.EINVAL, f"control block at offset {offset:#x}")
        fifo = self.fifo or Fifo(self.memory, self.frames, self.mark_upcall)
        fifo.set_control_block(mfn, offset)
        if self.fifo is None:
            for port in self.ports:
                if self.two_level.pending(port):
                    fifo.saved(port)
            self.fifo = fifo

    def expand_array(self, mfn: int) -> None:
        """EVTCHNOP_expand_array. Raises XenError: EOPNOTSUPP in the two-level form, ENOSPC, EINVAL."""
        if self.fifo is None:
            raise XenError(ERRNO.EOPNOTSUPP, "the domain uses two-level event channels")
        self.fifo.expand(mfn)

    def set_priority(self, port: int, priority: int) -> None:
        """EVTCHNOP_set_priority. Raises XenError: EINVAL, and ENOSYS in the two-level form."""
        self.check_port(port)
        if self.fifo is None:
            raise XenError(ERRNO.ENOSYS, "two-level event channels have no priorities")
        self.fifo.set_priority(port, priority)

    # -- allocation --------------------------------------------------------------------------

    def allocate(self, channel: Channel) -> int:
        """The lowest closed port, opened as `channel`. Raises XenError(ENOSPC)."""
        for port in range(1, MAX_PORTS):
            if port not in self.ports and not self.form.busy(port):
                self.ports[port] = channel
                self.form.opened(port)
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
        self.form.clear_pending(port)

    def reset(self) -> None:
        """EVTCHNOP_reset: close every port, and go back to the two-level form."""
        for port in sorted(self.ports):
            self.close(port)
        if self.fifo is not None:
            self.fifo.release()
            self.fifo = None

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
        if not self.form.set_pending(port) and port in self.polled:
            self.on_pending()

    def unmask(self, port: int) -> None:
        """EVTCHNOP_unmask: clear the mask; a pending port tells the vcpu. Raises XenError(EINVAL)."""
        self.check_port(port)
        if port in self.ports:
            self.form.unmask(port)

    def pending(self, port: int) -> bool:
        """Is the port pending (whatever its mask)?"""
        return self.form.pending(port)

    def mark_upcall(self) -> None:
        """Set upcall_pending, and wake the vcpu if it was not."""
        address = self.vcpu_info + self._upcall_pending
        if self.memory.load(address, 1) == b"\0":
            self.memory.store(address, b"\1")
            self.on_pending()

    def select_all(self) -> None:
        """Have the guest look at everything: nothing may get lost when vcpu_info moves."""
        self.form.select_all()
        self.mark_upcall()
