"""Tracebacks ↔ Frames of error.proto."""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import dropwhile
from types import FrameType, SimpleNamespace, TracebackType
from typing import Any

import tblib

from tensorcall.v1 import error_pb2
from tensorcall.wire.texts import attempt, clean, cut

# Of a long traceback, such as a RecursionError's, this many frames are kept at either end.
KEEP = 100
MAX_SOURCE = 1000
# __name__ in the globals of frames that to_traceback made; no module has this name.
_REMOTE = "<remote>"
_MAX_LINE = (1 << 31) - 1  # what a code object takes


def from_traceback(
    traceback: TracebackType | None,
    *,
    skip: Callable[[FrameType], bool] | None = None,
    deeper: Sequence[error_pb2.Frame] = (),
) -> list[error_pb2.Frame]:
    """Describes a traceback, outermost frame first; of a long one both ends, with a frame between that tells so.

    Args:
        traceback: what to describe, apart from frames that to_traceback made: `deeper` describes those.
        skip: tells which frames to leave out at the top.
        deeper: frames of another worker, below these.
    """
    entries = _walk(traceback)
    if skip is not None:
        is_ours = skip
        entries = dropwhile(lambda entry: attempt(False, is_ours, entry[0]), entries)
    items = shorten([*entries, *deeper], KEEP)
    _forget_old_lines(item[0].f_code.co_filename for item in items if isinstance(item, tuple))
    return [_describe(*item) if isinstance(item, tuple) else item for item in items]


def shorten(frames: Sequence[Any], keep: int) -> list[Any]:
    """Keeps `keep` frames at either end; a frame between them says how many were left out."""
    count = len(frames) - 2 * keep
    if count <= 1:
        return list(frames)
    marker = error_pb2.Frame(file="<tensorcall>", function=f"[{count} frames left out]")
    return [*frames[:keep], marker, *frames[len(frames) - keep :]]


def to_traceback(frames: Sequence[error_pb2.Frame]) -> TracebackType | None:
    """Makes a traceback that prints these frames; their source lines only where the local file has the same."""
    frames = shorten(frames, KEEP)
    _forget_old_lines(frame.file for frame in frames)
    chain = None
    for frame in reversed(frames):
        # An uncaught error is printed with lines read from files of this machine: a name that is no file's gives none.
        # What opens a file can't bear NULs, and printing must not fail.
        file = (frame.file if local_source(frame) == frame.source else f"{frame.file} (remote)").replace("\0", "\\0")
        code = SimpleNamespace(co_filename=file, co_name=short_name(frame))
        line = min(frame.line, _MAX_LINE)
        globals_ = {"__name__": _REMOTE, "__file__": file}
        place = SimpleNamespace(f_globals=globals_, f_lineno=line, f_code=code)
        chain = SimpleNamespace(tb_frame=place, tb_lineno=line, tb_next=chain)
    return None if chain is None else tblib.Traceback(chain).as_traceback()


def short_name(frame: error_pb2.Frame) -> str:
    """The function's name as Python's tracebacks have it, without the class or function that it is defined in."""
    return frame.function.rpartition(".")[2] or "<unknown>"


def local_source(frame: error_pb2.Frame) -> str:
    """The line of this machine's file of that name, without indentation; empty if there is none."""
    # The peer chose the name: a pipe would block, a device has no end.
    in_memory = frame.file.startswith("<") and frame.file.endswith(">")
    if not in_memory and not (frame.file.endswith((".py", ".pyw")) and attempt(False, os.path.isfile, frame.file)):
        return ""
    return attempt("", _line, frame.file, frame.line)


def _walk(traceback: TracebackType | None) -> Iterator[tuple[FrameType, int | None]]:
    while traceback is not None:
        frame = traceback.tb_frame
        if dict.get(frame.f_globals, "__name__") != _REMOTE:
            # None where the compiler gave an instruction no line.
            line: int | None = traceback.tb_lineno
            yield frame, line
        traceback = traceback.tb_next


def _describe(frame: FrameType, line: int | None) -> error_pb2.Frame:
    code: Any = frame.f_code
    return error_pb2.Frame(
        file=clean(code.co_filename),
        line=max(line or 0, 0),
        function=clean(code.co_qualname if sys.version_info >= (3, 11) else code.co_name),
        source=attempt("", _line, code.co_filename, line or 0, frame.f_globals),
    )


def _line(file: str, line: int, module: dict[str, Any] | None = None) -> str:
    # The module helps where it was loaded from elsewhere than a file.
    return clean(cut(linecache.getline(file, line, module).strip(), MAX_SOURCE))


def _forget_old_lines(files: Iterable[str]) -> None:
    for file in set(files):
        attempt(None, linecache.checkcache, file)
