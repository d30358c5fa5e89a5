"""Callbacks run on the threads that bring answers; a call that is waited for there would wait for itself."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class _Current(threading.local):
    channel: object = None


_current = _Current()


@contextlib.contextmanager
def carrying(channel: object) -> Iterator[None]:
    """Marks that nothing of this channel gets on while the current thread is held up."""
    before, _current.channel = _current.channel, channel
    try:
        yield
    finally:
        _current.channel = before


def refuse_to_wait(channel: object) -> None:
    """Call before waiting for something of this channel.

    Raises:
        RuntimeError: it would never come.
    """
    if channel is not None and _current.channel is channel:
        raise RuntimeError(
            "this would wait for ever: callbacks run on the connection's own thread; "
            "use submit, or hand the work to another thread"
        )
