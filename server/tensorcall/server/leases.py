"""Who holds what until when: the leases of client processes. See rref_service.proto."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from tensorcall.wire.errors import BadPayload, Overloaded, TooLarge
from tensorcall.wire.limits import MAX_CALL_ID_BYTES
from tensorcall.wire.rrefs import LEASE_SHIFT

if TYPE_CHECKING:
    from tensorcall.server.owned import Owned

MAX_NUMBER = (1 << LEASE_SHIFT) - 1
# Of so many clients whose leases ended it is remembered which numbers they have used.
_REMEMBERED_CLIENTS = 4096
# And of each of them no more numbers apart than this.
_REMEMBERED_SPARSE = 1024
# A client that leaves so many gaps among its numbers has no use for them any more.
_MAX_SPARSE = 1 << 18
_RETRY_AFTER_SECONDS = 1.0
_MAX_LEASES = (1 << (64 - LEASE_SHIFT)) - 1


class Seen:
    """The numbers that a client has used. Most of them lie below one bound, below which all were used."""

    __slots__ = ("_above", "floor")

    def __init__(self) -> None:
        # All numbers below it are used up; so is 0, which is none.
        self.floor = 1
        self._above: set[int] = set()

    def __contains__(self, number: int) -> bool:
        return number < self.floor or number in self._above

    def __len__(self) -> int:
        return len(self._above)

    def add(self, number: int) -> bool:
        """Takes note of a number; False if it was used before."""
        if number in self:
            return False
        if number != self.floor:
            self._above.add(number)
            if len(self._above) > _MAX_SPARSE:
                self.settle(sorted(self._above)[_MAX_SPARSE // 2])
            return True
        self.settle(number + 1)
        return True

    def shrink(self, sparse: int) -> None:
        """Keeps no more than so many numbers apart; those below the lowest of them count as used."""
        if len(self._above) > sparse:
            self.settle(sorted(self._above)[-sparse])

    def settle(self, floor: int) -> None:
        """Takes all numbers below this one for used."""
        if floor <= self.floor:
            return
        if floor - self.floor < len(self._above):
            self._above.difference_update(range(self.floor, floor))
        elif self._above:
            self._above = {number for number in self._above if number >= floor}
        while floor in self._above:
            self._above.discard(floor)
            floor += 1
        self.floor = floor


class Lease:
    """What one client process holds. Only the table changes it, under its lock."""

    __slots__ = (
        "client_id",
        "count",
        "expires",
        "first_sequence",
        "forks",
        "holds",
        "nbytes",
        "promised",
        "seen",
        "unnumbered",
    )

    def __init__(self, client_id: str, number: int, expires: float, seen: Seen) -> None:
        self.client_id = client_id
        self.first_sequence = number << LEASE_SHIFT
        self.expires = expires
        self.seen = seen
        # The client's forks by their numbers, and its one fork of a value without a number, by sequence.
        self.forks: dict[int, Owned] = {}
        self.unnumbered: dict[int, Owned] = {}
        # What answers to the client hold until it has forks of its own.
        self.holds: dict[int, list[object]] = {}
        # How many forks and handles that makes, and what the values take in memory.
        self.count = 0
        self.nbytes = 0
        # Values that the client has named, but not made yet, by their numbers; others wait for them.
        self.promised: WeakValueDictionary[int, Owned] = WeakValueDictionary()

    def check_room(self, count: int, nbytes: int, max_count: int, max_bytes: int) -> None:
        """Returns if the client may hold so much more.

        Raises:
            TooLarge: it may not.
        """
        if self.count + count > max_count:
            raise TooLarge(
                f"the client holds {self.count:,} references, and may hold {max_count:,}: let go of some",
                metadata={"limit": "max_rrefs_per_client"},
            )
        if nbytes and self.nbytes + nbytes > max_bytes:
            raise TooLarge(
                f"the client holds values of {self.nbytes:,} bytes; another {nbytes:,} would be more than the "
                f"{max_bytes:,} that it may hold: let go of some",
                metadata={"limit": "max_rref_bytes_per_client"},
            )


class Leases:
    """All leases of a server. Not safe from several threads by itself: the table has the lock."""

    def __init__(self, seconds: float, max_leases: int) -> None:
        self.seconds = seconds
        self._max = max_leases
        self.by_client: dict[str, Lease] = {}
        self._by_number: dict[int, Lease] = {}
        self._last = 0
        # The numbers of clients whose leases ended: a message of theirs that comes late must not be taken for new.
        self._ended: OrderedDict[str, Seen] = OrderedDict()

    def __len__(self) -> int:
        return len(self.by_client)

    def grant(self, client_id: str, now: float) -> Lease:
        """Returns the client's lease, renewed; makes one if it has none.

        Raises:
            BadPayload: there is no client of that name.
        """
        lease = self.by_client.get(client_id)
        if lease is not None:
            lease.expires = now + self.seconds
            return lease
        if not client_id:
            raise BadPayload("the request has no client_id: make one up, unique and hard to guess")
        if len(client_id.encode()) > MAX_CALL_ID_BYTES:
            raise BadPayload(f"the client_id has more than {MAX_CALL_ID_BYTES} bytes")
        if len(self.by_client) >= self._max:
            raise Overloaded(
                f"{self._max:,} clients have leases already; nothing was run", retry_after=_RETRY_AFTER_SECONDS
            )
        while True:
            self._last = self._last % _MAX_LEASES + 1
            if self._last not in self._by_number:
                break
        seen = self._ended.pop(client_id) if client_id in self._ended else Seen()
        lease = Lease(client_id, self._last, now + self.seconds, seen)
        self.by_client[client_id] = self._by_number[self._last] = lease
        return lease

    def of_sequence(self, sequence: int) -> Lease | None:
        """Returns the lease under which a client named a value, if it still holds."""
        return self._by_number.get(sequence >> LEASE_SHIFT)

    def note_ended(self, client_id: str, numbers: Iterable[int]) -> None:
        """Takes note of numbers of a client whose lease has ended."""
        seen = self._ended.get(client_id)
        if seen is not None:
            for number in numbers:
                if 0 < number <= MAX_NUMBER:
                    seen.add(number)
            seen.shrink(_REMEMBERED_SPARSE)

    def end(self, lease: Lease) -> None:
        """Takes a lease off the list."""
        del self.by_client[lease.client_id]
        del self._by_number[lease.first_sequence >> LEASE_SHIFT]
        lease.seen.shrink(_REMEMBERED_SPARSE)
        self._ended[lease.client_id] = lease.seen
        if len(self._ended) > _REMEMBERED_CLIENTS:
            self._ended.popitem(last=False)

    def lapsed(self, now: float) -> list[Lease]:
        """Returns the leases whose time is over."""
        return [lease for lease in self.by_client.values() if lease.expires <= now]

    def next_expiry(self) -> float | None:
        """When the next lease lapses unless it is renewed; None if there are none."""
        return min((lease.expires for lease in self.by_client.values()), default=None)
