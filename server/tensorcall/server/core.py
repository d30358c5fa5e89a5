"""What becomes of a call between its bytes arriving and its answer's bytes leaving: authorise, run, encode.

Knows nothing of gRPC, so that any carrier of bytes can serve it. The servicers and the session decode the request
before, and send what comes out.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from types import FrameType
from typing import Any

from tensorcall.server import context as contexts
from tensorcall.server import coroutines, signatures
from tensorcall.server.config import ServerConfig
from tensorcall.server.context import CallContext, Peer
from tensorcall.server.coroutines import CoroutineRunner
from tensorcall.server.error_store import ErrorStore
from tensorcall.server.expose import Exposed, Registry
from tensorcall.server.pool import RETRY_AFTER_SECONDS, Pool
from tensorcall.server.watch import Watch
from tensorcall.v1 import error_pb2
from tensorcall.wire import calls, chunks, statuses
from tensorcall.wire.calls import Encoded, Request
from tensorcall.wire.errors import (
    BadArguments,
    BadPayload,
    Cancelled,
    DeadlineExceeded,
    DuplicateCall,
    InternalError,
    NotImplementedByPeer,
    Overloaded,
    PickleRefused,
    ShuttingDown,
    TensorcallError,
    TooLarge,
    Unencodable,
    UnencodableResult,
)
from tensorcall.wire.limits import MAX_MESSAGE_BYTES
from tensorcall.wire.protowire import size

_log = logging.getLogger(__name__)

# How many ids of calls are remembered to refuse repetitions.
_REMEMBERED_CALL_IDS = 65_536


_OURS = {__file__, coroutines.__file__}


def _is_ours(frame: FrameType) -> bool:
    """Whether a frame at the top of a traceback is our way to the function."""
    return frame.f_code.co_filename in _OURS


class UdfRaised(Exception):
    """Carries what a function raised, whatever it was, past everything that handles our own errors."""

    def __init__(self, exception: BaseException) -> None:
        super().__init__()
        self.exception = exception


class Call:
    """A call that was let in."""

    __slots__ = ("context", "exposed", "request")

    def __init__(self, request: Request, exposed: Exposed, context: CallContext) -> None:
        self.request = request
        self.exposed = exposed
        self.context = context


class Core:
    """Runs the functions of one server."""

    def __init__(self, registry: Registry, config: ServerConfig) -> None:
        """Begins without threads; they start with the first calls."""
        self.registry = registry
        self.config = config
        self.worker = config.worker or socket.gethostname()
        # Not zero, and of a start of its own for every process.
        self.incarnation = secrets.randbits(63) + 1
        self.pool = Pool(config.threads, config.max_threads, config.max_queue)
        # For what must go on even while functions have all threads: starting coroutines, encoding their results,
        # writing answers that no function's thread writes.
        self.chores = Pool(4, config.max_sessions + 4, 0)
        self.coroutines = CoroutineRunner()
        self.watch = Watch()
        self.errors = ErrorStore()
        self._draining = False
        self._active = 0
        self._gathering_bytes = 0
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._call_ids: OrderedDict[str, None] = OrderedDict()

    # --- authorise ---

    def admit(self, request: Request, peer: Peer, timeout: float | None, *, stream: bool) -> Call:
        """Lets a call in, or refuses it. A call that was let in must be given to `finish` in the end.

        Raises:
            RequestError, ServiceError: it may not run; nothing of it was read beyond its fields.
        """
        if self._draining:
            raise ShuttingDown("the server is shutting down; nothing was run", retry_after=1.0)
        if request.pickled:
            self._check_pickle(peer)
        if request.want == calls.WANT_RREF or request.target.method is not None:
            raise NotImplementedByPeer("this server holds no values for others yet: ask for the result itself")
        if timeout is not None and timeout <= 0:
            raise DeadlineExceeded("the deadline had passed when the call arrived; nothing was run")
        exposed = self._target(request)
        if exposed.kind == signatures.GENERATOR and not stream:
            raise BadArguments(f"{exposed.name} is a generator function: stream it (remote.stream, CallStream)")
        if exposed.kind == signatures.COROUTINE and stream:
            raise BadArguments(f"{exposed.name} is no generator function: call it (remote.call, Call)")
        if exposed.kind == signatures.CLASS:
            raise NotImplementedByPeer(f"{exposed.name} is a class: this server does not hold instances for others yet")
        if request.call_id:
            self._remember(request.call_id)
        with self._lock:
            self._active += 1
        return Call(request, exposed, CallContext(exposed.name, peer, timeout, request.call_id))

    def _check_pickle(self, peer: Peer) -> None:
        if not self.config.allow_pickle:
            raise PickleRefused(
                "this server takes no pickled Python: send values and tensors, or have its operator start it with "
                "--allow-pickle"
            )
        if not peer.loopback:
            raise PickleRefused("pickled Python is taken from callers on the server's own machine only")

    def _target(self, request: Request) -> Exposed:
        if request.target.pickle is None:
            return self.registry.get(request.target.function)
        from tensorcall.server.handler import Handler

        try:
            function = Handler.get_instance().deserialize(request.target.pickle, request.blobs)
        except TensorcallError:
            raise
        except BaseException as error:
            raise UdfRaised(error) from None
        if isinstance(function, AttributeError):
            raise UdfRaised(function)
        if not callable(function):
            raise BadPayload(f"the pickled target is a {type(function).__name__}, which can't be called")
        return Exposed(getattr(function, "__qualname__", "callable"), function)

    def _remember(self, call_id: str) -> None:
        with self._lock:
            if call_id in self._call_ids:
                raise DuplicateCall(f"the call {call_id!r} is in flight or was run already; it was not run again")
            self._call_ids[call_id] = None
            if len(self._call_ids) > _REMEMBERED_CALL_IDS:
                self._call_ids.popitem(last=False)

    def withdraw(self, call: Call) -> None:
        """Ends a call that was let in but never run: its id may come again."""
        self._forget_id(call)
        self.finish(call, "withdrawn")

    def _forget_id(self, call: Call) -> None:
        if call.request.call_id:
            with self._lock:
                self._call_ids.pop(call.request.call_id, None)

    def finish(self, call: Call, outcome: str) -> None:
        """Ends a call that was let in."""
        call.context.forget_callbacks()
        with self._lock:
            self._active -= 1
            if self._active == 0:
                self._idle.notify_all()
        if _log.isEnabledFor(logging.DEBUG):
            context = call.context
            milliseconds = round((time.monotonic() - context.started) * 1e3, 3)
            extra = {
                "function": context.function,
                "peer": context.peer.address,
                "milliseconds": milliseconds,
                "outcome": outcome,
            }
            if context.call_id:
                extra["call_id"] = context.call_id
            _log.debug("call", extra=extra)

    # --- gather ---

    def gather(self, request: Request) -> chunks.Gathering | None:
        """Sets memory aside for tensors that come in chunks; None if there are none.

        Raises:
            TooLarge: they alone are above the limit, or this machine can't set so much aside.
        """
        if not any(blob.chunked_size is not None for blob in request.blobs):
            return None
        gathering = chunks.Gathering(request.blobs, self.config.max_gathering_bytes)
        return None if gathering.complete else gathering

    def gathered(self, nbytes: int) -> None:
        """Counts bytes of tensors that have come and can't be used yet; a negative number takes them off the count.

        What was only announced does not count: it takes no memory, and would shut others out.

        Raises:
            Overloaded: too many, of all sessions together.
        """
        with self._lock:
            self._gathering_bytes += nbytes
            too_many = nbytes > 0 and self._gathering_bytes > self.config.max_gathering_bytes
            if too_many:
                self._gathering_bytes -= nbytes
        if too_many:
            raise Overloaded(
                f"tensors that are being uploaded take more than {self.config.max_gathering_bytes:,} bytes in all; "
                "nothing was run",
                retry_after=RETRY_AFTER_SECONDS,
            )

    # --- run ---

    def run(self, call: Call, chunk_above: int | None = None) -> Encoded:
        """Runs a function on this thread, or waits for a coroutine, and encodes the result as a CallResponse.

        Raises:
            UdfRaised: the function raised.
            TensorcallError: it did not run, or its result can't be sent.
        """
        exposed, context = call.exposed, call.context
        context.check()
        args, kwargs = self._arguments(call)
        token = contexts.enter(context)
        began = time.monotonic()
        try:
            if exposed.kind == signatures.COROUTINE:
                result = self.coroutines.wait(self._started(exposed, args, kwargs), context)
            else:
                result = self._started(exposed, args, kwargs)
                exposed.pace.ran(time.monotonic() - began)
        except BaseException as error:
            # Not by way of a variable: it would hold the error, whose traceback holds this frame and all arguments.
            raise self._raised(error, call) from None
        finally:
            contexts.leave(token)
        return self._encode_result(call, result, chunk_above)

    def start_coroutine(self, call: Call, chunk_above: int | None, done: Callable[[Encoded | Exception], None]) -> None:
        """Starts a coroutine and returns; `done` gets, on a thread for chores, what `run` would return or raise.

        Raises:
            UdfRaised, TensorcallError: it did not start; `done` will not be called.
        """
        context = call.context
        context.check()
        if self.coroutines.running >= self.config.max_queue:
            self._forget_id(call)
            raise Overloaded(
                f"{self.coroutines.running:,} coroutines are running; nothing was run", retry_after=RETRY_AFTER_SECONDS
            )
        args, kwargs = self._arguments(call)
        token = contexts.enter(context)
        try:
            coroutine = self._started(call.exposed, args, kwargs)
            self.coroutines.start(
                coroutine,
                context,
                lambda result, error: self.chores.submit_always(
                    self._coroutine_done, call, result, error, chunk_above, done
                ),
            )
        except BaseException as error:
            raise self._raised(error, call) from None
        finally:
            contexts.leave(token)

    def _coroutine_done(
        self,
        call: Call,
        result: object,
        error: BaseException | None,
        chunk_above: int | None,
        done: Callable[[Encoded | Exception], None],
    ) -> None:
        if error is not None:
            done(self._raised(error, call))
            return
        try:
            encoded: Encoded | Exception = self._encode_result(call, result, chunk_above)
        except Exception as failed:
            encoded = failed
        done(encoded)

    def stream(self, call: Call, chunk_above: int | None = None) -> Generator[Encoded, None, None]:
        """Runs a generator function on this thread and yields its items, each as a Payload.

        Close it to close the function's generator.

        Raises:
            UdfRaised: the function raised.
            TensorcallError: it did not run, or an item can't be sent.
        """
        context = call.context
        context.check()
        args, kwargs = self._arguments(call)
        items = self._items(call, args, kwargs)
        try:
            while True:
                token = contexts.enter(context)
                try:
                    item = next(items, _END)
                except BaseException as error:
                    raise self._raised(error, call) from None
                finally:
                    contexts.leave(token)
                if item is _END:
                    return
                encoded = self._encode(call, item, chunk_above)
                # A reference from here would keep the item alive until the next one is there.
                del item
                yield encoded
                context.check()
        finally:
            self._close(items)

    def _items(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
        exposed, context = call.exposed, call.context
        token = contexts.enter(context)
        try:
            made = self._started(exposed, args, kwargs)
            if hasattr(made, "__anext__"):
                return self._from_async(made, context)
            if not isinstance(made, Iterator):
                raise BadArguments(
                    f"{exposed.name} is no generator function: call it, don't stream it (it ran, and returned a "
                    f"{type(made).__name__})",
                    metadata={"function": exposed.name, "ran": "true"},
                )
            return made
        except BaseException as error:
            raise self._raised(error, call) from None
        finally:
            contexts.leave(token)

    def _from_async(self, items: AsyncIterator[Any], context: CallContext) -> Iterator[Any]:
        async def following() -> Any:
            # StopAsyncIteration would cross to the waiting thread as an error like any other.
            return await anext(items, _END)

        async def close() -> None:
            await items.aclose()  # type: ignore[attr-defined]

        try:
            while (item := self.coroutines.wait(following(), context)) is not _END:
                yield item
        finally:
            if hasattr(items, "aclose"):
                self.coroutines.wait(close(), None)

    def _close(self, items: Iterator[Any]) -> None:
        close = getattr(items, "close", None)
        if close is None:
            return
        try:
            close()
        except BaseException:
            # The caller is gone or has an error already; the operator may want to know.
            _log.warning("a generator raised while it was closed", exc_info=True)

    def _arguments(self, call: Call) -> tuple[tuple[Any, ...], dict[str, Any]]:
        try:
            return call.request.arguments()
        except TensorcallError:
            raise
        except BaseException as error:
            # Unpickling runs code of the caller's choice; whatever it raises is told as if the function had.
            raise UdfRaised(error) from None

    def _started(self, exposed: Exposed, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return exposed.function(*args, **kwargs)
        except TypeError as error:
            # Binding first would cost every call what only the wrong ones need. A TypeError that has no frame below
            # ours was raised by the call itself.
            if error.__traceback__ is not None and error.__traceback__.tb_next is None:
                reason = signatures.why_not(exposed.function, args, kwargs)
                if reason is not None:
                    raise BadArguments(
                        f"{reason}; the signature is {signatures.shown(exposed.name, exposed.function)}",
                        metadata={"function": exposed.name},
                    ) from None
            raise

    def _raised(self, error: BaseException, call: Call) -> TensorcallError | UdfRaised:
        """Tells what a function raised from what happened to its call."""
        context = call.context
        if isinstance(error, BadArguments) and error.metadata.get("function") == context.function:
            if "ran" not in error.metadata:
                self._forget_id(call)
            return error
        if context.cancelled and isinstance(error, (Cancelled, asyncio.CancelledError)):
            return Cancelled(f"the call of {context.function} was cancelled")
        if context.expired and isinstance(error, (DeadlineExceeded, asyncio.CancelledError, asyncio.TimeoutError)):
            return DeadlineExceeded(f"the time of the call of {context.function} ran out")
        return UdfRaised(error)

    # --- encode ---

    def _encode_result(self, call: Call, result: object, chunk_above: int | None) -> Encoded:
        return calls.wrap_result(self._encode(call, result, chunk_above))

    def _encode(self, call: Call, result: object, chunk_above: int | None) -> Encoded:
        # Who sent pickle takes pickle.
        pickled = call.request.arguments_pickle is not None
        try:
            encoded = calls.encode_payload(result, pickled=pickled, chunk_above=chunk_above)
            if size(encoded.parts) > MAX_MESSAGE_BYTES:
                raise TooLarge(
                    f"it takes more than {MAX_MESSAGE_BYTES:,} bytes in one message: send large data as tensors, "
                    "over a session"
                )
            return encoded
        except (Unencodable, TooLarge) as error:
            advice = ""
            if hasattr(result, "__next__") or hasattr(result, "__anext__"):
                advice = " (to send items as they come, write the exposed function itself as a generator function)"
            raise UnencodableResult(f"{call.exposed.name} ran, but its result can't be sent: {error}{advice}") from None

    def failure(self, error: BaseException, peer: Peer) -> error_pb2.Failure:
        """Turns whatever a call ended with into what is told to the caller."""
        if isinstance(error, UdfRaised):
            return statuses.udf_failure(
                error.exception, worker=self.worker, tracebacks=self._shows_tracebacks(peer), skip=_is_ours
            )
        if isinstance(error, TensorcallError):
            return statuses.service_failure(error)
        _log.error("a call failed by a defect of tensorcall", exc_info=error)
        return statuses.service_failure(
            InternalError(f"a defect of tensorcall ({type(error).__name__}); the server's log has more")
        )

    def _shows_tracebacks(self, peer: Peer) -> bool:
        setting = self.config.tracebacks
        return setting == "always" or (setting == "loopback" and peer.loopback)

    # --- shut down ---

    @property
    def active(self) -> int:
        """How many calls were let in and have not ended."""
        return self._active

    def drain(self, grace: float) -> bool:
        """Lets no further call in and waits until all have ended; False if `grace` seconds were not enough."""
        with self._idle:
            self._draining = True
            return self._idle.wait_for(lambda: self._active == 0, grace)

    def close(self) -> None:
        """Ends the threads that are not those of functions."""
        self.coroutines.close()
        self.watch.close()


_END = object()
