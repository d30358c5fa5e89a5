"""A session: many calls at once on one stream. Knows nothing of gRPC: bytes in, bytes out."""

from __future__ import annotations

import contextlib
import enum
import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from tensorcall.client.deadlines import deadlines
from tensorcall.server import signatures
from tensorcall.server.context import Peer
from tensorcall.server.core import Call, Core
from tensorcall.server.streaming import ItemStream
from tensorcall.v1 import handler_service_pb2
from tensorcall.wire import calls, chunks, frames, statuses, waiting
from tensorcall.wire.calls import Encoded
from tensorcall.wire.errors import BadPayload, Cancelled, DeadlineExceeded, DuplicateCall
from tensorcall.wire.limits import CHUNK_BYTES, MAX_CALL_ID_BYTES, MIB
from tensorcall.wire.outbox import Chunks, Outbox
from tensorcall.wire.protowire import Parts

_log = logging.getLogger(__name__)

# So much may wait to be sent before streams pause, and before the reading thread writes what it has.
_BYTES_AT_ONCE = 4 * MIB
_ANSWERS_AT_ONCE = 64
# So many calls of one message run on the reading thread; the others go to the pool, whose queue has a bound.
_MAX_QUICK = 1024
_MAX_UNFINISHED = 1024


def _nothing() -> None:
    pass


class _Entry:
    """A call in flight on this session."""

    __slots__ = ("call", "frame", "gathered", "gathering", "stream", "timer")

    def __init__(self, frame: frames.Call) -> None:
        self.frame = frame
        self.call: Call | None = None
        # Its tensors, while their chunks are coming, and how many bytes have come.
        self.gathering: chunks.Gathering | None = None
        self.gathered = 0
        # Calls off the deadline that holds while they are.
        self.timer: Callable[[], None] | None = None
        self.stream: ItemStream | None = None


class _Turn:
    """What the thread that reads is at, until it hands over."""

    __slots__ = ("busy_since", "handed_over", "quick", "running")

    def __init__(self) -> None:
        # The calls of the message that it runs itself.
        self.quick: deque[_Entry] = deque()
        self.running: Call | None = None
        self.busy_since: float | None = None
        self.handed_over = False


class _Waiting:
    """What the reading thread enters when a function that it runs waits for a call of its own."""

    __slots__ = ("_session", "_turn")

    def __init__(self, session: Session, turn: _Turn) -> None:
        self._session = session
        self._turn = turn

    def __enter__(self) -> None:
        self._session.hand_over(self._turn)

    def __exit__(self, *_: object) -> None:
        pass


class Next(enum.Enum):
    """What the thread that reads a session does after a message."""

    READ = enum.auto()
    """Read the next one."""
    END = enum.auto()
    """Read no further: the session is over."""
    LEAVE = enum.auto()
    """Leave it alone: another thread reads on."""


class Session:
    """The server's end of one session."""

    def __init__(
        self,
        core: Core,
        peer: Peer,
        *,
        send: Callable[[bytes], None],
        finish: Callable[[], None],
        read_on: Callable[[], None],
        kill: Callable[[], object],
    ) -> None:
        """Begins a session.

        Args:
            core: runs the calls.
            peer: the caller.
            send: writes one message and returns when the carrier can take the next; called by one thread at a time.
            finish: ends the stream after the last message; called once, or never if the carrier ends it first.
            read_on: has another thread call `receive` for the messages that follow.
            kill: ends the stream at once, where it can't be ended in order.
        """
        self._core = core
        self._peer = peer
        self._send = send
        self._finish = finish
        self._read_on = read_on
        self._kill = kill
        self._outbox = Outbox()
        self._lock = threading.Lock()
        self._entries: dict[int, _Entry] = {}
        self._welcomed = False
        self._ending = False
        self._finished = False
        self._aborted = False
        self._over = False
        # How many calls were taken off the list whose answers are not in the outbox yet, and those whose are.
        self._answering = 0
        self._unfinished: deque[tuple[Call, str]] = deque()
        self._turn = _Turn()
        # The client process, as its hello names it.
        self._client_id = ""
        self._no_hello = deadlines.after(core.config.hello_seconds, self._hello_is_missing)
        core.watch.add(self)

    # --- what arrives; one thread at a time ---

    def receive(self, message: bytes) -> Next:
        """Takes one message, and answers what can be answered at once."""
        turn = self._turn
        if self._core.rrefs.leases.by_client:
            self._core.rrefs.touch(self._client_id)
        try:
            for frame in frames.read_request(message):
                if isinstance(frame, frames.Call):
                    self._take_call(message, frame)
                elif isinstance(frame, frames.Chunk):
                    self._take_chunk(frame)
                elif isinstance(frame, frames.Cancel):
                    self._cancel(frame.id)
                elif isinstance(frame, frames.Credit):
                    self._add_credit(frame)
                else:
                    self._welcome(frame)
        except BadPayload as error:
            # What else the message held is lost, and with it calls that would never be answered: the session ends, but
            # not before those that are in flight.
            self._put(frames.failure(0, statuses.service_failure(error).SerializeToString()))
            self._over = True
        if turn.quick or not self._outbox.empty:
            self._answer(turn)
        if self._over:
            self.end()
        if turn.handed_over:
            return Next.LEAVE
        return Next.END if self._over or self._finished else Next.READ

    def _answer(self, turn: _Turn) -> None:
        """Runs the quick calls of this message and writes what there is to write.

        By now all of its frames are taken, so that another thread may read on at any time.
        """
        turn.busy_since = now = time.monotonic()
        self._core.watch.tick(now)
        if turn.quick:
            waiting.install(_Waiting(self, turn))
            answers = 0
            while True:
                try:
                    # Whoever hands over takes what is left.
                    entry = turn.quick.popleft()
                except IndexError:
                    break
                assert entry.call is not None
                turn.running = entry.call
                turn.busy_since = time.monotonic()
                self._run(entry, entry.call, flush=False)
                answers += 1
                if answers % _ANSWERS_AT_ONCE == 0 or self._outbox.waiting_bytes > _BYTES_AT_ONCE:
                    turn.running = None
                    self._flush()
            turn.running = None
            waiting.uninstall()
        self._flush()
        with self._lock:
            turn.busy_since = None

    def busy_since(self) -> float | None:
        """When the reading thread began with what it is at; see `watch.Watched`."""
        return self._turn.busy_since

    def hand_over(self, turn: _Turn | None = None) -> None:
        """Has another thread read on while the reading one is held up."""
        with self._lock:
            turn = turn or self._turn
            if turn.busy_since is None or turn.handed_over:
                return
            turn.handed_over = True
            self._turn = _Turn()
            running = turn.running
        if running is not None:
            running.exposed.pace.slow()
        self._read_on()
        # What was answered before must not wait for what is slow.
        self._core.chores.submit_always(self._flush)
        while turn.quick:
            with contextlib.suppress(IndexError):
                entry = turn.quick.popleft()
                assert entry.call is not None
                self._core.pool.submit_always(self._run, entry, entry.call)

    def _welcome(self, hello: handler_service_pb2.SessionHello) -> None:
        if self._welcomed:
            raise BadPayload("a session takes one hello, in its first message")
        self._welcomed = True
        self._no_hello()
        core = self._core
        if len(hello.client_id.encode()) > MAX_CALL_ID_BYTES:
            raise BadPayload(f"the client_id has more than {MAX_CALL_ID_BYTES} bytes")
        self._client_id = hello.client_id
        _log.debug("session", extra={"peer": self._peer.address, "client": hello.client_id, "agent": hello.user_agent})
        welcome = handler_service_pb2.SessionWelcome(
            worker=core.worker,
            incarnation=core.incarnation,
            chunk_size=CHUNK_BYTES,
            max_message_size=core.config.max_message_bytes,
            address=core.rrefs.address,
        )
        self._put(frames.welcome(welcome))

    def _hello_is_missing(self) -> None:
        if not self._welcomed:
            seconds = self._core.config.hello_seconds
            error = BadPayload(f"the session had no hello for {seconds:g} s: it is what the first message holds")
            self._put(frames.failure(0, statuses.service_failure(error).SerializeToString()))
            self._core.chores.submit_always(self.end)

    def _add_credit(self, credit: frames.Credit) -> None:
        entry = self._entries.get(credit.id)
        if entry is None:
            return
        with self._lock:
            stream = entry.stream
            if stream is None:
                # What it runs is not known yet.
                entry.frame.credit += credit.items
        if stream is not None:
            stream.add_credit(credit.items)

    def _take_call(self, message: bytes, frame: frames.Call) -> None:
        if not self._welcomed:
            raise BadPayload("the first message of a session must hold a hello")
        entry = _Entry(frame)
        with self._lock:
            first = self._entries.setdefault(frame.id, entry)
        if first is not entry:
            error = DuplicateCall(f"a call with the id {frame.id} is in flight on this session: count on")
            self._put(self._failure(frame.id, error))
            return
        try:
            # decode → authorise; tensors in chunks are gathered before it runs
            request = calls.decode_request(message, *frame.request)
            call = self._core.admit(request, self._peer, frame.timeout, stream=frame.stream, client_id=self._client_id)
            with self._lock:
                entry.call = call
                aborted = self._aborted
            if aborted:
                raise Cancelled("the caller is gone")
            gathering = self._core.gather(request)
            if gathering is None:
                self._start(entry, call)
                return
            with self._lock:
                if self._aborted:
                    raise Cancelled("the caller is gone")
                entry.gathering = gathering
            if frame.timeout is not None:
                entry.timer = deadlines.after(frame.timeout, lambda: self._late(entry))
        except Exception as error:
            self._fail_early(entry, error)

    def _take_chunk(self, chunk: frames.Chunk) -> None:
        entry = self._entries.get(chunk.id)
        gathering = None if entry is None else entry.gathering
        if entry is None or gathering is None:
            # The call failed or was cancelled while its chunks were under way.
            return
        try:
            gathering.add(chunk.tensor, chunk.offset, chunk.data)
            with self._lock:
                if entry.gathering is not None:
                    self._core.gathered(len(chunk.data))
                    entry.gathered += len(chunk.data)
        except Exception as error:
            self._fail_gathering(entry, error)
            return
        if gathering.complete and self._stop_gathering(entry):
            assert entry.call is not None
            try:
                self._start(entry, entry.call)
            except Exception as error:
                self._fail_early(entry, error)

    def _stop_gathering(self, entry: _Entry) -> bool:
        """Ends the gathering of a call's tensors; False if another thread did so before."""
        with self._lock:
            gathering, entry.gathering = entry.gathering, None
        if gathering is None:
            return False
        self._core.gathered(-entry.gathered)
        if entry.timer is not None:
            entry.timer()
        return True

    def _late(self, entry: _Entry) -> None:
        self._fail_gathering(entry, DeadlineExceeded("the time of the call ran out before its tensors had come"))
        self._core.chores.submit_always(self._flush)

    def _start(self, entry: _Entry, call: Call) -> None:
        core = self._core
        if call.late is not None:
            self._start_late(entry, call)
        elif entry.frame.stream:
            core.pool.submit(self._stream(entry, call).run)
        elif call.exposed.kind == signatures.COROUTINE:
            core.chores.submit_always(self._run_coroutine, entry, call)
        elif call.exposed.pace.quick and not core.pool.backlog and len(self._turn.quick) < _MAX_QUICK:
            self._turn.quick.append(entry)
        else:
            core.pool.submit(self._run, entry, call)

    def _stream(self, entry: _Entry, call: Call) -> ItemStream:
        with self._lock:
            entry.stream = ItemStream(self._core, call, entry.frame.id, entry.frame.credit, self)
            return entry.stream

    def _start_late(self, entry: _Entry, call: Call) -> None:
        """Starts a call of which it is not known yet what it runs."""
        core = self._core
        if call.awaits is None:
            core.pool.submit(self._resolve, entry, call)
            return
        core.begin_awaiting()
        once = threading.Lock()
        call_offs: list[Callable[[], None]] = []

        def go_on(*_: object) -> None:
            if once.acquire(blocking=False):
                core.end_awaiting()
                for call_off in call_offs:
                    call_off()
                # It leads back here: the value would stay until the garbage collector runs.
                call_offs.clear()
                core.pool.submit_always(self._resolve, entry, call)

        # The order matters: the value may be there, and the call be cancelled, at any time from here on.
        remaining = call.context.time_remaining()
        if remaining is not None:
            call_offs.append(deadlines.after(remaining, go_on))
        call.context.on_cancel(go_on)
        call_offs.append(call.awaits.on_done(go_on))
        if once.locked():
            # It may have been over before the value was told to call back, and must not be kept by it.
            for call_off in call_offs:
                call_off()
            call_offs.clear()

    def _resolve(self, entry: _Entry, call: Call) -> None:
        """Runs a call on this thread of the pool, now that it can be known what it runs."""
        try:
            call.context.check()
            self._core.resolve(call)
        except Exception as error:
            if call.made is not None:
                call.made.set_error(error)
            self._failed(entry, call, error)
            return
        if entry.frame.stream:
            self._stream(entry, call).run()
        elif call.exposed.kind == signatures.COROUTINE:
            self._run_coroutine(entry, call)
        else:
            self._run(entry, call)

    def _cancel(self, number: int) -> None:
        entry = self._entries.get(number)
        if entry is None or entry.call is None:
            return
        entry.call.context.cancel()
        self._fail_gathering(entry, Cancelled("the call was cancelled before it was complete"))

    def _fail_gathering(self, entry: _Entry, error: BaseException) -> None:
        """Answers a call whose tensors are still coming, if they are; from whatever thread."""
        if self._stop_gathering(entry):
            self._fail_early(entry, error)

    def _fail_early(self, entry: _Entry, error: BaseException) -> None:
        """Answers a call that was never run; `receive`, or who calls, writes the answer."""
        self._forget(entry)
        self._put(self._failure(entry.frame.id, error))
        self._answered()
        if entry.call is not None:
            self._core.withdraw(entry.call, error)

    # --- what runs on the pool ---

    def _run(self, entry: _Entry, call: Call, flush: bool = True) -> None:
        try:
            encoded = self._core.run(call, CHUNK_BYTES)
        except Exception as error:
            self._failed(entry, call, error, flush)
            return
        self._succeeded(entry, call, encoded, flush)

    def _run_coroutine(self, entry: _Entry, call: Call) -> None:
        def done(outcome: Encoded | Exception) -> None:
            if isinstance(outcome, Exception):
                self._failed(entry, call, outcome)
            else:
                self._succeeded(entry, call, outcome)

        try:
            self._core.start_coroutine(call, CHUNK_BYTES, done)
        except Exception as error:
            self._failed(entry, call, error)

    def send_item(self, number: int, item: Encoded, sent: Callable[[], None]) -> bool:
        """Sends an item of a stream; see `streaming.ItemSender`."""
        frame = frames.item(number, item.parts)
        call = self._entries[number].call
        assert call is not None
        # Before it is put: another thread may go on with the stream then. What becomes of that is not this item's end.
        held, call.held = call.held, 0
        # Chunks name the latest item: the next one has to wait until they are out. And so it has where the caller does
        # not read as fast as the function runs.
        waits = bool(item.chunked) or self._outbox.waiting_bytes > _BYTES_AT_ONCE
        put = self._put(frame, self._chunks(number, item) if item.chunked else None, sent if waits else None)
        if not put:
            self._let_go(call, held)
        self._flush()
        return not (put and waits)

    def stream_ended(self, number: int, error: Exception | None) -> None:
        """Answers a stream at its end; see `streaming.ItemSender`."""
        entry = self._entries[number]
        assert entry.call is not None
        if error is None:
            self._ended(entry, entry.call, frames.end(number), "ok")
        else:
            self._failed(entry, entry.call, error)

    def _succeeded(self, entry: _Entry, call: Call, encoded: Encoded, flush: bool = True) -> None:
        number = entry.frame.id
        following = self._chunks(number, encoded) if encoded.chunked else None
        self._ended(entry, call, frames.result(number, encoded.parts), "ok", following, flush)

    def _failed(self, entry: _Entry, call: Call, error: Exception, flush: bool = True) -> None:
        self._ended(entry, call, self._failure(entry.frame.id, error), type(error).__name__, None, flush)

    def _ended(
        self, entry: _Entry, call: Call, frame: Parts, outcome: str, following: Chunks | None = None, flush: bool = True
    ) -> None:
        """Answers a call that was run; without `flush` the answer waits for those of other calls."""
        # First, so that the caller may use the id again once it has the answer.
        self._forget(entry)
        if not self._put(frame, following):
            self._let_go(call, call.held)
        self._answered()
        self._unfinished.append((call, outcome))
        if flush:
            self._flush()

    def _let_go(self, call: Call, hold: int) -> None:
        """Lets go of what an answer refers to that can't be sent any more: `abort` may have been before its hold."""
        if hold:
            self._core.rrefs.release(call.client_id, holds=[hold])

    def _forget(self, entry: _Entry) -> None:
        """Takes a call off the list, to be answered."""
        with self._lock:
            del self._entries[entry.frame.id]
            self._answering += 1

    def _answered(self) -> None:
        with self._lock:
            self._answering -= 1

    def _failure(self, number: int, error: BaseException) -> Parts:
        return frames.failure(number, self._core.failure(error, self._peer).SerializeToString())

    def _chunks(self, number: int, encoded: Encoded) -> Chunks:
        return (frames.response_chunk(number, *chunk) for chunk in chunks.split(encoded.chunked))

    # --- what leaves ---

    def _put(self, frame: Parts, following: Chunks | None = None, sent: Callable[[], None] | None = None) -> bool:
        return self._outbox.put(frame, following, sent)

    def _flush(self) -> None:
        """Writes what is there, unless another thread is writing already: then that one takes it along."""
        claimed = self._outbox.claim()
        if claimed:
            try:
                while (message := self._outbox.next_message()) is not None:
                    # The peer may be slow to read: that must not cost the pool a thread.
                    with waiting.waiting():
                        self._send(message)
                    if len(self._unfinished) > _MAX_UNFINISHED:
                        self._finish_calls()
            except Exception:
                _log.exception("a session can't be written to, by a defect of tensorcall")
                self.abort()
                self._kill()
        if self._unfinished and (claimed or self._outbox.empty):
            self._finish_calls()
        if self._ending:
            self._finish_if_done()

    def _finish_calls(self) -> None:
        """Ends calls whose answers are out: not before, so that a drain waits for them, too."""
        while self._unfinished:
            with contextlib.suppress(IndexError):
                self._core.finish(*self._unfinished.popleft())

    def _finish_if_done(self) -> None:
        with self._lock:
            if not self._ending or self._finished or self._entries or self._answering or not self._outbox.empty:
                return
            self._finished = True
        self._core.watch.discard(self)
        self._finish()

    # --- the end ---

    def end(self) -> None:
        """Reads no further; ends the stream once the calls in flight are answered. Idempotent."""
        with self._lock:
            self._ending = True
            incomplete = [entry for entry in self._entries.values() if entry.gathering is not None]
        for entry in incomplete:
            self._fail_gathering(entry, BadPayload("the session's requests ended in the middle of the call's tensors"))
        self._flush()

    def abort(self) -> None:
        """The caller is gone: cancels its calls and drops what was to be sent. Idempotent."""
        with self._lock:
            self._ending = self._finished = self._aborted = True
            call_off, self._no_hello = self._no_hello, _nothing
            entries = list(self._entries.values())
        call_off()
        self._core.watch.discard(self)
        self._outbox.close(discard=True)
        self._core.rrefs.let_holds_lapse(self._client_id)
        for entry in entries:
            if entry.call is not None:
                entry.call.context.cancel()
            self._fail_gathering(entry, Cancelled("the caller is gone"))
        self._finish_calls()
