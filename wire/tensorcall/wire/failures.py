"""Errors ↔ Failure, by tables. See error.proto.

Who raised decides, not the class: an exposed function that calls another server and gets NotExposed has raised, and its
caller must not take that for an answer of ours. So there are two ways in, udf_failure and service_failure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import FrameType, MappingProxyType
from typing import Any

from google.protobuf import duration_pb2
from google.rpc import code_pb2

from tensorcall.v1 import error_pb2
from tensorcall.wire import errors
from tensorcall.wire.errors import RemoteError, RequestError, ServiceError, TensorcallError
from tensorcall.wire.exception_classes import class_mro, is_builtin
from tensorcall.wire.exception_writer import raw_dict
from tensorcall.wire.exceptions import from_tree, to_tree
from tensorcall.wire.texts import clean, cut, safe_str, type_name
from tensorcall.wire.traceback_text import headline

# Of a message that the exception tree has in full.
MAX_MESSAGE = 1000
_MAX_SECONDS = 315_576_000_000  # what a Duration takes

# The reasons of error.proto, with the class and the google.rpc.Code of each. Not on the wire as a rule, since they tell
# of the way to a server: UNREACHABLE and CONNECTION_LOST; a server passes them on when it could not reach another.
REASONS: Mapping[str, tuple[type[TensorcallError], int]] = MappingProxyType(
    {
        "UDF_RAISED": (errors.RemoteError, code_pb2.UNKNOWN),  # or as CODES has it
        "NOT_EXPOSED": (errors.NotExposed, code_pb2.NOT_FOUND),
        "BAD_ARGUMENTS": (errors.BadArguments, code_pb2.INVALID_ARGUMENT),
        "BAD_PAYLOAD": (errors.BadPayload, code_pb2.INVALID_ARGUMENT),
        "TOO_LARGE": (errors.TooLarge, code_pb2.RESOURCE_EXHAUSTED),
        "PICKLE_REFUSED": (errors.PickleRefused, code_pb2.PERMISSION_DENIED),
        "UNENCODABLE_RESULT": (errors.UnencodableResult, code_pb2.INTERNAL),
        "UNAUTHENTICATED": (errors.Unauthenticated, code_pb2.UNAUTHENTICATED),
        "NOT_ALLOWED": (errors.NotAllowed, code_pb2.PERMISSION_DENIED),
        "DUPLICATE_CALL": (errors.DuplicateCall, code_pb2.ALREADY_EXISTS),
        "ERROR_UNKNOWN": (errors.ErrorUnknown, code_pb2.NOT_FOUND),
        "UNKNOWN_TYPE": (errors.UnknownType, code_pb2.INVALID_ARGUMENT),
        "RREF_UNKNOWN": (errors.RRefUnknown, code_pb2.NOT_FOUND),
        "RREF_EXPIRED": (errors.RRefExpired, code_pb2.FAILED_PRECONDITION),
        "OWNER_RESTARTED": (errors.OwnerRestarted, code_pb2.FAILED_PRECONDITION),
        "NAME_TAKEN": (errors.NameTaken, code_pb2.ALREADY_EXISTS),
        "WORKER_UNKNOWN": (errors.WorkerUnknown, code_pb2.NOT_FOUND),
        "MEMBERSHIP_LAPSED": (errors.MembershipLapsed, code_pb2.FAILED_PRECONDITION),
        "OVERLOADED": (errors.Overloaded, code_pb2.RESOURCE_EXHAUSTED),
        "SHUTTING_DOWN": (errors.ShuttingDown, code_pb2.UNAVAILABLE),
        "DEADLINE_EXCEEDED": (errors.DeadlineExceeded, code_pb2.DEADLINE_EXCEEDED),
        "CANCELLED": (errors.Cancelled, code_pb2.CANCELLED),
        "NOT_IMPLEMENTED": (errors.NotImplementedByPeer, code_pb2.UNIMPLEMENTED),
        "HANDLER_CLEANED_UP": (errors.HandlerCleanedUp, code_pb2.FAILED_PRECONDITION),
        "INTERNAL": (errors.InternalError, code_pb2.INTERNAL),
        "UNREACHABLE": (errors.Unreachable, code_pb2.UNAVAILABLE),
        # Not UNAVAILABLE, which invites to try again: the call may have run.
        "CONNECTION_LOST": (errors.ConnectionLost, code_pb2.UNKNOWN),
    }
)

# What the exception of an exposed function is to callers that know codes only; the nearest class counts, UNKNOWN if
# none is here. CANCELLED, DEADLINE_EXCEEDED, UNAVAILABLE and UNAUTHENTICATED are gRPC's own words for what became of
# the call: proxies and retry policies act on them. A function that was run and raised TimeoutError or ConnectionError
# must not be run again for that, nor be taken for a broken network.
CODES: Mapping[type[BaseException], int] = MappingProxyType(
    {
        ValueError: code_pb2.INVALID_ARGUMENT,
        TypeError: code_pb2.INVALID_ARGUMENT,
        LookupError: code_pb2.NOT_FOUND,
        KeyError: code_pb2.NOT_FOUND,
        IndexError: code_pb2.OUT_OF_RANGE,
        ArithmeticError: code_pb2.OUT_OF_RANGE,
        AssertionError: code_pb2.FAILED_PRECONDITION,
        FileNotFoundError: code_pb2.NOT_FOUND,
        FileExistsError: code_pb2.ALREADY_EXISTS,
        PermissionError: code_pb2.PERMISSION_DENIED,
        NotImplementedError: code_pb2.UNIMPLEMENTED,
        MemoryError: code_pb2.RESOURCE_EXHAUSTED,
        TimeoutError: code_pb2.UNKNOWN,
        ConnectionError: code_pb2.UNKNOWN,
    }
)
# The same for classes of libraries that this package does not import.
CODES_BY_NAME: Mapping[str, int] = MappingProxyType({"torch.OutOfMemoryError": code_pb2.RESOURCE_EXHAUSTED})

# Codes that say that the request is at fault.
_CALLERS_FAULT = frozenset(
    (
        code_pb2.INVALID_ARGUMENT,
        code_pb2.NOT_FOUND,
        code_pb2.ALREADY_EXISTS,
        code_pb2.PERMISSION_DENIED,
        code_pb2.UNAUTHENTICATED,
        code_pb2.FAILED_PRECONDITION,
        code_pb2.OUT_OF_RANGE,
        code_pb2.UNIMPLEMENTED,
    )
)


def code_of(exc: BaseException) -> int:
    """Picks the google.rpc.Code for an exception of an exposed function."""
    for cls in class_mro(type(exc)):
        code = CODES.get(cls) if is_builtin(cls) else CODES_BY_NAME.get(".".join(type_name(cls)))
        if code is not None:
            return code
    return int(code_pb2.UNKNOWN)


def reason_of(error: TensorcallError) -> str:
    """Tells the word for an error on the wire.

    For a RemoteError, `error.reason` may be an attribute of the original exception; this is not.
    """
    if isinstance(error, RemoteError):
        return RemoteError.reason
    # Raised where a value would be sent. If the service could not send, it was the result.
    return errors.UnencodableResult.reason if isinstance(error, errors.Unencodable) else error.reason


def udf_failure(
    exc: BaseException,
    *,
    worker: str = "",
    error_id: str = "",
    tracebacks: bool = True,
    skip: Callable[[FrameType], bool] | None = None,
) -> error_pb2.Failure:
    """Tells what an exposed function raised, whatever its class. Never raises; see to_tree for the arguments."""
    tree = to_tree(exc, worker=worker, error_id=error_id, tracebacks=tracebacks, skip=skip)
    return error_pb2.Failure(
        code=code_of(exc),
        message=cut(headline(tree.exceptions[0]), MAX_MESSAGE),
        reason=RemoteError.reason,
        exception=tree,
    )


def service_failure(error: BaseException) -> error_pb2.Failure:
    """Tells what the service itself raised.

    A RemoteError is passed on as what it is: an exposed function of another server raised. What is no TensorcallError
    is a defect; its message stays here, since it may tell what is nobody's business.
    """
    if isinstance(error, RemoteError):
        return udf_failure(error)
    if not isinstance(error, TensorcallError):
        error = errors.InternalError(f"a defect of tensorcall ({type(error).__name__}); the server's log has more")
    reason = reason_of(error)
    failure = error_pb2.Failure(
        code=REASONS[reason][1],
        message=safe_str(error),
        reason=reason,
        metadata={clean(str(key)): clean(str(value)) for key, value in error.metadata.items()},
    )
    if error.retry_after is not None and math.isfinite(error.retry_after):
        failure.retry_after.CopyFrom(_duration(error.retry_after))
    return failure


def to_failure(error: BaseException, **description: Any) -> error_pb2.Failure:
    """Tells an error by its class: TensorcallErrors as the service's own, all others as raised by a function.

    For use where no function was run, or where its exceptions were told apart already. `description` goes to to_tree.
    """
    if isinstance(error, TensorcallError) and not isinstance(error, RemoteError):
        return service_failure(error)
    return udf_failure(error, **description)


def from_failure(failure: error_pb2.Failure) -> TensorcallError:
    """Makes the error that a failure tells of, the inverse of udf_failure and service_failure.

    A reason that is not known here (the server is newer) gives a plain RequestError or ServiceError, by the code, whose
    metadata holds the reason.
    """
    metadata = dict(failure.metadata)
    retry_after = _seconds(failure.retry_after) if failure.HasField("retry_after") else None
    if failure.reason == RemoteError.reason:
        error = from_tree(failure.exception) if failure.exception.exceptions else RemoteError(failure.message)
        raw_dict(error)["metadata"] = metadata
        return error
    known = REASONS.get(failure.reason)
    if known is not None:
        return known[0](failure.message, metadata=metadata, retry_after=retry_after)
    if failure.reason:
        metadata.setdefault("reason", failure.reason)
    return family_of(failure.code)(failure.message, metadata=metadata, retry_after=retry_after)


def family_of(code: int) -> type[TensorcallError]:
    """Tells by a google.rpc.Code whose fault a failure is, as far as that can be told."""
    return RequestError if code in _CALLERS_FAULT else ServiceError


def _duration(seconds: float) -> duration_pb2.Duration:
    whole, nanos = divmod(round(min(max(seconds, 0), _MAX_SECONDS) * 1e9), 1_000_000_000)
    return duration_pb2.Duration(seconds=whole, nanos=nanos)


def _seconds(duration: duration_pb2.Duration) -> float:
    return (duration.seconds * 10**9 + duration.nanos) / 10**9  # rounded once
