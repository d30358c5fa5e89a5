"""What waits to be sent on a session, and how it is batched.

While one message is being written, frames gather here and leave together in the next one. Tensors that go in chunks
take turns, one chunk a message, so that a large one holds up neither calls nor other large ones.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import TypeAlias

from tensorcall.wire.limits import MIB
from tensorcall.wire.protowire import Parts, size

# A message takes frames up to this size. A larger frame goes alone, so that it meets the limit of its receiver.
_BATCH_BYTES = 1 * MIB

Chunks: TypeAlias = Iterator[Parts]
Sent: TypeAlias = Callable[[], None]
_Source: TypeAlias = tuple[Chunks, Sent | None]


class Outbox:
    """Gathers frames, and hands out messages made of them.

    Frames are put from any thread. Messages are for one writer: either the one thread that `take`s them, or whichever
    thread has `claim`ed them.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # re-entrant: what is collected as garbage may put a frame
        # Held while there is nothing to take: a condition would cost a call more than all else here.
        self._awake = threading.Lock()
        self._awake.acquire()
        # Each with the chunks that belong behind it, if there are any.
        self._frames: deque[tuple[Parts, _Source | None]] = deque()
        # Those whose frame was handed out: a chunk must never overtake the frame that announces it.
        self._sources: deque[_Source] = deque()
        # Of the frames that wait; chunks that wait are still their tensors'.
        self._bytes = 0
        self._taking = False
        self._waiting = False
        self._closed = False
        self._discarded = False

    @property
    def empty(self) -> bool:
        """Whether everything was handed out, and nobody is about to send it."""
        with self._lock:
            return not (self._frames or self._sources or self._taking)

    @property
    def waiting_bytes(self) -> int:
        """How many bytes of frames wait to be sent."""
        return self._bytes

    def put(self, frame: Parts, chunks: Chunks | None = None, sent: Sent | None = None) -> bool:
        """Adds a frame, and the chunks that belong behind it.

        Args:
            frame: what to send.
            chunks: makes the frames of its chunks; drawn from one by one, on the writing thread.
            sent: called once: by the writing thread, when the writer has come back for more after the last chunk, or
                when the rest is discarded. Never, if this returns False.

        Returns:
            False if the outbox is closed: nothing of it will be sent.
        """
        source = None if chunks is None and sent is None else (iter(()) if chunks is None else chunks, sent)
        length = size(frame)
        with self._lock:
            if self._closed:
                return False
            self._frames.append((frame, source))
            self._bytes += length
            self._wake_up()
            return True

    def take(self) -> bytes | None:
        """Waits for frames and returns them as one message; None once the outbox is closed and empty."""
        while True:
            with self._lock:
                # Said before it is looked: what is collected as garbage may put a frame in between, on this thread.
                self._waiting = True
                empty = not (self._frames or self._sources)
                if not empty or self._closed:
                    if self._waiting:
                        self._waiting = False
                    else:
                        self._awake.acquire()  # the wake-up that was meant for us
                    if empty:
                        return None
            if empty:
                self._awake.acquire()
                continue
            message = self._message()
            if message is not None:
                return message

    def _wake_up(self) -> None:
        """Wakes the thread that waits in `take`; with the lock held."""
        if self._waiting:
            self._waiting = False
            self._awake.release()

    def claim(self) -> bool:
        """Makes the caller the one that writes, if there is something to write and nobody else does.

        The one that claimed calls `next_message` until it returns None.
        """
        with self._lock:
            if self._taking or not (self._frames or self._sources):
                return False
            self._taking = True
            return True

    def next_message(self) -> bytes | None:
        """Returns the next message for the one that claimed; None ends the claim."""
        message = self._message()
        while message is None:
            with self._lock:
                if not (self._frames or self._sources):
                    self._taking = False
                    return None
            message = self._message()
        return message

    def _message(self) -> bytes | None:
        """Joins what is ready; None if that turns out to be nothing."""
        parts: Parts = []
        total = 0
        with self._lock:
            while self._frames:
                frame, following = self._frames[0]
                length = size(frame)
                if parts and total + length > _BATCH_BYTES:
                    break
                self._frames.popleft()
                self._bytes -= length
                total += length
                parts += frame
                if following is not None:
                    self._sources.append(following)
            source = self._sources.popleft() if self._sources and total <= _BATCH_BYTES else None
        if source is not None:
            chunks, sent = source
            chunk = next(chunks, None)
            if chunk is not None:
                parts += chunk
                with self._lock:
                    if not self._discarded:
                        self._sources.append(source)
                        sent = None
            if sent is not None:
                sent()
        return b"".join(parts) if parts else None

    def close(self, *, discard: bool = False) -> None:
        """Ends it: nothing more is taken in; what is there is still handed out, unless discarded. Idempotent."""
        dropped: list[_Source] = []
        with self._lock:
            self._closed = True
            if discard:
                self._discarded = True
                dropped += self._sources
                dropped += (source for _, source in self._frames if source is not None)
                self._sources.clear()
                self._frames.clear()
                self._bytes = 0
            self._wake_up()
        for _, sent in dropped:
            if sent is not None:
                sent()
