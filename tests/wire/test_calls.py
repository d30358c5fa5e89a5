from __future__ import annotations

import pickle
import unittest.mock
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from support.messages import LENGTH, VARINT, damaged, field, integers, messages, rewritten, varint
from support.objects import OBJECTS, RREFS, TEXT
from support.reference import Impossible, exact, object_of, rref_message, rref_of, tensor_blob_of, value_of

from tensorcall.v1.handler_service_pb2 import CallRequest, CallResponse, CallStreamResponse, MethodTarget
from tensorcall.v1.rref_pb2 import RRefId as RRefMessage
from tensorcall.v1.tensor_pb2 import TensorBlob
from tensorcall.v1.value_pb2 import Payload as PayloadMessage
from tensorcall.v1.value_pb2 import Value
from tensorcall.wire import calls, values
from tensorcall.wire.blobs import Blob
from tensorcall.wire.calls import Payload, Request, Target
from tensorcall.wire.errors import BadPayload, TooLarge, Unencodable
from tensorcall.wire.limits import MAX_TENSORS
from tensorcall.wire.rrefs import Handle, RRefId

quick = settings(deadline=None, max_examples=80)

# Types go by name, none of these is registered; shared memory is refused.
WITHOUT = {
    "tensorcall.v1.Value.object",
    "tensorcall.v1.Value.enum_member",
    "tensorcall.v1.TensorBlob.shared",
}


class Table:
    """Stands for a table of tensors: gives their indices."""

    def __init__(self, blobs: list[Blob]) -> None:
        self.blobs = blobs

    def get(self, index: int) -> Any:
        if index >= len(self.blobs):
            raise BadPayload("no such tensor")
        return f"tensor {index}"

    def open_rref(self, rref: RRefId) -> RRefId:
        return rref


def tensor_of(count: int) -> Callable[[int], str]:
    def tensor(index: int) -> str:
        if index >= count:
            raise Impossible("no such tensor")
        return f"tensor {index}"

    return tensor


def in_order(obj: Any) -> Any:
    """The same, its maps sorted: in the generated classes they have no order."""
    if type(obj) is dict:
        names = sorted(obj) if all(type(name) is str for name in obj) else obj
        return {name: in_order(obj[name]) for name in names}
    return type(obj)(map(in_order, obj)) if type(obj) in (list, tuple) else obj


def same(one: Any, other: Any) -> bool:
    return bool(exact(in_order(one)) == exact(in_order(other)))


def same_target(one: Target, other: Target) -> bool:
    """Addresses count here: two references that differ in them are equal."""
    addresses = [[each.fetch and each.fetch.address, each.method and each.method[0].address] for each in (one, other)]
    return one == other and addresses[0] == addresses[1]


def read(method: Callable[[], Any]) -> Any:
    """Reads objects whose tensors are of any content, and mostly none."""
    with unittest.mock.patch.object(calls, "TensorReader", Table):
        return method()


def blobs_of(blobs: list[Blob]) -> list[bytes]:
    return [tensor_blob_of(blob).SerializeToString(deterministic=True) for blob in blobs]


def embedded(data: bytes) -> tuple[bytes, int, int]:
    """The message in the middle of a larger one."""
    return b"\xff\xff" + data + b"\xff", 2, 2 + len(data)


# --- CallRequest -----------------------------------------------------------------------------------------------------


@quick
@given(st.data())
def test_a_request_is_read_however_it_is_written(data: st.DataObject) -> None:
    message = data.draw(messages(CallRequest, without=WITHOUT))
    written = data.draw(rewritten(message.DESCRIPTOR, message.SerializeToString()))
    pickled = message.HasField("arguments_pickle")
    target = message.WhichOneof("target")
    too_long = max(len(message.call_id.encode()), len(message.client_id.encode())) > 128
    if target is None or (pickled and (message.args or message.kwargs)) or too_long:
        with pytest.raises(BadPayload, match=r"no target|both|call_id|client_id"):
            calls.decode_request(*embedded(written))
        return
    request = calls.decode_request(*embedded(written))
    expected = {
        "function": lambda: Target(function=message.function),
        "method": lambda: Target(method=(rref_of(message.method.rref), message.method.name)),
        "callable_pickle": lambda: Target(pickle=message.callable_pickle),
        "fetch": lambda: Target(fetch=rref_of(message.fetch)),
    }[target]()
    assert same_target(request.target, expected)
    assert (request.call_id, request.want) == (message.call_id, message.want)
    assert (request.client_id, request.number) == (message.client_id, message.number)
    assert blobs_of(request.blobs) == [blob.SerializeToString(deterministic=True) for blob in message.tensors]
    assert request.pickled == (pickled or target == "callable_pickle")
    if pickled:
        start, end = request.arguments_pickle or (0, 0)
        assert request.buffer[start:end] == message.arguments_pickle
        return
    tensor = tensor_of(len(message.tensors))
    try:
        arguments = (
            tuple(object_of(value, tensor) for value in message.args),
            {name: object_of(value, tensor) for name, value in message.kwargs.items()},
        )
    except Impossible:
        with pytest.raises(BadPayload):
            read(request.arguments)
    else:
        assert same(read(request.arguments), arguments)


NUMBERS = integers(0, 2**64 - 1)
KWARGS = st.dictionaries(st.sampled_from("abc"), OBJECTS, max_size=2).map(lambda kwargs: dict(sorted(kwargs.items())))
TARGETS = (
    st.builds(Target, function=TEXT)
    | st.builds(Target, method=st.tuples(RREFS, TEXT))
    | st.builds(Target, pickle=st.binary(max_size=5))
    | st.builds(Target, fetch=RREFS)
)


def target_message(target: Target) -> CallRequest:
    if target.method is not None:
        rref, name = target.method
        return CallRequest(method=MethodTarget(rref=rref_message(rref), name=name))
    if target.fetch is not None:
        return CallRequest(fetch=rref_message(target.fetch))
    if target.pickle is not None:
        return CallRequest(callable_pickle=target.pickle)
    return CallRequest(function=target.function)


@quick
@given(TARGETS, st.lists(OBJECTS, max_size=2).map(tuple), KWARGS, TEXT, st.integers(0, 2), TEXT, NUMBERS)
@example(Target(method=(RRefId("", 0, 0), "")), (), {}, "", 0, "", 0)
@example(Target(fetch=RRefId("", 0, 0)), (), {}, "", 0, "", 0)
def test_a_request_is_written_as_by_the_generated_class(
    target: Target,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    call_id: str,
    want: int,
    client_id: str,
    number: int,
) -> None:
    message = target_message(target)
    message.args.extend(map(value_of, args))
    for name, value in kwargs.items():
        message.kwargs[name].CopyFrom(value_of(value))
    message.call_id = call_id
    message.want = want  # type: ignore[assignment]
    message.client_id, message.number = client_id, number
    data = calls.encode_request(
        target, args, kwargs, call_id=call_id, want=want, client_id=client_id, number=number
    ).bytes
    # Maps within arguments keep their order; test_values compares them byte for byte.
    again = CallRequest.FromString(data)
    assert again.SerializeToString(deterministic=True) == message.SerializeToString(deterministic=True)
    if max(len(call_id.encode()), len(client_id.encode())) <= 128:
        request = calls.decode_request(data)
        assert exact(request.arguments()) == exact((args, kwargs))
        assert same_target(request.target, target)
        assert (request.call_id, request.want) == (call_id, want)
        assert (request.client_id, request.number) == (client_id, number)


TENSORS = [
    torch.arange(6.0).reshape(2, 3),
    torch.ones(2, dtype=torch.bfloat16, requires_grad=True),
    torch.nn.Parameter(torch.zeros(1)),
    torch.eye(3).to_sparse(),
    torch.tensor(5),
    np.arange(4, dtype=">i4"),
    np.float32(2.5),
    np.array(["2020-01-01"], "M8[D]"),
    torch.ones(0),
]


@pytest.mark.parametrize("chunk_above", [None, 0, 5, 8, 1000])
def test_tensors_are_written_as_by_the_generated_class(chunk_above: int | None) -> None:
    args = ([TENSORS, TENSORS], 1)
    encoded = calls.encode_request(Target("f"), args, {"t": TENSORS[0]}, call_id="id", chunk_above=chunk_above)
    request = calls.decode_request(calls.encode_request(Target("f"), args, {"t": TENSORS[0]}).bytes)
    # Sparse ones have parts; none is there twice.
    assert len(request.blobs) == len(TENSORS) + 2
    message = CallRequest(function="f", tensors=map(tensor_blob_of, request.blobs), call_id="id")
    expected = []
    for index, blob in enumerate(message.tensors):
        if chunk_above is not None and len(blob.data) > chunk_above:
            expected.append((index, blob.data))
            blob.chunked.size = len(blob.data)
    indices = [0, 1, 2, 5, 6, 7, 8, 9, 10]
    items = [Value(tensor=index) for index in indices]
    message.args.add().list.items.extend([Value(), Value()])
    for both in message.args[0].list.items:
        both.list.items.extend(items)
    message.args.add().int = 1
    message.kwargs["t"].tensor = 0
    assert encoded.bytes == message.SerializeToString(deterministic=True)
    assert [(index, bytes(data)) for index, data in encoded.chunked] == expected


def test_a_message_views_the_memory_of_its_tensors() -> None:
    large = torch.arange(300_000)
    array = np.arange(3)
    for encoded in (
        calls.encode_request(Target("f"), (large,), {"a": [array]}),
        calls.wrap_result(calls.encode_payload({"large": large, "array": array})),
        calls.encode_request(Target("f"), (large, array), {}, pickled=True),
    ):
        views = [np.frombuffer(part, np.uint8) for part in encoded.parts if isinstance(part, memoryview)]
        assert np.shares_memory(views[0], large.numpy())
        assert np.shares_memory(views[1], array)
        assert sum(len(part) for part in encoded.parts if not isinstance(part, memoryview)) < 500
    encoded = calls.encode_payload(large, chunk_above=1000)
    ((_, data),) = encoded.chunked
    assert np.shares_memory(np.frombuffer(data, np.uint8), large.numpy())


def test_pickled_arguments_and_targets() -> None:
    tensor = torch.ones(3)
    data = calls.encode_request(Target(pickle=b"p"), (tensor, {1}), {"k": Unencodable}, pickled=True).bytes
    message = CallRequest.FromString(data)
    assert message.callable_pickle == b"p"
    assert not message.args
    assert len(message.tensors) == 1
    request = calls.decode_request(data)
    assert request.pickled
    (made, items), kwargs = request.arguments()
    assert exact(made) == exact(tensor)
    assert (items, kwargs) == ({1}, {"k": Unencodable})


@pytest.mark.parametrize("obj", [1, (1,), (1, {}), ((), []), ([], {}), ((), {1: 2}), [(), {}], ((), {}, 1)])
def test_pickled_arguments_are_args_and_kwargs(obj: Any) -> None:
    request = calls.decode_request(CallRequest(function="f", arguments_pickle=pickle.dumps(obj)).SerializeToString())
    with pytest.raises(BadPayload, match=r"not a tuple \(args, kwargs\)"):
        request.arguments()


def test_a_class_that_is_missing_here_is_told_to_the_caller() -> None:
    data = pickle.dumps(((), {"k": Table})).replace(b"test_calls", b"no_such_mo")
    request = calls.decode_request(CallRequest(function="f", arguments_pickle=data).SerializeToString())
    with pytest.raises(AttributeError, match="no_such_mo"):
        request.arguments()
    with pytest.raises(BadPayload, match="no_such_mo"):
        calls.decode_payload(PayloadMessage(pickle=data).SerializeToString()).object(allow_pickle=True)


def test_an_attribute_error_is_an_object_like_any_other() -> None:
    encoded = calls.encode_payload(AttributeError("no"), pickled=True)
    made = calls.decode_payload(encoded.bytes).object(allow_pickle=True)
    assert type(made) is AttributeError
    request = calls.decode_request(calls.encode_request(Target("f"), (made,), {}, pickled=True).bytes)
    assert type(request.arguments()[0][0]) is AttributeError


# --- Payload, CallResponse, CallStreamResponse -----------------------------------------------------------------------


@quick
@given(st.data())
def test_a_payload_is_read_however_it_is_written(data: st.DataObject) -> None:
    message = data.draw(messages(PayloadMessage, without=WITHOUT))
    written = data.draw(rewritten(message.DESCRIPTOR, message.SerializeToString()))
    payload = calls.decode_payload(*embedded(written))
    assert payload.hold == message.hold
    assert blobs_of(payload.blobs) == [blob.SerializeToString(deterministic=True) for blob in message.tensors]
    if message.WhichOneof("body") == "pickle":
        start, end = payload.pickle or (0, 0)
        assert payload.buffer[start:end] == message.pickle
        with pytest.raises(BadPayload, match="payload is pickled"):
            payload.object()
        return
    try:
        if message.WhichOneof("body") is None:
            raise Impossible
        expected = object_of(message.value, tensor_of(len(message.tensors)))
    except Impossible:
        with pytest.raises(BadPayload):
            read(payload.object)
    else:
        assert same(read(payload.object), expected)


@pytest.mark.parametrize("cls", [CallResponse, CallStreamResponse])
@settings(deadline=None, max_examples=50)
@given(st.data())
def test_a_response_is_read_however_it_is_written(cls: Any, data: st.DataObject) -> None:
    message = data.draw(messages(cls, depth=2, without=WITHOUT))
    written = data.draw(rewritten(message.DESCRIPTOR, message.SerializeToString()))
    if cls is CallStreamResponse:
        kind = "item" if message.HasField("item") else None
    else:
        kind = message.WhichOneof("outcome")
    if kind is None:
        with pytest.raises(BadPayload, match="neither a result nor a reference"):
            calls.decode_result(*embedded(written))
        return
    outcome = calls.decode_result(*embedded(written))
    if kind == "rref":
        assert outcome == rref_of(message.rref)
        return
    assert isinstance(outcome, Payload)
    body = message.result if kind == "result" else message.item
    assert blobs_of(outcome.blobs) == [blob.SerializeToString(deterministic=True) for blob in body.tensors]
    assert (outcome.value is not None, outcome.pickle is not None) == (body.HasField("value"), body.HasField("pickle"))


@quick
@given(OBJECTS)
def test_a_response_is_written_as_by_the_generated_class(obj: Any) -> None:
    encoded = calls.encode_payload(obj)
    payload = PayloadMessage(value=Value.FromString(values.encode(obj)))
    assert PayloadMessage.FromString(encoded.bytes) == payload or obj != obj
    wrapped = calls.wrap_result(encoded)
    for cls, name in ((CallResponse, "result"), (CallStreamResponse, "item")):
        length = len(encoded.bytes)
        assert wrapped.bytes == field(1, LENGTH, encoded.bytes)
        assert len(getattr(cls.FromString(wrapped.bytes), name).SerializeToString()) == length
    outcome = calls.decode_result(wrapped.bytes)
    assert isinstance(outcome, Payload)
    assert exact(outcome.object()) == exact(obj)


@quick
@given(RREFS)
def test_a_reference_is_an_answer(rref: RRefId) -> None:
    data = CallResponse(rref=rref_message(rref)).SerializeToString()
    assert calls.encode_rref(rref).bytes == data
    assert exact(calls.decode_result(data)) == exact(rref)


class Held(Handle):
    """A handle."""

    def __init__(self, name: RRefId) -> None:
        self.name = name

    def rref_id(self) -> RRefId:
        return self.name


@pytest.mark.parametrize("pickled", [False, True])
def test_the_sender_of_references_is_told_which_handles_to_keep(pickled: bool) -> None:
    one, other = Held(RRefId("a", 1, 2, "here:1")), Held(RRefId("b", 3, 4))
    args, kwargs = (one, [other, {"k": (one,)}]), {"k": other}
    encoded = calls.encode_request(Target("f"), args, kwargs, pickled=pickled)
    assert set(map(id, encoded.handles)) == {id(one), id(other)}
    request = calls.decode_request(encoded.bytes)
    opened: list[RRefId] = []
    got = request.arguments(lambda rref: opened.append(rref) or f"handle of {rref.owner}")  # type: ignore[func-returns-value]
    a, b = "handle of a", "handle of b"
    assert got == ((a, [b, {"k": (a,)}]), {"k": b})
    assert {(rref, rref.address) for rref in opened} == {(one.name, "here:1"), (other.name, "")}
    # Who opens nothing gets the names.
    assert request.arguments()[1] == {"k": other.name}


@pytest.mark.parametrize("pickled", [False, True])
def test_what_an_answer_refers_to_is_held(pickled: bool) -> None:
    held: list[list[Handle]] = []

    def hold(handles: list[Handle]) -> int:
        held.append(handles)
        return 77

    plain = calls.decode_payload(calls.encode_payload([1], pickled=pickled, hold=hold).bytes)
    assert (plain.hold, held) == (0, [])
    handle = Held(RRefId("a", 1, 2))
    encoded = calls.encode_payload({"k": [handle]}, pickled=pickled, hold=hold)
    assert held == [[handle]]
    payload = calls.decode_payload(encoded.bytes)
    assert payload.hold == PayloadMessage.FromString(encoded.bytes).hold == 77
    assert payload.object(allow_pickle=True, open_rref=lambda rref: rref.sequence) == {"k": [2]}


@pytest.mark.parametrize("pickled", [False, True])
def test_results_with_tensors_come_back(pickled: bool) -> None:
    obj = {"t": TENSORS[0], "a": TENSORS[5], "again": TENSORS[0], "l": [1, 2.5, None]}
    encoded = calls.wrap_result(calls.encode_payload(obj, pickled=pickled))
    outcome = calls.decode_result(encoded.bytes)
    assert isinstance(outcome, Payload)
    made = outcome.object(allow_pickle=True)
    assert exact(made) == exact(obj)
    assert made["t"] is made["again"]
    message = CallResponse.FromString(encoded.bytes).result
    assert message.WhichOneof("body") == ("pickle" if pickled else "value")
    assert len(message.tensors) == 2


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (CallRequest(), "no target"),
        (CallRequest(args=[Value(int=1)]), "no target"),
        (CallRequest(function="f", arguments_pickle=b"", args=[Value(int=1)]), "both"),
        (CallRequest(function="f", arguments_pickle=b"", kwargs={"a": Value(int=1)}), "both"),
        (CallRequest(function="f", call_id="x" * 129), "129 bytes; at most 128"),
        (CallRequest(function="f", client_id="x" * 129), "client_id has 129 bytes; at most 128"),
        (CallRequest(function="f", args=[Value()]), "no kind"),
        (CallRequest(function="f", kwargs={"a": Value()}), "no kind"),
        (CallRequest(function="f", args=[Value(tensor=0)]), "tensor 0 is named, but the message has none"),
        (CallRequest(function="f", args=[Value(tensor=1)], tensors=[TensorBlob()]), "tensor 1 is named"),
        (CallRequest(function="f", args=[Value(tensor=2**32 - 1)], tensors=[TensorBlob()]), "tensor 4294967295 is"),
        (CallRequest(function="f", args=[Value(tensor=0)], tensors=[TensorBlob()]), "dtype 0 is none"),
    ],
)
def test_impossible_requests_are_refused(request_: CallRequest, message: str) -> None:
    with pytest.raises(BadPayload, match=message):
        calls.decode_request(request_.SerializeToString()).arguments()


def test_a_call_id_of_128_bytes_is_taken() -> None:
    data = CallRequest(function="f", call_id="é" * 64).SerializeToString()
    assert calls.decode_request(data).call_id == "é" * 64


def test_names_that_are_no_text_are_refused() -> None:
    for arguments in [
        {"target": Target("\ud800")},
        {"target": Target(method=(RRefId("", 1, 1), "\ud800"))},
        {"target": Target("f"), "call_id": "\ud800"},
        {"target": Target("f"), "client_id": "\ud800"},
        {"target": Target(fetch=RRefId("", 1, 1, "\ud800"))},
    ]:
        target: Any = arguments.pop("target")
        with pytest.raises(Unencodable, match="surrogate"):
            calls.encode_request(target, (), {}, **arguments)  # type: ignore[arg-type]


def test_too_many_tensors_are_refused_on_both_sides() -> None:
    scalars = [np.float32(0) for _ in range(MAX_TENSORS + 1)]
    with pytest.raises(TooLarge, match=r"^\[65536\]: a message holds at most 65,536 tensors"):
        calls.encode_payload(scalars)
    blob = field(3, LENGTH, TensorBlob(dtype=1).SerializeToString())
    assert len(calls.decode_payload(blob * MAX_TENSORS).blobs) == MAX_TENSORS
    with pytest.raises(TooLarge, match="more than 65,536 tensors"):
        calls.decode_payload(blob * (MAX_TENSORS + 1))
    with pytest.raises(TooLarge, match="more than 65,536 tensors"):
        calls.decode_request(field(7, LENGTH, b"") * (MAX_TENSORS + 1))


def read_all(data: bytes) -> Request | None:
    """Reads whatever the bytes may be, apart from pickles."""
    found = None
    try:
        found = calls.decode_request(data)
        if not found.pickled:
            found.arguments()
    except BadPayload:
        pass
    for decode in (calls.decode_payload, calls.decode_result):
        try:
            payload: Any = decode(data)
            if isinstance(payload, Payload):
                payload.object()
        except BadPayload:
            pass
    return found


EXAMPLES = [
    calls.encode_request(
        Target("module.function"),
        (1, "x", [2.5, {"k": (None, True)}], {1: {2}}),
        {"t": TENSORS[0], "s": [TENSORS[3], TENSORS[5], TENSORS[6]]},
        call_id="an id",
        want=1,
    ).bytes,
    calls.encode_request(Target(method=(RRefId("owner", 1, 2), "name")), (TENSORS[1], TENSORS[7]), {}).bytes,
    calls.encode_request(Target(fetch=RRefId("owner", 1, 2, "host:1")), (), {}, client_id="c", number=7, want=2).bytes,
    calls.encode_payload({"t": TENSORS[:7], "l": [1, 2.5, b"abc", bytearray(b"a"), 1 << 99]}).bytes,
    calls.wrap_result(calls.encode_payload([torch.quantize_per_tensor(torch.ones(3), 0.5, 3, torch.qint8), 1j])).bytes,
    CallResponse(rref=RRefMessage(owner="a", incarnation=1, sequence=2)).SerializeToString(),
]


@pytest.mark.parametrize("data", EXAMPLES, ids=range(len(EXAMPLES)))
def test_one_that_ends_too_early_is_no_surprise(data: bytes) -> None:
    for end in range(len(data)):
        read_all(data[:end])


@settings(deadline=None, max_examples=400)
@given(st.sampled_from(EXAMPLES).flatmap(damaged) | st.binary(max_size=60))
def test_of_garbage_comes_a_call_or_a_bad_payload(data: bytes) -> None:
    read_all(data)


# --- where it differs from the generated classes ---------------------------------------------------------------------


def test_of_repeated_fields_the_last_one_counts_where_protobuf_merges_messages() -> None:
    data = b"".join(
        CallResponse(result=PayloadMessage(value=value_of([n]), tensors=[TensorBlob()])).SerializeToString()
        for n in (1, 2)
    )
    assert len(CallResponse.FromString(data).result.tensors) == 2
    outcome = calls.decode_result(data)
    assert isinstance(outcome, Payload)
    assert outcome.object() == [2]
    assert len(outcome.blobs) == 1
    rref = [RRefMessage(owner="a"), RRefMessage(sequence=2)]
    data = b"".join(CallRequest(method=MethodTarget(rref=each)).SerializeToString() for each in rref)
    assert calls.decode_request(data).target == Target(method=(RRefId("", 0, 2), ""))


def test_of_a_oneof_the_last_one_counts() -> None:
    function, method, callable_, fetch = (
        CallRequest(function="f"),
        CallRequest(method=MethodTarget(name="m")),
        CallRequest(callable_pickle=b"p"),
        CallRequest(fetch=RRefMessage(owner="a")),
    )
    for first in (function, method, callable_, fetch):
        for second in (function, method, callable_, fetch):
            data = first.SerializeToString() + second.SerializeToString()
            target = calls.decode_request(data).target
            assert target_message(target).WhichOneof("target") == second.WhichOneof("target")
    data = PayloadMessage(value=value_of(1)).SerializeToString() + PayloadMessage(pickle=b"x").SerializeToString()
    with pytest.raises(BadPayload, match="payload is pickled"):
        calls.decode_payload(data).object()
    data = PayloadMessage(pickle=b"x").SerializeToString() + PayloadMessage(value=value_of(1)).SerializeToString()
    assert calls.decode_payload(data).object() == 1
    data = (
        CallResponse(result=PayloadMessage()).SerializeToString() + CallResponse(rref=RRefMessage()).SerializeToString()
    )
    assert calls.decode_result(data) == RRefId("", 0, 0)


def test_arguments_named_twice_are_the_last_ones() -> None:
    data = b"".join(CallRequest(function="f", kwargs={"a": value_of(n)}).SerializeToString() for n in (1, 2))
    assert calls.decode_request(data).arguments() == ((), {"a": 2})


def test_a_form_that_is_not_known_is_told_as_it_came() -> None:
    data = field(1, LENGTH, b"f") + field(9, VARINT, varint(2**64 - 1))
    assert CallRequest.FromString(data).want == -1
    assert calls.decode_request(data).want == 2**64 - 1


def test_what_is_not_read_is_not_checked_either() -> None:
    """The generated classes would check the whole message at once, before anybody may say that the call is allowed."""
    request = calls.decode_request(field(1, LENGTH, b"f") + field(4, LENGTH, b"\xff"))
    assert request.target.function == "f"
    with pytest.raises(BadPayload):
        request.arguments()
