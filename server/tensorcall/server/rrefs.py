"""The values that this process owns for others, and who holds them. See rref_service.proto.

A value stays as long as something refers to it: a fork or a hold of a client, under its lease; or, like any object, a
handle in this process or a call that uses it. All can be found by name as long as they live.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from weakref import WeakValueDictionary

from tensorcall.server.leases import MAX_NUMBER, Lease, Leases, Seen
from tensorcall.server.owned import Owned
from tensorcall.wire.errors import (
    BadPayload,
    DuplicateCall,
    OwnerRestarted,
    RRefExpired,
    RRefUnknown,
    TensorcallError,
)
from tensorcall.wire.rrefs import Handle, RRefId

# Of so many values it is remembered that they went with a lease.
_REMEMBERED_EXPIRED = 65_536


@dataclass(frozen=True, slots=True)
class Holder:
    """One client process that holds a value."""

    client_id: str
    """The client; empty for those that did not say."""
    forks: int
    """How often it holds the value."""
    remaining: float
    """For how many seconds its lease still holds."""


@dataclass(frozen=True, slots=True)
class Info:
    """One value that is held."""

    rref_id: RRefId
    """Its name."""
    type: str
    """Its type as "module.name"; empty while it is being made."""
    nbytes: int
    """What its tensors take in memory."""
    age: float
    """For how many seconds there has been one."""
    made_by: str
    """What made it."""
    holders: tuple[Holder, ...]
    """Who holds it."""


class RRefTable:
    """All values that one server owns. Safe from any thread."""

    def __init__(
        self,
        worker: str,
        incarnation: int,
        address: str = "",
        *,
        lease_seconds: float = 60.0,
        max_leases: int = 10_000,
        max_per_client: int = 100_000,
        max_bytes_per_client: int = 1 << 62,
        clock: Callable[[], float] = time.monotonic,
        on_lease: Callable[[], object] = lambda: None,
    ) -> None:
        """Begins without values.

        Args:
            worker: the owner's name in the names of its values.
            incarnation: of this start of the process.
            address: where it can be reached, for the names; may be set later.
            lease_seconds: for how long a lease holds unless it is renewed.
            max_leases: how many clients may have leases.
            max_per_client: how many references one client may hold.
            max_bytes_per_client: how many bytes the values may take that one client has made or forked.
            clock: tells the time, in seconds.
            on_lease: called when there is something that will lapse, and nothing was before.
        """
        self.worker = worker
        self.incarnation = incarnation
        self.address = address
        self.leases = Leases(lease_seconds, max_leases)
        self._max_count = max_per_client
        self._max_bytes = max_bytes_per_client
        self._clock = clock
        self._on_lease = on_lease
        # Re-entrant: under it garbage may be collected whose finalisers come here.
        self._lock = threading.RLock()
        self._values: WeakValueDictionary[int, Owned] = WeakValueDictionary()
        self._last_sequence = 0
        self._expired: OrderedDict[int, None] = OrderedDict()
        # What is kept for callers who did not say who they are, and until when, by hold.
        self._anonymous = Lease("", 0, 0.0, Seen())
        self._anonymous_until: dict[int, float] = {}
        # Holds of answers on sessions that broke, which may never have arrived, and until when they are kept.
        self._lapsing: dict[int, tuple[Lease, float]] = {}

    # --- values ---

    def own(self, value: object, made_by: str = "") -> Owned:
        """Owns a value under a new name. It lives as long as somebody refers to what this returns, or holds it."""
        owned = self.pending(made_by)
        owned.set_value(value)
        return owned

    def pending(self, made_by: str = "") -> Owned:
        """Gives a name to a value that is still to come: `set_value` or `set_error` follows."""
        with self._lock:
            self._last_sequence += 1
            return self._new(self._last_sequence, made_by)

    def promise(self, client_id: str, number: int, made_by: str = "") -> Owned:
        """Takes in a call that makes a value; `set_value` or `set_error` follows.

        Args:
            client_id: whose lease holds it; empty: it is held for the time of one lease.
            number: what the client calls it and its fork; 0: it gets a name here, and the client its one fork
                without a number.
            made_by: what makes it.

        Raises:
            DuplicateCall: the number was used before.
            TooLarge: the client holds as much as it may.
            BadPayload: a number without a client, or one that is too large.
        """
        with self._lock:
            if not client_id:
                if number:
                    raise BadPayload("the call has a number, but no client_id whose it would be")
                owned = self.pending(made_by)
                self._keep_anonymously([owned])
                owned.creator = self._anonymous
                return owned
            lease = self._grant(client_id)
            if not 0 <= number <= MAX_NUMBER:
                raise BadPayload(f"the number {number} is too large: a client's numbers are below 2^40")
            if number in lease.seen and number:
                raise DuplicateCall(f"the number {number} was used before: nothing was run")
            lease.check_room(1, 0, self._max_count, self._max_bytes)
            if not number:
                owned = self.pending(made_by)
                lease.unnumbered[owned.sequence] = owned
            else:
                lease.seen.add(number)
                sequence = lease.first_sequence + number
                promised = lease.promised.pop(number, None)
                if promised is not None:
                    # Others heard of it before.
                    owned = promised
                    owned.made_by = made_by
                else:
                    owned = self._new(sequence, made_by)
                lease.forks[number] = owned
            self._attach(lease, owned)
            owned.creator = lease
            return owned

    def get(self, rref_id: RRefId) -> Owned:
        """Finds a value by its name. It may still be pending.

        Raises:
            RRefUnknown: this process does not have it (any more).
            RRefExpired: its last fork went with a lease that lapsed.
            OwnerRestarted: an earlier start of this process had it.
        """
        if rref_id.incarnation != self.incarnation or rref_id.owner != self.worker:
            raise self._not_ours(rref_id)
        sequence = rref_id.sequence
        with self._lock:
            owned = self._values.get(sequence)
            if owned is not None:
                return owned
            lease = self.leases.of_sequence(sequence)
            number = sequence & MAX_NUMBER
            if lease is not None and number not in lease.seen:
                # Its client has named it, and passed the name on; the call that makes it is on its way.
                owned = lease.promised[number] = self._new(sequence, "")
                return owned
            if sequence in self._expired:
                raise RRefExpired(
                    f"{rref_id} is gone: the lease lapsed of the last client that held it, which had not renewed it "
                    f"for {self.leases.seconds:g} s"
                )
        raise RRefUnknown(f"{rref_id} is not here: it never was, or nobody held it any more")

    def is_ours(self, rref_id: RRefId) -> bool:
        """Whether a name is one of this start of this process."""
        return rref_id.incarnation == self.incarnation and rref_id.owner == self.worker

    def _not_ours(self, rref_id: RRefId) -> TensorcallError:
        if rref_id.owner != self.worker:
            return RRefUnknown(f"{rref_id} belongs to {rref_id.owner!r:.200}; this is {self.worker!r}")
        return OwnerRestarted(f"{rref_id} is gone: {self.worker} was restarted since")

    def _new(self, sequence: int, made_by: str) -> Owned:
        owned = Owned(self, sequence, made_by, self._clock())
        self._values[sequence] = owned
        return owned

    def filled(self, owned: Owned, nbytes: int) -> None:
        """Takes note of what a value takes in memory, before it is one; see `Owned.set_value`."""
        if not nbytes:
            return
        with self._lock:
            creator = owned.creator
            if creator is not None and creator in owned.holders:
                creator.check_room(0, nbytes, self._max_count, self._max_bytes)
            if owned.done:
                return
            owned.nbytes = nbytes
            for lease in owned.holders:
                lease.nbytes += nbytes

    # --- who holds them ---

    def fork(self, rref_id: RRefId, client_id: str, number: int = 0) -> None:
        """Takes a fork. A number that was used before changes nothing.

        Raises:
            RRefUnknown, RRefExpired, OwnerRestarted: as `get`.
            TooLarge: the client holds as much as it may.
            BadPayload: no client, or a number that is too large.
        """
        if not 0 <= number <= MAX_NUMBER:
            raise BadPayload(f"the number {number} is too large: a client's numbers are below 2^40")
        with self._lock:
            lease = self._grant(client_id)
            if number in lease.seen if number else rref_id.sequence in lease.unnumbered:
                if rref_id.incarnation != self.incarnation:
                    raise self._not_ours(rref_id)
                return
            owned = self.get(rref_id)
            nbytes = 0 if lease in owned.holders else owned.nbytes
            lease.check_room(1, nbytes, self._max_count, self._max_bytes)
            if number:
                lease.seen.add(number)
                lease.forks[number] = owned
                # What a client names by the number of a fork will never be made.
                broken = lease.promised.pop(number, None)
            else:
                lease.unnumbered[owned.sequence] = owned
                broken = None
            self._attach(lease, owned)
        if broken is not None:
            broken.set_error(_never_made(broken))

    def release(
        self,
        client_id: str,
        *,
        incarnation: int = 0,
        numbers: Iterable[int] = (),
        rrefs: Iterable[RRefId] = (),
        holds: Iterable[int] = (),
        settled_below: int = 0,
    ) -> None:
        """Drops forks and holds; what is not there is noted, so that it changes nothing if it comes later."""
        if incarnation not in (0, self.incarnation):
            return
        # Values, handles and errors go when the lock is free: their ends may do anything.
        dropped: list[object] = []
        broken: list[Owned] = []
        with self._lock:
            lease = self.leases.by_client.get(client_id) if client_id else self._anonymous
            if lease is None:
                self.leases.note_ended(client_id, numbers)
                return
            if client_id:
                for number in numbers:
                    owned = lease.forks.pop(number, None)
                    if owned is not None:
                        self._detach(lease, owned)
                        dropped.append(owned)
                    elif 0 < number <= MAX_NUMBER and lease.seen.add(number):
                        broken += self._break(lease, number)
                for rref_id in rrefs:
                    if self.is_ours(rref_id):
                        owned = lease.unnumbered.pop(rref_id.sequence, None)
                        if owned is not None:
                            self._detach(lease, owned)
                            dropped.append(owned)
                if settled_below:
                    for number in [number for number in list(lease.promised) if number < settled_below]:
                        broken += self._break(lease, number)
                    lease.seen.settle(min(settled_below, MAX_NUMBER))
            for hold in holds:
                dropped.append(self._drop_hold(lease, hold))
        for owned in broken:
            owned.set_error(_never_made(owned))

    def hold(self, client_id: str, handles: Iterable[Handle]) -> int:
        """Keeps handles for a client until it says so, or its lease lapses; returns the hold's number.

        Raises:
            TooLarge: the client holds as much as it may.
        """
        kept: list[object] = list(handles)
        with self._lock:
            if not client_id:
                return self._keep_anonymously(kept)
            return self._hold(self._grant(client_id), kept)

    def _keep_anonymously(self, kept: list[object]) -> int:
        hold = self._hold(self._anonymous, kept)
        first = not self._anonymous_until and not self.leases
        self._anonymous_until[hold] = self._clock() + self.leases.seconds
        if first:
            self._on_lease()
        return hold

    def _hold(self, lease: Lease, kept: list[object]) -> int:
        lease.check_room(len(kept), 0, self._max_count, self._max_bytes)
        # Not to be guessed: whoever knows it may release it.
        hold = secrets.randbits(63) + 1
        lease.holds[hold] = kept
        for each in kept:
            owned = _owned_by(each)
            if owned is None:
                lease.count += 1
            else:
                self._attach(lease, owned)
        return hold

    def _drop_hold(self, lease: Lease, hold: int) -> list[object]:
        kept = lease.holds.pop(hold, [])
        if lease is self._anonymous:
            self._anonymous_until.pop(hold, None)
        self._lapsing.pop(hold, None)
        for each in kept:
            owned = _owned_by(each)
            if owned is None:
                lease.count -= 1
            else:
                self._detach(lease, owned)
        return kept

    def _attach(self, lease: Lease, owned: Owned) -> None:
        lease.count += 1
        held = owned.holders.get(lease, 0)
        owned.holders[lease] = held + 1
        if not held:
            lease.nbytes += owned.nbytes

    def _detach(self, lease: Lease, owned: Owned) -> None:
        lease.count -= 1
        held = owned.holders[lease] - 1
        if held:
            owned.holders[lease] = held
        else:
            del owned.holders[lease]
            lease.nbytes -= owned.nbytes

    def _break(self, lease: Lease, number: int) -> list[Owned]:
        """Gives up a value that its client has named, and will not make."""
        promised = lease.promised.pop(number, None)
        return [] if promised is None else [promised]

    # --- leases ---

    def grant(self, client_id: str) -> Lease:
        """Grants a client its lease, or renews the one it has.

        Raises:
            BadPayload: there is no client of that name.
        """
        with self._lock:
            return self._grant(client_id)

    def _grant(self, client_id: str) -> Lease:
        first = not self.leases and not self._anonymous_until
        lease = self.leases.grant(client_id, self._clock())
        if first:
            self._on_lease()
        return lease

    def touch(self, client_id: str) -> bool:
        """Renews a lease, if the client has one."""
        lease = self.leases.by_client.get(client_id)
        if lease is None:
            return False
        lease.expires = self._clock() + self.leases.seconds
        return True

    def keep_alive(self, client_id: str, incarnation: int = 0) -> None:
        """Renews a lease.

        Raises:
            RRefExpired: it has lapsed.
            OwnerRestarted: another start of this process granted it.
        """
        if incarnation not in (0, self.incarnation):
            raise OwnerRestarted(f"{self.worker} was restarted: what the client held is gone")
        if not self.touch(client_id):
            raise RRefExpired("the lease has lapsed, or was never granted: everything under it is gone")

    def let_holds_lapse(self, client_id: str) -> None:
        """Keeps what a client's answers hold for the time of one lease more: its session broke with them under way.

        What did arrive is taken over by then; of what did not the client does not know.
        """
        with self._lock:
            lease = self.leases.by_client.get(client_id)
            if lease is not None:
                until = self._clock() + self.leases.seconds
                for hold in lease.holds:
                    self._lapsing.setdefault(hold, (lease, until))

    def revoke(self, client_id: str) -> None:
        """Ends a lease and drops everything under it. Idempotent."""
        with self._lock:
            lease = self.leases.by_client.get(client_id)
            ended = [] if lease is None else [self._end(lease, lapsed=False)]
        self._fail(ended)

    def expire(self) -> float | None:
        """Ends the leases that have lapsed; returns when the next one does, by the clock, or None."""
        now = self._clock()
        with self._lock:
            ended = [self._end(lease, lapsed=True) for lease in self.leases.lapsed(now)]
            dropped = []
            for hold in [hold for hold, until in self._anonymous_until.items() if until <= now]:
                kept = self._drop_hold(self._anonymous, hold)
                self._remember(kept)
                dropped.append(kept)
            for hold, (lease, _) in [each for each in self._lapsing.items() if each[1][1] <= now]:
                dropped.append(self._drop_hold(lease, hold))
            expiries = [*self._anonymous_until.values(), *(until for _, until in self._lapsing.values())]
            following = self.leases.next_expiry()
            if following is not None:
                expiries.append(following)
        self._fail(ended)
        del dropped
        return min(expiries, default=None)

    def _end(self, lease: Lease, *, lapsed: bool) -> tuple[list[object], list[Owned]]:
        """Ends a lease; returns what goes with it, and the values that nobody will make."""
        self.leases.end(lease)
        held: list[object] = [*lease.forks.values(), *lease.unnumbered.values()]
        for owned in (*lease.forks.values(), *lease.unnumbered.values()):
            self._detach(lease, owned)
        lease.forks.clear()
        lease.unnumbered.clear()
        for hold in list(lease.holds):
            held += self._drop_hold(lease, hold)
        if lapsed:
            self._remember(held)
        broken = list(lease.promised.values())
        lease.promised.clear()
        return held, broken

    def _remember(self, held: Iterable[object]) -> None:
        for each in held:
            owned = _owned_by(each)
            if owned is not None and not owned.holders:
                self._expired[owned.sequence] = None
                self._expired.move_to_end(owned.sequence)
        while len(self._expired) > _REMEMBERED_EXPIRED:
            self._expired.popitem(last=False)

    def _fail(self, ended: list[tuple[list[object], list[Owned]]]) -> None:
        for _, broken in ended:
            for owned in broken:
                owned.set_error(_never_made(owned))
        ended.clear()

    def give_up(self, error: TensorcallError) -> None:
        """Fails all values that clients have named and not made yet."""
        with self._lock:
            broken = [owned for lease in self.leases.by_client.values() for owned in lease.promised.values()]
        for owned in broken:
            owned.set_error(error)

    # --- what is there ---

    def infos(self, limit: int = 1000) -> tuple[list[Info], int]:
        """Lists the values that clients hold, the oldest first: at most so many, and how many there are in all."""
        now = self._clock()
        with self._lock:
            held = [owned for owned in self._values.values() if owned.holders]
            total = len(held)
            held.sort(key=lambda owned: (owned.created, owned.sequence))
            # For all of them at once: there may be as many holds.
            self._anonymous.expires = max(self._anonymous_until.values(), default=now)
            return [self._info(owned, now) for owned in held[:limit]], total

    def _info(self, owned: Owned, now: float) -> Info:
        holders = []
        for lease, forks in owned.holders.items():
            holders.append(Holder(lease.client_id, forks, max(0.0, lease.expires - now)))
        return Info(owned.rref_id, owned.type_name, owned.nbytes, now - owned.created, owned.made_by, tuple(holders))

    def counts(self) -> dict[str, int]:
        """Tells how much there is: values, those of them that clients hold, forks, holds, leases; for debugging."""
        with self._lock:
            leases = [*self.leases.by_client.values(), self._anonymous]
            values = list(self._values.values())
            return {
                "values": len(values),
                "held": sum(1 for owned in values if owned.holders),
                "pending": sum(1 for owned in values if not owned.done),
                "forks": sum(len(lease.forks) + len(lease.unnumbered) for lease in leases),
                "holds": sum(len(lease.holds) for lease in leases),
                "leases": len(self.leases),
            }


def _owned_by(kept: object) -> Owned | None:
    """Returns the value that an owner's handle stands for; None for a handle of another process' value."""
    if isinstance(kept, Owned):
        return kept
    owned = getattr(kept, "owned", None)
    return owned if isinstance(owned, Owned) else None


def _never_made(owned: Owned) -> RRefUnknown:
    return RRefUnknown(
        f"{owned.rref_id} was never made: the client that named it is gone, or its call failed on the way"
    )
