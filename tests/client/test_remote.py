"""Calls over each carrier, against a real server process."""

from __future__ import annotations

import concurrent.futures
import threading
from typing import Any

import numpy as np
import pytest
import torch
from support import served
from support.servers import ServerProcess, eventually

from tensorcall.client import Remote, connect
from tensorcall.wire import errors
from tensorcall.wire.limits import CHUNK_BYTES

VALUES = [
    None,
    True,
    0,
    -(2**63),
    2**200,
    -1.5,
    2 + 3j,
    "é\0",
    b"\xff\0",
    bytearray(b"ab"),
    [1, [2, []]],
    (1, (2,)),
    {"b": 1, "a": {"c": None}},
    {1: "x", (2, "y"): [3]},
    {1, 2},
    frozenset({"a"}),
    torch.Size([2, 3]),
    torch.float16,
    served.Point(1.0, 2.0),
    served.Colour.GREEN,
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_types_are_exact_on_a_round_trip(remote: Remote, value: Any) -> None:
    back = remote.call("served.echo", value)
    assert back == value
    assert type(back) is type(value)


def test_many_arguments_keep_their_places(remote: Remote) -> None:
    args, kwargs = remote.call("served.echo", 1, "two", x=[3], y={"z": 4})
    assert (args, kwargs) == ((1, "two"), {"x": [3], "y": {"z": 4}})
    assert list(kwargs) == ["x", "y"]


def test_options_take_no_keyword_of_the_function(remote: Remote) -> None:
    sent = {"timeout": "t", "call_id": "c", "pickle": "p", "function": "f", "self": "s"}
    assert remote.options(timeout=30.0).call("served.keywords", **sent) == ["t", "c", "p", "f", "s"]


def test_a_tensor_arrives_as_a_tensor_and_an_array_as_an_array(remote: Remote) -> None:
    total = remote.call("served.tensor_sum", torch.arange(10.0))
    assert isinstance(total, torch.Tensor)
    assert total.item() == 45.0
    kind, doubled = remote.call("served.array", np.arange(3))
    assert kind == "ndarray"
    np.testing.assert_array_equal(doubled, [0, 2, 4])


@pytest.mark.parametrize("size", [0, 1, 4096, 1 << 20, (1 << 20) + 1, 5_000_001])
def test_tensors_of_any_size_come_back_writable(remote: Remote, size: int) -> None:
    sent = torch.randint(0, 255, (size,), dtype=torch.uint8)
    back = remote.call("served.add_in_place", sent)
    assert torch.equal(back, sent + 1)
    back += 1
    assert torch.equal(back, sent + 2)


def test_a_tensor_named_twice_is_one_object_there_and_here(remote: Remote) -> None:
    tensor = torch.ones(3)
    first, second = remote.call("served.echo", [tensor, tensor])
    assert first is second


def test_parameters_and_gradients(remote: Remote) -> None:
    sent = torch.nn.Parameter(torch.ones(2))
    back = remote.call("served.echo", [sent, torch.ones(2, requires_grad=True)])
    assert isinstance(back[0], torch.nn.Parameter)
    assert back[1].requires_grad


def test_coroutines(remote: Remote) -> None:
    assert remote.call("served.coroutine", {"x": torch.ones(1)})["x"].item() == 1.0


def test_named_by_hand(remote: Remote) -> None:
    assert remote.call("team.named") == "named"


def test_submit_gives_a_future(remote: Remote) -> None:
    futures = [remote.submit("served.add", i, i) for i in range(200)]
    assert all(isinstance(future, concurrent.futures.Future) for future in futures)
    assert [future.result(30) for future in futures] == [2 * i for i in range(200)]
    failed = remote.submit("served.raises", "value")
    assert isinstance(failed.exception(30), ValueError)
    called = threading.Event()
    remote.submit("served.noop").add_done_callback(lambda _: called.set())
    assert called.wait(30)


def test_from_many_threads(remote: Remote) -> None:
    def work(i: int) -> bool:
        tensor = torch.full((1000 * (i % 5),), i)
        return torch.equal(remote.call("served.echo", tensor), tensor)

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert all(pool.map(work, range(300)))


def test_one_slow_call_holds_up_nobody(remote: Remote, carrier: str) -> None:
    slow = remote.submit("served.wait_for_gate", f"slow {carrier}")
    assert [remote.call("served.add", i) for i in range(50)] == [i + 1.0 for i in range(50)]
    assert not slow.done()
    remote.call("served.open_gate", f"slow {carrier}")
    assert slow.result(30) == f"slow {carrier}"


def test_a_large_tensor_holds_up_nobody(server: ServerProcess) -> None:
    with connect(server.address, carrier="session") as remote:
        large = remote.submit("served.tensor_sum", torch.ones(200 << 20, dtype=torch.uint8))
        small = remote.submit("served.add", 1)
        assert small.result(60) == 2.0
        assert large.result(60).item() == 200 << 20


def test_progress_of_a_large_tensor(server: ServerProcess) -> None:
    told: list[tuple[int, int]] = []
    with connect(server.address, progress=lambda *progress: told.append(progress)) as remote:
        remote.call("served.tensor_sum", torch.ones(5_000_000, dtype=torch.uint8))
        remote.call("served.tensor_sum", torch.ones(5))
    assert told == [(min(sent + CHUNK_BYTES, 5_000_000), 5_000_000) for sent in range(0, 5_000_000, CHUNK_BYTES)]


def test_cancelling_a_future_reaches_a_coroutine(remote: Remote, carrier: str) -> None:
    name = f"future {carrier}"
    future = remote.submit("served.sleep_for_ever", name)
    eventually(lambda: remote.call("served.happened", f"{name} runs"))
    assert future.cancel()
    eventually(lambda: remote.call("served.happened", f"{name} cancelled"))
    assert future.cancelled()


def test_cancelling_a_future_reaches_a_thread_at_its_next_check(remote: Remote, carrier: str) -> None:
    name = f"thread {carrier}"
    future = remote.submit("served.until_cancelled", name)
    eventually(lambda: remote.call("served.happened", f"{name} runs"))
    assert future.cancel()
    eventually(lambda: remote.call("served.happened", f"{name} cancelled"))


def test_a_call_of_each_kind_ends_at_its_deadline(remote: Remote, carrier: str) -> None:
    name = f"deadline {carrier}"
    for function in ("served.sleep_for_ever", "served.until_cancelled"):
        with pytest.raises(errors.DeadlineExceeded) as caught:
            remote.options(timeout=0.3).call(function, name)
        assert isinstance(caught.value, TimeoutError)
    with pytest.raises(errors.DeadlineExceeded):
        remote.options(timeout=0.3).submit("served.sleep_for_ever", name).result(30)
    with pytest.raises(errors.DeadlineExceeded):
        list(remote.options(timeout=0.3).stream("served.stall_async", name))
    eventually(lambda: remote.call("served.happened", f"{name} cancelled"))
    eventually(lambda: remote.call("served.happened", f"{name} closed"))


def test_the_function_sees_its_deadline_and_its_caller(remote: Remote) -> None:
    assert remote.call("served.deadline") is None
    # gRPC rounds a deadline up when it sends it.
    assert 20.0 < remote.options(timeout=30.0).call("served.deadline") < 31.0
    name, peer, call_id = remote.options(call_id=f"who {remote!r} {id(remote)}").call("served.who")
    assert name == "served.who"
    assert peer.startswith("ipv4:127.0.0.1:")
    assert call_id.startswith("who ")


def test_a_deadline_already_passed(remote: Remote) -> None:
    with pytest.raises(errors.DeadlineExceeded):
        remote.options(timeout=0.0).call("served.noop")
    with pytest.raises(errors.DeadlineExceeded):
        remote.options(timeout=-1.0).call("served.noop")


def test_a_call_id_runs_once(remote: Remote, carrier: str) -> None:
    named = remote.options(call_id=f"once {carrier}")
    assert named.call("served.add", 1) == 2.0
    with pytest.raises(errors.DuplicateCall, match="not run again"):
        named.call("served.add", 1)


# --- streams ---


@pytest.mark.parametrize("function", ["served.count", "served.count_async"])
def test_a_stream_gives_items_in_order(remote: Remote, function: str) -> None:
    assert list(remote.stream(function, 500)) == list(range(500))
    assert list(remote.options(prefetch=1).stream(function, 20)) == list(range(20))
    assert list(remote.stream(function, 0)) == []


def test_a_stream_of_tensors_in_chunks(remote: Remote) -> None:
    items = list(remote.options(prefetch=3).stream("served.tensors", 5, 3_000_000))
    assert [(item.numel(), int(item[0]), int(item[-1])) for item in items] == [(3_000_000, i, i) for i in range(5)]


def test_leaving_a_stream_early_closes_the_generator(remote: Remote, carrier: str) -> None:
    name = f"left {carrier}"
    for item in remote.options(prefetch=4).stream("served.count", 10**9, name):
        if item == 10:
            break
    eventually(lambda: remote.call("served.happened", f"{name} closed"))
    with remote.stream("served.stall_async", name) as stream:
        assert next(stream) == 1
    eventually(lambda: remote.call("served.happened", f"{name} closed") == 2)
    assert list(stream) == []


def test_a_stream_runs_only_so_far_ahead(remote: Remote, carrier: str) -> None:
    name = f"pace {carrier}"
    stream = remote.options(prefetch=8).stream("served.count", 10_000, name)
    assert next(stream) == 0
    # Over Call gRPC's own buffers let it run on, by bytes; over Session credit counts items.
    if carrier == "session":
        eventually(lambda: remote.call("served.happened", f"{name} made") >= 8)
        for _ in range(20):
            assert remote.call("served.happened", f"{name} made") <= 9
    assert list(stream) == list(range(1, 10_000))


def test_a_stream_that_fails_gives_its_items_first(remote: Remote) -> None:
    got = []
    with pytest.raises(LookupError, match="no more") as caught:
        for item in remote.stream("served.fail_after", 3):
            got.append(item)
    assert got == [0, 1, 2]
    assert isinstance(caught.value, errors.RemoteError)


def test_streaming_what_is_no_generator(remote: Remote) -> None:
    with pytest.raises(errors.BadArguments, match="no generator function"):
        list(remote.stream("served.add", 1))
    with pytest.raises(errors.BadArguments, match="generator function"):
        remote.call("served.count", 1)


# --- what is exposed ---


def test_functions_are_listed_with_signatures_and_docs(remote: Remote) -> None:
    functions = {function.name: function for function in remote.functions()}
    assert "served.not_exposed" not in functions
    assert functions["team.named"].kind == "function"
    add = functions["served.add"]
    assert str(add) == "served.add(a: float, b: float = 1.0, *, scale: float = 1.0) -> float"
    assert add.doc.startswith("Adds.")
    assert functions["served.coroutine"].kind == "coroutine"
    assert functions["served.count"].kind == functions["served.count_async"].kind == "generator"
    counted = functions["served.Counted"]
    assert counted.kind == "class"
    assert [str(method) for method in counted.methods] == ["increase(by: int = 1) -> int"]
    assert [function.name for function in remote.functions("team.")] == ["team.named"]
    assert remote.describe("served.add") == add


# --- wrong calls: one clear error each ---


def test_an_unknown_function_names_the_nearest(remote: Remote) -> None:
    with pytest.raises(errors.NotExposed, match=r"did you mean served\.add"):
        remote.call("served.addd", 1)
    with pytest.raises(errors.NotExposed, match=r"served\.not_exposed"):
        remote.call("served.not_exposed")
    with pytest.raises(errors.NotExposed):
        list(remote.stream("x" * 100_000))
    with pytest.raises(errors.NotExposed):
        remote.describe("nothing")


@pytest.mark.parametrize(
    ("args", "kwargs", "what"),
    [
        ((), {}, "missing a required argument: 'a'"),
        ((1, 2, 3), {}, "too many positional arguments"),
        ((1,), {"c": 1}, "unexpected keyword argument 'c'"),
    ],
)
def test_wrong_arguments_tell_the_signature(remote: Remote, args: Any, kwargs: Any, what: str) -> None:
    with pytest.raises(errors.BadArguments) as caught:
        remote.call("served.add", *args, **kwargs)
    assert what in str(caught.value)
    assert "served.add(a: float, b: float = 1.0, *, scale: float = 1.0) -> float" in str(caught.value)
    assert isinstance(caught.value, TypeError)
    with pytest.raises(errors.BadArguments):
        list(remote.stream("served.count"))
    with pytest.raises(errors.BadArguments):
        remote.call("served.coroutine")


def test_a_type_error_of_the_function_itself_is_its_own(remote: Remote) -> None:
    with pytest.raises(TypeError, match=r"has no len\(\)") as caught:
        remote.call("served.raises", "type")
    assert isinstance(caught.value, errors.RemoteError)


def test_what_cannot_be_sent_fails_before_it_is(remote: Remote) -> None:
    with pytest.raises(errors.Unencodable, match=r"argument 'x'\[1\]\['k'\].*Unregistered"):
        remote.call("served.echo", x=[0, {"k": served.Unregistered()}])
    nested: list[Any] = []
    for _ in range(10_000):
        nested = [nested]
    with pytest.raises(errors.TooLarge, match="nests deeper"):
        remote.call("served.echo", nested)
    with pytest.raises(errors.TooLarge, match="1,048,576"):
        remote.call("served.echo", [None] * 10_000_000)
    assert remote.call("served.add", 1) == 2.0


def test_a_result_that_cannot_be_sent_says_where(remote: Remote) -> None:
    with pytest.raises(errors.UnencodableResult, match=r"served\.unsendable ran.*\['inside'\]\[1\].*Unregistered"):
        remote.call("served.unsendable")


def test_nested_calls_of_one_server_do_not_deadlock(server: ServerProcess) -> None:
    with connect(server.address) as remote:
        assert remote.options(timeout=60).call("served.call_back", server.address, 60) == 60


def test_setting_an_option_that_is_none(remote: Remote) -> None:
    with pytest.raises(TypeError, match="retries"):
        remote.options(retries=3)
