"""What the servicers have in common: threads, generated messages, failures."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from tensorcall.server.context import Peer
from tensorcall.server.pool import Pool
from tensorcall.v1 import error_pb2
from tensorcall.wire import statuses
from tensorcall.wire.errors import BadPayload, Unauthenticated
from tensorcall.wire.limits import MAX_STATUS_MESSAGE_CHARACTERS

if TYPE_CHECKING:
    from tensorcall.server.core import Core

_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
_RETRY_PUSHBACK = "grpc-retry-pushback-ms"

M = TypeVar("M", bound=Message)


class GrpcExecutor(ThreadPoolExecutor):
    """Lets gRPC run its methods on one of our pools. gRPC asks for this class by name; it has no threads of its own."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(max_workers=1)
        self._pool = pool

    def submit(self, task: Callable[..., object], /, *args: Any, **kwargs: Any) -> Any:
        """Runs a method. gRPC has no way to turn a call away here: `HandlerServicer.service` did that before."""
        self._pool.submit_always(task, *args)


def on(threads: ThreadPoolExecutor, method: Callable[..., Any], *, non_blocking: bool = False) -> Callable[..., Any]:
    """Has gRPC run a method on these threads; `non_blocking`: it gets a third argument that sends from any thread."""

    def behavior(*args: Any) -> Any:
        return method(*args)

    behavior.experimental_thread_pool = threads  # type: ignore[attr-defined]
    behavior.experimental_non_blocking = non_blocking  # type: ignore[attr-defined]
    return behavior


class Failures:
    """Turns what is raised into the status of a call."""

    def __init__(self, core: Core) -> None:
        self._core = core
        # Strangers were turned away before.
        self._trusted = bool(core.config.secret)

    def peer(self, context: grpc.ServicerContext) -> Peer:
        """Tells who is calling."""
        return Peer(context.peer(), self._trusted)

    @contextlib.contextmanager
    def told(self, context: grpc.ServicerContext) -> Iterator[None]:
        """Turns whatever is raised within into the call's status."""
        try:
            yield
        except Exception as error:
            failure = self._core.failure(error, self.peer(context))
        else:
            return
        self.abort(context, failure)

    def abort(self, context: grpc.ServicerContext, failure: error_pb2.Failure) -> NoReturn:
        """Ends a call with a failure, on the thread that gRPC gave it."""
        code, details = self._set(context, failure)
        context.abort(code, details)

    def end(self, context: grpc.ServicerContext, send: Callable[[None], None], error: BaseException) -> None:
        """Ends a call with an error, on any thread; `send` is what gRPC gave a method that is `non_blocking`."""
        code, details = self._set(context, self._core.failure(error, self.peer(context)))
        context.set_code(code)
        context.set_details(details)
        send(None)

    def _set(self, context: grpc.ServicerContext, failure: error_pb2.Failure) -> tuple[grpc.StatusCode, str]:
        status = statuses.to_status(failure, keep=self._core.errors.keep)
        metadata: list[tuple[str, str | bytes]] = [(statuses.DETAILS_KEY, status)]
        if failure.HasField("retry_after"):
            metadata.append((_RETRY_PUSHBACK, str(failure.retry_after.ToMilliseconds())))
        context.set_trailing_metadata(tuple(metadata))
        return _CODES.get(failure.code, grpc.StatusCode.UNKNOWN), failure.message[:MAX_STATUS_MESSAGE_CHARACTERS]

    def turn_away(self, requests: object, context: grpc.ServicerContext) -> NoReturn:
        """Turns a call away, unread, that did not show the secret."""
        error = Unauthenticated("this server wants its secret: send it as `authorization: Bearer SECRET`")
        self.abort(context, self._core.failure(error, Peer(context.peer())))


def generated(
    failures: Failures,
    method: Callable[[M], Message],
    request_type: type[M],
    threads: ThreadPoolExecutor | None = None,
) -> grpc.RpcMethodHandler[Any, Any]:
    """Makes a gRPC method of one that takes and returns generated messages.

    Parses here and not in gRPC, which would do it on its polling thread and answer garbage with INTERNAL.
    """

    def behavior(message: bytes, context: grpc.ServicerContext) -> bytes:
        with failures.told(context):
            return method(parsed(request_type, message)).SerializeToString()
        raise AssertionError  # told aborts

    return grpc.unary_unary_rpc_method_handler(on(threads, behavior) if threads else behavior)


def parsed(request_type: type[M], message: bytes) -> M:
    """Reads a generated message.

    Raises:
        BadPayload: malformed.
    """
    try:
        return request_type.FromString(message)
    except DecodeError as error:
        raise BadPayload(f"the {request_type.__name__} is malformed: {error}") from None
