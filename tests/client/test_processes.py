"""Forked children, and the end of a process."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from support.forking import in_child
from support.servers import ServerProcess, eventually

from tensorcall.client import connect
from tensorcall.client.remote import Remote
from tensorcall.v1 import rref_service_pb2 as pb
from tensorcall.wire import errors

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")


@pytest.fixture(scope="module")
def hasty() -> Iterator[ServerProcess]:
    """A server whose leases are short."""
    with ServerProcess(worker="hasty", lease_seconds=2.0) as process:
        yield process
        code, log = process.end()
    assert code == 0, log
    assert "defect" not in log, log


def holders(remote: Remote, client_id: str) -> int:
    listed = remote._connection.ask_rrefs("ListRRefs", pb.ListRRefsRequest(limit=10_000), 30).result(30)
    return sum(holder.client_id.startswith(client_id[:16]) for info in listed.rrefs for holder in info.holders)


# --- what a child may not do to its parent ---


def test_a_child_that_closes_takes_nothing_from_its_parent(remote: Remote, carrier: str) -> None:
    name = f"closed by a child {carrier}"
    rref = remote.remote("served.Cell", [1], name=name)
    rref.wait_confirmed(30)
    stream = remote.options(prefetch=1).stream("served.refer_in_turn", 100)
    first = next(stream)
    pending = remote.submit("served.cell_behind_gate", name, 1)

    def close() -> bool:
        pending.cancel()
        stream.close()
        remote.close()
        remote._connection.link.close()
        return remote._connection.closed

    assert in_child(close) is True
    assert rref.rpc_sync(10).get() == [1]
    assert remote.call("served.happened", f"{name} gone") == 0
    assert first.rpc_sync(10).get() == 0
    assert next(stream).rpc_sync(10).get() == 1
    stream.close()
    remote.call("served.open_gate", name)
    assert isinstance(pending.exception(30), errors.UnencodableResult)  # it ran


def test_a_child_that_forgets_takes_nothing_from_its_parent(server: ServerProcess, carrier: Any) -> None:
    with connect(server.address, carrier=carrier) as remote:
        held: list[Any] = [remote, remote.remote("served.Cell", [1])]
        held[1].wait_confirmed(30)
        del remote

        def forget() -> int:
            held.clear()
            return gc.collect() >= 0

        assert in_child(forget)
        assert held[1].rpc_sync(10).get() == [1]


def test_a_child_that_ends_as_programs_do_takes_nothing_from_its_parent(server: ServerProcess, carrier: str) -> None:
    program = f"""
import os, sys
from tensorcall.client import connect
remote = connect({server.address!r}, carrier={carrier!r})
rref = remote.remote("served.Cell", [1])
rref.wait_confirmed(30)
call = remote.submit("served.cell_behind_gate", "ends {carrier}", 1)
pid = os.fork()
if pid == 0:
    sys.exit(7)  # with all that Python does at the end of a process
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
print(rref.rpc_sync(10).get())
remote.call("served.open_gate", "ends {carrier}")
call.exception(10)
print("whole")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False)
    assert ended.stdout.split("\n")[:3] == ["7", "[1]", "whole"], ended.stdout + ended.stderr


# --- what is of no use in a child ---


def test_a_child_is_told_that_it_must_connect_again(remote: Remote, carrier: str) -> None:
    name = f"of no use {carrier}"
    rref = remote.remote("served.Cell", [1])
    rref.wait_confirmed(30)
    pending = remote.remote("served.cell_behind_gate", name, 1)
    call = remote.submit("served.cell_behind_gate", name, 1)
    stream = remote.options(prefetch=1).stream("served.refer_in_turn", 100)
    limited = remote.options(timeout=5)
    uses = {
        "call": lambda: limited.call("served.add", 1),
        "submit": lambda: remote.submit("served.add", 1),
        "stream": lambda: remote.stream("served.refer_in_turn", 3),
        "remote": lambda: remote.remote("served.add", 1),
        "functions": remote.functions,
        "open_rref": lambda: remote.open_rref(rref.rref_id()),
        "to_here": lambda: rref.to_here(5),
        "a method": rref.rpc_sync().get,
        "its type": lambda: rref._get_type(timeout=5),
        "wait_confirmed": pending.wait_confirmed,
        "an argument": lambda: remote.call("served.echo", rref),
        "a future": call.result,
        "its error": call.exception,
        "the next item": lambda: [next(stream) for _ in range(50)],
    }

    def use() -> dict[str, str]:
        told = {}
        for what, use in uses.items():
            try:
                told[what] = f"returned {use()!r}"  # type: ignore[no-untyped-call]
            except errors.RequestError as error:
                told[what] = str(error)
        return told

    # A lock that some other thread has just then.
    with remote._connection._lock, remote._connection.link._lock:
        told = in_child(use)
    assert {what: words for what, words in told.items() if "before fork()" not in words} == {}
    assert told["call"] == (
        f"the connection to {remote.address} was made before fork(), and works only in the parent: connect again in "
        "the child"
    )
    remote.call("served.open_gate", name)
    assert isinstance(call.exception(30), errors.UnencodableResult)  # it ran


def test_what_it_costs_to_look_whose_a_connection_is(remote: Remote) -> None:
    from tensorcall.client import processes

    connection, turns = remote._connection, 100_000

    def look() -> float:
        began = time.perf_counter()
        for _ in range(turns):
            if connection._generation != processes.generation:
                raise AssertionError
        return (time.perf_counter() - began) / turns

    assert min(look() for _ in range(5)) < 0.2e-6


# --- what a child may do ---


def test_a_child_that_connects_anew_has_deadlines_and_leases(hasty: ServerProcess, carrier: Any) -> None:
    with connect(hasty.address, carrier=carrier) as remote:
        # The parent's threads run.
        mine = remote.remote("served.Cell", 0)
        mine.wait_confirmed(30)
        assert remote.options(timeout=30).submit("served.add", 1).result(30)

        def work() -> Any:
            with connect(hasty.address, carrier=carrier) as again:
                rref = again.remote("served.Cell", [2])
                try:
                    again.options(timeout=0.3).call("served.cell_behind_gate", f"child {carrier}", 1)
                    return "no deadline"
                except errors.DeadlineExceeded:
                    pass
                try:
                    again.options(timeout=0.3).submit("served.cell_behind_gate", f"child {carrier}", 1).result()
                    return "no deadline"
                except errors.DeadlineExceeded:
                    pass
                # Longer than a lease: somebody renews it.
                time.sleep(3.5)
                value = rref.rpc_sync(5).get()
                del rref
                eventually(lambda: not again._connection.link.held, "that it is released", 10)
                return value

        assert in_child(work) == [2]
        assert mine.rpc_sync(10).get() == 0
        remote.call("served.open_gate", f"child {carrier}")


def test_a_child_may_be_forked_while_timers_are_set() -> None:
    from tensorcall.client.deadlines import deadlines

    rung = threading.Event()
    call_off = deadlines.after(3600, rung.set)

    def ring() -> bool:
        call_off()
        deadlines.after(0.01, rung.set)
        return rung.wait(10)

    with deadlines._condition:
        assert in_child(ring) is True
    assert not rung.is_set()
    call_off()


# --- the end of a process ---


def test_a_process_that_just_ends_lets_go(server: ServerProcess, carrier: str) -> None:
    program = f"""
from tensorcall.client import connect
remote = connect({server.address!r}, carrier={carrier!r})
rref = remote.remote("served.Cell", [1], name="ended {carrier}")
rref.wait_confirmed(30)
print(remote._connection.link.client_id)
"""
    with connect(server.address) as remote:
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=True)
        assert ended.stderr == ""
        # The server's leases last for a minute.
        eventually(lambda: remote.call("served.happened", f"ended {carrier}" + " gone"), "that it is gone", 5)
        assert holders(remote, ended.stdout.strip()) == 0


def test_an_owner_that_hangs_does_not_hold_up_the_end() -> None:
    with ServerProcess() as silent:
        program = f"""
import os, signal, time
from tensorcall.client import connect
remotes = [connect({silent.address!r}) for _ in range(5)]
rrefs = [remote.remote("served.Cell", [1]) for remote in remotes]
for rref in rrefs: rref.wait_confirmed(30)
os.kill({silent.process.pid}, signal.SIGSTOP)
import atexit
print(time.monotonic(), flush=True)
"""
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=True)
        took = time.monotonic() - float(ended.stdout)
        assert took < 3, took


# --- owners that are gone ---


def test_there_is_an_end_to_owners_that_peers_name(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorcall.client import references as module

    rref = remote.remote("served.Cell", 1)
    rref.wait_confirmed(30)
    # Nobody else's address, since a connection that is there is used.
    strange = rref.rref_id()._replace(owner="strange", incarnation=5, address="127.0.0.99:1")
    monkeypatch.setattr(module, "_MAX_OWNERS", 0)
    with pytest.raises(errors.Overloaded, match="let go of references"):
        remote.open_rref(strange)
    assert rref.rpc_sync().get() == 1
