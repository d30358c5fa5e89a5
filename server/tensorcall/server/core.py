"""What becomes of a call between its bytes arriving and its answer's bytes leaving: authorise, run, encode.

Knows nothing of gRPC, so that any carrier of bytes can serve it. The servicers and the session decode the request
before, and send what comes out.
"""

from __future__ import annotations

import asyncio
import contextlib
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
from tensorcall.server.methods import Methods
from tensorcall.server.opening import OpenRRef
from tensorcall.server.owned import Owned
from tensorcall.server.owner_rref import OwnerRRef
from tensorcall.server.pool import RETRY_AFTER_SECONDS, Pool
from tensorcall.server.raised import UdfRaised as UdfRaised
from tensorcall.server.rrefs import RRefTable
from tensorcall.server.sweeper import Sweeper
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
from tensorcall.wire.rrefs import Handle, RRefId
from tensorcall.wire.waiting import waiting

_log = logging.getLogger(__name__)

# How many ids of calls are remembered to refuse repetitions.
_REMEMBERED_CALL_IDS = 65_536


_OURS = {__file__, coroutines.__file__}


def hide_frames(*files: str) -> None:
    """Has frames of these files left out at the top of what functions raise: they say nothing of the function."""
    _OURS.update(files)


def _is_ours(frame: FrameType) -> bool:
    """Whether a frame at the top of a traceback is our way to the function."""
    return frame.f_code.co_filename in _OURS


class Call:
    """A call that was let in."""

    __slots__ = (
        "awaits",
        "client_id",
        "context",
        "core",
        "exposed",
        "held",
        "late",
        "made",
        "opened",
        "request",
        "stream",
    )

    def __init__(
        self, core: Core, request: Request, exposed: Exposed, context: CallContext, client_id: str, stream: bool
    ) -> None:
        self.core = core
        self.request = request
        self.exposed = exposed
        self.context = context
        self.client_id = client_id
        self.stream = stream
        # What finds the function, where that has to wait for a value, or for the tensors of a pickle: see `resolve`.
        self.late: Callable[[], Exposed] | None = None
        # The value whose method it is, as long as there is none.
        self.awaits: Owned | None = None
        # What the result becomes, if it stays here.
        self.made: Owned | None = None
        # The references among the arguments that their owners have not confirmed yet.
        self.opened: list[Any] | None = None
        # The hold on what the latest answer refers to.
        self.held = 0

    def open_rref(self, rref_id: RRefId) -> Any:
        """Makes a handle of a reference among the arguments."""
        handle = self.core.open_rref(rref_id, self.context.peer)
        if not handle.confirmed_by_owner():
            if self.opened is None:
                self.opened = []
            self.opened.append(handle)
        return handle

    def hold(self, handles: list[Handle]) -> int:
        """Keeps the references in an answer until the caller has forks of its own."""
        self.held = self.core.rrefs.hold(self.client_id, handles)
        return self.held


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
        self.sweeper = Sweeper(lambda: self.rrefs.expire(), self.chores, config.lease_seconds)
        self.rrefs = RRefTable(
            self.worker,
            self.incarnation,
            config.advertise,
            lease_seconds=config.lease_seconds,
            max_leases=config.max_clients,
            max_per_client=config.max_rrefs_per_client,
            max_bytes_per_client=config.max_rref_bytes_per_client,
            on_lease=self.sweeper.arm,
        )
        self.methods = Methods(registry)
        self.open_rref: Callable[[RRefId, Peer | None], Any] = OpenRRef(self)
        """Makes a handle of a reference that a peer sent; may be replaced. The handle is an RRef."""
        self._draining = False
        self._active = 0
        self._gathering_bytes = 0
        self._awaiting = 0
        self._held_up = 0
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._call_ids: OrderedDict[str, None] = OrderedDict()

    # --- authorise ---

    def admit(self, request: Request, peer: Peer, timeout: float | None, *, stream: bool, client_id: str = "") -> Call:
        """Lets a call in, or refuses it. A call that was let in must be given to `finish` in the end.

        Args:
            request: the call.
            peer: who calls.
            timeout: seconds until the deadline; None: there is none.
            stream: whether the items of a generator are wanted.
            client_id: the client process, where the carrier knows it.

        Raises:
            RequestError, ServiceError: it may not run; nothing of it was read beyond its fields.
        """
        try:
            return self._admit(request, peer, timeout, stream, client_id or request.client_id)
        except Exception as error:
            if request.want == calls.WANT_RREF and request.number:
                # Others may wait for the value already.
                with contextlib.suppress(TensorcallError):
                    self.rrefs.promise(client_id or request.client_id, request.number).set_error(error)
            raise

    def _admit(self, request: Request, peer: Peer, timeout: float | None, stream: bool, client_id: str) -> Call:
        if self._draining:
            raise ShuttingDown("the server is shutting down; nothing was run", retry_after=1.0)
        if request.pickled:
            self._check_pickle(peer)
        if timeout is not None and timeout <= 0:
            raise DeadlineExceeded("the deadline had passed when the call arrived; nothing was run")
        target, late, awaits = request.target, None, None
        if target.function:
            exposed = self.registry.get(target.function)
        elif target.pickle is not None:
            # Read when its tensors have come, and on a thread where it holds up nobody else.
            exposed, late = _UNREAD, lambda: self._unpickled(request)
        elif target.method is not None or target.fetch is not None:
            exposed, late, awaits = self._of_value(request, peer)
        else:
            exposed = self.registry.get("")
        if late is None:
            self._check_form(exposed, request, stream)
        made = None
        if request.call_id:
            self._remember(request.call_id)
        if request.want == calls.WANT_RREF:
            made = self._promise(request, client_id, exposed.name)
        context = CallContext(exposed.name, peer, timeout, request.call_id, self)
        call = Call(self, request, exposed, context, client_id, stream)
        call.late, call.awaits, call.made = late, awaits, made
        with self._lock:
            self._active += 1
        return call

    def _promise(self, request: Request, client_id: str, made_by: str) -> Owned:
        try:
            return self.rrefs.promise(client_id, request.number, made_by)
        except TensorcallError:
            if request.call_id:
                with self._lock:
                    self._call_ids.pop(request.call_id, None)
            raise

    def _check_form(self, exposed: Exposed, request: Request, stream: bool) -> None:
        """Returns if the function gives what is wanted."""
        kind, wants_rref = exposed.kind, request.want == calls.WANT_RREF
        if kind == signatures.GENERATOR:
            if wants_rref:
                raise BadArguments(
                    f"{exposed.name} is a generator function: there is no reference to its items; stream them"
                )
            if not stream:
                raise BadArguments(f"{exposed.name} is a generator function: stream it (remote.stream, CallStream)")
        elif stream and (kind != signatures.FUNCTION or wants_rref):
            raise BadArguments(f"{exposed.name} is no generator function: call it (remote.call, Call)")
        elif kind == signatures.CLASS and not wants_rref and request.target.pickle is None:
            raise BadArguments(
                f"{exposed.name} is a class: its instances stay here, ask for a reference to one "
                f"(remote.remote({exposed.name!r}, …), or Call with `want` RREF)"
            )
        if wants_rref and request.target.fetch is not None:
            raise BadArguments("a fetch gives the value itself: take a fork (RRefService.Fork) for another reference")

    def _check_pickle(self, peer: Peer) -> None:
        if not self.config.allow_pickle:
            raise PickleRefused(
                "this server takes no pickled Python: send values and tensors, or have its operator start it with "
                "--allow-pickle"
            )
        if not (peer.loopback or peer.trusted):
            raise PickleRefused(
                "pickled Python is taken from callers only that are on the server's own machine, or show its secret"
            )

    def _unpickled(self, request: Request) -> Exposed:
        from tensorcall.server.handler import Handler

        assert request.target.pickle is not None
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

    def _of_value(self, request: Request, peer: Peer) -> tuple[Exposed, Callable[[], Exposed] | None, Owned | None]:
        """Finds what a call runs on a value, or what finds it once there is a value."""
        target = request.target
        name: str | None
        # It could send any code as well.
        free = self.config.allow_pickle and peer.trusted
        if target.method is not None:
            rref_id, name = target.method
            if not free:
                self.methods.check_name(name)
        else:
            assert target.fetch is not None
            rref_id, name = target.fetch, None
        owned = self.rrefs.get(rref_id)

        def find() -> Exposed:
            failure = owned.failure()
            if failure is not None:
                raise failure
            return self.methods.fetching(owned) if name is None else self.methods.find(owned, name, free=free)

        if owned.done:
            return find(), None, None
        return _UNREAD, find, owned

    def resolve(self, call: Call) -> None:
        """Finds what a call runs, where `admit` could not: its value is there now, and so are the tensors.

        Raises:
            UdfRaised, TensorcallError: it does not run.
        """
        late, call.late, call.awaits = call.late, None, None
        if late is None:
            return
        exposed = late()
        self._check_form(exposed, call.request, call.stream)
        call.exposed = exposed
        call.context.function = exposed.name
        if call.made is not None:
            call.made.made_by = exposed.name

    def _resolve_here(self, call: Call) -> None:
        """The same, waiting for the value on this thread."""
        owned = call.awaits
        if owned is not None:
            with self._lock:
                # Some threads must be left for those that make what the others wait for.
                if self._held_up >= max(1, self.config.max_threads // 2):
                    raise Overloaded(
                        f"{self._held_up:,} calls hold a thread each while they wait for values; nothing was run. On a "
                        "session, and by RRefService.Fetch, they hold none",
                        retry_after=RETRY_AFTER_SECONDS,
                    )
                self._held_up += 1
            over = threading.Event()
            call_off = owned.on_done(lambda _: over.set())
            call.context.on_cancel(over.set)
            try:
                with waiting():
                    over.wait(call.context.time_remaining())
            finally:
                call_off()
                with self._lock:
                    self._held_up -= 1
            call.context.check()
        self.resolve(call)

    def _remember(self, call_id: str) -> None:
        with self._lock:
            if call_id in self._call_ids:
                raise DuplicateCall(f"the call {call_id!r} is in flight or was run already; it was not run again")
            self._call_ids[call_id] = None
            if len(self._call_ids) > _REMEMBERED_CALL_IDS:
                self._call_ids.popitem(last=False)

    def withdraw(self, call: Call, error: BaseException) -> None:
        """Ends a call that was let in but never run, for this reason: its id may come again."""
        self._forget_id(call)
        if call.made is not None:
            call.made.set_error(error)
        self.finish(call, "withdrawn")

    def _forget_id(self, call: Call) -> None:
        if call.request.call_id:
            with self._lock:
                self._call_ids.pop(call.request.call_id, None)

    def finish(self, call: Call, outcome: str) -> None:
        """Ends a call that was let in."""
        call.context.forget_callbacks()
        if call.made is not None and not call.made.done:
            call.made.set_error(Cancelled(f"the call of {call.context.function} ended before there was a value"))
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

    def begin_awaiting(self) -> None:
        """Counts a call that waits for a value, and holds no thread meanwhile.

        Raises:
            Overloaded: too many do.
        """
        with self._lock:
            if self._awaiting >= self.config.max_queue:
                raise Overloaded(
                    f"{self._awaiting:,} calls wait for values already; nothing was run",
                    retry_after=RETRY_AFTER_SECONDS,
                )
            self._awaiting += 1

    def end_awaiting(self) -> None:
        """Takes it off the count."""
        with self._lock:
            self._awaiting -= 1

    # --- run ---

    def run(self, call: Call, chunk_above: int | None = None) -> Encoded:
        """Runs a function on this thread, or waits for a coroutine, and encodes the result as a CallResponse.

        Raises:
            UdfRaised: the function raised.
            TensorcallError: it did not run, or its result can't be sent.
        """
        made = call.made
        if made is None:
            return self._run(call, chunk_above)
        try:
            return self._run(call, chunk_above)
        except BaseException as error:
            # It is told to all who ask for the value.
            made.set_error(error)
            raise

    def _run(self, call: Call, chunk_above: int | None) -> Encoded:
        return self._encode_result(call, self._result(call), chunk_above)

    def _result(self, call: Call) -> Any:
        context = call.context
        context.check()
        if call.late is not None:
            self._resolve_here(call)
        exposed = call.exposed
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
        return result

    def start_coroutine(self, call: Call, chunk_above: int | None, done: Callable[[Encoded | Exception], None]) -> None:
        """Starts a coroutine and returns; `done` gets, on a thread for chores, what `run` would return or raise.

        Raises:
            UdfRaised, TensorcallError: it did not start; `done` will not be called.
        """
        made = call.made
        if made is None:
            self._start_coroutine(call, chunk_above, done)
            return

        def ended(outcome: Encoded | Exception) -> None:
            if isinstance(outcome, Exception):
                made.set_error(outcome)
            done(outcome)

        try:
            self._start_coroutine(call, chunk_above, ended)
        except BaseException as error:
            made.set_error(error)
            raise

    def _start_coroutine(
        self, call: Call, chunk_above: int | None, done: Callable[[Encoded | Exception], None]
    ) -> None:
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
        if call.late is not None:
            self._resolve_here(call)
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
            arguments = call.request.arguments(call.open_rref)
        except TensorcallError:
            raise
        except BaseException as error:
            # Unpickling runs code of the caller's choice; whatever it raises is told as if the function had.
            raise UdfRaised(error) from None
        if call.opened is not None:
            self._confirm(call)
        return arguments

    def _confirm(self, call: Call) -> None:
        """Waits until the owners of the references among the arguments know that this process holds them, too.

        Only then may the caller let go of them, which it does when it has its answer.
        """
        opened, call.opened = call.opened, None
        context = call.context
        # Who passed them on keeps them for no longer than that without hearing of us.
        patience = time.monotonic() + self.config.lease_seconds
        if context.deadline is not None:
            patience = min(patience, context.deadline)
        with waiting():
            for handle in opened or ():
                handle.wait_confirmed(max(0.0, patience - time.monotonic()))
        context.check()

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

    def payload(self, call: Call) -> Encoded:
        """Runs a function on this thread and encodes the result as a Payload, all of it inline; as `run`."""
        return self._encode(call, self._result(call), None)

    def _encode_result(self, call: Call, result: object, chunk_above: int | None) -> Encoded:
        made = call.made
        if made is None:
            return calls.wrap_result(self._encode(call, result, chunk_above))
        made.set_value(result)
        return calls.encode_rref(made.rref_id)

    def _encode(self, call: Call, result: object, chunk_above: int | None) -> Encoded:
        # That of an item before stays, whatever becomes of this one.
        call.held = 0
        # Who sent pickle takes pickle.
        pickled = call.request.arguments_pickle is not None
        try:
            encoded = calls.encode_payload(result, pickled=pickled, chunk_above=chunk_above, hold=call.hold)
            if size(encoded.parts) > MAX_MESSAGE_BYTES:
                raise TooLarge(
                    f"it takes more than {MAX_MESSAGE_BYTES:,} bytes in one message: send large data as tensors, "
                    "over a session"
                )
            return encoded
        except (Unencodable, TooLarge) as error:
            if call.held:
                self.rrefs.release(call.client_id, holds=[call.held])
            advice = ""
            if hasattr(result, "__next__") or hasattr(result, "__anext__"):
                advice = " (to send items as they come, write the exposed function itself as a generator function)"
            raise UnencodableResult(f"{call.exposed.name} ran, but its result can't be sent: {error}{advice}") from None
        except TensorcallError:
            raise
        except Exception as error:
            # Pickling runs code of the result's class; whatever it raises is told as if the function had.
            raise UdfRaised(error) from None

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
        # The calls that would make them are not let in any more; who waits for them would wait in vain.
        self.rrefs.give_up(ShuttingDown("the server is shutting down; the value was never made"))
        with self._idle:
            return self._idle.wait_for(lambda: self._active == 0, grace)

    def close(self) -> None:
        """Ends the threads that are not those of functions."""
        self.sweeper.close()
        self.coroutines.close()
        self.watch.close()

    def own(self, value: object, made_by: str = "") -> OwnerRRef:
        """Makes a reference to a value of this process, to be passed on. It lives as long as somebody holds it."""
        return OwnerRRef(self.rrefs.own(value, made_by), self)


_END = object()


def _unread(*_: object, **__: object) -> None:
    raise AssertionError("the call was not resolved")


# Stands for a function that is not known yet. It is never quick: it holds no session up that it is found out.
_UNREAD = Exposed("callable", _unread)
