"""The tables are complete, and errors come back as they went."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.rpc import code_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorcall.v1 import error_pb2
from tensorcall.wire import errors, statuses
from tensorcall.wire.errors import RemoteError, TensorcallError

# Those that stand for several classes, and one that is raised before anything is sent.
FAMILIES = {
    errors.TensorcallError,
    errors.RequestError,
    errors.ServiceError,
    errors.NetworkError,
    errors.RRefError,
    errors.DirectoryError,
    errors.Unencodable,
}
OURS = sorted((cls for cls, _ in statuses.REASONS.values() if cls is not RemoteError), key=lambda cls: cls.__name__)


def subclasses(cls: type[TensorcallError]) -> Iterator[type[TensorcallError]]:
    yield cls
    for sub in cls.__subclasses__():
        if sub.__module__ == errors.__name__ and getattr(errors, sub.__name__) is sub:
            yield from subclasses(sub)


def contract_reasons() -> set[str]:
    """The reasons in the comment of error.proto."""
    contract = Path(__file__).parents[2] / "protos/tensorcall/v1/error.proto"
    return set(re.findall(r"^  //   ([A-Z_]+)  +\S", contract.read_text(), re.MULTILINE))


def test_every_error_has_one_reason_and_every_reason_one_error() -> None:
    concrete = set(subclasses(TensorcallError)) - FAMILIES
    assert {cls: [reason for reason, (of, _) in statuses.REASONS.items() if of is cls] for cls in concrete} == {
        cls: [cls.reason] for cls in concrete
    }
    assert len(statuses.REASONS) == len(concrete)


def test_every_reason_of_the_contract_is_there() -> None:
    assert len(contract_reasons()) == 25
    assert set(statuses.REASONS) == contract_reasons() | {"UNREACHABLE", "CONNECTION_LOST"}


def test_codes_are_codes_of_errors() -> None:
    codes = [code for _, code in statuses.REASONS.values()]
    assert all(code in code_pb2.Code.values() and code != code_pb2.OK for code in codes)
    # Only where nothing was run may a caller see what invites a retry.
    assert [r for r, (_, code) in statuses.REASONS.items() if code == code_pb2.UNAVAILABLE] == [
        "SHUTTING_DOWN",
        "UNREACHABLE",
    ]


def test_exceptions_of_functions_never_look_like_what_became_of_the_call() -> None:
    grpc_words = {code_pb2.OK, code_pb2.CANCELLED, code_pb2.DEADLINE_EXCEEDED, code_pb2.UNAVAILABLE}
    grpc_words.add(code_pb2.UNAUTHENTICATED)
    assert not grpc_words & {*statuses.CODES.values(), *statuses.CODES_BY_NAME.values()}


class Custom(KeyError):
    pass


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError(), "INVALID_ARGUMENT"),
        (UnicodeDecodeError("utf8", b"", 0, 1, "x"), "INVALID_ARGUMENT"),
        (TypeError(), "INVALID_ARGUMENT"),
        (KeyError(), "NOT_FOUND"),
        (Custom(), "NOT_FOUND"),
        (IndexError(), "OUT_OF_RANGE"),
        (FileNotFoundError(), "NOT_FOUND"),
        (FileExistsError(), "ALREADY_EXISTS"),
        (PermissionError(), "PERMISSION_DENIED"),
        (NotImplementedError(), "UNIMPLEMENTED"),
        (MemoryError(), "RESOURCE_EXHAUSTED"),
        (ZeroDivisionError(), "OUT_OF_RANGE"),
        (AssertionError(), "FAILED_PRECONDITION"),
        (TimeoutError(), "UNKNOWN"),
        (ConnectionRefusedError(), "UNKNOWN"),
        (OSError(), "UNKNOWN"),
        (RuntimeError(), "UNKNOWN"),
        (KeyboardInterrupt(), "UNKNOWN"),
        (asyncio.CancelledError(), "UNKNOWN"),
        (errors.NotExposed("of a third server"), "NOT_FOUND"),
        (errors.Unreachable("a third server"), "UNKNOWN"),
    ],
    ids=repr,
)
def test_codes(error: BaseException, code: str) -> None:
    failure = statuses.udf_failure(error)
    assert (failure.code, failure.reason) == (code_pb2.Code.Value(code), "UDF_RAISED")
    # The same on the next leg of its way.
    assert statuses.udf_failure(statuses.from_failure(failure)).code == failure.code
    assert not failure.HasField("retry_after")


def test_out_of_memory_needs_no_torch() -> None:
    cls = type("OutOfMemoryError", (RuntimeError,), {"__module__": "torch"})
    assert statuses.code_of(cls()) == code_pb2.RESOURCE_EXHAUSTED


def test_a_class_that_cannot_be_hashed() -> None:
    meta = type("Meta", (type,), {"__hash__": None})
    assert statuses.udf_failure(meta("Odd", (ValueError,), {})("x")).code == code_pb2.INVALID_ARGUMENT


@settings(deadline=None)
@given(
    st.sampled_from(OURS),
    st.text(),
    st.dictionaries(st.text(), st.text()),
    st.none() | st.integers(0, 10**15).map(lambda nanos: nanos / 1e9),
)
def test_our_errors_come_back(
    cls: type[TensorcallError], message: str, metadata: dict[str, str], retry_after: float | None
) -> None:
    error = cls(message, metadata=metadata, retry_after=retry_after)
    failure = error_pb2.Failure.FromString(statuses.service_failure(error).SerializeToString())
    assert statuses.to_failure(error) == failure
    back = statuses.from_failure(failure)
    assert type(back) is cls
    assert (str(back), back.metadata, back.retry_after) == (str(error), metadata, retry_after)
    assert back.args == error.args
    assert statuses.service_failure(back) == failure


@pytest.mark.parametrize("retry_after", [-1, 1e300, float("inf"), float("nan")])
def test_odd_waits(retry_after: float) -> None:
    back = statuses.from_failure(statuses.service_failure(errors.Overloaded(retry_after=retry_after)))
    assert back.retry_after is None or 0 <= back.retry_after < 1e12


def test_who_raised_decides() -> None:
    error = errors.NotExposed("no 'f' here", metadata={"function": "f"})
    ours = statuses.from_failure(statuses.service_failure(error))
    theirs = statuses.from_failure(statuses.udf_failure(error, worker="w"))
    assert type(ours) is errors.NotExposed
    assert isinstance(theirs, RemoteError)
    assert isinstance(theirs, LookupError)
    assert not isinstance(theirs, errors.NotExposed)
    assert (theirs.remote_type, theirs.worker) == ("tensorcall.wire.errors.NotExposed", "w")


def test_remote_errors_are_passed_on_as_such() -> None:
    raised = statuses.from_failure(statuses.udf_failure(ValueError("x")))
    for failure in (statuses.service_failure(raised), statuses.to_failure(raised)):
        assert (failure.reason, failure.message) == ("UDF_RAISED", "ValueError: x")
        assert isinstance(statuses.from_failure(failure), ValueError)


def test_a_defect_does_not_tell_its_message() -> None:
    failure = statuses.service_failure(KeyError("secret"))
    assert (failure.reason, failure.code) == ("INTERNAL", code_pb2.INTERNAL)
    assert "KeyError" in failure.message
    assert "secret" not in str(failure)
    assert statuses.to_failure(KeyError("k")).reason == "UDF_RAISED"


def test_what_the_service_could_not_encode_was_its_result() -> None:
    back = statuses.from_failure(statuses.service_failure(errors.Unencodable("x")))
    assert type(back) is errors.UnencodableResult


def test_families_and_subclasses_have_the_nearest_reason() -> None:
    cls = type("MyDenial", (errors.NotAllowed,), {})
    assert type(statuses.from_failure(statuses.service_failure(cls("x")))) is errors.NotAllowed
    assert type(statuses.from_failure(statuses.service_failure(errors.ServiceError("x")))) is errors.InternalError


def test_the_reason_of_a_remote_error() -> None:
    raised = statuses.from_failure(statuses.udf_failure(UnicodeDecodeError("utf8", b"a", 0, 1, "bad byte")))
    assert raised.reason == "bad byte"
    assert statuses.reason_of(raised) == "UDF_RAISED"
    assert statuses.reason_of(errors.NotExposed()) == "NOT_EXPOSED"


def test_reasons_of_a_newer_server() -> None:
    for code, cls in ((code_pb2.NOT_FOUND, errors.RequestError), (code_pb2.ABORTED, errors.ServiceError)):
        error = statuses.from_failure(error_pb2.Failure(code=code, message="m", reason="NEW", metadata={"a": "b"}))
        assert type(error) is cls
        assert (str(error), error.metadata) == ("m", {"a": "b", "reason": "NEW"})


def test_a_raised_failure_without_its_exception() -> None:
    error = statuses.from_failure(error_pb2.Failure(reason="UDF_RAISED", message="m", metadata={"a": "b"}))
    assert type(error) is RemoteError
    assert (str(error), error.metadata) == ("m", {"a": "b"})


def test_the_message_of_a_failure_is_for_people() -> None:
    failure = statuses.udf_failure(ValueError("x" * 100_000))
    assert failure.message.startswith("ValueError: xxx")
    assert len(failure.message) < 1100
    assert len(failure.exception.exceptions[0].message) == 100_000
