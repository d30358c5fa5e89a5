"""Opens references that arrive in this process: over the connection that they came by, or one to their owner."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

from tensorcall.client.deadlines import deadlines
from tensorcall.wire.errors import BadPayload, Overloaded, RRefUnknown
from tensorcall.wire.rrefs import RRefId

if TYPE_CHECKING:
    from tensorcall.client.connection import Connection
    from tensorcall.client.user_rref import UserRRef

_CONNECT_SECONDS = 10.0
# How long a connection stays that was opened for references, once it has none, in seconds.
_IDLE_SECONDS = 60.0
# To so many owners connections are opened here, at most: it is peers who name them.
_MAX_OWNERS = 1000


class References:
    """The ways of one process to the owners of its references."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        # Those that the program opened, and has credentials for.
        self._known: weakref.WeakSet[Connection] = weakref.WeakSet()
        # Those that were opened here, by address.
        self._own: dict[str, Connection] = {}

    def add(self, connection: Connection) -> None:
        """Takes note of a connection of the program's: references to values of its server go over it."""
        with self._lock:
            self._known.add(connection)

    def discard(self, connection: Connection) -> None:
        """Forgets a connection that was closed."""
        with self._lock:
            self._known.discard(connection)

    def open(self, rref_id: RRefId, via: Connection | None = None) -> UserRRef:
        """Makes a handle of a name that arrived. Returns at once: the fork is pending until the owner has confirmed it.

        Args:
            rref_id: the name.
            via: the connection that it came by.

        Raises:
            RRefUnknown: it does not say where its owner is.
            BadPayload: where it says that is, is no address.
            Overloaded: there are references to values of too many owners.
        """
        from tensorcall.client.user_rref import UserRRef

        # In one go: an idle connection may be closed in between.
        with self._lock:
            connection = self._way(rref_id, via)
            return UserRRef(connection, connection.link.fork(rref_id))

    def _way(self, rref_id: RRefId, via: Connection | None) -> Connection:
        if via is not None and via.link.is_owner_of(rref_id):
            return via
        for connection in self._known:
            if connection.link.is_owner_of(rref_id) and not connection.closed:
                return connection
        if not rref_id.address:
            raise RRefUnknown(f"{rref_id} does not say where its owner, {rref_id.owner!r:.200}, can be reached")
        return self._to(rref_id.address)

    def _to(self, address: str) -> Connection:
        """Returns a connection to an address that a peer named; without credentials, which are not for just anybody."""
        from tensorcall.client.connection import Connection

        with self._lock:
            connection = self._own.get(address)
            if connection is None:
                host, _, port = address.rpartition(":")
                if not host or "/" in host or not port.isdigit():
                    raise BadPayload(f"a reference's owner is said to be at {address!r:.200}, which is not HOST:PORT")
                if len(self._own) >= _MAX_OWNERS:
                    raise Overloaded(
                        f"this process has connections to {_MAX_OWNERS:,} owners of references that it was sent, and "
                        f"opens no other to {address}: let go of references (a connection goes {_IDLE_SECONDS:g} s "
                        "after its last one), or connect() to the owner first"
                    )
                connection = self._own[address] = Connection(address, "auto", _CONNECT_SECONDS, known=False)
                deadlines.after(_IDLE_SECONDS, self._closer(address))
            return connection

    def _closer(self, address: str) -> Callable[[], None]:
        def close_if_idle() -> None:
            with self._lock:
                connection = self._own.get(address)
                if connection is None:
                    return
                idle = not connection.link.held
                if idle:
                    del self._own[address]
            if idle:
                # It waits for its owner a moment; deadlines must not.
                threading.Thread(target=connection.close, name="tensorcall-close", daemon=True).start()
            else:
                deadlines.after(_IDLE_SECONDS, close_if_idle)

        return close_if_idle


_references = References()


def references() -> References:
    """Returns the process' references."""
    return _references


def _begin() -> None:
    global _references
    _references = References()


if hasattr(os, "register_at_fork"):
    # What the parent has is none of the child's: gRPC's channels do not survive a fork.
    os.register_at_fork(after_in_child=_begin)
