"""Calls that this worker makes: to the others over connections, to itself in this process."""

from __future__ import annotations

import concurrent.futures
import logging
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from tensorcall.client.connection import Connection
from tensorcall.client.deadlines import deadlines
from tensorcall.rpc import errors
from tensorcall.rpc.futures import RpcFuture
from tensorcall.rpc.local_calls import LocalCalls
from tensorcall.rpc.serving import NOTHING, Note
from tensorcall.rpc.worker_info import WorkerInfo
from tensorcall.rpc.world import Member
from tensorcall.server.pool import Pool
from tensorcall.wire import calls
from tensorcall.wire.calls import Encoded, Target
from tensorcall.wire.errors import RemoteError, TensorcallError, TooLarge
from tensorcall.wire.limits import CHUNK_BYTES, MAX_MESSAGE_BYTES
from tensorcall.wire.protowire import size

if TYPE_CHECKING:
    from tensorcall.client.forks import Fork
    from tensorcall.rpc.serving import Serving
    from tensorcall.server.owned import Owned

_log = logging.getLogger(__name__)

# How many futures may end at once; callbacks that wait for calls of their own let more do so.
_COMPLETING, _MOST_COMPLETING = 4, 4096
_CONNECT_SECONDS = 10.0


@dataclass(slots=True)
class Call:
    """A call, ready to be sent."""

    target: Target
    """What runs there."""
    args: tuple[Any, ...]
    """Its arguments, but for the note."""
    kept: list[Any] = field(default_factory=list)
    """References to be kept alive until it has ended."""
    message: str = "PYTHON_CALL"
    """torch's name for the message, by which tests lose and delay it."""


class Faults(Protocol):
    """Loses and delays messages, for tests."""

    def send(self, message: str, send: Callable[[], object], fail: Callable[[BaseException], object]) -> None:
        """Sends a message, or not, or later."""

    def asking(self, ask: Any) -> Any:
        """Makes of what asks an owner about references one that loses and delays questions."""


class Outgoing:
    """Makes calls. Safe from any thread."""

    def __init__(self, me: Member, secret: str, serving: Serving, open_rref: Callable[[Any], Any]) -> None:
        """Prepares; nothing is sent.

        Args:
            me: this worker.
            secret: the world's.
            serving: what this worker runs, for calls to itself.
            open_rref: what becomes of references in results.
        """
        self._me = me
        self._secret = secret
        self._open_rref = open_rref
        self._local = LocalCalls(me, serving, open_rref)
        self._lock = threading.Lock()
        self._connections: dict[str, tuple[int, Connection]] = {}
        # Calls of users in flight, by number, and how many there ever were.
        self._pending: dict[int, tuple[RpcFuture | None, WorkerInfo]] = {}
        self._started = 0
        self._closed = False
        # Loses and delays what is sent, in tests: see _testing.
        self.faults: Any = None
        # Futures end here and not on the thread that reads what comes from the other worker: their callbacks may wait
        # for more to come from there.
        self._completions = Pool(_COMPLETING, _MOST_COMPLETING, 0)

    @property
    def active(self) -> int:
        """How many calls of users are in flight."""
        return len(self._pending)

    @property
    def started(self) -> int:
        """How many calls of users there have been."""
        return self._started

    def connection(self, to: Member) -> Connection:
        """Returns the way to another worker."""
        with self._lock:
            if self._closed:
                raise RuntimeError("RPC was shut down on this worker")
            incarnation, connection = self._connections.get(to.name, (0, None))
            if connection is None or incarnation != to.incarnation:
                stale, connection = connection, self._connect(to)
                self._connections[to.name] = to.incarnation, connection
                if stale is not None:
                    # It led to an earlier start of that worker.
                    self._completions.submit_always(stale.close)
            return connection

    def _connect(self, to: Member) -> Connection:
        connection = Connection(
            to.address,
            "session",
            _CONNECT_SECONDS,
            metadata=[("authorization", f"Bearer {self._secret}")],
            open_rref=self._open_rref,
            known=False,
        )
        # So that an owner can tell whose reference it is.
        connection.link.client_id = f"{self._me.name[:60]}-{secrets.token_hex(16)}"
        if self.faults is not None:
            connection.link._ask = self.faults.asking(connection.ask_rrefs)
        return connection

    def submit(self, to: Member, call: Call, timeout: float | None, note: Note | None = NOTHING) -> RpcFuture:
        """Calls another worker, or this one.

        Args:
            to: who.
            call: the call.
            timeout: how many seconds to wait at most; None: for ever. The function runs on there, as in torch.
            note: what is told with the arguments; None: nothing.

        Raises:
            TypeError: an argument can't be pickled.
        """
        future = RpcFuture()
        internal = note is None or note[0]
        args = call.args if note is None else (*call.args, note)
        if to.name == self._me.name:
            # Before anything else: what can't be pickled is told at once.
            start = self._local.prepare(call.target, args)
            settled = self._begin(future, to.info, timeout, internal, call.kept)
            self._send(
                call,
                lambda: start(lambda result: settled(result, None), lambda error: settled(None, error)),
                lambda error: settled(None, error),
            )
            return future
        connection = self.connection(to)
        request = self._encode(call.target, args)
        settled = self._begin(future, to.info, timeout, internal, call.kept)

        def ended(ended: Any) -> None:
            error = ended.exception()
            self._completions.submit_always(settled, None if error is not None else ended.result(), error)

        def lost(error: BaseException) -> None:
            settled(None, error)

        def send() -> None:
            connection.carrier(_CONNECT_SECONDS).submit(request, None, pickle=True).add_done_callback(ended)

        if connection.ready:
            self._send(call, send, lost)
        else:
            # To open it may take a while, and nobody expects to wait for it here.
            self._completions.submit_always(self._send, call, send, lost)
        return future

    def call(self, to: Member, call: Call, timeout: float | None) -> Any:
        """Calls another worker, or this one, and waits; as `submit`, without what that needs for callbacks.

        Raises:
            Exception: what the call raised.
        """
        if to.name == self._me.name or self.faults is not None or not self.connection(to).ready:
            return self.submit(to, call, timeout).wait()
        request = self._encode(call.target, (*call.args, NOTHING))
        failed: BaseException | None = None
        number = self._count(to.info)
        try:
            made = self.connection(to).carrier(_CONNECT_SECONDS).submit(request, None, pickle=True)
            try:
                return made.result(timeout)
            except (TimeoutError, concurrent.futures.TimeoutError) as error:
                # Or the function raised it.
                theirs = isinstance(error, TensorcallError)
                failed = errors.told(error, to.info, timeout) if theirs else errors.timed_out(timeout or 0)
        except TensorcallError as error:
            failed = errors.told(error, to.info, timeout)
        finally:
            del call
            self._pending.pop(number, None)
        try:
            raise failed
        finally:
            del failed  # this frame is part of its traceback

    def create(self, to: Member, call: Call, timeout: float | None, made_by: str) -> tuple[Connection, Fork, RpcFuture]:
        """Calls another worker for a result that stays there.

        Args:
            to: who.
            call: the call.
            timeout: how many seconds to wait at most; None: for ever.
            made_by: tells where this was asked for.

        Returns:
            The way there, a fork of the result, and a future that is done when there is a result, or an error.

        Raises:
            RuntimeError: the worker does not answer.
            TypeError: an argument can't be pickled.
        """
        connection = self.connection(to)
        link = connection.link
        failed: BaseException | None = None
        try:
            # The first call at a worker waits for an answer: the value's name is part of its lease there.
            carrier = connection.carrier(_CONNECT_SECONDS)
            fork = link.new_name(_CONNECT_SECONDS)
        except (TensorcallError, TimeoutError) as error:
            failed = errors.told(error, to.info, _CONNECT_SECONDS)
        if failed is not None:
            raise failed
        try:
            args = (*call.args, (False, fork.rref_id, made_by))
            request = self._encode(
                call.target, args, want=calls.WANT_RREF, client_id=carrier.client_id, number=fork.number
            )
        except BaseException as error:
            link.abandon(fork, TensorcallError(f"the call was not sent: {error}"))
            fork.let_go()
            raise
        future = RpcFuture()
        settled = self._begin(future, to.info, timeout, False, call.kept)

        def ended(ended: Any) -> None:
            error = ended.exception()
            # What the function raised is the value now: whoever fetches it is told.
            self._completions.submit_always(settled, None, None if isinstance(error, RemoteError) else error)

        def send() -> None:
            made = carrier.submit(request, None, pickle=True)
            link.follow(fork, made)
            made.add_done_callback(ended)

        def lost(error: BaseException) -> None:
            link.abandon(fork, TensorcallError(f"the call was not sent: {error}"))
            settled(None, error)

        self._send(call, send, lost)
        return connection, fork, future

    def create_here(self, to: Member, call: Call, timeout: float | None, owned: Owned) -> RpcFuture:
        """Calls this worker for a result that stays here, as `owned`."""
        future = RpcFuture()
        start = self._local.prepare(call.target, (*call.args, NOTHING), copy=False)
        settled = self._begin(future, to.info, timeout, False, call.kept)

        def succeed(result: Any) -> None:
            try:
                owned.set_value(result)
            finally:
                settled(None, None)

        def fail(error: BaseException) -> None:
            owned.set_error(error)
            settled(None, None)

        def lost(error: BaseException) -> None:
            owned.set_error(error)
            settled(None, error)

        self._send(call, lambda: start(succeed, fail), lost)
        return future

    def as_remote(self, error: BaseException) -> BaseException:
        """Returns what this worker's own function raised as it would arrive from elsewhere."""
        return errors.told(self._local.as_remote(error), self._me.info, None)

    def _send(self, call: Call, send: Callable[[], object], fail: Callable[[BaseException], object]) -> None:
        def try_to_send() -> None:
            try:
                send()
            except Exception as error:
                # Whatever it is: a call that nobody ends would be waited for, by shutdown, too.
                fail(error)

        if self.faults is None:
            try_to_send()
        else:
            self.faults.send(call.message, try_to_send, fail)

    def _encode(self, target: Target, args: tuple[Any, ...], **more: Any) -> Encoded:
        encoded = calls.encode_request(target, args, {}, pickled=True, chunk_above=CHUNK_BYTES, **more)
        length = size(encoded.parts)
        if length > MAX_MESSAGE_BYTES:
            raise TooLarge(
                f"the call has {length:,} bytes in one message, and may have {MAX_MESSAGE_BYTES:,}: send large data as "
                "tensors"
            )
        return encoded

    def _count(self, to: WorkerInfo, future: RpcFuture | None = None) -> int:
        """Counts a call of a user in; returns its number."""
        with self._lock:
            self._started += 1
            number = self._started
            self._pending[number] = future, to
        return number

    def _begin(
        self, future: RpcFuture, to: WorkerInfo, timeout: float | None, internal: bool, keep: list[Any] | None
    ) -> Callable[[Any, BaseException | None], None]:
        """Counts a call in and sets its timer; returns what takes its outcome."""
        kept = keep
        number = 0 if internal else self._count(to, future)

        def settled(result: Any, error: BaseException | None) -> None:
            nonlocal kept
            call_off()
            kept = None
            try:
                if error is not None:
                    future.fail(errors.told(error, to, timeout))
                else:
                    future.resolve(result)
            finally:
                self._pending.pop(number, None)

        def late() -> None:
            assert timeout is not None
            self._completions.submit_always(settled, None, errors.timed_out(timeout))

        call_off = deadlines.after(timeout, late) if timeout is not None else _nothing
        return settled

    def close(self) -> None:
        """Ends all connections; what is in flight fails."""
        with self._lock:
            self._closed = True
            connections = [connection for _, connection in self._connections.values()]
            self._connections.clear()
            pending = list(self._pending.values())
        # Each may wait a moment for the other side.
        closing = [threading.Thread(target=connection.close, daemon=True) for connection in connections]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join()
        for future, to in pending:
            if future is not None:
                future.fail(RuntimeError(f"RPC was shut down on this worker while a call to {to} was in flight"))


def _nothing() -> None:
    pass
