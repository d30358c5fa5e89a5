"""What a process holds of one owner's values, where the owner is gone, or answers nonsense."""

from __future__ import annotations

import heapq
import itertools
import sys
import types
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
from support.servers import ServerProcess, eventually

from tensorcall.client import RemoteClass, connect, link, references
from tensorcall.client.asking import Surroundings
from tensorcall.client.futures import CallFuture
from tensorcall.client.link import Link
from tensorcall.client.remote import Remote
from tensorcall.v1 import rref_service_pb2 as pb
from tensorcall.wire import errors
from tensorcall.wire.rrefs import RRefId

_SECONDS = 30.0


class Owner:
    """An owner, the way to it, and time, all of them made up."""

    def __init__(self) -> None:
        self.now = 0.0
        self.fails: BaseException | None = None
        self.asked: list[tuple[str, Any]] = []
        self.first_sequence = 100
        self._timers: list[tuple[float, int, list[Callable[[], None]]]] = []
        self._numbers = itertools.count()
        self.link = Link(
            self.ask,
            "127.0.0.1:1",
            surroundings=Surroundings(lambda: self.now, self.after, self.post, lambda: None),
        )

    def after(self, seconds: float, callback: Callable[[], None]) -> Callable[[], None]:
        wanted = [callback]
        heapq.heappush(self._timers, (self.now + seconds, next(self._numbers), wanted))
        return wanted.clear

    def post(self, household: Any, item: Any) -> None:
        def do() -> None:
            household.take(item)
            household.flush()

        self.after(0.0, do)

    def pass_by(self, seconds: float) -> None:
        until = self.now + seconds
        while self._timers and self._timers[0][0] <= until:
            self.now, _, wanted = heapq.heappop(self._timers)
            if wanted:
                wanted.pop()()
        self.now = until

    def ask(self, method: str, request: Any, timeout: float) -> Future[Any]:
        self.asked.append((method, request))
        if self.fails is not None and not isinstance(self.fails, errors.TensorcallError):
            raise self.fails
        future: Future[Any] = Future()
        if self.fails is not None:
            future.set_exception(self.fails)
        elif method == "GrantLease":
            response = pb.GrantLeaseResponse(worker="w", incarnation=1, first_sequence=self.first_sequence)
            response.duration.FromNanoseconds(int(_SECONDS * 1e9))
            future.set_result(response)
        else:
            future.set_result(pb.ReleaseResponse())
        return future

    def count(self, method: str) -> int:
        return sum(asked == method for asked, _ in self.asked)


@pytest.fixture
def owner() -> Owner:
    return Owner()


# --- owners that are gone ---


def test_a_dead_owner_is_not_asked_for_ever(owner: Owner) -> None:
    fork = owner.link.fork(RRefId("w", 1, 5))
    assert fork.confirmed
    owner.pass_by(1)
    owner.fails = errors.Unreachable("it is gone")
    fork.let_go()
    owner.pass_by(_SECONDS / 2)
    assert owner.count("Release") > 5
    assert owner.link.held == 1
    owner.pass_by(_SECONDS)
    assert owner.link.held == 0
    asked = len(owner.asked)
    owner.pass_by(1000)
    assert len(owner.asked) == asked


def test_where_the_time_of_leases_is_not_known(owner: Owner) -> None:
    owner.fails = errors.Unreachable("it never was there")
    fork = owner.link.fork(RRefId("w", 1, 5))
    owner.pass_by(25)
    assert isinstance(fork.error, errors.Unreachable)
    assert owner.link.held == 0
    owner.pass_by(100)
    asked = len(owner.asked)
    owner.pass_by(1000)
    assert len(owner.asked) == asked


def test_what_could_not_be_released_is_when_the_owner_is_back(owner: Owner) -> None:
    kept, dropped = owner.link.fork(RRefId("w", 1, 5)), owner.link.fork(RRefId("w", 1, 6))
    owner.pass_by(1)
    # Only releases fail: the lease goes on.
    release = owner.ask

    def ask(method: str, request: Any, timeout: float) -> Future[Any]:
        if method == "Release" and owner.now < 40:
            owner.asked.append((method, request))
            raise errors.ConnectionLost("by chance")
        return release(method, request, timeout)

    owner.link._ask = ask
    dropped.let_go()
    owner.pass_by(60)
    assert kept.confirmed
    assert owner.link.held == 1
    request = [request for method, request in owner.asked if method == "Release"][-1]
    assert list(request.numbers) == [dropped.number]
    assert not owner.link._numbers_to_release
    owner.link.close()


def test_what_the_owner_may_not_have_heard_of_is_not_said_to_be_settled(owner: Owner) -> None:
    owner.fails = errors.Unreachable("for a while")
    lost = owner.link.fork(RRefId("w", 1, 5))
    owner.pass_by(300)
    owner.fails = None
    fork = owner.link.fork(RRefId("w", 1, 6))
    owner.pass_by(1)
    fork.let_go()
    owner.pass_by(1)
    released = [request for method, request in owner.asked if method == "Release"]
    assert {request.settled_below for request in released[:-1]} == {lost.number}
    assert not owner.link._unsettled
    assert owner.link.held == 0


def test_the_owner_restarts_while_something_is_released(owner: Owner) -> None:
    fork = owner.link.fork(RRefId("w", 1, 5))
    owner.link.met("w", 1)
    owner.pass_by(1)
    owner.fails = errors.Unreachable("it is gone")
    fork.let_go()
    owner.pass_by(1)
    owner.link.met("w", 2)
    # Of what is asked for by then it is not known which start has it.
    again = owner.link.fork(RRefId("w", 2, 6))
    owner.fails = None
    owner.pass_by(100)
    assert again.confirmed
    again.let_go()
    owner.pass_by(1)
    released = {number for method, request in owner.asked if method == "Release" for number in request.numbers}
    assert released == {fork.number, again.number}
    assert not owner.link._unsettled
    assert owner.link.held == 0


def test_the_connection_to_a_dead_owner_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "_FORK_PATIENCE", 0.5)
    monkeypatch.setattr(references, "_IDLE_SECONDS", 0.5)
    ways = references.references()
    with ServerProcess(worker="mortal", lease_seconds=2.0) as mortal:
        with connect(mortal.address) as remote:
            made = remote.remote("served.Cell", 1)
            made.wait_confirmed(30)
            alive = ways._to(mortal.address)
            confirmed = alive.link.fork(made.rref_id())
            confirmed.wait(30)
            mortal.kill()
    dead = ways.open(RRefId("nobody", 7, 7, mortal.address))
    assert dead._connection is alive
    with pytest.raises(errors.NetworkError):
        dead.wait_confirmed(20)
    assert not alive.closed  # the other one is held
    confirmed.let_go()
    del dead
    eventually(lambda: alive.closed, "that nobody asks any more", 20)
    assert mortal.address not in ways._own


# --- answers that make no sense ---


def test_a_defect_does_not_leave_a_lease_that_is_waited_for(owner: Owner) -> None:
    owner.fails = AttributeError("'NoneType' object has no attribute 'GrantLease'")
    for _ in range(2):
        with pytest.raises(errors.InternalError, match="has no attribute 'GrantLease'"):
            owner.link.lease(1)
    owner.fails = None
    assert owner.link.lease(1).worker == "w"


@pytest.mark.parametrize("answer", [None, 5, [1], "a name"])
def test_an_answer_that_is_no_name(owner: Owner, answer: Any) -> None:
    fork, call = owner.link.new_name(1), CallFuture()
    owner.link.follow(fork, call)
    call.resolve(answer)
    with pytest.raises(errors.InternalError, match=f"answered a {type(answer).__name__}"):
        fork.wait(1)
    owner.pass_by(1)
    assert owner.link.held == 0


def test_a_connection_that_is_closed_while_an_owner_is_asked(server: ServerProcess) -> None:
    remote = connect(server.address)
    connection = remote._connection
    assert connection.ask_rrefs("ListRRefs", pb.ListRRefsRequest(), 30).result(30) is not None

    class Closing(type(connection)):  # type: ignore[misc]
        """Its stub goes as soon as anybody has looked at it, as if another thread closed it."""

        def __getattribute__(self, name: str) -> Any:
            found = super().__getattribute__(name)
            if name == "_stub":
                self._stub = None
            return found

    connection.__class__ = Closing
    assert connection.ask_rrefs("ListRRefs", pb.ListRRefsRequest(), 30).result(30) is not None
    remote.close()
    with pytest.raises(errors.Cancelled):
        connection.ask_rrefs("ListRRefs", pb.ListRRefsRequest(), 30)


def test_looking_for_a_class_runs_nothing(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Lazy(types.ModuleType):
        def __getattribute__(self, name: str) -> Any:
            asked.append(name)
            return super().__getattribute__(name)

    class Meta(type):
        def __getattr__(cls, name: str) -> Any:
            asked.append(name)
            return int

    lazy, plain = Lazy("lazy_module"), types.ModuleType("plain_module")

    def load(name: str) -> Any:
        asked.append(name)
        return int

    plain.__dict__.update(__getattr__=load, Outer=Meta("Outer", (), {"Inner": str}), number=5)
    monkeypatch.setitem(sys.modules, "lazy_module", lazy)
    monkeypatch.setitem(sys.modules, "plain_module", plain)
    rref: Any = remote.remote("served.Cell", 1)
    asked.clear()
    assert rref.find_class("lazy_module", "Heavy") == RemoteClass("lazy_module", "Heavy")
    assert rref.find_class("plain_module", "Heavy") == RemoteClass("plain_module", "Heavy")
    assert rref.find_class("plain_module", "Outer.Other") == RemoteClass("plain_module", "Outer.Other")
    assert rref.find_class("plain_module", "number.real") == RemoteClass("plain_module", "number.real")
    assert rref.find_class("plain_module", "Outer.Inner") is str
    assert rref.find_class("builtins", "int") is int
    assert rref.find_class("no_such_module", "int") == RemoteClass("no_such_module", "int")
    assert asked == []
