"""Failure ↔ google.rpc.Status, the details of a gRPC status; with failures.py, all that tells an error over the wire.

    raised by an exposed function → udf_failure     ⎫             ⎧ to_status   → trailer of a gRPC call
    raised by the service         → service_failure ⎬ → Failure → ⎨
                                     from_failure  ←⎭             ⎩ from_status ←

from_grpc is what a client uses: from the status of a failed call to the error to raise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeVar

from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from tensorcall.v1 import error_pb2
from tensorcall.wire import errors
from tensorcall.wire.errors import TensorcallError
from tensorcall.wire.exceptions import shrink
from tensorcall.wire.failures import (
    CODES,
    CODES_BY_NAME,
    REASONS,
    code_of,
    family_of,
    from_failure,
    reason_of,
    service_failure,
    to_failure,
    udf_failure,
)
from tensorcall.wire.limits import MAX_STATUS_DETAIL_BYTES
from tensorcall.wire.texts import clean, fit

__all__ = [
    "CODES",
    "CODES_BY_NAME",
    "DETAILS_KEY",
    "DOMAIN",
    "REASONS",
    "code_of",
    "from_failure",
    "from_grpc",
    "from_status",
    "reason_of",
    "service_failure",
    "to_failure",
    "to_status",
    "udf_failure",
]

M = TypeVar("M", bound=Message)

DETAILS_KEY = "grpc-status-details-bin"
DOMAIN = "tensorcall"

# What a code means that comes without our details: from gRPC itself or from a proxy.
_BARE: Mapping[int, type[TensorcallError]] = MappingProxyType(
    {
        code_pb2.CANCELLED: errors.Cancelled,
        code_pb2.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
        code_pb2.UNIMPLEMENTED: errors.NotImplementedByPeer,
        code_pb2.UNAUTHENTICATED: errors.Unauthenticated,
        code_pb2.PERMISSION_DENIED: errors.NotAllowed,
        code_pb2.INTERNAL: errors.InternalError,
        code_pb2.RESOURCE_EXHAUSTED: errors.Overloaded,
        code_pb2.UNAVAILABLE: errors.ConnectionLost,
    }
)
# The same by grpcio's words, where the code does not say enough; the first that is found counts.
_BARE_BY_WORDS: tuple[tuple[str, type[TensorcallError]], ...] = (
    ("failed to connect", errors.Unreachable),
    ("DNS resolution failed", errors.Unreachable),
    ("Name resolution failure", errors.Unreachable),
    ("errors resolving", errors.Unreachable),
    ("message larger than max", errors.TooLarge),
    # What the status would have said is lost.
    ("metadata size exceeds", errors.ServiceError),
    ("Stream removed", errors.ConnectionLost),
)


def to_status(failure: error_pb2.Failure, *, keep: Callable[[error_pb2.ExceptionTree], object] | None = None) -> bytes:
    """Writes a failure as the google.rpc.Status that goes into the trailer DETAILS_KEY.

    Args:
        failure: the failure.
        keep: called with the exception tree if it does not fit: keeps it for GetError and sets its `error_id`.

    Returns:
        At most MAX_STATUS_DETAIL_BYTES; what is longer is cut, and its tree marked `truncated`.
    """
    tree = failure.exception if failure.HasField("exception") else None
    whole = _status(failure, failure.message, failure.reason, failure.metadata, tree)
    if len(whole) <= MAX_STATUS_DETAIL_BYTES:
        return whole
    if tree is not None and keep is not None:
        keep(tree)
    # The tree has the message in full, or more of it.
    room = MAX_STATUS_DETAIL_BYTES if tree is None else MAX_STATUS_DETAIL_BYTES // 4
    reason = fit(failure.reason, 100)
    metadata = _fitting(failure.metadata, room // 2)
    room -= len(_status(failure, "", reason, metadata, None)) + 8
    message = fit(failure.message, room)
    if tree is not None:
        rest = len(_status(failure, message, reason, metadata, error_pb2.ExceptionTree()))
        # Longer contents have longer lengths around them.
        tree = shrink(tree, MAX_STATUS_DETAIL_BYTES - rest - 8)
    return _status(failure, message, reason, metadata, tree)


def from_status(code: int, message: str, details: bytes | None) -> error_pb2.Failure:
    """Reads a failure from a gRPC status, the inverse of to_status.

    Args:
        code: the status' code.
        message: its message.
        details: the value of the trailer DETAILS_KEY.

    Returns:
        The failure. If the details are none, or none of ours, it has just code and message, and the reason "".
    """
    bare = error_pb2.Failure(code=code, message=clean(message))
    if not details:
        return bare
    try:
        status = status_pb2.Status.FromString(details)
        info = _unpack(status, error_details_pb2.ErrorInfo())
        if info is None or info.domain != DOMAIN or status.code != code:
            return bare
        failure = error_pb2.Failure(code=code, message=status.message, reason=info.reason, metadata=info.metadata)
        tree = _unpack(status, error_pb2.ExceptionTree())
        if tree is not None:
            failure.exception.CopyFrom(tree)
        retry = _unpack(status, error_details_pb2.RetryInfo())
        if retry is not None:
            failure.retry_after.CopyFrom(retry.retry_delay)
    except DecodeError:
        return bare
    return failure


def from_grpc(code: int, message: str, details: bytes | None, *, connected: bool, address: str = "") -> TensorcallError:
    """Makes the error to raise for a gRPC call that failed.

    Args:
        code: the status' code, a google.rpc.Code.
        message: its message.
        details: the value of the trailer DETAILS_KEY.
        connected: whether there ever was a connection to the server.
        address: where the server should be, for the message.

    Returns:
        What the server raised; without its details, what the code and grpcio's words tell.
    """
    failure = from_status(code, message, details)
    if failure.reason:
        return from_failure(failure)
    cls = next((cls for words, cls in _BARE_BY_WORDS if words in message), None) or _BARE.get(code, family_of(code))
    if cls is errors.ConnectionLost and not connected:
        cls = errors.Unreachable
    said = failure.message or f"status {code_pb2.Code.Name(code) if code in code_pb2.Code.values() else code}"
    if not issubclass(cls, errors.NetworkError):
        return cls(said)
    server = address or "the server"
    if cls is errors.Unreachable:
        return cls(f"{server} can't be reached, nothing was run: {said}")
    return cls(f"the connection to {server} was lost, whether the call ran is unknown: {said}")


def _status(
    failure: error_pb2.Failure,
    message: str,
    reason: str,
    metadata: Mapping[str, str],
    tree: error_pb2.ExceptionTree | None,
) -> bytes:
    status = status_pb2.Status(code=failure.code, message=message)
    status.details.add().Pack(error_details_pb2.ErrorInfo(domain=DOMAIN, reason=reason, metadata=metadata))
    if tree is not None:
        status.details.add().Pack(tree)
    if failure.HasField("retry_after"):
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=failure.retry_after))
    return bytes(status.SerializeToString())


def _fitting(metadata: Mapping[str, str], size: int) -> dict[str, str]:
    """Keeps the shortest entries, cut, as far as they fit."""
    kept = {}
    for key, value in sorted(metadata.items(), key=lambda entry: len(entry[0]) + len(entry[1])):
        short = fit(value, 200)
        size -= len(key.encode()) + len(short.encode()) + 12  # tags and lengths
        if size < 0:
            break
        kept[key] = short
    return kept


def _unpack(status: status_pb2.Status, message: M) -> M | None:
    """Reads the detail of this type, if there is one."""
    return next((message for detail in status.details if detail.Unpack(message)), None)
