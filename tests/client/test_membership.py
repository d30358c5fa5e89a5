"""A worker stays one: it renews, joins again, and knows the others through the times without a directory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.servers import eventually

from tensorcall.client.directory import Change, DirectoryClient
from tensorcall.client.membership import Membership
from tensorcall.server import Server, ServerConfig
from tensorcall.server.directory import Directory
from tensorcall.wire.errors import NameTaken, Unauthenticated, WorkerUnknown

LEASE = 1.0


class Host:
    """A directory that comes and goes at one address."""

    def __init__(self) -> None:
        self.bind = "127.0.0.1:0"
        self.table: Directory
        self.server: Server | None = None
        self.start()

    def start(self, lease_seconds: float = LEASE) -> None:
        self.server = Server([], config=ServerConfig(bind=self.bind))
        self.table = self.server.host_directory(lease_seconds)
        self.server.start()
        self.bind = self.server.address

    def stop(self) -> None:
        if self.server is not None:
            self.server.stop(0)
            self.server = None


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    yield made
    made.stop()


@pytest.fixture
def join(host: Host) -> Iterator[Callable[..., Membership]]:
    made: list[Membership] = []

    def join(name: str, address: str = "h:1", incarnation: int = 1, **settings: Any) -> Membership:
        membership = Membership(DirectoryClient(host.bind, world="w"), name, address, incarnation, **settings)
        made.append(membership)
        return membership

    yield join
    for membership in made:
        membership.leave()


def names(membership: Membership) -> list[str]:
    return sorted(worker.name for worker in membership.members())


def test_workers_hear_of_each_other(join: Callable[..., Membership]) -> None:
    a = join("a")
    heard: list[Change] = []
    call_off = a.on_change(heard.append)
    b = join("b", "h:2")
    assert names(b) == ["a", "b"]
    eventually(lambda: names(a) == ["a", "b"])
    assert a.lookup("b") == a.lookup(b.worker.id) == b.worker
    b.leave()
    eventually(lambda: len(heard) == 2)
    assert heard == [Change("joined", b.worker), Change("left", b.worker)]
    assert names(a) == ["a"]
    with pytest.raises(WorkerUnknown, match="'b'"):
        a.lookup("b")
    call_off()
    join("c")
    eventually(lambda: names(a) == ["a", "c"])
    assert len(heard) == 2


def test_who_is_not_known_yet_is_asked_for(join: Callable[..., Membership], host: Host) -> None:
    a = join("a")
    with a._telling:  # no news get through
        b = join("b")
        assert a.lookup("b") == b.worker
        assert a.lookup(b.worker.id) == b.worker
        assert names(a) == ["a"]


def test_a_membership_lasts(join: Callable[..., Membership], host: Host) -> None:
    a = join("a")
    heard: list[Change] = []
    join("b").on_change(heard.append)
    threading.Event().wait(2 * LEASE)
    assert heard == []
    assert names(a) == ["a", "b"]


def test_a_worker_that_dies_is_dropped(join: Callable[..., Membership], host: Host) -> None:
    a = join("a")
    heard: list[Change] = []
    a.on_change(heard.append)
    with DirectoryClient(host.bind, world="w") as client:
        dead = client.join("dead", "h:2", 7).worker
    eventually(lambda: Change("lapsed", dead) in heard)
    assert names(a) == ["a"]


def test_a_name_that_is_taken_is_refused(join: Callable[..., Membership]) -> None:
    join("a")
    with pytest.raises(NameTaken, match="'a' is taken"):
        join("a", incarnation=2)
    join("b", worker_id=3)
    with pytest.raises(NameTaken, match="the id 3 is taken"):
        join("c", worker_id=3)


def test_who_left_may_come_again(join: Callable[..., Membership]) -> None:
    first = join("a")
    first.leave()
    first.leave()
    assert join("a", incarnation=2).worker.incarnation == 2


def test_the_directory_may_be_restarted(join: Callable[..., Membership], host: Host) -> None:
    a, b = join("a"), join("b", "h:2")
    heard: list[Change] = []
    a.on_change(heard.append)
    eventually(lambda: names(a) == ["a", "b"])
    heard.clear()
    host.stop()
    # They go on with those they know.
    assert names(a) == names(b) == ["a", "b"]
    assert a.lookup("b") == b.worker
    with pytest.raises(WorkerUnknown, match="the directory can't be asked"):
        a.lookup("c")
    host.start()
    eventually(lambda: len(host.table.members("w")[0]) == 2, "all to join again")
    assert {member.name: member.worker_id for member in host.table.members("w")[0]} == {
        "a": a.worker.id,
        "b": b.worker.id,
    }
    c = join("c")
    eventually(lambda: names(a) == names(b) == ["a", "b", "c"])
    # Nobody was ever taken for gone.
    assert heard == [Change("joined", c.worker)]


def test_who_does_not_come_back_to_a_restarted_directory_is_gone(join: Callable[..., Membership], host: Host) -> None:
    a = join("a")
    with DirectoryClient(host.bind, world="w") as client:
        dead = client.join("dead", "h:2", 7).worker
    eventually(lambda: names(a) == ["a", "dead"])
    heard: list[Change] = []
    a.on_change(heard.append)
    host.stop()
    host.start()
    eventually(lambda: heard == [Change("lapsed", dead)])
    assert names(a) == ["a"]


def test_a_worker_that_was_taken_for_dead_joins_again(join: Callable[..., Membership], host: Host) -> None:
    a = join("a", worker_id=4)
    b = join("b")
    heard: list[Change] = []
    b.on_change(heard.append)
    with a._renewing:  # as if its process was stopped
        eventually(lambda: [change.kind for change in heard] == ["lapsed"])
    eventually(lambda: [change.kind for change in heard] == ["lapsed", "joined"])
    assert heard[1].worker == a.worker
    assert a.lookup("a") == a.worker


def test_a_worker_whose_name_was_taken_meanwhile_says_so(
    join: Callable[..., Membership], host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    a = join("a")
    host.stop()
    other = Host.__new__(Host)
    other.bind = host.bind
    try:
        with DirectoryClient(host.bind, world="w") as client:
            with a._renewing:  # somebody is faster
                other.start()
                client.join("a", "h:9", 2)
            eventually(lambda: "out of its world" in caplog.text)
            client.leave("a", 2)
        eventually(lambda: [member.incarnation for member in other.table.members("w")[0]] == [1], "it to be back")
    finally:
        a.leave()
        other.stop()


def test_leaving_takes_no_directory(join: Callable[..., Membership], host: Host) -> None:
    a = join("a")
    host.stop()
    a.leave()
    assert not any(thread.is_alive() for thread in a._threads)


def test_a_callback_that_raises_harms_nobody(join: Callable[..., Membership], caplog: pytest.LogCaptureFixture) -> None:
    def fail(change: Change) -> None:
        raise ValueError("not today")

    a = join("a")
    heard: list[Change] = []
    a.on_change(fail)
    a.on_change(heard.append)
    join("b")
    eventually(lambda: heard)
    assert "not today" in caplog.text


def test_a_callback_may_leave(join: Callable[..., Membership]) -> None:
    a = join("a")
    left = threading.Event()

    def leave(change: Change) -> None:
        a.leave()
        left.set()

    a.on_change(leave)
    b = join("b")
    assert left.wait(20)
    eventually(lambda: names(b) == ["b"])


def test_many_come_and_go_at_once(join: Callable[..., Membership], host: Host) -> None:
    watcher = join("watcher")
    known = {"watcher"}
    trouble: list[Change] = []

    def follow(change: Change) -> None:
        there = change.worker.name in known
        if there == (change.kind == "joined"):
            trouble.append(change)
        (known.add if change.kind == "joined" else known.discard)(change.worker.name)

    watcher.on_change(follow)

    def come_and_go(number: int) -> None:
        with DirectoryClient(host.bind, world="w") as client:
            for round_ in range(10):
                client.join(f"n{number}", "h:1", round_ + 1)
                client.leave(f"n{number}", round_ + 1)
            client.join(f"n{number}", "h:1", 99)

    threads = [threading.Thread(target=come_and_go, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eventually(lambda: len(known) == 11, "all to be known", 0.9 * LEASE)
    assert trouble == []
    eventually(lambda: known == {"watcher"}, "all to be dropped")
    assert trouble == []


def test_the_secret_is_shown() -> None:
    server = Server([], config=ServerConfig(bind="127.0.0.1:0", secret="s3cret"))
    server.host_directory()
    with server:
        with pytest.raises(Unauthenticated):
            Membership(DirectoryClient(server.address), "a", "h:1", 1)
        membership = Membership(DirectoryClient(server.address, token="s3cret"), "a", "h:1", 1)
        assert names(membership) == ["a"]
        membership.leave()
