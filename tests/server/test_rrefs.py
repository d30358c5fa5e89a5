"""Values that are owned, and the owner's own handles of them."""

from __future__ import annotations

import gc
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from support.rref_client import RRefClient
from support.servers import eventually

from tensorcall.client import connect
from tensorcall.server import CallContext, Peer, Server, ServerConfig, current_call
from tensorcall.server.handler import Handler
from tensorcall.server.opening import check_address
from tensorcall.server.owned import Owned
from tensorcall.server.owner_rref import OwnerRRef
from tensorcall.server.pool import Pool
from tensorcall.server.raised import UdfRaised
from tensorcall.server.rref_hooks import HOOKS, install
from tensorcall.server.rrefs import RRefTable
from tensorcall.server.sizes import size_of
from tensorcall.server.sweeper import Sweeper
from tensorcall.v1 import handler_service_pb2 as handler_pb
from tensorcall.v1.rref_pb2 import RRefId as RRefName
from tensorcall.wire.errors import DeadlineExceeded, NotAllowed, OwnerRestarted, RRefUnknown, TooLarge
from tensorcall.wire.rrefs import RRefId


class Thing:
    """A value."""

    def __init__(self, value: Any = None) -> None:
        self.value = value

    def get(self) -> Any:
        return self.value

    def fail(self) -> None:
        raise KeyError("no")


def thread_name() -> str:
    return threading.current_thread().name


@pytest.fixture
def server() -> Iterator[Server]:
    with Server([thread_name], config=ServerConfig(bind="127.0.0.1:0")) as made:
        yield made


@pytest.fixture
def table() -> RRefTable:
    return RRefTable("w", 7)


# --- values ---


def test_a_value_comes_once(table: RRefTable) -> None:
    owned = table.pending("f")
    told: list[Owned] = []
    owned.on_done(told.append)
    call_off = owned.on_done(lambda _: pytest.fail("called off"))
    call_off()
    assert not owned.done
    with pytest.raises(DeadlineExceeded, match="not there after"):
        owned.wait(0.01)
    owned.set_value(1)
    owned.set_value(2)
    owned.set_error(ValueError())
    assert (owned.wait(), owned.done, owned.failed, owned.failure()) == (1, True, False, None)
    owned.on_done(told.append)
    assert told == [owned, owned]


def test_who_waits_is_woken(table: RRefTable) -> None:
    owned = table.pending()
    got: list[Any] = []
    threads = [threading.Thread(target=lambda: got.append(owned.wait(30))) for _ in range(8)]
    for thread in threads:
        thread.start()
    owned.set_value("x")
    for thread in threads:
        thread.join(30)
    assert got == ["x"] * 8


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_error_is_raised_each_time_and_keeps_nothing_alive(table: RRefTable, wrapped: bool) -> None:
    held = Thing()
    dead = weakref.ref(held)

    def fails(held: Thing) -> None:
        raise ValueError("bad", 1) from KeyError("why")

    owned = table.pending()
    try:
        fails(held)
    except ValueError as raised:
        owned.set_error(UdfRaised(raised) if wrapped else raised)
    del held
    gone = weakref.ref(owned)

    def look(owned: Owned) -> None:
        depths = []
        for _ in range(3):
            with pytest.raises(ValueError, match="bad") as caught:
                owned.wait(0)
            depths.append(len(caught.traceback))
            assert caught.value.args == ("bad", 1)
            assert isinstance(caught.value.__cause__, KeyError)
        assert len(set(depths)) == 1
        failure = owned.failure()
        assert isinstance(failure, UdfRaised)
        assert failure.exception.args == ("bad", 1)

    look(owned)
    gc.collect()
    assert dead() is None
    del owned
    gc.collect()
    assert gone() is None


def test_an_error_of_ours_stays_one(table: RRefTable) -> None:
    owned = table.pending()
    owned.set_error(TooLarge("much"))
    first, second = owned.failure(), owned.failure()
    assert isinstance(first, TooLarge)
    assert str(first) == "much"
    # Each is raised on its own.
    assert first is not second


class Odd(Exception):
    """Can't be copied."""

    def __init__(self, a: int, *, b: int) -> None:
        super().__init__(a, b)


def test_an_error_that_can_not_be_copied(table: RRefTable) -> None:
    owned = table.pending()
    owned.set_error(Odd(1, b=2))
    for _ in range(2):
        with pytest.raises(Odd):
            owned.wait(0)


class Slots:
    """Has no attributes to look at."""

    __slots__ = ("tensor",)


class Hostile:
    """Raises wherever it is asked."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


def loop() -> list[Any]:
    endless: list[Any] = [torch.ones(2)]
    endless.append(endless)
    return endless


SHARED = torch.ones(8)


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (None, 0),
        (5, 0),
        ("text", 0),
        ("x" * 5000, 5000),
        (b"abc", 3),
        (torch.ones(10), 40),
        (np.zeros((2, 3)), 48),
        ([SHARED, {"a": SHARED, "b": (SHARED,)}], 32),
        (torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)), 4 * 9 + 4 * 12 + 8),
        (Thing(Thing({"t": torch.ones(1)})), 4),
        (loop(), 8),
        (Slots(), 0),
        (Thing, 0),
        (torch, 0),
        (torch.ones(3).to_sparse(), None),
    ],
)
def test_sizes(value: Any, size: int | None) -> None:
    if size is None:
        assert size_of(value) >= 0
    else:
        assert size_of(value) == size


def test_what_can_not_be_looked_at_has_no_size() -> None:
    assert size_of([Hostile(), b"abc"]) == 3


# --- the owner's handles ---


def test_the_owners_handle(server: Server) -> None:
    rref = server.own(Thing(5))
    assert isinstance(rref, OwnerRRef)
    assert (rref.is_owner(), rref.owner_name(), rref.confirmed_by_owner()) == (True, server.core.worker, True)
    rref.wait_confirmed(0)
    assert rref.to_here() is rref.local_value()
    assert rref.rref_id().address == server.address
    assert rref.rpc_sync().get() == 5
    future = rref.rpc_async().get()
    assert future.result(30) == 5
    another = rref.remote().get()
    assert another.to_here(30) == 5
    with pytest.raises(KeyError):
        rref.rpc_sync().fail()
    with pytest.raises(KeyError):
        rref.rpc_async().fail().result(30)
    failed = rref.remote().fail()
    with pytest.raises(KeyError):
        failed.to_here(30)
    assert rref._get_type() is Thing
    assert rref._get_type(blocking=False).result(30) is Thing
    with pytest.raises(KeyError):
        failed._get_type()
    with pytest.raises(RuntimeError, match="rref"):
        rref.__reduce__()


def test_handles_of_one_value_come_and_go(server: Server) -> None:
    rref = server.own(Thing())
    again = server.core.open_rref(rref.rref_id())
    assert again.local_value() is rref.local_value()
    name, dead = rref.rref_id(), weakref.ref(rref.local_value())
    del rref
    assert server.core.open_rref(name).local_value() is dead()
    del again
    eventually(lambda: dead() is None)
    with pytest.raises(RRefUnknown):
        server.core.open_rref(name)


def test_names_that_are_not_ours(server: Server) -> None:
    core = server.core
    for name, error in [
        (RRefId(core.worker, 5, 1), OwnerRestarted),
        (RRefId(core.worker, 5, 1, server.address), OwnerRestarted),
        (RRefId("other", 5, 1), RRefUnknown),
        (RRefId("other", 5, 1, "192.168.0.1:80"), NotAllowed),
        # Two servers of one name.
        (RRefId(core.worker, 5, 1, "192.168.0.1:80"), NotAllowed),
    ]:
        with pytest.raises(error):
            core.open_rref(name)


@pytest.mark.parametrize(
    ("address", "allowed", "may"),
    [
        ("127.0.0.1:5", (), True),
        ("127.9.9.9:5", (), True),
        ("localhost:5", (), True),
        ("[::1]:5", (), True),
        ("127.0.0.1", (), False),
        ("10.0.0.1:5", (), False),
        ("127.0.0.1.evil.example:5", (), False),
        ("unix:/run/docker.sock", (), False),
        ("dns:///127.0.0.1:5", (), False),
        ("10.0.0.1:5", ("10.0.0.1",), True),
        ("10.0.0.1:5", ("10.0.0.1:5",), True),
        ("10.0.0.1:6", ("10.0.0.1:5",), False),
        ("a.example:6", ("*.example",), True),
        ("a.example.org:6", ("*.example",), False),
        ("anything", ("*",), True),
    ],
)
def test_where_a_server_connects_for_its_callers(address: str, allowed: tuple[str, ...], may: bool) -> None:
    if may:
        check_address(address, allowed)
        return
    with pytest.raises(NotAllowed):
        check_address(address, allowed)


def test_only_calls_of_a_server_own_values() -> None:
    with pytest.raises(LookupError):
        current_call()
    with pytest.raises(LookupError, match="no server"):
        CallContext("f", Peer("")).own(1)


def test_the_handler_knows_references(server: Server) -> None:
    handler = Handler.get_instance()
    before = handler.rref_hooks
    try:
        handler.rref_hooks = None
        install()
        assert handler.rref_hooks is HOOKS
        rref = server.own(Thing(5))
        assert handler.rref_type_on_owner(rref) is Thing
        assert handler.rref_type_on_owner(rref, blocking=False).result(30) is Thing
        assert handler.rref_rpc_sync(rref).get() == 5
        assert handler.rref_rpc_async(rref, 5.0).get().result(30) == 5
        assert handler.rref_remote(rref).get().to_here(30) == 5
        assert handler.rref_type_on_user(rref, timeout=5.0) is Thing
    finally:
        handler.rref_hooks = before


@pytest.mark.parametrize(
    "settings",
    [
        {"lease_seconds": 0},
        {"lease_seconds": 1e9},
        {"hello_seconds": -1},
        {"max_rrefs_per_client": 0},
        {"max_rref_bytes_per_client": -1},
        {"secret": "two words"},
        {"secret": "ü"},
    ],
)
def test_settings_that_can_not_be(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        ServerConfig(**settings)


def test_settings_of_the_wrong_type() -> None:
    with pytest.raises(TypeError, match="tuple"):
        ServerConfig(rref_peers="*")  # type: ignore[arg-type]
    assert "sesame" not in repr(ServerConfig(secret="sesame"))


def test_addresses_that_are_all_of_the_machine_are_told_to_nobody() -> None:
    for bind, advertise, told in [
        ("127.0.0.1:0", "", True),
        ("0.0.0.0:0", "", False),
        ("[::]:0", "", False),
        ("0.0.0.0:0", "a.example:1", "a.example:1"),
    ]:
        with Server([thread_name], config=ServerConfig(bind=bind, advertise=advertise)) as server:
            address = server.own(1).rref_id().address
            assert address == (server.address if told is True else told or "")


def test_leases_end_in_time_and_no_thread_waits_for_them() -> None:
    def live_and_die(table: RRefTable) -> None:
        owned, thing = table.promise("a", 0), Thing()
        dead = weakref.ref(thing)
        owned.set_value(thing)
        del thing, owned
        until = time.monotonic() + 1.2
        while time.monotonic() < until:
            assert table.touch("a")
            time.sleep(0.02)
        assert dead() is not None
        eventually(lambda: dead() is None)
        assert not table.touch("a")

    with Server([thread_name], config=ServerConfig(bind="127.0.0.1:0", lease_seconds=0.5)) as server:
        for _ in range(2):
            live_and_die(server.core.rrefs)


def test_what_goes_wrong_at_one_lapse_does_not_keep_the_next() -> None:
    calls: list[int] = []
    failing = threading.Event()

    def expire() -> float | None:
        calls.append(1)
        if len(calls) == 1:
            failing.set()
            raise RuntimeError("the end of a value failed")
        return None

    sweeper = Sweeper(expire, Pool(1, 1, 0), 0.05)
    sweeper.arm()
    assert failing.wait(30)
    eventually(lambda: len(calls) == 2)
    sweeper.close()


# --- answers that hold references ---


def refer_and_fail() -> Iterator[Any]:
    yield current_call().own(Thing(1))
    yield object()


def refer_at_last(seconds: float) -> Any:
    time.sleep(seconds)
    return current_call().own(Thing(1))


def test_an_item_is_held_though_the_next_one_can_not_be_sent() -> None:
    with Server([refer_and_fail], config=ServerConfig(bind="127.0.0.1:0")) as server, RRefClient(server.address) as c:
        items = c.handler.CallStream(c.request("test_rrefs.refer_and_fail"), timeout=30)
        name = next(items).item.value.rref
        with pytest.raises(grpc.RpcError):
            next(items)
        gc.collect()
        c.fork(name)
        assert server.core.rrefs.counts()["holds"] == 1


def test_an_answer_that_comes_after_its_session_has_ended_holds_nothing() -> None:
    config = ServerConfig(bind="127.0.0.1:0")
    with Server([refer_at_last], config=config) as server, RRefClient(server.address) as c:
        requests: queue.SimpleQueue[handler_pb.SessionRequest | None] = queue.SimpleQueue()
        session = c.handler.Session(iter(requests.get, None), timeout=30)
        call = handler_pb.SessionCall(id=1, request=c.request("test_rrefs.refer_at_last", 0.5))
        requests.put(handler_pb.SessionRequest(hello=handler_pb.SessionHello(client_id=c.id), calls=[call]))
        assert next(session).HasField("welcome")
        eventually(lambda: server.core.active == 1)
        session.cancel()
        requests.put(None)
        eventually(lambda: server.core.active == 0)
        counts = server.core.rrefs.counts()
        assert (counts["holds"], counts["leases"]) == (0, 1)


def test_who_waits_for_values_leaves_threads_to_those_who_make_them() -> None:
    config = ServerConfig(bind="127.0.0.1:0", threads=2, max_threads=4)
    with Server([thread_name], config=config) as server, RRefClient(server.address) as c:
        name = RRefName(
            owner=c.lease.worker, incarnation=c.lease.incarnation, sequence=c.lease.first_sequence + c.next_number()
        )
        waiting = [c.start(name) for _ in range(8)]
        eventually(lambda: sum(call.done() for call in waiting) == 6)
        for call in waiting:
            if call.done():
                assert call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED or call.code() is grpc.StatusCode.UNAVAILABLE
        c.call("test_rrefs.thread_name", number=1, want=handler_pb.RESULT_FORM_RREF)
        eventually(lambda: sum(call.done() and call.code() is grpc.StatusCode.OK for call in waiting) == 2)


def test_so_many_are_released_at_once() -> None:
    with Server([thread_name], config=ServerConfig(bind="127.0.0.1:0")) as server, RRefClient(server.address) as c:
        with pytest.raises(TooLarge, match="send several"):
            c.release(numbers=range(1, 60_000), holds=range(1, 60_000))
        c.release(numbers=range(1, 100_001))


# --- pickled callables ---


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel()


@pytest.mark.parametrize("carrier", ["session", "call"])
def test_a_pickled_callable_may_hold_large_tensors(carrier: Any) -> None:
    import functools

    from tensorcall.client.options import CallOptions
    from tensorcall.wire import calls, pickles
    from tensorcall.wire.calls import Target
    from tensorcall.wire.tensors import TensorWriter

    with (
        Server([thread_name], config=ServerConfig(bind="127.0.0.1:0", allow_pickle=True)) as server,
        connect(server.address, carrier=carrier) as remote,
    ):
        way = remote._connection.carrier()
        large = torch.zeros(3_000_000)
        writer = TensorWriter()
        function: Callable[..., Any] = functools.partial(torch.numel, large)
        data = pickles.dumps(function, writer)
        request = calls.encode_request(Target(pickle=data), (), {}, chunk_above=way.chunk_above)
        calls._encode_table(calls._TENSOR, writer, way.chunk_above, request)
        assert bool(request.chunked) == (carrier == "session")
        assert way.call(request, CallOptions().timeout, pickle=False) == 3_000_000
