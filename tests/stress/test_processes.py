"""References between real processes that die."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.servers import ServerProcess, eventually

from tensorcall.client import Remote, connect
from tensorcall.client.deadlines import deadlines
from tensorcall.v1 import rref_service_pb2 as pb
from tensorcall.wire import errors

_HOLDER = Path(__file__).parent / "holder.py"


def total(remote: Remote) -> int:
    """How many values the server keeps for anybody."""
    listed: pb.ListRRefsResponse = remote._connection.ask_rrefs("ListRRefs", pb.ListRRefsRequest(), 30).result(30)
    return listed.total


def test_a_client_that_is_killed_leaves_nothing() -> None:
    with ServerProcess(lease_seconds=1.0) as server, connect(server.address) as remote:
        holders = [
            subprocess.Popen(
                [sys.executable, str(_HOLDER), server.address, "20", "killed"], stdout=subprocess.PIPE, text=True
            )
            for _ in range(2)
        ]
        try:
            for holder in holders:
                assert holder.stdout is not None
                assert holder.stdout.readline() == "30\n"
            assert total(remote) == 60
            # They live, and so do their leases.
            time.sleep(2.5)
            assert total(remote) == 60
        finally:
            for holder in holders:
                holder.kill()
                holder.wait(30)
                assert holder.stdout is not None
                holder.stdout.close()
        eventually(lambda: total(remote) == 0, "that nothing is left of the killed")
        assert remote.call("served.happened", "killed gone") == 40


def free_port() -> int:
    with socket.socket() as probing:
        probing.bind(("127.0.0.1", 0))
        port: int = probing.getsockname()[1]
        return port


@pytest.mark.parametrize("carrier", ["session", "call"])
def test_a_server_that_was_restarted(carrier: Any) -> None:
    bind = f"127.0.0.1:{free_port()}"
    with ServerProcess(bind=bind) as server:
        remote = connect(bind, carrier=carrier)
        rref = remote.remote("served.Cell", 1)
        assert rref.rpc_sync().get() == 1
        server.kill()
    with ServerProcess(bind=bind):

        def use() -> bool:
            try:
                rref.rpc_sync().get()
            except errors.OwnerRestarted:
                return True
            except errors.NetworkError:
                return False
            raise AssertionError

        eventually(use, "that it is told")
        for again in (rref.to_here, rref._get_type, rref.remote().get):
            with pytest.raises(errors.OwnerRestarted):
                again()
        # As argument as well, and what is new is as good as ever.
        with pytest.raises(errors.OwnerRestarted):
            remote.call("served.value_of", rref)
        new = remote.remote("served.Cell", 2)
        assert new.rpc_sync().get() == 2
        eventually(lambda: remote._connection.link.held == 1, "that the old one is forgotten")
        remote.close()


def test_a_client_that_was_cut_off_for_longer_than_its_lease() -> None:
    with ServerProcess(lease_seconds=0.6) as server, connect(server.address) as remote:
        rref = remote.remote("served.Cell", 1)
        rref.wait_confirmed(30)
        link = remote._connection.link
        ask, link._ask = link._ask, _cut
        other = connect(server.address)
        eventually(lambda: total(other) == 0, "that the lease lapses")
        link._ask = ask
        with pytest.raises(errors.RRefExpired):
            rref.to_here()
        eventually(lambda: link.held == 0, "that the client has noticed")
        for use in (rref.to_here, rref.wait_confirmed, rref.rpc_sync().get):
            with pytest.raises(errors.RRefExpired, match="lapsed"):
                use()
        assert remote.remote("served.Cell", 2).rpc_sync().get() == 2
        other.close()


def _cut(method: str, request: Any, timeout: float) -> Future[Any]:
    raise errors.Unreachable("cut off by the test")


class Chaos:
    """Loses, repeats and delays what a link asks."""

    def __init__(self, ask: Callable[..., Future[Any]], chance: random.Random) -> None:
        self._ask = ask
        self._chance = chance
        self.on = True

    def __call__(self, method: str, request: Any, timeout: float) -> Future[Any]:
        draw = self._chance.random() if self.on else 1.0
        if draw < 0.1:
            raise errors.ConnectionLost("lost on the way there")
        if draw < 0.3:
            # Arrives late, or twice, or its answer is lost.
            future: Future[Any] = Future()
            deadlines.after(self._chance.uniform(0, 0.1), lambda: self._late(method, request, timeout, future, draw))
            return future
        return self._ask(method, request, timeout)

    def _late(self, method: str, request: Any, timeout: float, future: Future[Any], draw: float) -> None:
        try:
            asked = self._ask(method, request, timeout)
            if draw > 0.2:
                asked = self._ask(method, request, timeout)
        except errors.TensorcallError as error:
            future.set_exception(error)
            return

        def answered(asked: Future[Any]) -> None:
            error = asked.exception()
            if draw < 0.15:
                error = errors.ConnectionLost("lost on the way back")
            if error is None:
                future.set_result(asked.result())
            else:
                future.set_exception(error)

        asked.add_done_callback(answered)


Held = list[tuple[Any, int]]


def operate(chance: random.Random, remotes: list[Remote], held: Held, number: int) -> str:
    """Makes a reference, passes one on, takes, calls or drops some; returns what was wrong."""
    remote, draw = chance.choice(remotes), chance.random()
    if draw < 0.3 or not held:
        held.append((remote.remote("served.Cell", number), number))
    elif draw < 0.5:
        rref, value = chance.choice(held)
        if rref.rpc_sync().get() != value:
            return "another value"
    elif draw < 0.6:
        rref, value = chance.choice(held)
        if remote.call("served.value_in", rref) != value:
            return "another value elsewhere"
    elif draw < 0.7:
        some = chance.sample(held, min(3, len(held)))
        back = remote.call("served.echo", [rref for rref, _ in some])
        held += [(rref, value) for rref, (_, value) in zip(back, some, strict=True)]
    elif draw < 0.75:
        # A value on another server keeps it meanwhile.
        rref, value = held.pop(chance.randrange(len(held)))
        keeper = remote.remote("served.Cell", rref)
        keeper.wait_confirmed(30)
        del rref
        held.append((keeper.rpc_sync().get(), value))
    elif draw < 0.8:
        remote.submit("served.refer", list(range(5))).cancel()
    elif draw < 0.82:
        remote._connection.carrier()._break(errors.ConnectionLost("by the test"))  # type: ignore[attr-defined]
    else:
        for _ in range(min(len(held), 3)):
            held.pop(chance.randrange(len(held)))
    return ""


def work(seed: int, servers: list[str], operations: int, ended: list[Remote], problems: list[str]) -> None:
    """What one client does."""
    chance = random.Random(seed)
    remotes = [connect(address, timeout=30.0) for address in servers]
    chaos = []
    for remote in remotes:
        link = remote._connection.link
        link._ask = Chaos(link._ask, chance)
        chaos.append(link._ask)
    held: Held = []
    for number in range(operations):
        try:
            problem = operate(chance, remotes, held, number)
        except (errors.NetworkError, errors.Cancelled):
            problem = ""
        except errors.RRefUnknown as error:
            # What went with a broken session was never made, or not for long.
            problem = "" if any(rref._fork.error for rref, _ in held) else repr(error)
        except Exception as error:
            problem = repr(error)
        if problem:
            problems.append(f"seed {seed}, operation {number}: {problem}")
        held = [(rref, value) for rref, value in held[-30:] if rref._fork.error is None]
    held.clear()
    for each in chaos:
        each.on = False
    try:
        for remote in remotes:
            link = remote._connection.link
            eventually(lambda: not link.held, f"seed {seed}: that all is released")  # noqa: B023 - called at once
    except AssertionError as error:
        problems.append(str(error))
    ended += remotes


def test_threads_servers_and_chaos() -> None:
    before = threading.active_count()
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    with ServerProcess(worker="one", lease_seconds=3.0) as one, ServerProcess(worker="two", lease_seconds=3.0) as two:
        ended: list[Remote] = []
        problems: list[str] = []
        with ThreadPoolExecutor(4) as pool:
            for i in range(4):
                pool.submit(work, seed + i, [one.address, two.address], 250, ended, problems)
        assert not problems, "\n".join(problems[:10])
        assert len(ended) == 8
        for server in (one, two):
            with connect(server.address) as remote:
                eventually(lambda remote=remote: total(remote) == 0, f"that nothing is left on {server.address}")  # type: ignore[misc]
        for remote in ended:
            remote.close()
        for server in (one, two):
            code, log = server.end()
            assert code == 0, log
            assert "defect" not in log, log
    assert threading.active_count() < before + 100
