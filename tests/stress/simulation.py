"""Random operations of several clients on several owners, in simulated time; the same seed does the same.

What must hold: a value stays as long as any living process has a confirmed reference to it, and in the end, when
nobody has any, nothing is left: no value, fork, hold or lease. What may be gone is decided by the clock and by what
reached the owner (`ledger`), never by what its table says; `test_oracle` shows that this notices defects.
"""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from stress.ledger import disagreements
from stress.processes import LEASE_SECONDS, Client, Given, Holder, Owner, Place, Thing
from stress.world import Faults, World
from tensorcall.client.forks import Fork
from tensorcall.client.rref import RRef
from tensorcall.client.user_rref import UserRRef
from tensorcall.server.owned import Owned
from tensorcall.v1 import rref_service_pb2 as pb
from tensorcall.wire.errors import (
    Cancelled,
    ConnectionLost,
    DeadlineExceeded,
    OwnerRestarted,
    RemoteError,
    RRefError,
    RRefUnknown,
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
        for holder in self._living():
            for handle in holder.handles():
                fork = handle._fork
                if fork.rref_id == name and self._must_hold(holder, fork):
                    self._problem(f"{name} went, and {holder.name} holds {fork}")

    def _living(self) -> list[Holder]:
        return [*self.clients, *(place.current for place in self.places.values())]

    def _must_hold(self, holder: Holder, fork: Fork) -> bool:
        """Whether the value of a fork must be there."""
        return fork.confirmed and not self._excused(holder, fork)

    def _excused(self, holder: Holder, fork: Fork) -> str:
        """Tells why a confirmed fork may be gone, of which the holder may not have noticed yet; empty: it must not."""
        owner = self.places[fork.rref_id.owner].current
        if owner.table.incarnation != fork.rref_id.incarnation:
            return "restarted"
        return owner.ledger.why_fork_ended(holder.client_id(owner.place), fork.number)

    def _look(self) -> None:
        """Compares what all have that live."""
        for holder in self._living():
            for handle in holder.handles():
                fork = handle._fork
                if not self._must_hold(holder, fork):
                    continue
                table = self.places[fork.rref_id.owner].current.table
                lease = table.leases.by_client.get(holder.client_id(fork.rref_id.owner))
                owned = None if lease is None else lease.forks.get(fork.number)
                if owned is None or owned.sequence != fork.rref_id.sequence:
                    self._problem(f"{holder.name} holds {fork}, and its owner has {owned}")
        for place in self.places.values():
            for told in disagreements(place.current.table):
                self._problem(f"{place.name}: {told}")

    def _problem(self, told: str) -> None:
        self.problems.append(f"{self.world.now:.3f}: {told}")

    def _judge(self, who: str, error: TensorcallError, holder: Holder, source: Fork, lives: Callable[[], bool]) -> None:
        """A reference was of no use to who got it: may that be?

        Args:
            who: got it.
            error: what they were told.
            holder: who passed it on.
            source: the holder's own fork.
            lives: whether the holder still keeps that.
        """
        if not isinstance(error, RRefUnknown):
            return
        self.world.counts["judged"] += 1
        if not lives() or holder.dead:
            return

        def settled() -> None:
            # What was pending is held by others until then; if it fails, that is judged where it came from.
            if self._must_hold(holder, source):
                self._problem(f"{who} got {source} of {holder.name}, and was told: {error}")

        source.when_settled(settled)

    def _judge_given(self, client: Client, given: Given, i: int, error: TensorcallError) -> None:
        """What an answer held was of no use."""
        giver, source = given.giver, given.forks[i]
        if giver.dead or giver.ledger.why_hold_ended(client.client_id(giver.place), given.at):
            return
        if source is not None:
            self._judge(client.name, error, giver, source, lambda: True)
        elif isinstance(error, RRefUnknown):
            self._problem(f"{client.name} got {given.names[i]} of its owner, and was told: {error}")

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
        forks = [handle._fork for handle in some if isinstance(handle, UserRRef)]
        place = self._place()
        under_way = [True]

        def refused(i: int, error: TensorcallError) -> None:
            self._judge(place.name, error, client, forks[i], lambda: bool(under_way))

        def ended(_: object, error: BaseException | None) -> None:
            under_way.clear()
            self._expect(error)

        client.call(place, lambda owner, ended: owner.call(names, owner.keep, ended, refused=refused), ended, keep=some)

    def _get(self, client: Client) -> None:
        """Takes references that a server keeps."""
        place = self._place()
        client_id, link = client.client_id(place.name), client.link(place.name)

        def unread(given: Given) -> None:
            if given.hold:
                link.release_hold(given.hold)

        def settled(fork: Fork, given: Given, i: int) -> None:
            self._expect(fork.error)
            if fork.error is not None:
                self._judge_given(client, given, i, fork.error)

        def ended(given: Given, error: BaseException | None) -> None:
            self._expect(error)
            if error is None and given.hold:
                opened = [client.take(name) for name in given.names]
                for i, handle in enumerate(opened):
                    handle.when_confirmed(partial(settled, handle._fork, given, i))
                link.hold(given.hold, opened)
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
            elif isinstance(error, (RRefError, OwnerRestarted)) and self._must_hold(client, fork):
                self._problem(f"{client.name} could not fetch {fork}: {error!r}")
            elif not isinstance(error, ValueError):
                self._expect(error)

        client.call(place, lambda owner, end: owner.fetch(fork.rref_id, end), ended, keep=[handle])

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
            assert isinstance(source, UserRRef)

            def settled(fork: Fork, source: UserRRef) -> None:
                if fork.error is not None:
                    self._judge(client.name, fork.error, client, source._fork, lambda: True)

            # A name alone keeps nothing: the handle that it is of stays until the owner knows of the other one.
            fresh.when_confirmed(partial(settled, fresh._fork, source))
            client.held.append(fresh)

    def _end_of_client(self, client: Client) -> None:
        """A client dies, and another one starts. Some say goodbye before."""
        self.world.counts["deaths"] += 1
        if self.random.random() < 0.5:
            for link in client.links.values():
                link._ask("RevokeLease", pb.RevokeLeaseRequest(client_id=link.client_id), 1.0)
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
            if i % 50 == 0:
                self._look()
            self.world.run(self.world.now + self.random.expovariate(30.0))
            if self.problems:
                return
        self.world.faults.on = False
        for client in self.clients:
            client.cut_off_until = 0.0
        # Whoever lost a lease notices, and all calls end.
        self.world.run(self.world.now + 4 * LEASE_SECONDS)
        self._look()
        # From here on no lease of the living lapses, and takes with it what leaked: each keeps one reference.
        dummies = {place.name: place.current.table.own(bytes(100)) for place in self.places.values()}
        kept = {
            (holder.name, owner): holder.take(owned.rref_id)
            for holder in self._living()
            for owner, owned in dummies.items()
            if not (isinstance(holder, Owner) and holder.place == owner)
        }
        self.world.run(self.world.now + LEASE_SECONDS)
        self._drop_all()
        self.world.run(self.world.now + 8 * LEASE_SECONDS)
        gc.collect()
        self._look()
        for holder in self._living():
            self._check_that_one_is_left(holder, {owner: kept.get((holder.name, owner)) for owner in dummies})
        for place in self.places.values():
            self._check_the_table(place.current, dummies[place.name])
        if self.problems:
            return
        dummies.clear()
        kept.clear()
        self.world.run(self.world.now + LEASE_SECONDS / 2)
        self._check_that_nothing_is_left()
        self.world.run(self.world.now + 2 * LEASE_SECONDS)
        for place in self.places.values():
            if place.current.table.counts()["leases"]:
                self._problem(f"{place.name} is left with leases")

    def _drop_all(self) -> None:
        for client in self.clients:
            client.held.clear()
        for place in self.places.values():
            for slot in place.current.slots:
                slot.clear()

    def _check_that_one_is_left(self, holder: Holder, kept: dict[str, UserRRef | None]) -> None:
        left = set(holder.handles()) - set(kept.values())
        if left:
            self._problem(f"{holder.name} is left with {left}")
        for handle in kept.values():
            if handle is not None and not self._must_hold(holder, handle._fork):
                self._problem(f"{holder.name} lost {handle._fork}, without any faults")
        held = {owner: link.held for owner, link in holder.links.items() if link.held != 1}
        if held:
            self._problem(f"the links of {holder.name} are left with {held}")

    def _check_the_table(self, owner: Owner, dummy: Owned) -> None:
        """Looks whether the dummy is all that an owner has, and one fork of it all that anybody has there."""
        table = owner.table
        if list(table._values.values()) != [dummy]:
            self._problem(f"{owner.name} is left with {list(table._values.values())}")
        expected = {holder.client_id(owner.place) for holder in self._living() if holder is not owner}
        if table.leases.by_client.keys() != expected:
            self._problem(f"{owner.name} has leases of {set(table.leases.by_client) ^ expected} too many or few")
        for client_id, lease in table.leases.by_client.items():
            left = (list(lease.forks.values()), lease.unnumbered, lease.holds, list(lease.promised), lease.count)
            if left != ([dummy], {}, {}, [], 1) or lease.nbytes != dummy.nbytes:
                self._problem(f"at {owner.name} {client_id} is left with {left}, {lease.nbytes} bytes")
        if table._lapsing:
            self._problem(f"{owner.name} has holds that lapse: {len(table._lapsing)}")

    def _check_that_nothing_is_left(self) -> None:
        for place in self.places.values():
            counts = place.current.table.counts()
            left = {what: count for what, count in counts.items() if count and what != "leases"}
            if left:
                self.problems.append(f"{place.name} is left with {left}")
        for holder in self._living():
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
