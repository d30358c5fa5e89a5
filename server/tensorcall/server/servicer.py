"""HandlerService over gRPC: decodes, hands to the core, sends what comes back."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import grpc

from tensorcall.client.deadlines import deadlines
from tensorcall.server.core import Call, Core
from tensorcall.server.gate import Gate
from tensorcall.server.grpc_methods import Failures, GrpcExecutor, generated, on
from tensorcall.server.pool import RETRY_AFTER_SECONDS, Pool
from tensorcall.server.session import Next, Session
from tensorcall.v1 import handler_service_pb2 as pb
from tensorcall.wire import calls
from tensorcall.wire.errors import BadPayload, Cancelled, Overloaded
from tensorcall.wire.waiting import waiting

_log = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["HandlerService"].full_name
# How long a caller may take to send its request after it opened the call.
_REQUEST_SECONDS = 30.0
_FOR_EVER = 10 * 365 * 24 * 3600.0


class HandlerServicer(grpc.GenericRpcHandler):  # type: ignore[misc, unused-ignore]
    """The six methods. What carries tensors takes and gives bytes: our own codec reads and writes them."""

    def __init__(self, core: Core) -> None:
        self._core = core
        config = core.config
        self._gate = Gate(config.secret)
        self._failures = Failures(core)
        # Sessions live long: each has a thread that reads, and where one is held up another one takes over.
        self._session_threads = Pool(2 * config.max_sessions, 2 * config.max_sessions, 0)
        functions = GrpcExecutor(core.pool)
        self._sessions: set[Session] = set()
        self._methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            f"/{SERVICE}/{name}": handler
            for name, handler in {
                "Call": grpc.stream_unary_rpc_method_handler(on(functions, self.call)),
                "CallStream": grpc.stream_stream_rpc_method_handler(on(functions, self.call_stream, non_blocking=True)),
                "Session": grpc.stream_stream_rpc_method_handler(
                    on(GrpcExecutor(self._session_threads), self.session, non_blocking=True)
                ),
                "ListFunctions": generated(self._failures, self.list_functions, pb.ListFunctionsRequest),
                "ResolveType": generated(self._failures, self.resolve_type, pb.ResolveTypeRequest),
                "GetError": generated(self._failures, self.get_error, pb.GetErrorRequest),
            }.items()
        }
        self._functions = {f"/{SERVICE}/Call", f"/{SERVICE}/CallStream"}
        self._session = f"/{SERVICE}/Session"
        # Reads no request, so it needs no thread that could wait for one.
        shed = GrpcExecutor(Pool(4, 4, 0))
        self._shed: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(on(shed, self.shed))
        self._stranger: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(
            on(shed, self._failures.turn_away)
        )

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Picks the method; runs on gRPC's one polling thread, so it must be quick."""
        method = handler_call_details.method
        handler = self._methods.get(method)
        if handler is None:
            return None
        if not self._gate.lets_in(handler_call_details.invocation_metadata):
            return self._stranger
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
        error = Overloaded(f"{what}; nothing was run", retry_after=RETRY_AFTER_SECONDS)
        self._failures.abort(context, self._core.failure(error, self._failures.peer(context)))

    # --- calls ---

    def call(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        """HandlerService.Call."""
        with self._failures.told(context):
            request = calls.decode_request(_only(requests, context))
            with self._admitted(request, context, stream=False) as call:
                return self._core.run(call).bytes
        raise AssertionError  # told aborts

    def call_stream(
        self, requests: Iterator[bytes], context: grpc.ServicerContext, send: Callable[[bytes | None], None]
    ) -> None:
        """HandlerService.CallStream."""
        with self._failures.told(context):
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
            self._core,
            self._failures.peer(context),
            send=send,
            finish=lambda: send(None),
            read_on=read_on,
            kill=context.cancel,
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
        call = self._core.admit(request, self._failures.peer(context), _timeout(context), stream=stream)
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
