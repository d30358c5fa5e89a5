"""What becomes of a reference that arrives at a server."""

from __future__ import annotations

import fnmatch
import ipaddress
from typing import TYPE_CHECKING, Any

from tensorcall.server.owner_rref import OwnerRRef
from tensorcall.wire.errors import NotAllowed, RRefUnknown
from tensorcall.wire.rrefs import RRefId

if TYPE_CHECKING:
    from tensorcall.server.context import Peer
    from tensorcall.server.core import Core


class OpenRRef:
    """Makes handles: of the server's own values, and of those of servers that it may connect to."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def __call__(self, rref_id: RRefId, peer: Peer | None = None) -> Any:
        """Makes a handle.

        Args:
            rref_id: the value's name.
            peer: who sent it; None: this process.

        Raises:
            RRefUnknown, RRefExpired, OwnerRestarted: it should be a value of this process, and is not (any more).
            NotAllowed: its owner is at an address that this server does not connect to.
            Unreachable: its owner does not answer.
        """
        table = self._core.rrefs
        if table.is_ours(rref_id):
            return OwnerRRef(table.get(rref_id), self._core)
        if rref_id.owner == table.worker and rref_id.address in ("", table.address):
            # Raises: an earlier start of this process had it.
            return OwnerRRef(table.get(rref_id), self._core)
        if not rref_id.address:
            raise RRefUnknown(f"{rref_id} does not say where its owner can be reached")
        near = peer is None or peer.loopback or peer.trusted
        check_address(rref_id.address, self._core.config.rref_peers, near=near)
        # Not at the top: few servers ever need it.
        from tensorcall.client.references import references

        return references().open(rref_id)


def check_address(address: str, allowed: tuple[str, ...], *, near: bool = True) -> None:
    """Returns if the server may connect to an address that a caller named.

    Else a caller could have it knock on any door of the network that it stands in; and one from elsewhere on those of
    this machine.

    Raises:
        NotAllowed: it may not.
    """
    host, _, port = address.rpartition(":")
    if near and _is_loopback(host) and port.isdigit():
        return
    for pattern in allowed:
        if pattern == "*" or fnmatch.fnmatchcase(address, pattern) or fnmatch.fnmatchcase(host, pattern):
            return
    raise NotAllowed(
        f"the reference's owner is at {address!r:.200}, and this server does not connect there for its callers: have "
        f"its operator allow it (--rref-peer {host[:200] or 'HOST'})"
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
