"""What one owner should know of leases, forks and holds: by the clock and the requests that came, not its table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from tensorcall.server.leases import Lease
from tensorcall.server.owned import Owned
from tensorcall.server.rrefs import RRefTable


class Ledger:
    """Takes note of what reaches an owner, so that what its table did can be judged."""

    def __init__(self, lease_seconds: float, clock: Callable[[], float]) -> None:
        self._seconds = lease_seconds
        self._clock = clock
        self._renewed: dict[str, float] = {}
        # When and why leases ended, or might have: one that nobody looked at may be renewed a little late.
        self._ended: dict[str, list[tuple[float, str]]] = defaultdict(list)
        self._broke: dict[str, list[float]] = defaultdict(list)
        # When forks were granted first.
        self._granted: dict[tuple[str, int], float] = {}

    def renew(self, client_id: str) -> None:
        """A request that renews the client's lease, or grants one."""
        due = self._due(client_id)
        if due is not None:
            self._ended[client_id].append((due, "lapsed"))
        self._renewed[client_id] = self._clock()

    def _due(self, client_id: str) -> float | None:
        """When the lease lapsed, as far as that is not noted yet."""
        renewed = self._renewed.get(client_id)
        due = None if renewed is None else renewed + self._seconds
        return due if due is not None and due <= self._clock() else None

    def revoke(self, client_id: str) -> None:
        """A request that ends the client's lease."""
        if self._renewed.pop(client_id, None) is not None:
            self._ended[client_id].append((self._clock(), "revoked"))

    def grant(self, client_id: str, number: int) -> None:
        """The owner confirmed a fork."""
        self._granted.setdefault((client_id, number), self._clock())

    def break_session(self, client_id: str) -> None:
        """What answers hold for the client goes after the time of one lease."""
        self._broke[client_id].append(self._clock())

    def why_ended(self, client_id: str, since: float) -> str:
        """Tells why what the client held since then may be gone; empty if it must be there."""
        due = self._due(client_id)
        if due is not None and due >= since:
            return "lapsed"
        return next((why for at, why in self._ended[client_id] if at >= since), "")

    def why_fork_ended(self, client_id: str, number: int) -> str:
        """Tells why a fork may be gone that the client believes to be confirmed; empty if it must be there."""
        granted = self._granted.get((client_id, number))
        return "" if granted is None else self.why_ended(client_id, granted)

    def why_hold_ended(self, client_id: str, since: float) -> str:
        """Tells why a hold may be gone that an answer of then came with; empty if it must be there."""
        now = self._clock()
        if any(since <= at <= now - self._seconds for at in self._broke[client_id]):
            return "session broke"
        return self.why_ended(client_id, since)


def disagreements(table: RRefTable) -> Iterator[str]:
    """Tells where what a table counts is not what it has."""
    holders: dict[Owned, dict[Lease, int]] = defaultdict(dict)
    for lease in table.leases.by_client.values():
        kept: list[Any] = [*lease.forks.values(), *lease.unnumbered.values()]
        kept += [getattr(each, "owned", each) for hold in lease.holds.values() for each in hold]
        if lease.count != len(kept):
            yield f"{lease.client_id} holds {len(kept)} references, and {lease.count} are counted"
        values = {each for each in kept if isinstance(each, Owned)}
        nbytes = sum(owned.nbytes for owned in values)
        if lease.nbytes != nbytes:
            yield f"{lease.client_id} holds {nbytes} bytes, and {lease.nbytes} are counted"
        for owned in values:
            holders[owned][lease] = kept.count(owned)
    for owned in list(table._values.values()):
        if owned.holders != holders.get(owned, {}):
            yield f"{owned} is held by {holders.get(owned)}, and {owned.holders} are counted"
