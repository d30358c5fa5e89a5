"""The table of workers under a clock of its own, and its service over real sockets."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from support.servers import eventually

from tensorcall.client.directory import DirectoryClient
from tensorcall.server import Server, ServerConfig
from tensorcall.server.directory import Directory
from tensorcall.server.members import Change, Member, News
from tensorcall.v1 import directory_service_pb2 as pb
from tensorcall.v1 import directory_service_pb2_grpc
from tensorcall.wire.errors import (
    BadPayload,
    MembershipLapsed,
    NameTaken,
    TooLarge,
    Unauthenticated,
    Unreachable,
    WorkerUnknown,
)

LEASE = 10.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def directory(clock: Clock) -> Directory:
    return Directory(LEASE, clock=clock)


def names(directory: Directory, world: str = "w") -> list[str]:
    return [member.name for member in directory.members(world)[0]]


# --- members ---


def test_who_joins_is_there_and_learns_who_else_is(directory: Directory) -> None:
    a, everyone, _ = directory.join("w", "a", "h:1", 7)
    assert everyone == (a,)
    b, everyone, version = directory.join("w", "b", "h:2", 8)
    assert everyone == (a, b)
    assert directory.members("w") == ((a, b), version)
    assert (a.name, a.address, a.incarnation) == ("a", "h:1", 7)
    assert directory.look_up("w", "a") == directory.look_up("w", a.worker_id) == a


def test_ids_are_unique_and_above_all_ranks(directory: Directory) -> None:
    ids = {directory.join("w", f"n{i}", "h:1", 1)[0].worker_id for i in range(200)}
    assert len(ids) == 200
    assert min(ids) >= 1 << 32
    assert max(ids) < 1 << 53  # as JSON holds them


def test_an_id_may_be_asked_for(directory: Directory) -> None:
    assert directory.join("w", "a", "h:1", 1, 0)[0].worker_id == 0
    with pytest.raises(NameTaken, match="the id 0 is taken: the worker 'a' at h:1"):
        directory.join("w", "b", "h:2", 1, 0)
    assert names(directory) == ["a"]


def test_a_name_is_taken_while_its_worker_lives(directory: Directory, clock: Clock) -> None:
    directory.join("w", "a", "h:1", 1)
    clock.now += LEASE - 2
    with pytest.raises(NameTaken, match=r"'a' is taken: the worker 'a' at h:1 .* dropped in 2.0 s") as caught:
        directory.join("w", "a", "h:2", 2)
    assert caught.value.metadata["address"] == "h:1"
    assert float(caught.value.metadata["lease_seconds"]) == pytest.approx(2)


def test_a_name_may_come_again_after_its_worker_left(directory: Directory) -> None:
    first, _, _ = directory.join("w", "a", "h:1", 1)
    directory.leave("w", "a", 1)
    second, _, _ = directory.join("w", "a", "h:2", 2)
    assert second.incarnation == 2
    assert second.worker_id != first.worker_id
    # A message of the first that comes late does no harm to the second.
    directory.leave("w", "a", 1)
    assert names(directory) == ["a"]
    with pytest.raises(MembershipLapsed):
        directory.renew("w", "a", 1)


def test_a_name_may_come_again_after_its_lease_lapsed(directory: Directory, clock: Clock) -> None:
    directory.join("w", "a", "h:1", 1)
    clock.now += LEASE
    # Nobody needs to have called `expire` for that.
    assert directory.join("w", "a", "h:2", 2)[0].incarnation == 2
    with pytest.raises(MembershipLapsed, match="join again"):
        directory.renew("w", "a", 1)


def test_joining_twice_is_joining_once(directory: Directory, clock: Clock) -> None:
    first = directory.join("w", "a", "h:1", 1)
    clock.now += LEASE / 2
    assert directory.join("w", "a", "h:1", 1) == first
    clock.now += LEASE / 2
    assert directory.expire() == clock.now + LEASE / 2  # it was renewed by that
    assert names(directory) == ["a"]


def test_a_worker_may_move(directory: Directory) -> None:
    member, _, version = directory.join("w", "a", "h:1", 1)
    moved, _, _ = directory.join("w", "a", "h:2", 1)
    assert moved == Member("a", member.worker_id, "h:2", 1)
    assert directory.news("w", version).changes == (Change("moved", moved),)


def test_a_lease_holds_as_long_as_it_is_renewed(directory: Directory, clock: Clock) -> None:
    directory.join("w", "a", "h:1", 1)
    directory.join("w", "b", "h:2", 1)
    for _ in range(5):
        clock.now += LEASE * 0.9
        directory.renew("w", "a", 1)
        directory.expire()
    assert names(directory) == ["a"]
    with pytest.raises(MembershipLapsed):
        directory.renew("w", "b", 1)


def test_a_lapsed_lease_is_over_even_before_it_is_swept(directory: Directory, clock: Clock) -> None:
    member, _, _ = directory.join("w", "a", "h:1", 1)
    clock.now += LEASE
    with pytest.raises(MembershipLapsed):
        directory.renew("w", "a", 1)
    with pytest.raises(WorkerUnknown):
        directory.look_up("w", "a")
    with pytest.raises(WorkerUnknown):
        directory.look_up("w", member.worker_id)


def test_expire_tells_when_the_next_lease_lapses(directory: Directory, clock: Clock) -> None:
    assert directory.expire() is None
    directory.join("w", "a", "h:1", 1)
    clock.now += 1
    directory.join("x", "a", "h:1", 1)
    assert directory.expire() == clock.now - 1 + LEASE
    clock.now += LEASE - 1
    assert directory.expire() == clock.now + 1
    clock.now += 1
    assert directory.expire() is None


def test_worlds_know_nothing_of_each_other(directory: Directory) -> None:
    directory.join("w", "a", "h:1", 1, 0)
    _, everyone, version = directory.join("x", "a", "h:2", 2, 0)
    assert [member.address for member in everyone] == ["h:2"]
    directory.join("w", "b", "h:1", 1)
    assert directory.news("x", version).changes == ()
    with pytest.raises(WorkerUnknown):
        directory.look_up("x", "b")
    assert directory.members("nowhere")[0] == ()


def test_who_is_adopted_needs_not_join_again(directory: Directory, clock: Clock) -> None:
    own, _, _ = directory.join("w", "own", "h:0", 9)
    directory.adopt("w", [Member("own", 1, "h:9", 1), Member("a", 5, "h:1", 1), Member("b", 6, "h:2", 1)])
    assert directory.look_up("w", "own") == own
    with pytest.raises(NameTaken):
        directory.join("w", "a", "h:3", 3)
    directory.renew("w", "a", 1)
    clock.now += LEASE / 2
    directory.renew("w", "a", 1)
    clock.now += LEASE / 2
    directory.expire()
    assert names(directory) == ["a"]


def test_there_is_a_limit(clock: Clock) -> None:
    directory = Directory(LEASE, max_members=2, clock=clock)
    directory.join("w", "a", "h:1", 1)
    directory.join("x", "a", "h:1", 1)
    with pytest.raises(TooLarge, match="2 workers already"):
        directory.join("y", "a", "h:1", 1)
    directory.join("w", "a", "h:1", 1)
    directory.leave("x", "a", 1)
    directory.join("y", "a", "h:1", 1)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ({"name": ""}, "no name"),
        ({"name": "n" * 129}, "name has more than 128 bytes"),
        ({"world": "é" * 65}, "world has more than 128 bytes"),
        ({"address": ""}, "at which address"),
        ({"address": "h" * 257}, "address has more than 256 bytes"),
        ({"incarnation": 0}, "no incarnation"),
        ({"worker_id": -1}, "negative"),
    ],
)
def test_what_can_not_be_is_refused(directory: Directory, what: dict[str, Any], words: str) -> None:
    settings: dict[str, Any] = {"world": "w", "name": "a", "address": "h:1", "incarnation": 1, **what}
    with pytest.raises(BadPayload, match=words):
        directory.join(**settings)


def test_a_lease_takes_time() -> None:
    with pytest.raises(ValueError, match="lease_seconds"):
        Directory(0)


# --- versions ---


def test_news_are_the_changes_since(directory: Directory, clock: Clock) -> None:
    a, _, version = directory.join("w", "a", "h:1", 1)
    b, _, _ = directory.join("w", "b", "h:2", 1)
    directory.leave("w", "a", 1)
    clock.now += LEASE
    directory.expire()
    news = directory.news("w", version)
    assert news.changes == (Change("joined", b), Change("left", a), Change("lapsed", b))
    assert news.everyone is None
    assert directory.news("w", news.version) == News(news.version)


def test_who_has_another_directorys_version_gets_the_whole_list(directory: Directory) -> None:
    a, everyone, version = directory.join("w", "a", "h:1", 1)
    assert directory.news("w", None) == News(version, everyone=everyone)
    assert directory.news("w", (version[0] ^ 1, version[1])).everyone == (a,)
    assert directory.news("w", (version[0], version[1] + 1)).everyone == (a,)  # that never was


def test_who_is_too_far_behind_gets_the_whole_list(directory: Directory) -> None:
    _, _, version = directory.join("w", "a", "h:1", 1)
    for i in range(600):
        directory.join("w", "b", "h:1", i + 1)
        directory.leave("w", "b", i + 1)
    news = directory.news("w", version)
    assert news.changes == ()
    assert news.everyone is not None
    assert [member.name for member in news.everyone] == ["a"]


def replay(news: News, known: dict[str, Member]) -> dict[str, Member]:
    if news.everyone is not None:
        return {member.name: member for member in news.everyone}
    known = dict(known)
    for change in news.changes:
        if change.kind in ("left", "lapsed"):
            assert known.pop(change.member.name) == change.member
        else:
            assert (change.member.name in known) == (change.kind == "moved")
            known[change.member.name] = change.member
    return known


@pytest.mark.parametrize("seed", range(5))
def test_who_follows_the_news_knows_what_the_directory_knows(seed: int) -> None:
    chance, clock = random.Random(seed), Clock()
    directory = Directory(LEASE, clock=clock)
    incarnations = itertools.count(1)
    live: dict[str, int] = {}
    watchers: list[tuple[Any, dict[str, Member]]] = [(None, {}) for _ in range(4)]
    for _ in range(3000):
        name = f"n{chance.randrange(12)}"
        action = chance.choice(["join", "join", "renew", "leave", "move", "time", "watch", "watch"])
        if action == "join":
            try:
                incarnation = next(incarnations)
                directory.join("w", name, "h:1", incarnation)
                live[name] = incarnation
            except NameTaken:
                pass
        elif action in ("renew", "leave", "move") and name in live:
            try:
                if action == "renew":
                    directory.renew("w", name, live[name])
                elif action == "leave":
                    directory.leave("w", name, live.pop(name))
                else:
                    directory.join("w", name, f"h:{chance.randrange(9)}", live[name])
            except MembershipLapsed:
                del live[name]
            except NameTaken:
                del live[name]
        elif action == "time":
            clock.now += chance.random() * LEASE / 3
            directory.expire()
        elif action == "watch":
            which = chance.randrange(len(watchers))
            version, known = watchers[which]
            news = directory.news("w", version)
            watchers[which] = news.version, replay(news, known)
            there, version = directory.members("w")
            assert (version, watchers[which][1]) == (news.version, {member.name: member for member in there})


def test_watchers_are_woken_by_each_change_until_they_call_it_off(directory: Directory) -> None:
    woken: list[int] = []
    call_off = directory.watch("w", lambda: woken.append(1))
    directory.join("w", "a", "h:1", 1)
    assert woken
    woken.clear()
    call_off()
    directory.leave("w", "a", 1)
    assert not woken


def test_worlds_that_nobody_uses_leave_nothing_behind(directory: Directory, clock: Clock) -> None:
    for i in range(50):
        call_off = directory.watch(f"w{i}", lambda: None)
        directory.join(f"w{i}", "a", "h:1", 1)
        call_off()
        directory.leave(f"w{i}", "a", 1)
        directory.join(f"x{i}", "a", "h:1", 1)
    clock.now += LEASE
    directory.expire()
    assert directory._worlds == {}


# --- the service ---


@pytest.fixture
def served() -> Iterator[tuple[str, Directory]]:
    server = Server([], config=ServerConfig(bind="127.0.0.1:0"))
    directory = server.host_directory(lease_seconds=1.0)
    with server:
        yield server.address, directory


@pytest.fixture
def client(served: tuple[str, Directory]) -> Iterator[DirectoryClient]:
    with DirectoryClient(served[0], world="w") as client:
        yield client


def test_the_methods_over_a_socket(client: DirectoryClient) -> None:
    joined = client.join("a", "h:1", 7)
    assert joined.lease_seconds == 1.0
    assert joined.members == (joined.worker,) == client.members()
    assert client.lookup("a") == client.lookup(joined.worker.id) == joined.worker
    assert client.renew("a", 7) == 1.0
    with pytest.raises(NameTaken, match="'a' is taken") as caught:
        client.join("a", "h:2", 8)
    assert caught.value.metadata["address"] == "h:1"
    client.leave("a", 7)
    client.leave("a", 7)
    with pytest.raises(WorkerUnknown, match="'a'"):
        client.lookup("a")
    with pytest.raises(MembershipLapsed):
        client.renew("a", 7)
    with pytest.raises(BadPayload):
        client.join("", "h:1", 7)


def test_a_lease_lapses_by_itself_and_watchers_hear_of_it(client: DirectoryClient) -> None:
    joined = client.join("a", "h:1", 7)
    watch = client.watch(joined.version)
    assert next(watch).changes == ()
    assert [(change.kind, change.worker) for change in next(watch).changes] == [("lapsed", joined.worker)]
    watch.cancel()
    assert list(watch) == []


def test_a_watch_begins_with_the_whole_list_and_goes_on_with_changes(client: DirectoryClient) -> None:
    a = client.join("a", "h:1", 1).worker
    watch = client.watch()
    assert next(watch).everyone == (a,)
    b = client.join("b", "h:2", 1).worker
    assert [(change.kind, change.worker) for change in next(watch).changes] == [("joined", b)]
    client.leave("b", 1)
    news = next(watch)
    assert [(change.kind, change.worker) for change in news.changes] == [("left", b)]
    # Nothing is missed between one watch and the next.
    watch.cancel()
    client.join("b", "h:2", 2)
    assert [change.kind for change in next(client.watch(news.version)).changes] == ["joined"]


def test_who_watches_holds_no_thread(served: tuple[str, Directory], client: DirectoryClient) -> None:
    watches = [client.watch() for _ in range(200)]
    assert all(next(watch).everyone == () for watch in watches)
    client.join("a", "h:1", 1)
    assert all([change.kind for change in next(watch).changes] == ["joined"] for watch in watches)
    for watch in watches:
        watch.cancel()
    client.leave("a", 1)
    eventually(lambda: not served[1]._worlds, "the end of all watches")


def test_a_directory_that_ends_ends_its_watches() -> None:
    server = Server([], config=ServerConfig(bind="127.0.0.1:0"))
    server.host_directory()
    server.start()
    with DirectoryClient(server.address) as client:
        watch = client.watch()
        next(watch)
        server.stop(0)
        with pytest.raises(StopIteration):
            next(watch)
        with pytest.raises(Unreachable):
            client.members()


def test_strangers_are_turned_away() -> None:
    server = Server([], config=ServerConfig(bind="127.0.0.1:0", secret="open sesame".replace(" ", "-")))
    server.host_directory()
    with server:
        asked: list[Callable[[DirectoryClient], object]] = [
            lambda client: client.join("a", "h:1", 1),
            lambda client: client.renew("a", 1),
            lambda client: client.leave("a", 1),
            lambda client: client.lookup("a"),
            lambda client: client.members(),
            lambda client: next(client.watch()),
        ]
        for token in (None, "open"):
            with DirectoryClient(server.address, token=token) as client:
                for ask in asked:
                    with pytest.raises(Unauthenticated):
                        ask(client)
        with DirectoryClient(server.address, token="open-sesame") as client:
            client.join("a", "h:1", 1)
            watch = client.watch()
            assert next(watch).everyone
            watch.cancel()


def test_a_server_without_a_directory_says_so() -> None:
    with Server([], config=ServerConfig(bind="127.0.0.1:0")) as server, DirectoryClient(server.address) as client:
        with pytest.raises(NotImplementedError):
            client.members()
        with pytest.raises(RuntimeError, match="before start"):
            server.host_directory()


def test_requests_that_say_too_little_are_refused(served: tuple[str, Directory]) -> None:
    with grpc.insecure_channel(served[0]) as channel:
        stub = directory_service_pb2_grpc.DirectoryServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.LookUp(pb.LookUpRequest(world="w"), timeout=10)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        garbage = channel.unary_unary("/tensorcall.v1.DirectoryService/Join")
        with pytest.raises(grpc.RpcError) as caught:
            garbage(b"\xff\xff", timeout=10)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        watch = channel.unary_stream("/tensorcall.v1.DirectoryService/WatchMembers")
        with pytest.raises(grpc.RpcError) as caught:
            next(watch(b"\xff\xff", timeout=10))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
