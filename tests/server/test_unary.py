"""Call, CallStream and the other methods as a client with nothing but the generated code sees them."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from google.protobuf import json_format
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from support.servers import ServerProcess

from tensorcall.v1 import error_pb2, tensor_pb2, value_pb2
from tensorcall.v1 import handler_service_pb2 as pb
from tensorcall.v1.handler_service_pb2_grpc import HandlerServiceStub


@pytest.fixture
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as channel:
        yield channel


@pytest.fixture
def stub(channel: grpc.Channel) -> HandlerServiceStub:
    return HandlerServiceStub(channel)


def details(error: grpc.RpcError) -> tuple[status_pb2.Status, error_details_pb2.ErrorInfo, error_pb2.ExceptionTree]:
    trailers = dict(error.trailing_metadata())  # type: ignore[attr-defined]
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    info, tree = error_details_pb2.ErrorInfo(), error_pb2.ExceptionTree()
    for detail in status.details:
        for message in (info, tree):
            if detail.Is(message.DESCRIPTOR):
                detail.Unpack(message)
    return status, info, tree


def test_a_call_typed_as_json(stub: HandlerServiceStub) -> None:
    typed = '{"function": "served.add", "args": [{"int": 1}], "kwargs": {"b": {"double": 2.5}, "scale": {"int": 2}}}'
    response = stub.Call(json_format.Parse(typed, pb.CallRequest()))
    assert json_format.MessageToDict(response) == {"result": {"value": {"double": 7.0}}}
    response = stub.Call(
        json_format.Parse('{"function": "served.echo", "args": [{"null": null}, {"list": {}}]}', pb.CallRequest())
    )
    assert json_format.MessageToDict(response) == {
        "result": {"value": {"tuple": {"items": [{"null": None}, {"list": {}}]}}}
    }


def test_a_tensor_from_another_language(stub: HandlerServiceStub) -> None:
    blob = tensor_pb2.TensorBlob(dtype=tensor_pb2.DTYPE_FLOAT32, shape=[2], data=b"\x00\x00\x80\x3f\x00\x00\x00\x40")
    args = [value_pb2.Value(tensor=0)]
    response = stub.Call(pb.CallRequest(function="served.tensor_sum", args=args, tensors=[blob]))
    assert response.result.value.tensor == 0
    assert response.result.tensors[0].data == b"\x00\x00\x40\x40"
    assert list(response.result.tensors[0].shape) == []


def test_a_stream(stub: HandlerServiceStub) -> None:
    items = stub.CallStream(pb.CallRequest(function="served.count", args=[value_pb2.Value(int=3)]))
    assert [response.item.value.int for response in items] == [0, 1, 2]


def test_an_exception_is_the_status(stub: HandlerServiceStub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Call(pb.CallRequest(function="served.raises", args=[value_pb2.Value(string="value")]))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    status, info, tree = details(caught.value)
    assert (info.domain, info.reason) == ("tensorcall", "UDF_RAISED")
    assert tree.exceptions[0].type == "ValueError"
    assert tree.exceptions[0].args[1].int == 7
    assert tree.exceptions[tree.exceptions[0].cause].type == "KeyError"
    assert tree.exceptions[0].frames[-1].function == "_value_error"
    assert status.ByteSize() <= 4096


def test_a_long_exception_is_cut_and_kept(stub: HandlerServiceStub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Call(pb.CallRequest(function="served.raises", args=[value_pb2.Value(string="chain")]))
    status, _, tree = details(caught.value)
    assert tree.truncated
    assert status.ByteSize() <= 4096
    whole = stub.GetError(pb.GetErrorRequest(error_id=tree.error_id)).exception
    assert len(whole.exceptions) == 201
    assert not whole.truncated
    with pytest.raises(grpc.RpcError) as caught:
        stub.GetError(pb.GetErrorRequest(error_id="other"))
    assert details(caught.value)[1].reason == "ERROR_UNKNOWN"


def blob(**fields: object) -> tensor_pb2.TensorBlob:
    return tensor_pb2.TensorBlob(**{"dtype": tensor_pb2.DTYPE_FLOAT32, "shape": [1], "data": b"1234", **fields})  # type: ignore[arg-type]


def tensor_call(index: int, *blobs: tensor_pb2.TensorBlob) -> pb.CallRequest:
    return pb.CallRequest(function="served.echo", args=[value_pb2.Value(tensor=index)], tensors=blobs)


def nested(depth: int) -> bytes:
    body = value_pb2.Value(null=0).SerializeToString()  # type: ignore[arg-type]
    for _ in range(depth):
        item = b"\x0a" + _varint(len(body)) + body
        body = b"\x42" + _varint(len(item)) + item
    return b"\x0a\x0bserved.echo\x22" + _varint(len(body)) + body


def _varint(n: int) -> bytes:
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes([*out, n])


MANY = (
    b"\x0a\x0bserved.echo\x22" + _varint(40_000_005) + b"\x42" + _varint(40_000_000) + b"\x0a\x02\x08\x00" * 10_000_000
)

BAD = {
    "nothing": (pb.CallRequest(), "BAD_PAYLOAD", "no target"),
    "unknown dtype": (tensor_call(0, blob(dtype=4711)), "BAD_PAYLOAD", "4711"),
    "no dtype": (tensor_call(0, blob(dtype=0)), "BAD_PAYLOAD", "dtype"),
    "too few bytes": (tensor_call(0, blob(shape=[2])), "BAD_PAYLOAD", "8"),
    "too many bytes": (tensor_call(0, blob(data=b"12345")), "BAD_PAYLOAD", "5"),
    "negative shape": (tensor_call(0, blob(shape=[-1])), "BAD_PAYLOAD", "-1"),
    "overflowing shape": (tensor_call(0, blob(shape=[2**62, 2**62])), "BAD_PAYLOAD", ""),
    "index out of range": (tensor_call(1, blob()), "BAD_PAYLOAD", "1"),
    "chunked": (tensor_call(0, blob(chunked=tensor_pb2.ChunkedStorage(size=4))), "BAD_PAYLOAD", "chunk"),
    "shared": (tensor_call(0, blob(shared=tensor_pb2.SharedStorage(size=4))), "BAD_PAYLOAD", "shared"),
    "no kind": (pb.CallRequest(function="served.echo", args=[value_pb2.Value()]), "BAD_PAYLOAD", "kind"),
    "unknown function": (pb.CallRequest(function="served.ad"), "NOT_EXPOSED", "did you mean"),
    "long call id": (pb.CallRequest(function="served.noop", call_id="x" * 200), "BAD_PAYLOAD", "128"),
    "pickle": (pb.CallRequest(function="served.noop", arguments_pickle=b"x"), "PICKLE_REFUSED", "--allow-pickle"),
    "pickled callable": (pb.CallRequest(callable_pickle=b"x"), "PICKLE_REFUSED", "--allow-pickle"),
    "class": (pb.CallRequest(function="served.Counted"), "BAD_ARGUMENTS", "ask for a reference"),
    "deep": (nested(10_000), "TOO_LARGE", "deeper"),
    "many": (MANY, "TOO_LARGE", "1,048,576"),
    "truncated": (b"\x0a\x0bserved.ec", "BAD_PAYLOAD", "truncated"),
    "garbage": (b"\xff" * 50, "BAD_PAYLOAD", ""),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_costs_one_clear_error(channel: grpc.Channel, server: ServerProcess, name: str) -> None:
    request, reason, what = BAD[name]
    message = request if isinstance(request, bytes) else request.SerializeToString()
    call = channel.unary_unary("/tensorcall.v1.HandlerService/Call")
    with pytest.raises(grpc.RpcError) as caught:
        call(message, timeout=60)
    status, info, _ = details(caught.value)
    assert info.reason == reason
    assert what in status.message
    # The stream answers the same.
    with pytest.raises(grpc.RpcError) as caught:
        list(channel.unary_stream("/tensorcall.v1.HandlerService/CallStream")(message, timeout=60))
    assert details(caught.value)[1].reason == reason
    assert HandlerServiceStub(channel).Call(pb.CallRequest(function="served.noop")).HasField("result")


@pytest.mark.parametrize("method", ["ListFunctions", "ResolveType", "GetError"])
def test_garbage_on_the_other_methods(channel: grpc.Channel, method: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/tensorcall.v1.HandlerService/{method}")(b"\x0a\xff\xff")
    assert details(caught.value)[1].reason == "BAD_PAYLOAD"


def test_types_are_resolved(stub: HandlerServiceStub) -> None:
    resolved = stub.ResolveType(pb.ResolveTypeRequest(type="Dict[str, List[Tensor]]")).type
    assert (resolved.kind, resolved.arguments[0].kind) == ("DictType", "StringType")
    with pytest.raises(grpc.RpcError) as caught:
        stub.ResolveType(pb.ResolveTypeRequest(type="__import__('os').system('true')"))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details(caught.value)[1].reason == "UNKNOWN_TYPE"


def test_an_unknown_method(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/tensorcall.v1.HandlerService/Nothing")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_health_and_reflection(channel: grpc.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", "tensorcall.v1.HandlerService"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="tensorcall.v1.HandlerService"),
    ]
    services, files = reflection.ServerReflectionInfo(iter(requests))
    assert "tensorcall.v1.HandlerService" in [s.name for s in services.list_services_response.service]
    assert files.file_descriptor_response.file_descriptor_proto
