"""Reads results, and takes over the references in them from the server, which holds them until then."""

from __future__ import annotations

from typing import Any

from tensorcall.client.link import AnonymousHold, Link
from tensorcall.client.rref import RRef
from tensorcall.wire.calls import Payload
from tensorcall.wire.rrefs import Opener, RRefId


class PayloadReader:
    """Reads the results that one connection brings."""

    __slots__ = ("_anonymous", "_open_rref", "link")

    def __init__(self, link: Link, open_rref: Opener, *, anonymous: bool = False) -> None:
        """Makes a reader.

        Args:
            link: to the server, which holds the references until they are taken over.
            open_rref: makes an RRef of a name.
            anonymous: whether calls do not tell the client. An answer that got lost on the way is then held for the
                time of one lease, and not for as long as this process lives.
        """
        self.link = link
        self._anonymous = anonymous
        self._open_rref = open_rref

    def read(self, payload: Payload, *, pickle: bool) -> Any:
        """Reads a result; `pickle`: whether it may be pickled.

        Raises:
            TensorcallError: it can't be read.
        """
        if not payload.hold:
            return payload.object(allow_pickle=pickle)
        opened: list[RRef] = []

        def open_rref(rref_id: RRefId) -> Any:
            handle = self._open_rref(rref_id)
            opened.append(handle)
            return handle

        try:
            return payload.object(allow_pickle=pickle, open_rref=open_rref)
        finally:
            self.link.hold(self._hold(payload), opened)
            # The link waits for their forks, and must not keep them.
            opened.clear()

    def discard(self, payload: Payload | RRefId | None) -> None:
        """Lets go of what a result holds that nobody will read. May be called from `__del__`."""
        if isinstance(payload, Payload) and payload.hold:
            self.link.release_hold(self._hold(payload))

    def _hold(self, payload: Payload) -> int:
        return AnonymousHold(payload.hold) if self._anonymous else payload.hold
