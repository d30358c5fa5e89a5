"""HandlerService over gRPC: decodes, hands to the core, sends what comes back."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from tensorcall.client.deadlines import deadlines
from tensorcall.server.context import Peer
from tensorcall.server.core import Call, Core
from tensorcall.server.pool import RETRY_AFTER_SECONDS, Pool
from tensorcall.server.session import Next, Session
from tensorcall.v1 import error_pb2
from tensorcall.v1 import handler_service_pb2 as pb
from tensorcall.wire import calls, statuses
from tensorcall.wire.errors import BadPayload, Cancelled, Overloaded
from tensorcall.wire.limits import MAX_STATUS_MESSAGE_CHARACTERS
from tensorcall.wire.waiting import waiting

_log = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["HandlerService"].full_name
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
_RETRY_PUSHBACK = "grpc-retry-pushback-ms"
# How long a caller may take to send its request after it opened the call.
_REQUEST_SECONDS = 30.0
_FOR_EVER = 10 * 365 * 24 * 3600.0

M = TypeVar("M", bound=Message)


class GrpcExecutor(ThreadPoolExecutor):
    """Lets gRPC run its methods on one of our pools. gRPC asks for this class by name; it has no threads of its own."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(max_workers=1)
        self._pool = pool

    def submit(self, task: Callable[..., object], /, *args: Any, **kwargs: Any) -> Any:
        """Runs a method. gRPC has no way to turn a call away here: `HandlerServicer.service` did that before."""
        self._pool.submit_always(task, *args)


class HandlerServicer(grpc.GenericRpcHandler):  # type: ignore[misc, unused-ignore]
    """The six methods. What carries tensors takes and gives bytes: our own codec reads and writes them."""

    def __init__(self, core: Core) -> None:
        self._core = core
        config = core.config
        # Sessions live long: each has a thread that reads, and where one is held up another one takes over.
        self._session_threads = Pool(2 * config.max_sessions, 2 * config.max_sessions, 0)
        functions = GrpcExecutor(core.pool)
        self._sessions: set[Session] = set()
        self._methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            f"/{SERVICE}/{name}": handler
            for name, handler in {
                "Call": grpc.stream_unary_rpc_method_handler(_on(functions, self.call)),
                "CallStream": grpc.stream_stream_rpc_method_handler(
                    _on(functions, self.call_stream, non_blocking=True)
                ),
                "Session": grpc.stream_stream_rpc_method_handler(
                    _on(GrpcExecutor(self._session_threads), self.session, non_blocking=True)
                ),
                "ListFunctions": self._generated(self.list_functions, pb.ListFunctionsRequest),
                "ResolveType": self._generated(self.resolve_type, pb.ResolveTypeRequest),
                "GetError": self._generated(self.get_error, pb.GetErrorRequest),
            }.items()
        }
        self._functions = {f"/{SERVICE}/Call", f"/{SERVICE}/CallStream"}
        self._session = f"/{SERVICE}/Session"
        # Reads no request, so it needs no thread that could wait for one.
        shed = GrpcExecutor(Pool(4, 4, 0))
        self._shed: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(_on(shed, self.shed))

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Picks the method; runs on gRPC's one polling thread, so it must be quick."""
        method = handler_call_details.method
        handler = self._methods.get(method)
        if handler is None:
            return None
        if method == self._session:
            too_much = len(self._sessions) >= self._core.config.max_sessions
        else:
            too_much = method in self._functions and self._core.pool.full
        if too_much:
            return self._shed
        return handler

    def shed(self, requests: object, context: grpc.ServicerContext) -> NoReturn:
        """Turns a call away unread."""
        pool = self._core.pool
        what = f"{pool.backlog:,} calls are waiting already" if pool.full else "too many sessions are open"
        self._abort(
            context,
            self._core.failure(Overloaded(f"{what}; nothing was run", retry_after=RETRY_AFTER_SECONDS), _peer(context)),
        )

    # --- calls ---

    def call(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        """HandlerService.Call."""
        with self._failing(context):
            request = calls.decode_request(_only(requests, context))
            with self._admitted(request, context, stream=False) as call:
                return self._core.run(call).bytes
        raise AssertionError  # _failing aborts

    def call_stream(
        self, requests: Iterator[bytes], context: grpc.ServicerContext, send: Callable[[bytes | None], None]
    ) -> None:
        """HandlerService.CallStream."""
        with self._failing(context):
            request = calls.decode_request(_only(requests, context))
            with (
                self._admitted(request, context, stream=True) as call,
                contextlib.closing(self._core.stream(call)) as items,
            ):
                for item in items:
                    message = calls.wrap_result(item).bytes
                    # The caller may be slow to read: that must not cost the pool a thread.
                    with waiting():
                        send(message)
            send(None)

    def session(self, requests: Iterator[bytes], context: grpc.ServicerContext, send: Callable[[Any], None]) -> None:
        """HandlerService.Session. gRPC lets any thread `send`; None ends the stream."""

        def read_on() -> None:
            self._session_threads.submit_always(self._read, session, requests, context)

        session = Session(
            self._core, _peer(context), send=send, finish=lambda: send(None), read_on=read_on, kill=context.cancel
        )
        self._sessions.add(session)

        def gone() -> None:
            session.abort()
            self._sessions.discard(session)

        if not context.add_callback(gone):
            gone()
            return
        self._read(session, requests, context)

    def _read(self, session: Session, requests: Iterator[bytes], context: grpc.ServicerContext) -> None:
        """Reads a session's messages until it ends, or another thread reads on."""
        try:
            for message in requests:
                following = session.receive(message)
                # While it waits for the next one it must not hold this one, which may be large.
                del message
                if following is Next.LEAVE:
                    return
                if following is Next.END:
                    break
        except grpc.RpcError:
            pass  # the caller is gone; so says the callback
        except Exception:
            _log.exception("a session failed by a defect of tensorcall")
            session.abort()
            context.cancel()
        session.end()

    def end_sessions(self) -> None:
        """Ends all sessions once their calls are answered."""
        for session in list(self._sessions):
            session.end()

    @contextlib.contextmanager
    def _admitted(self, request: calls.Request, context: grpc.ServicerContext, *, stream: bool) -> Iterator[Call]:
        call = self._core.admit(request, _peer(context), _timeout(context), stream=stream)
        outcome = "ok"
        try:
            # Called when the call ends, however it does; afterwards nobody listens any more.
            if not context.add_callback(call.context.cancel):
                call.context.cancel()
            yield call
        except BaseException as error:
            outcome = type(error).__name__
            raise
        finally:
            self._core.finish(call, outcome)

    # --- what is known ---

    def list_functions(self, request: pb.ListFunctionsRequest) -> pb.ListFunctionsResponse:
        """HandlerService.ListFunctions."""
        return pb.ListFunctionsResponse(
            functions=[exposed.info for exposed in self._core.registry.list(request.prefix)]
        )

    def resolve_type(self, request: pb.ResolveTypeRequest) -> pb.ResolveTypeResponse:
        """HandlerService.ResolveType."""
        # Not at the top: they import torch, which a server of plain functions does without.
        from tensorcall.server import torch_types
        from tensorcall.server.handler import Handler

        found = Handler.get_instance().parse_type_from_str(request.type)
        return pb.ResolveTypeResponse(type=torch_types.describe(found))

    def get_error(self, request: pb.GetErrorRequest) -> pb.GetErrorResponse:
        """HandlerService.GetError."""
        return pb.GetErrorResponse(exception=self._core.errors.get(request.error_id))

    def _generated(self, method: Callable[[M], Message], request_type: type[M]) -> grpc.RpcMethodHandler[Any, Any]:
        """Makes a gRPC method of one that takes and returns generated messages.

        Parses here and not in gRPC, which would do it on its polling thread and answer garbage with INTERNAL.
        """

        def behavior(message: bytes, context: grpc.ServicerContext) -> bytes:
            with self._failing(context):
                try:
                    request = request_type.FromString(message)
                except DecodeError as error:
                    raise BadPayload(f"the {request_type.__name__} is malformed: {error}") from None
                return method(request).SerializeToString()
            raise AssertionError  # _failing aborts

        return grpc.unary_unary_rpc_method_handler(behavior)

    # --- failures ---

    @contextlib.contextmanager
    def _failing(self, context: grpc.ServicerContext) -> Iterator[None]:
        """Turns whatever is raised within into the call's status."""
        try:
            yield
        except Exception as error:
            failure = self._core.failure(error, _peer(context))
        else:
            return
        self._abort(context, failure)

    def _abort(self, context: grpc.ServicerContext, failure: error_pb2.Failure) -> NoReturn:
        status = statuses.to_status(failure, keep=self._core.errors.keep)
        metadata: list[tuple[str, str | bytes]] = [(statuses.DETAILS_KEY, status)]
        if failure.HasField("retry_after"):
            metadata.append((_RETRY_PUSHBACK, str(failure.retry_after.ToMilliseconds())))
        context.set_trailing_metadata(tuple(metadata))
        context.abort(
            _CODES.get(failure.code, grpc.StatusCode.UNKNOWN), failure.message[:MAX_STATUS_MESSAGE_CHARACTERS]
        )


def _peer(context: grpc.ServicerContext) -> Peer:
    return Peer(context.peer())


def _timeout(context: grpc.ServicerContext) -> float | None:
    """Returns the seconds until the call's deadline. Without one, gRPC's lies in the far future."""
    remaining = context.time_remaining()
    return None if remaining is None or remaining > _FOR_EVER else remaining


def _only(requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
    """Waits for the one request of a call.

    gRPC would do so itself, on a thread of the pool that nobody could tell from a working one: callers that open calls
    and send nothing would stop the server.
    """
    call_off = deadlines.after(_REQUEST_SECONDS, lambda: _hang_up(context))
    try:
        with waiting():
            return next(requests)
    except StopIteration:
        raise BadPayload("the call has no request: send one message") from None
    except grpc.RpcError:
        raise Cancelled("the caller is gone") from None
    finally:
        call_off()


def _hang_up(context: grpc.ServicerContext) -> None:
    context.cancel()


def _on(threads: ThreadPoolExecutor, method: Callable[..., Any], *, non_blocking: bool = False) -> Callable[..., Any]:
    """Has gRPC run a method on these threads; `non_blocking`: it gets a third argument that sends from any thread."""

    def behavior(*args: Any) -> Any:
        return method(*args)

    behavior.experimental_thread_pool = threads  # type: ignore[attr-defined]
    behavior.experimental_non_blocking = non_blocking  # type: ignore[attr-defined]
    return behavior
