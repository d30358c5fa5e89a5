"""A failure and its status say the same, a status always fits, and a bare one is understood."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf import duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorcall.v1 import error_pb2
from tensorcall.wire import errors, statuses
from tensorcall.wire.errors import TensorcallError
from tensorcall.wire.limits import MAX_STATUS_DETAIL_BYTES

text = st.one_of(st.text(max_size=30), st.integers(0, 5000).map("ö".__mul__))
codes = st.sampled_from(code_pb2.Code.values())
trees = st.builds(
    error_pb2.ExceptionTree,
    exceptions=st.lists(
        st.builds(
            error_pb2.RemoteException,
            type=text,
            module=text,
            message=text,
            notes=st.lists(text, max_size=3),
            frames=st.lists(st.builds(error_pb2.Frame, file=text, function=text, source=text), max_size=3),
        ),
        max_size=4,
    ),
    worker=text,
)
failures = st.builds(
    error_pb2.Failure,
    code=codes,
    message=text,
    reason=st.sampled_from([*statuses.REASONS, "NEW"]) | text,
    metadata=st.dictionaries(text, text, max_size=5),
    exception=st.none() | trees,
    retry_after=st.none()
    | st.builds(duration_pb2.Duration, seconds=st.integers(0, 9), nanos=st.integers(0, 10**9 - 1)),
)


@settings(deadline=None, max_examples=200)
@given(failures)
def test_a_status_fits_and_says_the_same(failure: error_pb2.Failure) -> None:
    details = statuses.to_status(failure)
    assert len(details) <= MAX_STATUS_DETAIL_BYTES
    back = statuses.from_status(failure.code, "bare", details)
    if failure.ByteSize() <= MAX_STATUS_DETAIL_BYTES - 300:
        assert back == failure
    assert (back.code, back.retry_after) == (failure.code, failure.retry_after)
    assert back.HasField("exception") == failure.HasField("exception")
    assert failure.message.startswith(back.message.split("… (")[0])
    if failure.reason in statuses.REASONS:
        assert back.reason == failure.reason
    statuses.from_failure(back)


def chained(depth: int) -> error_pb2.Failure:
    error: BaseException = ValueError("the first")
    for number in range(depth):
        try:
            raise KeyError("x" * 100, number) from error
        except KeyError as raised:
            error = raised
    return statuses.udf_failure(error, worker="w")


def test_what_does_not_fit_is_kept() -> None:
    kept: list[error_pb2.ExceptionTree] = []

    def keep(tree: error_pb2.ExceptionTree) -> None:
        tree.error_id = "e1"
        kept.append(tree)

    small = chained(1)
    whole = statuses.from_status(small.code, "", statuses.to_status(small, keep=keep))
    assert (whole, kept) == (small, [])
    large = chained(200)
    details = statuses.to_status(large, keep=keep)
    cut = statuses.from_status(large.code, "", details).exception
    assert len(kept[0].exceptions) == 201
    assert not kept[0].truncated
    assert (cut.error_id, cut.truncated, cut.worker) == ("e1", True, "w")
    assert len(cut.exceptions) > 10
    assert len(details) > MAX_STATUS_DETAIL_BYTES * 3 // 4


def test_details_are_what_others_expect() -> None:
    """As google.rpc has it, and as grpcio-status reads it."""
    failure = statuses.service_failure(errors.Overloaded("full", metadata={"limit": "3"}, retry_after=1.5))
    failure.exception.exceptions.add(type="E")
    status = status_pb2.Status.FromString(statuses.to_status(failure))
    assert (status.code, status.message) == (code_pb2.RESOURCE_EXHAUSTED, "full")
    info, tree, retry = error_details_pb2.ErrorInfo(), error_pb2.ExceptionTree(), error_details_pb2.RetryInfo()
    assert [detail.Unpack(message) for detail, message in zip(status.details, (info, tree, retry))] == [True] * 3  # noqa: B905
    assert (info.domain, info.reason, dict(info.metadata)) == ("tensorcall", "OVERLOADED", {"limit": "3"})
    assert retry.retry_delay.ToMilliseconds() == 1500


def foreign(domain: str = "example.com", code: int = code_pb2.NOT_FOUND) -> bytes:
    status = status_pb2.Status(code=code, message="theirs")
    status.details.add().Pack(error_details_pb2.ErrorInfo(domain=domain, reason="NOT_EXPOSED"))
    return status.SerializeToString()


def broken() -> bytes:
    status = status_pb2.Status.FromString(foreign("tensorcall"))
    status.details[0].value = b"\xff"
    return status.SerializeToString()


@pytest.mark.parametrize(
    "details",
    [None, b"", b"garbage", b"\xff" * 100, foreign(), foreign("tensorcall", code_pb2.ABORTED), broken()],
    ids=["none", "empty", "garbage", "bytes", "foreign", "another code", "broken"],
)
def test_details_that_are_not_ours(details: bytes | None) -> None:
    failure = statuses.from_status(code_pb2.NOT_FOUND, "m \ud800", details)
    assert failure == error_pb2.Failure(code=code_pb2.NOT_FOUND, message="m \\ud800")
    error = statuses.from_grpc(code_pb2.NOT_FOUND, "m", details, connected=True)
    assert (type(error), str(error), error.metadata) == (errors.RequestError, "m", {})


@settings(deadline=None)
@given(codes, st.binary())
def test_any_details_are_read(code: int, details: bytes) -> None:
    assert statuses.from_status(code, "m", details).code == code


def test_our_details_count_more_than_the_code() -> None:
    failure = statuses.service_failure(errors.ShuttingDown("bye"))
    error = statuses.from_grpc(failure.code, "bare", statuses.to_status(failure), connected=False)
    assert type(error) is errors.ShuttingDown
    assert str(error) == "bye"


NO_ROUTE = "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Connection refused"


@pytest.mark.parametrize(
    ("code", "message", "connected", "cls"),
    [
        ("UNAVAILABLE", "Socket closed", True, errors.ConnectionLost),
        ("UNAVAILABLE", "Socket closed", False, errors.Unreachable),
        ("UNAVAILABLE", NO_ROUTE, True, errors.Unreachable),
        ("UNAVAILABLE", "DNS resolution failed for x:1", True, errors.Unreachable),
        ("UNKNOWN", "Stream removed", True, errors.ConnectionLost),
        ("UNKNOWN", "Exception calling application: x", True, errors.ServiceError),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", True, errors.DeadlineExceeded),
        ("CANCELLED", "", True, errors.Cancelled),
        ("UNIMPLEMENTED", "Method not found!", True, errors.NotImplementedByPeer),
        ("RESOURCE_EXHAUSTED", "Received message larger than max (5 vs. 4)", True, errors.TooLarge),
        ("RESOURCE_EXHAUSTED", "CLIENT: Sent message larger than max (5 vs. 4)", True, errors.TooLarge),
        ("RESOURCE_EXHAUSTED", "Concurrent RPC limit exceeded!", True, errors.Overloaded),
        ("RESOURCE_EXHAUSTED", "received trailing metadata size exceeds hard limit", True, errors.ServiceError),
        ("UNAUTHENTICATED", "who?", True, errors.Unauthenticated),
        ("PERMISSION_DENIED", "no", True, errors.NotAllowed),
        ("INTERNAL", "Exception deserializing request!", True, errors.InternalError),
        ("INVALID_ARGUMENT", "x", True, errors.RequestError),
        ("DATA_LOSS", "x", True, errors.ServiceError),
    ],
)
def test_bare_statuses(code: str, message: str, connected: bool, cls: type[TensorcallError]) -> None:
    error = statuses.from_grpc(code_pb2.Code.Value(code), message, None, connected=connected, address="host:1")
    assert type(error) is cls
    assert str(error).endswith(message or f"status {code}")
    assert error.retry_after is None
    assert ("host:1" in str(error)) == isinstance(error, errors.NetworkError)


@pytest.mark.parametrize("code", [*code_pb2.Code.values(), 99, -1])
def test_every_code_makes_an_error(code: int) -> None:
    assert isinstance(statuses.from_grpc(code, "", None, connected=True), TensorcallError)


def test_codes_are_grpcs() -> None:
    assert {code.name: code.value[0] for code in grpc.StatusCode} == dict(code_pb2.Code.items())
