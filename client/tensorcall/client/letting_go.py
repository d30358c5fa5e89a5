"""Errors that hold nothing but themselves.

The traceback of what a function raised is made of real frames, which were run here to look like the server's. Python
links each frame to the one that ran it, so that the error would hold those that read it, they the error, and the
error's own traceback the caller's arguments: until the garbage collector runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import FrameType

from tensorcall.wire.errors import TensorcallError


def made_apart(make: Callable[[], TensorcallError]) -> TensorcallError:
    """Returns an error that was read from what the server sent, and that leads to nobody who did that."""
    # What a generator runs is linked to its caller only for so long.
    error = next(_run(make))
    try:
        raised: BaseException | None = error
        while raised is not None and raised.__traceback__ is None:
            raised = raised.__cause__ or raised.__context__
        if raised is not None and raised.__traceback__ is not None:
            _clear(raised.__traceback__.tb_frame.f_back)
        return error
    finally:
        del error, raised


def _run(make: Callable[[], TensorcallError]) -> Iterator[TensorcallError]:
    yield make()


def _clear(frame: FrameType | None) -> None:
    """Empties the frames that have ended, from this one outwards."""
    while frame is not None:
        try:
            frame.clear()
        except RuntimeError:
            return  # still runs
        frame = frame.f_back
