"""A call's context: its deadline, its cancellation, and where the errors of calls are kept."""

from __future__ import annotations

import threading
import time

import pytest

from tensorcall.server import context, current_call
from tensorcall.server.context import CallContext, Peer
from tensorcall.server.error_store import ErrorStore
from tensorcall.v1 import error_pb2
from tensorcall.wire import errors

PEER = Peer("ipv4:127.0.0.1:1")


def test_no_call_is_in_progress_here() -> None:
    with pytest.raises(LookupError, match="exposed functions"):
        current_call()


def test_the_current_call_is_that_of_this_thread() -> None:
    call = CallContext("f", PEER)
    token = context.enter(call)
    seen = []

    def other() -> None:
        with pytest.raises(LookupError):
            current_call()
        seen.append(True)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert current_call() is call
    context.leave(token)
    assert seen == [True]


def test_a_deadline() -> None:
    assert CallContext("f", PEER).time_remaining() is None
    call = CallContext("f", PEER, 1000.0)
    remaining = call.time_remaining()
    assert remaining is not None
    assert 990 < remaining <= 1000
    call.check()
    past = CallContext("f", PEER, 1e-9)
    while not past.expired:
        time.sleep(0)
    assert past.time_remaining() == 0.0
    with pytest.raises(errors.DeadlineExceeded, match="f"):
        past.check()


def test_cancelling_tells_once() -> None:
    call, told = CallContext("f", PEER), []
    call.on_cancel(lambda: told.append("before"))
    call.cancel()
    call.cancel()
    call.on_cancel(lambda: told.append("after"))
    assert told == ["before", "after"]
    with pytest.raises(errors.Cancelled):
        call.check()


def tree(size: int) -> error_pb2.ExceptionTree:
    return error_pb2.ExceptionTree(exceptions=[error_pb2.RemoteException(type="T", message="x" * size)])


def test_errors_are_kept_for_a_while() -> None:
    store = ErrorStore(max_bytes=1000, max_errors=3)
    kept = [tree(10) for _ in range(5)]
    for each in kept:
        store.keep(each)
    assert len({each.error_id for each in kept}) == 5
    for gone in kept[:2]:
        with pytest.raises(errors.ErrorUnknown, match="newer"):
            store.get(gone.error_id)
    assert store.get(kept[4].error_id) == kept[4]
    # One alone may be larger than all together: somebody is about to ask for it.
    large = tree(5000)
    store.keep(large)
    assert store.get(large.error_id) == large
    with pytest.raises(errors.ErrorUnknown):
        store.get(kept[4].error_id)
