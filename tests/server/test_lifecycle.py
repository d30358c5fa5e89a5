"""How a server starts, drains and ends; and what it does when there is too much."""

from __future__ import annotations

import signal
import types

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.servers import ServerProcess, eventually

from tensorcall.client import connect
from tensorcall.server import Server, ServerConfig, expose
from tensorcall.server.expose import Registry
from tensorcall.wire import errors


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_drains(first: int, carrier: str) -> None:
    with ServerProcess() as server, connect(server.address, carrier=carrier) as remote:  # type: ignore[arg-type]
        waiting = remote.submit("served.wait_for_gate", "drain")
        # It opens the gate a second after new calls are refused.
        opener = remote.submit("served.wait_for_gate", "opener")
        eventually(
            lambda: remote.call("served.happened", "drain waits") and remote.call("served.happened", "opener waits")
        )
        with grpc.insecure_channel(server.address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            watch = health.Watch(health_pb2.HealthCheckRequest())
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            server.send(first)
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING

            def refused() -> bool:
                try:
                    remote.call("served.noop")
                except errors.ShuttingDown as error:
                    assert error.retry_after is not None
                    return True
                return False

            eventually(refused)
        assert not waiting.done()
        assert not opener.done()
        server.send(signal.SIGTERM)
        assert server.process.wait(30) == 128 + signal.SIGTERM
        with pytest.raises(errors.NetworkError):
            waiting.result(30)


def test_a_drain_waits_for_calls_in_flight(carrier: str) -> None:
    with ServerProcess() as server, connect(server.address, carrier=carrier) as remote:  # type: ignore[arg-type]
        calls = [remote.submit("served.until_cancelled", "x") for _ in range(3)]
        slow = remote.options(timeout=1.0).submit("served.until_cancelled", "slow")
        stream = remote.options(prefetch=2).stream("served.count", 200)
        eventually(lambda: remote.call("served.happened", "slow runs"))
        server.send(signal.SIGTERM)
        assert list(stream) == list(range(200))
        with pytest.raises(errors.DeadlineExceeded):
            slow.result(30)
        for call in calls:
            assert call.cancel()
        assert server.process.wait(30) == 0


def test_a_drain_that_takes_too_long_cancels() -> None:
    with ServerProcess(grace=0.2) as server, connect(server.address) as remote:
        call = remote.submit("served.sleep_for_ever", "x")
        eventually(lambda: remote.call("served.happened", "x runs"))
        code, log = server.end()
        assert code == 0
        assert "calls are cancelled" in log
        with pytest.raises((errors.Cancelled, errors.NetworkError)):
            call.result(30)


def test_an_overloaded_server_says_so_and_recovers(carrier: str) -> None:
    with ServerProcess(threads=2, max_threads=2, max_queue=2) as server:
        with connect(server.address, carrier=carrier) as remote:  # type: ignore[arg-type]
            # Over Call the answer to who asks takes a thread, too: so ask over a session of its own.
            running = [remote.submit("served.wait_for_gate", "load")]
            eventually(lambda: remote.call("served.happened", "load waits") == 1)
            running += [remote.submit("served.wait_for_gate", "load") for _ in range(7)]

            def shed() -> list[BaseException]:
                return [e for f in running if f.done() and (e := f.exception()) is not None]

            refused = eventually(lambda: len(shed()) >= 3 and shed())
            for error in refused:
                assert isinstance(error, errors.Overloaded)
                assert error.retry_after is not None
                assert "nothing was run" in str(error)

            def opened() -> bool:
                try:
                    remote.call("served.open_gate", "load")
                except errors.Overloaded:
                    return False
                return True

            # Who only asks how the server is, or what it exposes, is answered all the same.
            with grpc.insecure_channel(server.address) as channel:
                answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            assert remote.describe("served.noop").kind == "function"

            # Nobody can open the gate while the queue is full: a caller gives up, and its place is free.
            waiting = [f for f in running if not f.done()]
            # One may run on the thread that read it, beside the two of the pool and the two that wait for one.
            assert len(waiting) in (4, 5)
            assert not opened()
            server.kill()


def test_an_address_in_use_and_one_that_is_none() -> None:
    with Server([abs], config=ServerConfig(bind="127.0.0.1:0")) as first:
        with pytest.raises(OSError, match="can't listen"):
            Server([abs], config=ServerConfig(bind=first.address)).start()
    with pytest.raises(OSError, match="can't listen"):
        Server([abs], config=ServerConfig(bind="nowhere")).start()


def test_a_server_within_a_program() -> None:
    def double(x: int) -> int:
        return 2 * x

    with Server([double], config=ServerConfig(bind="127.0.0.1:0")) as server, connect(server.address) as remote:
        assert remote.call("test_lifecycle.double", 4) == 8
    server.stop()


def test_over_a_unix_socket(tmp_path_factory: pytest.TempPathFactory) -> None:
    address = f"unix:{tmp_path_factory.mktemp('s')}/socket"
    with ServerProcess(bind=address) as server, connect(address) as remote:
        assert remote.call("served.add", 1) == 2.0
        assert server.end()[0] == 0


def test_two_functions_of_one_name_are_refused() -> None:
    module = types.ModuleType("twice")
    module.one = expose(name="twice.same")(lambda: 1)  # type: ignore[attr-defined]
    module.two = expose(name="twice.same")(lambda: 2)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"two functions are exposed as 'twice\.same'.*test_lifecycle\.py"):
        Registry.of_modules([module])
    with pytest.raises(ValueError, match="exposes nothing"):
        Registry.of_modules([types])


def test_what_cannot_be_exposed() -> None:
    with pytest.raises(TypeError, match="functions and classes"):
        expose(5)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="no name"):
        expose(name="a b")(abs)
    with pytest.raises(TypeError, match="no name"):
        Server([lambda: 1])
