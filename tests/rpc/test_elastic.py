"""Worlds without ranks: real processes that come, go and die, in whatever order."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.servers import eventually

from tensorcall.client.directory import Change, DirectoryClient
from tensorcall.rpc import elastic, meeting
from tensorcall.rpc.world_secret import SECRET
from tensorcall.server import Server, ServerConfig
from tensorcall.wire.errors import NameTaken, NotImplementedByPeer, Unauthenticated, Unreachable, WorkerUnknown

LEASE = 2.0
WORKER = Path(__file__).parent / "elastic_worker.py"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user whose key is made by the test."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(SECRET, raising=False)
    return tmp_path


@pytest.fixture
def port() -> int:
    """A port that nobody has; whoever hosts must be told one that others know."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(params=["tcp", "file"])
def place(request: pytest.FixtureRequest, port: int, tmp_path: Path) -> str:
    return f"tcp://127.0.0.1:{port}" if request.param == "tcp" else f"file://{tmp_path}/meet"


@pytest.fixture
def join() -> Iterator[Callable[..., elastic.Membership]]:
    made: list[elastic.Membership] = []

    def join(name: str, place: str, incarnation: int = 1, **settings: Any) -> elastic.Membership:
        settings = {"timeout": 20, "lease_seconds": LEASE, **settings}
        made.append(elastic.join(name, place, f"127.0.0.1:{len(made) + 1}", incarnation, **settings))
        return made[-1]

    yield join
    for membership in made:
        membership.leave()


def names(membership: elastic.Membership) -> list[str]:
    return sorted(worker.name for worker in membership.members())


class Process:
    """A worker in a process of its own."""

    def __init__(self, name: str, place: str, **environment: str) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), name, place, str(LEASE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self.hello: dict[str, Any] = {}

    def started(self) -> Process:
        self.hello = self._answer()
        return self

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        return dict(json.loads(line))

    def ask(self, command: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        print(command, file=self.process.stdin, flush=True)
        return self._answer()

    def sees(self, *names: str) -> bool:
        return sorted(self.ask("members")["members"]) == sorted(names)

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def spawn() -> Iterator[Callable[..., Process]]:
    made: list[Process] = []

    def spawn(name: str, place: str, **environment: str) -> Process:
        made.append(Process(name, place, **environment))
        return made[-1]

    yield spawn
    for process in made:
        process.end()


# --- in one process ---


def test_the_first_one_hosts_and_others_join(join: Callable[..., elastic.Membership], place: str) -> None:
    a = join("a", place)
    assert a.hosting
    b = join("b", place)
    assert not b.hosting
    assert names(b) == ["a", "b"]
    eventually(lambda: names(a) == ["a", "b"])
    assert a.lookup("b") == a.lookup(b.worker.id) == b.worker
    assert a.worker.id != b.worker.id
    with pytest.raises(WorkerUnknown):
        a.lookup("c")


def test_names_are_unique_while_their_workers_live(join: Callable[..., elastic.Membership], place: str) -> None:
    join("a", place)
    b = join("b", place)
    # Nobody listens at its address, but it renews its lease.
    with pytest.raises(NameTaken, match="'b' is taken"):
        join("b", place, 2)
    b.leave()
    again = join("b", place, 2)
    assert again.worker.id != b.worker.id


def test_a_name_of_one_that_died_is_waited_for(join: Callable[..., elastic.Membership], port: int) -> None:
    place = f"tcp://127.0.0.1:{port}"
    a = join("a", place)
    secret = meeting.find(place).secret
    with DirectoryClient(f"127.0.0.1:{port}", token=secret) as client:
        dead = client.join("dead", "127.0.0.1:1", 7).worker
        b = join("dead", place, 8)
        assert b.worker.id != dead.id
        eventually(lambda: a.lookup("dead") == b.worker)
        # Whoever listens lives.
        with socket.create_server(("127.0.0.1", 0)) as listening:
            client.join("alive", f"127.0.0.1:{listening.getsockname()[1]}", 7)
            with pytest.raises(NameTaken, match="'alive' is taken"):
                join("alive", place, 8)
        client.join("dead too", "127.0.0.1:1", 7)
        with pytest.raises(NameTaken, match="'dead too' is taken"):
            join("dead too", place, 8, timeout=0.5)


def test_the_host_may_leave(join: Callable[..., elastic.Membership], place: str) -> None:
    a = join("a", place)
    b, c = join("b", place), join("c", place)
    eventually(lambda: names(b) == names(c) == ["a", "b", "c"])
    heard: list[Change] = []
    b.on_change(heard.append)
    a.leave()
    eventually(lambda: b.hosting or c.hosting, "somebody to take over")
    assert not (b.hosting and c.hosting)
    d = join("d", place)
    assert names(d) == ["b", "c", "d"]
    eventually(lambda: names(b) == names(c) == ["b", "c", "d"])
    assert heard == [Change("left", a.worker), Change("joined", d.worker)]
    assert (d.lookup("b").id, d.lookup("c").id) == (b.worker.id, c.worker.id)


def test_all_may_leave_one_after_the_other_and_come_again(join: Callable[..., elastic.Membership], place: str) -> None:
    for incarnation in (1, 2):
        members = [join(name, place, incarnation) for name in "abcd"]
        for gone, membership in enumerate(members):
            left = sorted("abcd"[gone:])
            eventually(lambda m=membership, left=left: names(m) == left)
            membership.leave()


def test_a_stranger_may_host_before_those_who_are_there(join: Callable[..., elastic.Membership], port: int) -> None:
    place = f"tcp://127.0.0.1:{port}"
    a, b = join("a", place), join("b", place)
    eventually(lambda: names(a) == ["a", "b"])
    heard: list[Change] = []
    b.on_change(heard.append)
    with b._lock:  # b is slow to take over
        a._member.leave()
        a._stop_hosting()
        c = join("c", place)
    assert c.hosting
    eventually(lambda: names(c) == ["b", "c"])
    eventually(lambda: names(b) == ["b", "c"])
    assert c.lookup("b") == b.worker
    assert [(change.kind, change.worker.name) for change in heard] == [("left", "a"), ("joined", "c")]


def test_worlds_at_one_place_know_nothing_of_each_other(join: Callable[..., elastic.Membership], port: int) -> None:
    join("a", f"tcp://localhost:{port}/training")
    assert meeting.find(f"tcp://localhost:{port}/training").world == "training"
    with pytest.raises(Unauthenticated, match="another secret"):
        join("a", f"tcp://localhost:{port}/evaluation")


def test_worlds_at_one_place_with_one_secret(
    join: Callable[..., elastic.Membership], port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SECRET, "for-all-of-them")
    join("a", f"tcp://localhost:{port}/training")
    assert names(join("a", f"tcp://localhost:{port}/evaluation")) == ["a"]


def test_a_place_that_other_machines_reach(
    join: Callable[..., elastic.Membership], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        try:
            way.connect(("192.0.2.1", 1))
        except OSError:
            pytest.skip("this machine has no network")
        own = way.getsockname()[0]
    with socket.create_server((own, 0)) as found:
        port = found.getsockname()[1]
    monkeypatch.setenv(SECRET, "for-all-of-them")
    a = join("a", f"tcp://{own}:{port}")
    assert a.hosting
    assert names(join("b", f"tcp://{own}:{port}")) == ["a", "b"]
    monkeypatch.setenv(SECRET, "another")
    with pytest.raises(Unauthenticated, match="set TENSORCALL_RPC_SECRET to the same"):
        join("c", f"tcp://{own}:{port}")
    # An address of another machine, where nobody is.
    with pytest.raises(Unreachable, match=r"this worker can't keep one there: .*192\.0\.2\.1 is no address of this"):
        join("c", "tcp://192.0.2.1:29500", timeout=0.1)


def test_where_nobody_can_host_is_an_error(join: Callable[..., elastic.Membership], port: int) -> None:
    # Somebody listens there and says nothing that a directory would.
    with socket.create_server(("127.0.0.1", port)):
        with pytest.raises(Unreachable, match="no directory of a world was found"):
            join("a", f"tcp://127.0.0.1:{port}", timeout=1)
    with Server([], config=ServerConfig(bind=f"127.0.0.1:{port}")):
        with pytest.raises(NotImplementedByPeer, match="is no directory"):
            join("a", f"tcp://127.0.0.1:{port}")


def test_strangers_can_not_join(join: Callable[..., elastic.Membership], port: int, home: Path) -> None:
    place = f"tcp://127.0.0.1:{port}"
    join("a", place)
    for token in (None, "guess"):
        with DirectoryClient(f"127.0.0.1:{port}", token=token) as client, pytest.raises(Unauthenticated):
            client.members()


# --- in many ---


def test_processes_come_and_go(spawn: Callable[..., Process], place: str) -> None:
    processes = [spawn(f"w{number}", place) for number in range(3)]
    hellos = [process.started().hello for process in processes]
    assert sorted(hello["hosting"] for hello in hellos) == [False, False, True]
    assert len({hello["id"] for hello in hellos}) == 3
    for process in processes:
        eventually(lambda p=process: p.sees("w0", "w1", "w2"))
    host = next(process for process in processes if process.hello["hosting"])
    others = [process for process in processes if process is not host]
    # It dies without a word.
    host.process.send_signal(signal.SIGKILL)
    host.process.wait()
    eventually(lambda: any(process.ask("members")["hosting"] for process in others), "somebody to take over")
    for process in others:
        # They know each other all the time, and soon that the other one has died.
        assert {other.name for other in others} <= set(process.ask("members")["members"])
        eventually(lambda p=process: p.sees(*(other.name for other in others)))
    # Its name may come again.
    again = spawn(host.name, place).started()
    assert again.hello.get("id") not in (None, host.hello["id"])
    for process in (*others, again):
        eventually(lambda p=process: p.sees("w0", "w1", "w2"))
        assert process.ask("members")["members"][others[0].name] == others[0].hello["id"]
    # All leave, the one that hosts among them.
    for process in (*others, again):
        assert process.ask("leave") == {"left": True}
        assert process.process.wait(20) == 0


def test_a_process_that_is_stopped_is_dropped_and_comes_back(spawn: Callable[..., Process], port: int) -> None:
    place = f"tcp://127.0.0.1:{port}"
    host = spawn("w0", place).started()
    sleeper = spawn("w1", place).started()
    eventually(lambda: host.sees("w0", "w1"))
    sleeper.process.send_signal(signal.SIGSTOP)
    eventually(lambda: host.sees("w0"))
    sleeper.process.send_signal(signal.SIGCONT)
    eventually(lambda: host.sees("w0", "w1"))
    assert host.ask("members")["members"]["w1"] == sleeper.hello["id"]


def test_a_process_that_does_not_leave_ends_all_the_same(spawn: Callable[..., Process], port: int) -> None:
    place = f"tcp://127.0.0.1:{port}"
    host, other = spawn("w0", place).started(), spawn("w1", place).started()
    for process in (host, other):
        assert process.process.communicate(timeout=30)[1].count("Traceback") == 0
        assert process.process.returncode == 0


def test_another_users_process_can_not_join(spawn: Callable[..., Process], port: int, tmp_path: Path) -> None:
    place = f"tcp://127.0.0.1:{port}"
    assert spawn("w0", place).started().hello["hosting"]
    other = spawn("w1", place, HOME=str(tmp_path / "other")).started().hello
    assert other["error"] == "Unauthenticated"
    assert "TENSORCALL_RPC_SECRET" in other["message"]
    assert "id" in spawn("w2", place).started().hello


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_happens_those_who_live_know_each_other(port: int, seed: int) -> None:
    """Members come, leave and die, whoever hosts or not; in the end all know who is there."""
    chance, place = random.Random(seed), f"tcp://127.0.0.1:{port}"
    live: dict[str, elastic.Membership] = {}
    dead: list[elastic.Membership] = []
    ids: set[int] = set()
    for step in range(40):
        action = chance.choice(["join", "join", "join", "leave", "die", "die of the host"])
        if action == "join" or len(live) < 2:
            name = f"n{step}"
            live[name] = elastic.join(name, place, "127.0.0.1:1", step + 1, timeout=20, lease_seconds=0.6)
            assert live[name].worker.id not in ids
            ids.add(live[name].worker.id)
            continue
        hosts = [name for name, membership in live.items() if membership.hosting]
        name = hosts[0] if action == "die of the host" and hosts else chance.choice(list(live))
        membership = live.pop(name)
        if action == "leave":
            membership.leave()
        else:
            dead.append(membership)
            # As a process that is killed: no word to anybody.
            membership._left = True
            membership._member._over.set()
            membership._member._client.close()
            membership._stop_hosting()
    try:
        for membership in live.values():
            eventually(lambda m=membership: names(m) == sorted(live), f"all to be known (seed {seed})")
            assert {worker.id for worker in membership.members()} == {m.worker.id for m in live.values()}
        assert sum(membership.hosting for membership in live.values()) == 1
    finally:
        for membership in (*live.values(), *dead):
            membership.leave()
