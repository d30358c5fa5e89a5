"""What harms a session, and what must not."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
import torch
from support.servers import ServerProcess, eventually

from tensorcall.client import Remote, connect
from tensorcall.client.session import SessionCarrier
from tensorcall.v1.handler_service_pb2 import SessionWelcome
from tensorcall.wire import errors, frames, statuses


@pytest.fixture
def carrier() -> Any:
    return "session"


def session_of(remote: Remote) -> SessionCarrier:
    carrier = remote._connection.carrier()
    assert isinstance(carrier, SessionCarrier)
    return carrier


def test_a_session_that_breaks_as_a_call_begins_fails_it_once(remote: Remote) -> None:
    session = session_of(remote)
    others = [remote.submit("served.sleep_for_ever", "broken") for _ in range(3)]
    put = session._outbox.put

    def breaks(*args: Any) -> bool:
        session._outbox.put = put  # type: ignore[method-assign]
        session._break(errors.ConnectionLost("broken by the test"))
        return put(*args)

    session._outbox.put = breaks  # type: ignore[method-assign, assignment]
    with pytest.raises(errors.ConnectionLost, match="by the test"):
        remote.call("served.noop")
    for other in others:
        with pytest.raises(errors.ConnectionLost, match="by the test"):
            other.result(30)


@pytest.mark.parametrize("kind", [RuntimeError, SystemExit])
def test_a_callback_that_raises_leaves_no_call_waiting(remote: Remote, kind: type[BaseException]) -> None:
    def fails(_: object) -> None:
        raise kind("in a callback")

    calls = [remote.submit("served.sleep_for_ever", "callbacks") for _ in range(3)]
    for future in calls:
        future.add_done_callback(fails)
    try:
        remote._connection._carrier.close()  # type: ignore[union-attr]
    except SystemExit:
        assert kind is SystemExit
    for future in calls:
        with pytest.raises(errors.Cancelled, match="in flight"):
            future.result(30)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_callback_that_exits_fails_the_session_and_not_silently(remote: Remote) -> None:
    def exits(_: object) -> None:
        raise SystemExit

    waiting = remote.submit("served.sleep_for_ever", "exits")
    future = remote.submit("served.wait_for_gate", "exits")
    future.add_done_callback(exits)
    remote.call("served.open_gate", "exits")
    with pytest.raises(errors.InternalError, match="SystemExit"):
        waiting.result(30)


def test_a_call_after_closing_was_never_in_flight(server: ServerProcess, carrier: str) -> None:
    for name in ("session", "call"):
        remote = connect(server.address, carrier=name)  # type: ignore[arg-type]
        carrier_ = remote.call("served.noop") or remote._connection.carrier()
        remote.close()
        for again in (remote, remote.options()):
            with pytest.raises(errors.Cancelled, match=r"was closed by this program$"):
                again.call("served.noop")
        # One that got hold of the carrier just before.
        remote._connection._carrier = carrier_
        with pytest.raises(errors.Cancelled, match=r"was closed by this program$"):
            remote.call("served.noop")
        with pytest.raises(errors.Cancelled, match="closed"):
            remote.functions()


def test_progress_that_raises_harms_nobody(remote: Remote, caplog: pytest.LogCaptureFixture) -> None:
    told = []

    def progress(sent: int, total: int) -> None:
        told.append(sent)
        raise ValueError("no progress")

    other = remote.submit("served.wait_for_gate", "progress")
    tensor = torch.ones(5_000_000, dtype=torch.uint8)
    assert remote.options(progress=progress).call("served.tensor_sum", tensor).item() == 5_000_000
    assert len(told) == 1
    assert caplog.text.count("ValueError: no progress") == 1
    remote.call("served.open_gate", "progress")
    assert other.result(30) == "progress"


def test_waiting_in_a_progress_callback_is_refused(remote: Remote, caplog: pytest.LogCaptureFixture) -> None:
    waits = remote.options(progress=lambda *_: remote.call("served.noop"))
    tensor = torch.ones(5_000_000, dtype=torch.uint8)
    assert waits.call("served.tensor_sum", tensor).item() == 5_000_000
    assert "another thread" in caplog.text


class Refusing:
    """A server that welcomes a session, and ends it for a reason at its first call."""

    def __init__(self) -> None:
        handler = grpc.stream_stream_rpc_method_handler(self.session)
        self.server = grpc.server(futures.ThreadPoolExecutor(2))
        self.server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("tensorcall.v1.HandlerService", {"Session": handler})]
        )
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.welcomes = True

    def session(self, requests: Iterator[bytes], _: object) -> Iterator[bytes]:
        next(requests)
        if self.welcomes:
            yield b"".join(frames.welcome(SessionWelcome(max_message_size=1 << 20)))
            next(requests)
        failure = statuses.service_failure(errors.TooLarge("much too large"))
        yield b"".join(frames.failure(0, failure.SerializeToString()))

    def __enter__(self) -> Refusing:
        self.server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stop(None)


def test_why_the_server_ended_the_session_is_told_to_its_calls() -> None:
    told = r"the server ended the session: TooLarge: much too large"
    with Refusing() as server, connect(server.address, carrier="session") as remote:
        with pytest.raises(errors.ConnectionLost, match=told):
            remote.call("x")
        with pytest.raises(errors.ConnectionLost, match=told):
            remote.submit("x").result(30)
        stream = remote.stream("x")
        with pytest.raises(errors.ConnectionLost, match=told):
            next(stream)
        assert list(stream) == list(stream) == []
        server.welcomes = False
        with pytest.raises(errors.TooLarge, match="much"):
            remote.call("x")


def test_the_last_message_is_not_kept(server: ServerProcess) -> None:
    size = 30 << 20
    for name in ("session", "call"):
        with connect(server.address, carrier=name) as remote:  # type: ignore[arg-type]
            remote.call("served.noop")
            tracemalloc.start()
            try:
                assert len(remote.call("served.blob", size)) == size
                eventually(lambda: tracemalloc.get_traced_memory()[0] < size // 2, "that the reply is let go")
            finally:
                tracemalloc.stop()
