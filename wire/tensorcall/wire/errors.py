"""Errors, sorted by whose fault they are.

TensorcallError
├── RequestError                 the caller's request: the same request fails again
│   ├── NotExposed               no function of that name is exposed (also a LookupError)
│   ├── BadArguments             the arguments do not fit the signature (also a TypeError)
│   ├── BadPayload               malformed, or describes an impossible value (also a ValueError)
│   │   └── TooLarge             above a limit
│   ├── Unencodable              the value has no form on the wire (also a TypeError)
│   ├── PickleRefused            the peer does not take pickled Python from us
│   ├── Unauthenticated          the caller did not say who it is
│   ├── NotAllowed               the caller may not do this (also a PermissionError)
│   ├── DuplicateCall            this call id is in flight or was run already; it was not run again
│   ├── ErrorUnknown             no error of that id is kept (any more)
│   ├── UnknownType              the text names no TorchScript type
│   ├── NotImplementedByPeer     the peer does not do this (yet)
│   ├── RRefError                the reference is of no use
│   │   ├── RRefUnknown          its owner never held the value
│   │   └── RRefExpired          the lease on it lapsed
│   └── DirectoryError           of who is there
│       ├── NameTaken            a live worker has the name, or the id
│       ├── WorkerUnknown        no such worker is there (also a LookupError)
│       └── MembershipLapsed     the worker is not a member (any more)
├── RemoteError                  the exposed function raised; usually an instance of the original type, too
├── ServiceError                 the service
│   ├── Overloaded               its queue is full; nothing was run
│   ├── ShuttingDown             it drains; nothing was run
│   ├── OwnerRestarted           it was restarted and has lost what the reference names
│   ├── UnencodableResult        the function ran, but its result can't be sent
│   ├── HandlerCleanedUp         its handler was cleaned up
│   └── InternalError            a defect of tensorcall
├── NetworkError                 the way there (also a ConnectionError)
│   ├── Unreachable              nobody answers; nothing was run
│   └── ConnectionLost           the peer went away in mid-call; whether the call ran is unknown
├── DeadlineExceeded             the time of the call ran out (also a TimeoutError)
└── Cancelled                    the call was cancelled
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tensorcall.v1 import error_pb2


class TensorcallError(Exception):
    """Base of every error of tensorcall.

    `reason` is the word for it on the wire (see error.proto), `metadata` holds facts that belong to it, and
    `retry_after` is how many seconds to wait before the same request may be sent again without the risk that it runs
    twice; None where there is no such promise.
    """

    reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self, message: str = "", *, metadata: Mapping[str, str] | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.metadata: dict[str, str] = dict(metadata or {})
        self.retry_after = retry_after


class RequestError(TensorcallError):
    """The caller's request is at fault: sent again unchanged it fails again."""

    reason = "BAD_PAYLOAD"


class NotExposed(RequestError, LookupError):
    """No function of that name is exposed."""

    reason = "NOT_EXPOSED"


class BadArguments(RequestError, TypeError):
    """The arguments do not fit the function's signature; the function was not run."""

    reason = "BAD_ARGUMENTS"


class BadPayload(RequestError, ValueError):
    """A message is malformed, or describes an impossible value."""

    reason = "BAD_PAYLOAD"


class TooLarge(BadPayload):
    """A message or a value is above a limit."""

    reason = "TOO_LARGE"


class Unencodable(RequestError, TypeError):
    """A value has no form on the wire. Raised on the side that would send it, before anything is sent."""


class PickleRefused(RequestError):
    """The peer does not take pickled Python from this caller."""

    reason = "PICKLE_REFUSED"


class Unauthenticated(RequestError):
    """The caller did not say who it is."""

    reason = "UNAUTHENTICATED"


class NotAllowed(RequestError, PermissionError):
    """The caller may not do this."""

    reason = "NOT_ALLOWED"


class DuplicateCall(RequestError):
    """A call of this id is in flight or was run already; it was not run again."""

    reason = "DUPLICATE_CALL"


class ErrorUnknown(RequestError, LookupError):
    """No error of that id is kept (any more)."""

    reason = "ERROR_UNKNOWN"


class UnknownType(RequestError, ValueError):
    """The text names no TorchScript type."""

    reason = "UNKNOWN_TYPE"


class NotImplementedByPeer(RequestError, NotImplementedError):
    """The peer does not do this (yet)."""

    reason = "NOT_IMPLEMENTED"


class RRefError(RequestError):
    """A reference is of no use."""


class RRefUnknown(RRefError, LookupError):
    """The owner never held the value."""

    reason = "RREF_UNKNOWN"


class RRefExpired(RRefError):
    """The lease on the value lapsed."""

    reason = "RREF_EXPIRED"


class DirectoryError(RequestError):
    """Of who is there: the workers of a world."""


class NameTaken(DirectoryError):
    """A live worker of this world has the name, or the id."""

    reason = "NAME_TAKEN"


class WorkerUnknown(DirectoryError, LookupError):
    """No worker of that name or id is there."""

    reason = "WORKER_UNKNOWN"


class MembershipLapsed(DirectoryError):
    """The worker is not a member: it did not renew its lease, or the directory was restarted."""

    reason = "MEMBERSHIP_LAPSED"


class RemoteError(TensorcallError):
    """The exposed function raised.

    What `call` raises is, wherever the exception's class is known here, an instance of that class as well: both
    `except ValueError` and `except RemoteError` catch it, and `args`, attributes, notes, cause, context and members of
    groups are as they were. A class that is not known here arrives as a plain RemoteError.

    `remote_type` is the class as "module.Class", `remote_traceback` the text of the traceback on the worker (empty if
    we may not see it), `worker` names where it was raised, `retryable` tells that the function itself said that
    calling again may help, and `tree` is everything as it came.
    """

    reason = "UDF_RAISED"

    # Set on the instance by exceptions.from_tree; the class' values serve a RemoteError made by hand.
    metadata: dict[str, str]
    retry_after: float | None
    remote_type: str = ""
    remote_traceback: str = ""
    worker: str = ""
    retryable: bool = False
    tree: error_pb2.ExceptionTree | None = None


class ServiceError(TensorcallError):
    """The service is at fault, or can't just now."""


class Overloaded(ServiceError):
    """The server's queue is full. Nothing was run: try again after `retry_after` seconds."""

    reason = "OVERLOADED"


class ShuttingDown(ServiceError):
    """The server drains. Nothing was run."""

    reason = "SHUTTING_DOWN"


class OwnerRestarted(ServiceError):
    """The owner of a reference was restarted since and has lost the value."""

    reason = "OWNER_RESTARTED"


class UnencodableResult(ServiceError, TypeError):
    """The function ran, but its result has no form on the wire."""

    reason = "UNENCODABLE_RESULT"


class HandlerCleanedUp(ServiceError, RuntimeError):
    """The handler was cleaned up; `Handler.get_instance().init()` makes it work again."""

    reason = "HANDLER_CLEANED_UP"


class InternalError(ServiceError):
    """A defect of tensorcall. The server's log has more."""

    reason = "INTERNAL"


class NetworkError(TensorcallError, ConnectionError):
    """The way to the server is at fault."""


class Unreachable(NetworkError):
    """Nobody answers at that address. Nothing was run."""

    reason = "UNREACHABLE"


class ConnectionLost(NetworkError):
    """The peer went away in mid-call. Whether the call ran is unknown."""

    reason = "CONNECTION_LOST"


class DeadlineExceeded(TensorcallError, TimeoutError):
    """The time of the call ran out."""

    reason = "DEADLINE_EXCEEDED"


class Cancelled(TensorcallError):
    """The call was cancelled."""

    reason = "CANCELLED"
