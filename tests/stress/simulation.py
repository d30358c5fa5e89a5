"""Random operations of several clients on several owners, in simulated time; the same seed does the same.

What must hold: a value stays as long as any living process has a confirmed reference to it, and in the end, when
nobody has any, nothing is left: no value, fork, hold or lease.
"""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from stress.processes import LEASE_SECONDS, Client, Owner, Place, Thing
from stress.world import Faults, World
from tensorcall.client.forks import Fork
from tensorcall.client.rref import RRef
from tensorcall.client.user_rref import UserRRef
from tensorcall.wire.errors import (
    Cancelled,
    ConnectionLost,
    DeadlineExceeded,
    OwnerRestarted,
    RemoteError,
    RRefError,
    RRefExpired,
    TensorcallError,
)
from tensorcall.wire.rrefs import RRefId

_OWNERS, _CLIENTS = 3, 6
# Each client keeps about so many references.
_HELD = 12


class Simulation:
    """One run."""

    def __init__(self, seed: int, faults: Faults | None = None) -> None:
        self.world = World(seed, faults or Faults())
        self.random = self.world.random
        self.problems: list[str] = []
        self.alive: weakref.WeakValueDictionary[RRefId, Thing] = weakref.WeakValueDictionary()
        self.places: dict[str, Place] = {name: Place(name) for name in (f"owner{i}" for i in range(_OWNERS))}
        for place in self.places.values():
            place.current = self._owner(place)
        self._names = itertools.count(1)
        self.clients = [self._client() for _ in range(_CLIENTS)]
        # All that are or were; handles of the dead do not count, their leases must.
        self.others: list[Client] = []

    def _owner(self, place: Place) -> Owner:
        return Owner(self.world, place.name, self.places, self._made, self._gone)

    def _client(self) -> Client:
        self.world.counts["clients"] += 1
        return Client(self.world, f"client{next(self._names)}", self.places)

    # --- what must hold ---

    def _made(self, thing: Thing) -> None:
        self.alive[thing.name] = thing

    def _gone(self, name: RRefId) -> None:
        """A value went: may it?"""
        self.world.counts["values gone"] += 1
        place = self.places[name.owner]
        if place.current.table.incarnation != name.incarnation or place.current.dead:
            return
        for holder in [*self.clients, *(place.current for place in self.places.values())]:
            if holder.dead:
                continue
            for handle in holder.handles():
                fork = handle._fork
                if fork.rref_id == name and fork.confirmed and not self._expired(holder, place, fork.number):
                    self.problems.append(f"{self.world.now:.3f}: {name} went, and {holder.name} holds {fork}")

    def _expired(self, holder: Any, place: Place, number: int) -> bool:
        """Whether the holder's lease has lapsed; it may not have noticed yet."""
        lease = place.current.table.leases.by_client.get(holder.client_id(place.name))
        return lease is None or number not in lease.forks

    # --- operations ---

    def operate(self) -> None:
        """Has one client do something."""
        client = self.random.choice(self.clients)
        operations: list[tuple[float, Callable[[Client], object]]] = [
            (4.0 if len(client.held) < _HELD else 1.0, self._create),
            (3.0, self._put),
            (3.0, self._get),
            (2.0, self._fetch),
            (3.0 if len(client.held) < _HELD else 8.0, self._drop),
            (1.0, self._again),
            (0.03 * self.world.faults.deaths, self._end_of_client),
            (0.02 * self.world.faults.deaths, self._stall),
            (0.01 * self.world.faults.deaths, self._restart),
        ]
        weights, choices = zip(*operations, strict=True)
        choice = self.random.choices(choices, weights)[0]
        self.world.counts["operations"] += 1
        self.world.counts[choice.__name__[1:]] += 1
        choice(client)

    def _place(self) -> Place:
        return self.random.choice(list(self.places.values()))

    def _create(self, client: Client) -> None:
        place = self._place()
        client.meet(place.name)
        link = client.link(place.name)

        def create() -> None:
            if not link.has_lease:
                return  # it was refused
            fork = link.new_name()
            handle = client.handle(fork)
            call: Future[Any] = Future()
            link.follow(fork, call)
            client.call(
                place,
                lambda owner, ended: owner.create(link.client_id, fork.number, ended),
                lambda name, error: call.set_result(name) if error is None else call.set_exception(_as_told(error)),
            )
            client.held.append(handle)
            if self.random.random() < 0.3:
                # Passed on before it is made.
                self._put(client, [handle])

        if link.has_lease:
            create()
        else:
            link.grant().add_done_callback(lambda _: client.later(0.0, create))

    def _put(self, client: Client, handles: list[RRef] | None = None) -> None:
        """Has a server keep references, its own and others'."""
        some = handles or self.random.sample(client.held, min(len(client.held), self.random.randint(0, 3)))
        names = [handle.rref_id() for handle in some]
        place = self._place()
        client.call(
            place,
            lambda owner, ended: owner.call(names, owner.keep, ended),
            lambda result, error: self._expect(error),
            keep=some,
        )

    def _get(self, client: Client) -> None:
        """Takes references that a server keeps."""
        place = self._place()
        client_id, link = client.client_id(place.name), client.link(place.name)

        def unread(answer: tuple[list[RRefId], int]) -> None:
            if answer[1]:
                link.release_hold(answer[1])

        def ended(answer: tuple[list[RRefId], int], error: BaseException | None) -> None:
            self._expect(error)
            if error is None and answer[1]:
                opened = [client.take(name) for name in answer[0]]
                for handle in opened:
                    handle.when_confirmed(partial(_check, handle._fork, self._expect))
                link.hold(answer[1], opened)
                # Some are let go of before they are confirmed.
                client.held += [handle for handle in opened if self.random.random() < 0.8]

        client.call(
            place,
            lambda owner, ended: owner.call([], lambda _: owner.give(client_id), ended),
            ended,
            unread=unread,
        )

    def _fetch(self, client: Client) -> None:
        if not client.held:
            return
        handle = self.random.choice(client.held)
        assert isinstance(handle, UserRRef)
        fork = handle._fork
        try:
            fork.check()
        except TensorcallError as error:
            self._expect(error)
            return
        place = self.places[fork.rref_id.owner]

        def ended(name: RRefId, error: BaseException | None) -> None:
            if error is None:
                self.world.counts["fetched"] += 1
                if name != fork.rref_id:
                    self.problems.append(f"fetched {name} for {fork}")
            elif isinstance(error, RRefError) and fork.confirmed and not self._told(client, place, fork, error):
                self.problems.append(f"{self.world.now:.3f}: {client.name} could not fetch {fork}: {error!r}")
            elif not isinstance(error, ValueError):
                self._expect(error)

        client.call(place, lambda owner, end: owner.fetch(fork.rref_id, end), ended, keep=[handle])

    def _told(self, client: Client, place: Place, fork: Any, error: BaseException) -> bool:
        """Whether that is what a client may be told."""
        return isinstance(error, (RRefExpired, OwnerRestarted)) or self._expired(client, place, fork.number)

    def _expect(self, error: BaseException | None) -> None:
        if error is None:
            return
        self.world.counts[type(error).__name__] += 1
        faults = self.world.faults
        if not (faults.deaths or faults.lost):
            self.problems.append(f"{self.world.now:.3f}: nobody died, and nothing was lost: {error!r}")
        if not isinstance(error, (ConnectionLost, Cancelled, DeadlineExceeded, RRefError, OwnerRestarted)):
            self.problems.append(f"unexpected: {error!r}")

    def _drop(self, client: Client) -> None:
        for _ in range(min(len(client.held), self.random.randint(1, 4))):
            client.held.pop(self.random.randrange(len(client.held)))

    def _again(self, client: Client) -> None:
        """Another handle of the same value."""
        if client.held:
            source = self.random.choice(client.held)
            fresh = client.take(source.rref_id())
            # A name alone keeps nothing: the handle that it is of stays until the owner knows of the other one.
            fresh.when_confirmed(partial(id, source))
            client.held.append(fresh)

    def _end_of_client(self, client: Client) -> None:
        """A client dies, and another one starts."""
        self.world.counts["deaths"] += 1
        client.die()
        self.others.append(client)
        self.clients[self.clients.index(client)] = self._client()

    def _stall(self, client: Client) -> None:
        """A client is cut off for longer than its lease."""
        client.cut_off_until = self.world.now + self.random.uniform(0.5, 2.0) * LEASE_SECONDS

    def _restart(self, _: Client) -> None:
        """A server dies, with all of its values and all that it holds; another one starts in its place."""
        place = self._place()
        old = place.current
        old.die()
        for slot in old.slots:
            slot.clear()
        place.current = self._owner(place)

    # --- the run ---

    def run(self, operations: int) -> None:
        """Does so many operations, lets all go, and looks what is left."""
        for i in range(operations):
            self.operate()
            if i % 1000 == 0:
                gc.collect()
            self.world.run(self.world.now + self.random.expovariate(30.0))
            if self.problems:
                return
        self.world.faults.on = False
        for client in self.clients:
            client.cut_off_until = 0.0
            client.held.clear()
        for place in self.places.values():
            for slot in place.current.slots:
                slot.clear()
        self.world.run(self.world.now + 8 * LEASE_SECONDS)
        gc.collect()
        # What calls put there in the meantime.
        for place in self.places.values():
            for slot in place.current.slots:
                slot.clear()
        for client in self.clients:
            client.held.clear()
        self.world.run(self.world.now + 8 * LEASE_SECONDS)
        self._check_that_nothing_is_left()

    def _check_that_nothing_is_left(self) -> None:
        for place in self.places.values():
            counts = place.current.table.counts()
            left = {what: count for what, count in counts.items() if count}
            if left:
                self.problems.append(f"{place.name} is left with {left}")
        for holder in [*self.clients, *(place.current for place in self.places.values())]:
            if holder.handles():
                self.problems.append(f"{holder.name} is left with {holder.handles()}")
            held = {owner: link.held for owner, link in holder.links.items() if link.held}
            if held:
                self.problems.append(f"the links of {holder.name} are left with {held}")
        for client in self.clients:
            if client.calls:
                self.problems.append(f"{client.calls} calls of {client.name} never ended")
        alive = [name for name in self.alive if name.incarnation == self.places[name.owner].current.table.incarnation]
        if alive:
            self.problems.append(f"{len(alive)} values are left: {alive[:5]}")


def _check(fork: Fork, expect: Callable[[BaseException | None], object]) -> None:
    """Looks whether a reference arrived with its value."""
    expect(fork.error)


def _as_told(error: BaseException) -> BaseException:
    """What a client is told of what a function raised."""
    return RemoteError(str(error)) if isinstance(error, ValueError) else error


def simulate(seed: int, operations: int, **settings: Any) -> Simulation:
    """Runs one simulation; raises an AssertionError that tells the seed if anything was wrong."""
    # Garbage is collected when the seed says so, or runs would differ.
    gc.collect()
    gc.disable()
    try:
        simulation = Simulation(seed, **settings)
        simulation.run(operations)
    finally:
        gc.enable()
    assert not simulation.problems, f"seed {seed}: " + "\n".join(simulation.problems[:20])
    return simulation
