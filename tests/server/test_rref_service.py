"""References over the wire, as any language has them; against a real server process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from support.reference import rref_of
from support.rref_client import RRefClient, read, refused, told
from support.servers import ServerProcess, eventually

from tensorcall.v1 import handler_service_pb2 as handler_pb
from tensorcall.v1 import rref_service_pb2 as pb
from tensorcall.v1.handler_service_pb2_grpc import HandlerServiceStub
from tensorcall.v1.rref_pb2 import RRefId
from tensorcall.wire import errors

RREF = handler_pb.RESULT_FORM_RREF


@pytest.fixture
def client(server: ServerProcess) -> Iterator[RRefClient]:
    with RRefClient(server.address) as made:
        yield made


@pytest.fixture
def other(server: ServerProcess) -> Iterator[RRefClient]:
    with RRefClient(server.address) as made:
        yield made


def happened(client: RRefClient, name: str) -> int:
    return int(client.call("served.happened", name))


# --- values and their methods ---


def test_an_instance_lives_on_the_server(client: RRefClient, server: ServerProcess) -> None:
    rref = client.remote("served.Cell", 5, "lives")
    assert rref.sequence == client.lease.first_sequence + 1
    assert (rref.owner, rref.incarnation) == (client.lease.worker, client.lease.incarnation)
    assert rref.address == server.address
    assert client.call((rref, "get")) == 5
    client.call((rref, "set"), [1, "x"])
    assert client.call((rref, "get")) == [1, "x"]
    with pytest.raises(LookupError, match="the cell fails"):
        client.call((rref, "fail"))
    with pytest.raises(errors.BadArguments, match=r"Cell\.get"):
        client.call((rref, "get"), 1)
    client.call((rref, "set"), 4)
    assert client.call((rref, "__call__"), 3) == 7
    assert client.call((rref, "get_later")) == 4
    client.release(numbers=[1])
    eventually(lambda: happened(client, "lives gone") == 1)
    with refused("RREF_UNKNOWN"):
        client.call((rref, "get"))


def test_functions_and_coroutines_make_values_too(client: RRefClient) -> None:
    for function in ("served.cell", "served.cell_later"):
        rref = client.remote(function, 7)
        assert client.call((rref, "get")) == 7
        info = client.listed(rref)
        assert info is not None
        assert (info.made_by, info.type) == (function, "served.Cell")
    # A method's result may stay as well.
    value = client.remote((rref, "get"))
    assert client.call(value) == 7
    info = client.listed(value)
    assert info is not None
    assert (info.made_by, info.type) == ("Cell.get", "builtins.int")


def test_a_client_without_numbers(client: RRefClient) -> None:
    rref = client.remote("served.cell", 1, number=0)
    assert rref.sequence < 1 << 40
    client.fork(rref, 0)
    client.release(rrefs=[rref])
    with refused("RREF_UNKNOWN"):
        client.call(rref)


def test_the_value_itself(client: RRefClient) -> None:
    rref = client.remote("served.echo", {"a": [1, None]})
    assert client.call(rref) == {"a": [1, None]}
    assert read(client.ask("Fetch", pb.FetchRequest(rref=rref)).value) == {"a": [1, None]}
    kind = client.ask("GetType", pb.GetTypeRequest(rref=rref))
    assert (kind.module, kind.name) == ("builtins", "dict")
    cell = client.remote("served.cell", 1)
    for fetch in (lambda: client.call(cell), lambda: client.ask("Fetch", pb.FetchRequest(rref=cell))):
        with refused("UNENCODABLE_RESULT", "Cell"):
            fetch()
    with refused("BAD_ARGUMENTS", "gives the value itself"):
        client.call(rref, want=RREF)
    with refused("BAD_ARGUMENTS"):
        client.call(rref, 1)


def test_tensors_come_in_a_fetch(client: RRefClient) -> None:
    rref = client.remote("served.ones", 1000)
    info = client.listed(rref)
    assert info is not None
    assert info.bytes == 4000
    payload = client.ask("Fetch", pb.FetchRequest(rref=rref)).value
    assert payload.value.tensor == 0
    assert len(payload.tensors[0].data) == 4000


def test_a_torch_module_may_be_called_and_nothing_else_of_it(client: RRefClient) -> None:
    rref = client.remote("served.linear")
    info = client.listed(rref)
    assert info is not None
    assert info.bytes == 4 * (2 * 3 + 3)
    tensor = handler_pb.CallRequest(client_id=client.id)
    tensor.method.rref.CopyFrom(rref)
    tensor.method.name = "__call__"
    blob = client.handler.Call(client.request("served.ones", 2)).result.tensors[0]
    tensor.tensors.add().CopyFrom(blob)
    tensor.args.add().tensor = 0
    result = client.handler.Call(tensor).result
    assert list(result.tensors[0].shape) == [3]
    for name in ("zero_grad", "forward", "_call_impl", "state_dict"):
        with refused("NOT_EXPOSED"):
            client.call((rref, name))


@pytest.mark.parametrize(
    ("function", "name", "advice"),
    [
        ("served.cell", "_hidden", "no public method"),
        ("served.cell", "__init__", "no public method"),
        ("served.cell", "__class__", "no public method"),
        ("served.cell", "", "no public method"),
        ("served.cell", "get.__globals__", "no public method"),
        ("served.cell", "value", "no method"),
        ("served.cell", "secret", "no method"),
        ("served.cell", "gett", "it has another, fail, get"),
        ("served.Derived", "inherited", "decorate the class served.Base with @expose"),
        ("served.unexposed", "inherited", "decorate the class served.Base with @expose"),
        ("served.echo", "bit_length", "not exposed"),
    ],
)
def test_what_may_not_be_called(client: RRefClient, function: str, name: str, advice: str) -> None:
    rref = client.remote(function, *([1] if function in ("served.cell", "served.echo") else []))
    with refused("NOT_EXPOSED", advice):
        client.call((rref, name))


def test_an_exposed_class_has_its_own_methods(client: RRefClient) -> None:
    assert client.call((client.remote("served.Derived"), "own")) == 1


def test_what_can_not_stay_or_not_leave(client: RRefClient) -> None:
    with refused("BAD_ARGUMENTS", "ask for a reference"):
        client.call("served.Cell", 1)
    with refused("BAD_ARGUMENTS", "generator"):
        client.remote("served.count", 3)
    with refused("NOT_EXPOSED"):
        client.remote("served.nothing")
    rref = client.remote("served.cell", 1)
    with refused("BAD_ARGUMENTS", "stream"):
        client.call((rref, "items"), 3)
    stream = client.handler.CallStream(client.request((rref, "items"), 3))
    assert [read(response.item) for response in stream] == [0, 1, 2]
    with refused("BAD_ARGUMENTS"):
        told(lambda: list(client.handler.CallStream(client.request("served.cell", 3, want=RREF))))


# --- values that are still being made, and those that failed ---


@pytest.mark.parametrize("how", ["Fetch", "GetType", "fetch", "method", "argument"])
def test_who_asks_before_the_value_is_there_waits(client: RRefClient, other: RRefClient, how: str) -> None:
    gate = f"early {how} {client.id}"
    number = client.next_number()
    name = RRefId(
        owner=client.lease.worker, incarnation=client.lease.incarnation, sequence=client.lease.first_sequence + number
    )
    # Passed on before it is made: so early that nobody at the server has heard of it.
    other.fork(name)
    asked = {
        "Fetch": lambda: other.rrefs.Fetch.future(pb.FetchRequest(rref=name), timeout=20),
        "GetType": lambda: other.rrefs.GetType.future(pb.GetTypeRequest(rref=name), timeout=20),
        "fetch": lambda: other.start(name),
        "method": lambda: other.start((name, "get")),
        "argument": lambda: other.start("served.value_of", name),
    }[how]()
    making = client.start("served.cell_behind_gate", gate, 42, number=number, want=RREF)
    eventually(lambda: happened(client, f"{gate} waits"))
    info = other.listed(name)
    assert info is not None
    assert (info.type, len(info.holders)) == ("", 2)
    assert not asked.done()
    client.call("served.open_gate", gate)
    assert rref_of(making.result().rref) == rref_of(name)
    if how in ("method", "argument"):
        assert read(asked.result().result) == 42
    elif how == "GetType":
        assert asked.result().name == "Cell"
    else:
        assert "Cell" in asked.exception().details()


def test_who_gives_up_waiting_leaves_nothing_behind(client: RRefClient, server: ServerProcess) -> None:
    name = RRefId(
        owner=client.lease.worker, incarnation=client.lease.incarnation, sequence=client.lease.first_sequence + 99
    )
    for ask in (
        lambda: client.call(name, timeout=0.2),
        lambda: client.call((name, "get"), timeout=0.2),
        lambda: client.ask("Fetch", pb.FetchRequest(rref=name), timeout=0.2),
        lambda: client.ask("GetType", pb.GetTypeRequest(rref=name), timeout=0.2),
    ):
        with pytest.raises(errors.DeadlineExceeded):
            ask()
    waiting = client.rrefs.Fetch.future(pb.FetchRequest(rref=name))
    waiting.cancel()
    # Once it is given up, those that still wait hear of it.
    waiting = client.rrefs.Fetch.future(pb.FetchRequest(rref=name))
    client.fork(name)
    client.release(numbers=[99])
    with refused("RREF_UNKNOWN", "never made"):
        told(waiting.result)


def test_many_wait_and_hold_no_thread(client: RRefClient) -> None:
    gate = f"crowd {client.id}"
    number = client.next_number()
    name = RRefId(
        owner=client.lease.worker, incarnation=client.lease.incarnation, sequence=client.lease.first_sequence + number
    )
    asked = [client.rrefs.GetType.future(pb.GetTypeRequest(rref=name), timeout=60) for _ in range(400)]
    making = client.start("served.cell_behind_gate", gate, 1, number=number, want=RREF, timeout=60)
    client.fork(name)
    client.call("served.open_gate", gate)
    making.result()
    assert {each.result().name for each in asked} == {"Cell"}


def test_a_value_fails_as_the_function_did(client: RRefClient, other: RRefClient) -> None:
    number = client.next_number()
    name = RRefId(
        owner=client.lease.worker, incarnation=client.lease.incarnation, sequence=client.lease.first_sequence + number
    )
    other.fork(name)
    with pytest.raises(ValueError, match="bad value"):
        client.remote("served.raises", "value", number=number)
    for ask in (
        lambda: other.call(name),
        lambda: other.call((name, "get")),
        lambda: other.ask("Fetch", pb.FetchRequest(rref=name)),
        lambda: other.ask("GetType", pb.GetTypeRequest(rref=name)),
    ) * 2:
        with pytest.raises(ValueError, match="bad value") as caught:
            ask()
        error: Any = caught.value
        assert isinstance(error, errors.RemoteError)
        assert error.hint == "try 8"
        assert isinstance(error.__cause__, KeyError)
        assert "in _value_error" in error.remote_traceback
    with pytest.raises(ValueError, match="bad value"):
        other.call("served.value_of", name)


@pytest.mark.parametrize(
    ("function", "args", "reason"),
    [
        ("served.nothing", [], "NOT_EXPOSED"),
        ("served.cell", [], "BAD_ARGUMENTS"),
        ("served.count", [1], "BAD_ARGUMENTS"),
    ],
)
def test_a_value_whose_call_is_refused_fails_so(
    client: RRefClient, other: RRefClient, function: str, args: list[Any], reason: str
) -> None:
    number = client.next_number()
    name = RRefId(
        owner=client.lease.worker, incarnation=client.lease.incarnation, sequence=client.lease.first_sequence + number
    )
    other.fork(name)
    with refused(reason):
        client.remote(function, *args, number=number)
    with refused(reason):
        other.call(name)
    client.release(numbers=[number])


def test_a_cancelled_call_leaves_no_one_waiting(client: RRefClient, other: RRefClient) -> None:
    name = f"cancel {client.id}"
    making = client.start("served.sleep_for_ever", name, number=client.next_number(), want=RREF)
    eventually(lambda: happened(client, f"{name} runs"))
    rref = RRefId(
        owner=client.lease.worker, incarnation=client.lease.incarnation, sequence=client.lease.first_sequence + 1
    )
    other.fork(rref)
    making.cancel()
    with pytest.raises(errors.Cancelled):
        other.call(rref)


# --- references as arguments and results ---


def test_a_reference_as_an_argument_is_the_value_itself(client: RRefClient) -> None:
    rref = client.remote("served.cell", 11)
    assert client.call("served.value_of", rref) == 11
    owner, worker, name, confirmed = client.call("served.about", rref)
    assert (owner, worker, confirmed) == (True, client.lease.worker, True)
    assert name == str(rref_of(rref))
    inside = client.request("served.echo")
    inside.args.add().list.items.add(rref=rref)
    echoed = client.handler.Call(inside).result
    assert rref_of(echoed.value.list.items[0].rref) == rref_of(rref)
    assert echoed.hold
    client.release(holds=[echoed.hold])


def test_what_an_answer_refers_to_is_held_until_the_client_says_so(client: RRefClient) -> None:
    payload = client.handler.Call(client.request("served.refer", [1, 2])).result
    names = [item.rref for item in payload.value.list.items]
    assert payload.hold
    assert [client.call((name, "get")) for name in names] == [1, 2]
    number = client.fork(names[0])
    client.release(holds=[payload.hold])
    assert client.call((names[0], "get")) == 1
    with refused("RREF_UNKNOWN"):
        client.call((names[1], "get"))
    client.release(numbers=[number])
    another = client.remote("served.cell", 1)
    payload = client.handler.Call(client.request((another, "another"), 8)).result
    assert client.call((payload.value.rref, "get")) == 8
    # Each item of a stream has a hold of its own.
    items = [response.item for response in client.handler.CallStream(client.request("served.refer_in_turn", 3))]
    assert len({item.hold for item in items}) == 3
    assert [client.call((item.value.rref, "get")) for item in items] == [0, 1, 2]


def test_a_name_of_nothing_is_told_before_the_function_runs(client: RRefClient) -> None:
    unknown = RRefId(owner=client.lease.worker, incarnation=client.lease.incarnation, sequence=1 << 39)
    elsewhere = RRefId(owner="elsewhere", incarnation=5, sequence=1)
    restarted = RRefId(owner=client.lease.worker, incarnation=5, sequence=1)
    far = RRefId(owner="elsewhere", incarnation=5, sequence=1, address="10.1.2.3:80")
    for name, reason, match in [
        (unknown, "RREF_UNKNOWN", "not here"),
        (elsewhere, "RREF_UNKNOWN", "does not say where"),
        (restarted, "OWNER_RESTARTED", "restarted"),
        (far, "NOT_ALLOWED", "--rref-peer 10.1.2.3"),
    ]:
        with refused(reason, match):
            client.call("served.value_of", name)
    for name, reason in [(unknown, "RREF_UNKNOWN"), (elsewhere, "RREF_UNKNOWN"), (restarted, "OWNER_RESTARTED")]:
        for ask in (
            lambda name=name: client.call(name),
            lambda name=name: client.call((name, "get")),
            lambda name=name: client.fork(name),
            lambda name=name: client.ask("Fetch", pb.FetchRequest(rref=name)),
            lambda name=name: client.ask("GetType", pb.GetTypeRequest(rref=name)),
        ):
            with refused(reason):
                ask()


# --- leases ---


@pytest.fixture(scope="module")
def hasty() -> Iterator[ServerProcess]:
    """A server with short leases and low limits."""
    with ServerProcess(
        lease_seconds=1.0, max_rrefs_per_client=5, max_rref_bytes_per_client=100_000, hello_seconds=0.5
    ) as process:
        yield process
        code, log = process.end()
    assert code == 0, log
    assert "defect" not in log, log


def test_a_client_that_is_gone_leaves_nothing_behind(hasty: ServerProcess) -> None:
    dead = RRefClient(hasty.address)
    with RRefClient(hasty.address) as alive:
        ours, shared = dead.remote("served.cell", 1, "left"), dead.remote("served.cell", 2)
        dead.call("served.refer", [1])
        anonymous = told(lambda: alive.handler.Call(handler_pb.CallRequest(function="served.noop", want=RREF))).rref
        alive.fork(shared)
        dead.channel.close()

        def gone() -> int:
            alive.ask("KeepAlive", pb.KeepAliveRequest(client_id=alive.id, incarnation=alive.lease.incarnation))
            return happened(alive, "left gone")

        eventually(gone)
        eventually(lambda: not gone() or alive.listed(anonymous) is None)
        for name in (ours, anonymous):
            with refused("RREF_EXPIRED", "lapsed"):
                alive.call(name)
        assert alive.call((shared, "get")) == 2
        listed = alive.ask("ListRRefs", pb.ListRRefsRequest())
        assert listed.total == 1
        assert listed.rrefs[0].holders[0].client_id == alive.id[:16] + "…"
        with refused("RREF_EXPIRED"):
            alive.ask("KeepAlive", pb.KeepAliveRequest(client_id=dead.id))
        with refused("OWNER_RESTARTED"):
            alive.ask("KeepAlive", pb.KeepAliveRequest(client_id=alive.id, incarnation=1))


def test_messages_on_its_session_renew_a_lease(hasty: ServerProcess) -> None:
    with RRefClient(hasty.address) as client:
        rref = client.remote("served.cell", 3)
        done = threading.Event()

        def requests() -> Iterator[handler_pb.SessionRequest]:
            yield handler_pb.SessionRequest(hello=handler_pb.SessionHello(client_id=client.id))
            for number in range(1, 1000):
                call = handler_pb.CallRequest(method=handler_pb.MethodTarget(rref=rref, name="get"))
                yield handler_pb.SessionRequest(calls=[handler_pb.SessionCall(id=number, request=call)])
                if done.wait(0.1):
                    return

        start = time.monotonic()
        replies = 0
        for response in client.handler.Session(requests()):
            for reply in response.replies:
                assert reply.HasField("result"), reply
                replies += 1
            if response.HasField("welcome"):
                assert response.welcome.address == hasty.address
            if time.monotonic() - start > 2.5:
                done.set()
        assert replies > 10


def test_a_client_holds_so_much(hasty: ServerProcess) -> None:
    with RRefClient(hasty.address) as client:
        rref = client.remote("served.cell", 1)
        for _ in range(4):
            client.fork(rref)
        for refuse in (
            lambda: client.fork(rref),
            lambda: client.remote("served.cell", 1),
            lambda: client.remote("served.cell", 1, number=0),
        ):
            with refused("TOO_LARGE", "may hold 5"):
                refuse()
        with pytest.raises(errors.UnencodableResult, match="may hold 5"):
            client.call("served.refer", [1])
        assert client.call((rref, "get")) == 1
    with RRefClient(hasty.address) as client:
        client.remote("served.ones", 20_000)
        with refused("TOO_LARGE", "may hold"):
            client.remote("served.ones", 20_000)


def test_a_session_without_a_hello_ends(hasty: ServerProcess) -> None:
    with grpc.insecure_channel(hasty.address) as channel:
        over = threading.Event()

        def requests() -> Iterator[handler_pb.SessionRequest]:
            over.wait(20)
            yield from ()

        (response,) = HandlerServiceStub(channel).Session(requests())  # type: ignore[arg-type]
        over.set()
        (reply,) = response.replies
        assert (reply.id, reply.failure.reason) == (0, "BAD_PAYLOAD")
        assert "no hello for 0.5 s" in reply.failure.message


# --- the secret ---


def test_a_server_with_a_secret_answers_those_who_show_it() -> None:
    with ServerProcess(secret="open-sesame", allow_pickle=True) as server:
        with RRefClient(server.address, "open-sesame") as client:
            rref = client.remote("served.cell", 5)
            assert client.call((rref, "get")) == 5
            # Who may send pickles, wherever it is, may call any method.
            assert client.call((rref, "_hidden")) == "hidden"
            assert client.call((client.remote("served.unexposed"), "inherited")) == 1
        with grpc.insecure_channel(server.address) as channel:
            stranger: Any = HandlerServiceStub(channel)
            for metadata in [None, [("authorization", "Bearer wrong")], [("authorization", "open-sesame")]]:
                for attempt in (
                    lambda metadata=metadata: stranger.Call(
                        handler_pb.CallRequest(function="served.noop"), metadata=metadata
                    ),
                    lambda metadata=metadata: stranger.ListFunctions(
                        handler_pb.ListFunctionsRequest(), metadata=metadata
                    ),
                    lambda metadata=metadata: list(stranger.Session(iter(()), metadata=metadata)),
                    lambda metadata=metadata: list(
                        stranger.CallStream(handler_pb.CallRequest(function="served.count"), metadata=metadata)
                    ),
                ):
                    with refused("UNAUTHENTICATED", "wants its secret"):
                        told(attempt)
        with refused("UNAUTHENTICATED", "wants its secret"):
            RRefClient(server.address)
        assert server.end()[0] == 0
