"""Futures: cancelled, awaited by the standard library's means, and from callbacks."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any

import pytest
from support.servers import ServerProcess, eventually

from tensorcall.client import CallFuture, Remote, connect


def test_who_waits_for_a_cancelled_future_is_told(remote: Remote, carrier: str) -> None:
    future = remote.submit("served.sleep_for_ever", f"waited {carrier}")
    done: list[Any] = []
    thread = threading.Thread(target=lambda: done.append(concurrent.futures.wait([future], 30).done))
    thread.start()
    eventually(lambda: future._waiters)
    assert future.cancel()
    assert future.cancel()
    thread.join(30)
    assert done == [{future}]
    assert list(concurrent.futures.as_completed([future], 30)) == [future]
    assert future.cancelled()


def test_ending_a_cancelled_future_does_nothing() -> None:
    future = CallFuture()
    assert future.cancel()
    future.resolve(1)
    future.fail(ValueError())
    assert future.cancelled()
    future = CallFuture()
    future.resolve(1)
    future.resolve(2)
    future.fail(ValueError())
    assert not future.cancel()
    assert future.result() == 1


def test_cancelling_races_with_the_result() -> None:
    for ends in ("resolve", "fail"):
        for _ in range(500):
            future, barrier = CallFuture(), threading.Barrier(2)
            end: Callable[[Any], None] = getattr(future, ends)

            def settle(end: Callable[[Any], None] = end, barrier: threading.Barrier = barrier) -> None:
                barrier.wait(30)
                end(ValueError("x"))

            thread = threading.Thread(target=settle)
            thread.start()
            barrier.wait(30)
            cancelled = future.cancel()
            thread.join(30)
            assert concurrent.futures.wait([future], 30).done == {future}
            assert future.cancelled() is cancelled


@pytest.mark.parametrize("how", ["call", "result", "stream"])
def test_waiting_in_a_callback_is_refused(remote: Remote, carrier: str, how: str) -> None:
    raised: list[BaseException | None] = []

    def wait(_: object) -> None:
        try:
            if how == "call":
                assert remote.call("served.add", 1) == 2.0
            elif how == "result":
                remote.submit("served.coroutine", 1).result(20)
            else:
                next(remote.stream("served.count", 3))
            raised.append(None)
        except BaseException as error:
            raised.append(error)

    future = remote.submit("served.wait_for_gate", f"callback {carrier} {how}")
    future.add_done_callback(wait)
    remote.call("served.open_gate", f"callback {carrier} {how}")
    eventually(lambda: raised)
    if carrier == "call" and how == "call":
        assert raised == [None]  # gRPC has another way for it
    else:
        assert isinstance(raised[0], RuntimeError)
        assert "another thread" in str(raised[0])
    assert remote.submit("served.add", 1).result(30) == 2.0


def test_submitting_in_a_callback_is_fine(remote: Remote) -> None:
    chained: list[CallFuture] = []
    remote.submit("served.add", 1).add_done_callback(lambda _: chained.append(remote.submit("served.add", 2)))
    eventually(lambda: chained)
    assert chained[0].result(30) == 3.0


def test_another_connection_may_be_waited_for_in_a_callback(remote: Remote, server: ServerProcess) -> None:
    with connect(server.address) as other:
        got: list[Any] = []
        remote.submit("served.add", 1).add_done_callback(lambda _: got.append(other.call("served.add", 2)))
        eventually(lambda: got == [3.0])
