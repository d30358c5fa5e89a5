"""Owners and clients: the table and the links are the real ones, what carries calls between them is not."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

from stress.ledger import Ledger
from stress.world import Process, World
from tensorcall.client.forks import Fork
from tensorcall.client.link import Link
from tensorcall.client.rref import RRef
from tensorcall.client.user_rref import UserRRef
from tensorcall.server.owned import Owned
from tensorcall.server.owner_rref import OwnerRRef
from tensorcall.server.rref_service import RRefServicer
from tensorcall.server.rrefs import RRefTable
from tensorcall.wire.errors import Cancelled, ConnectionLost, TensorcallError
from tensorcall.wire.rrefs import RRefId

LEASE_SECONDS = 10.0
SLOTS = 6
# A call that was lost is noticed by then.
CALL_SECONDS = 30.0

Ended = Callable[[Any, "BaseException | None"], object]


class Thing:
    """A value; tells when it goes."""

    def __init__(self, name: RRefId, gone: Callable[[RRefId], object]) -> None:
        self.name = name
        # What it takes in memory.
        self.weight = bytes(1 + name.sequence % 50)
        self._gone = gone

    def __del__(self) -> None:
        self._gone(self.name)


class Given(NamedTuple):
    """An answer that holds references."""

    names: list[RRefId]
    hold: int
    # For the judge: who gave it when, and the giver's own forks; None for values of its own.
    giver: Owner
    at: float
    forks: list[Fork | None]


class Place:
    """An address, at which one owner after the other answers."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.current: Owner


class Holder(Process):
    """A process with links to owners."""

    def __init__(self, world: World, name: str, places: dict[str, Place]) -> None:
        super().__init__(world, name)
        self.places = places
        self.links: dict[str, Link] = {}
        # The owners' starts that this process has met.
        self.met: dict[str, int] = {}
        self.live: dict[int, weakref.ref[UserRRef]] = {}

    def client_id(self, owner: str) -> str:
        return f"{self.name} at {owner}"

    def link(self, owner: str) -> Link:
        link = self.links.get(owner)
        if link is None:
            place = self.places[owner]

            def answer(method: str, request: Any) -> Any:
                return place.current.answer(method, request)

            ask = self.world.ask(self, lambda: place.current, answer)
            link = Link(ask, place.name, client_id=self.client_id(owner), surroundings=self.surroundings())
            self.links[owner] = link
        return link

    def meet(self, owner: str) -> None:
        """Opens a session, if there is none: the welcome tells who answers."""
        current = self.places[owner].current
        if self.met.get(owner) != current.table.incarnation:
            self.met[owner] = current.table.incarnation
            self.link(owner).met(owner, current.table.incarnation, owner)

    def handle(self, fork: Fork) -> UserRRef:
        made = UserRRef(None, fork)  # type: ignore[arg-type]
        self.live[id(fork)] = weakref.ref(made)
        return made

    def handles(self) -> list[UserRRef]:
        """Returns all handles that live here, referred to by whomever."""
        found = {key: ref() for key, ref in self.live.items()}
        self.live = {key: self.live[key] for key, handle in found.items() if handle is not None}
        return [handle for handle in found.values() if handle is not None]

    def take(self, rref_id: RRefId) -> UserRRef:
        return self.handle(self.link(rref_id.owner).fork(rref_id))


class Owner(Holder):
    """A server, which holds references itself: in slots, where calls put them."""

    def __init__(
        self,
        world: World,
        place: str,
        places: dict[str, Place],
        made: Callable[[Thing], object],
        gone: Callable[[RRefId], object],
    ) -> None:
        incarnation = next(world.incarnations)
        super().__init__(world, f"{place}/{incarnation}", places)
        self.made, self.gone = made, gone
        self.place = place
        self.ledger = Ledger(LEASE_SECONDS, lambda: world.now)
        self.waiting: dict[object, Owned] = {}
        self.slots: list[list[RRef]] = [[] for _ in range(SLOTS)]
        self.table = RRefTable(place, incarnation, place, lease_seconds=LEASE_SECONDS, clock=lambda: world.now)
        # The service's own methods, without gRPC.
        self._service = RRefServicer.__new__(RRefServicer)
        self._service._table = self.table
        self._expire()

    def _expire(self) -> None:
        self.table.expire()
        self.later(LEASE_SECONDS / 20, self._expire)

    def answer(self, method: str, request: Any) -> Any:
        if method in ("Fork", "GrantLease"):
            self.ledger.renew(request.client_id)
        elif method == "RevokeLease":
            self.ledger.revoke(request.client_id)
        name = {"GrantLease": "grant_lease", "RevokeLease": "revoke_lease"}
        response = getattr(self._service, name.get(method, method.lower()))(request)
        if method == "Fork":
            self.ledger.grant(request.client_id, request.number)
        return response

    def open(self, rref_id: RRefId) -> RRef:
        if self.table.is_ours(rref_id) or rref_id.owner == self.place:
            return OwnerRRef(self.table.get(rref_id), None)  # type: ignore[arg-type]
        return self.take(rref_id)

    def session_broke(self, client_id: str) -> None:
        """What its answers hold has a lease's time to be taken over."""
        self.ledger.break_session(client_id)
        self.table.let_holds_lapse(client_id)

    # --- calls ---

    def create(self, client_id: str, number: int, ended: Ended) -> None:
        """A call that makes a value."""
        self.ledger.renew(client_id)
        try:
            owned = self.table.promise(client_id, number, "thing")
        except TensorcallError as error:
            ended(None, error)
            return
        self.ledger.grant(client_id, number)

        def finish() -> None:
            name = owned.rref_id
            if self.world.random.random() < 0.05:
                owned.set_error(ValueError("by chance"))
                ended(None, ValueError("by chance"))
                return
            thing = Thing(name, self.gone)
            self.made(thing)
            owned.set_value(thing)
            ended(name, None)

        self.later(self.world.random.expovariate(5.0), finish)

    def call(
        self,
        names: Iterable[RRefId],
        run: Callable[[list[RRef]], Any],
        ended: Ended,
        refused: Callable[[int, TensorcallError], object] = lambda _, __: None,
    ) -> None:
        """A call with references as arguments, which are confirmed before it runs.

        Args:
            names: of the arguments.
            run: makes the result of them.
            ended: takes the outcome.
            refused: is told which of the names is of no use here, and why.
        """
        opened: list[RRef] = []
        for i, name in enumerate(names):
            try:
                handle = self.open(name)
            except TensorcallError as error:
                refused(i, error)
                ended(None, error)
                return
            opened.append(handle)
            if isinstance(handle, UserRRef):
                _when_refused(handle._fork, partial(refused, i))
            del handle
        waiting = [handle for handle in opened if not handle.confirmed_by_owner()]
        left = [len(waiting)]

        def confirmed() -> None:
            left[0] -= 1
            if left[0] <= 0 and not self.dead:
                go_on()

        def go_on() -> None:
            waiting.clear()
            handles = opened[:]
            opened.clear()
            try:
                for handle in handles:
                    handle.wait_confirmed(0)
            except TensorcallError as error:
                ended(None, error)
                return
            self.later(self.world.random.expovariate(20.0), lambda: ended(*_run(run, handles)))

        if not waiting:
            go_on()
        for handle in list(waiting):
            handle.when_confirmed(confirmed)

    def keep(self, handles: list[RRef]) -> None:
        self.slots[self.world.random.randrange(SLOTS)] = handles

    def give(self, client_id: str) -> Given:
        """An answer that holds references."""
        handles = list(self.slots[self.world.random.randrange(SLOTS)])
        given = Given([], 0, self, self.world.now, [])
        if not handles:
            return given
        self.ledger.renew(client_id)
        forks = [handle._fork if isinstance(handle, UserRRef) else None for handle in handles]
        return given._replace(
            names=[handle.rref_id() for handle in handles], hold=self.table.hold(client_id, handles), forks=forks
        )

    def fetch(self, name: RRefId, ended: Ended) -> None:
        try:
            owned = self.table.get(name)
        except TensorcallError as error:
            ended(None, error)
            return

        # A call that waits for a value keeps it.
        key = object()
        self.waiting[key] = owned

        def done(owned: Owned) -> None:
            del self.waiting[key]
            failure = owned.failure()
            ended(None if failure else owned.wait(0).name, None if failure is None else ValueError(str(failure)))

        owned.on_done(done)


def _when_refused(fork: Fork, refused: Callable[[TensorcallError], object]) -> None:
    fork.when_settled(lambda: fork.error is None or refused(fork.error))


def _run(run: Callable[[list[RRef]], Any], handles: list[RRef]) -> tuple[Any, BaseException | None]:
    try:
        return run(handles), None
    except TensorcallError as error:
        return None, error


class Client(Holder):
    """A program that makes references, passes them on and lets go of them."""

    def __init__(self, world: World, name: str, places: dict[str, Place]) -> None:
        super().__init__(world, name, places)
        self.held: list[RRef] = []
        self.calls = 0

    def call(
        self,
        place: Place,
        start: Callable[[Owner, Ended], object],
        ended: Ended,
        keep: list[RRef] | None = None,
        unread: Callable[[Any], object] = lambda _: None,
    ) -> None:
        """Makes a call on a session.

        What is sent on one arrives once or not at all; where it does not, or its answer does not, the session broke.

        Args:
            place: to whom.
            start: runs there, and is told what to do at its end.
            ended: takes the outcome.
            keep: the references among the arguments, kept until then.
            unread: takes an answer that came when nobody waited any more.
        """
        self.meet(place.name)
        world, chance = self.world, self.world.random
        there = place.current
        kept = list(keep or ())
        over = [False]
        self.calls += 1

        def end(result: Any, error: BaseException | None) -> None:
            if over[0]:
                if error is None:
                    unread(result)
                return
            over[0] = True
            self.calls -= 1
            kept.clear()
            ended(result, error)

        def answered(result: Any, error: BaseException | None) -> None:
            if world.faults.on and chance.random() < world.faults.lost / 4:
                there.session_broke(self.client_id(place.name))
                self.later(world.delay(), lambda: end(None, ConnectionLost("the answer was lost")))
            else:
                self.later(world.delay(), lambda: end(result, error))

        def arrive() -> None:
            if there is not place.current:
                return
            start(there, answered)

        if world.faults.on and chance.random() < world.faults.lost / 4:
            self.later(world.delay(), lambda: end(None, ConnectionLost("the call was lost")))
            if chance.random() < 0.5:
                # It arrives all the same, maybe much later.
                there.later(world.delay(), arrive)
            return
        if world.faults.on and world.faults.deaths and chance.random() < 0.05:
            # Nobody waits for the answer.
            self.later(chance.expovariate(5.0), lambda: end(None, Cancelled("by chance")))
        there.later(world.delay(), arrive)
        self.later(CALL_SECONDS, lambda: end(None, ConnectionLost("the server is gone")))
