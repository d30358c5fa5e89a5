"""Frames arrive, print as they would on the worker, and never with a line of another file."""

from __future__ import annotations

import os
import re
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType

import pytest

from tensorcall.v1 import error_pb2
from tensorcall.wire import exceptions, tracebacks
from tensorcall.wire.errors import RemoteError


def caught(function: Callable[[], object]) -> BaseException:
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def sent(error: BaseException) -> RemoteError:
    return exceptions.from_tree(exceptions.to_tree(error))


class Special(KeyError):
    class Inner(Exception):
        pass


def simple() -> None:
    raise ValueError("bad\nin two lines")


def silent() -> None:
    raise Special.Inner


def caused() -> None:
    try:
        {}["k"]
    except KeyError as error:
        raise ValueError("v") from error


def in_context() -> None:
    try:
        caused()
    except ValueError:
        raise Special("s")  # noqa: B904


def suppressed() -> None:
    try:
        simple()
    except ValueError:
        raise TypeError("t") from None


def recursive(depth: int = 2000) -> None:
    if depth:
        recursive(depth - 1)
    raise ValueError


def noted() -> None:
    error = ValueError("n")
    error.__notes__ = ["one", "two\nlines"]  # type: ignore[attr-defined]
    raise error


def grouped(depth: int = 1, width: int = 3) -> None:
    errors: list[Exception] = [caught(caused), TypeError(1)]  # type: ignore[list-item]
    for _ in range(depth):
        errors = [ExceptionGroup("inner", errors[:20]), *(ValueError(i) for i in range(width))]  # noqa: F821
    error = ExceptionGroup("outer", [*errors, ExceptionGroup("last", [KeyError("k")])])  # noqa: F821
    try:
        in_context()
    except KeyError:
        raise error  # noqa: B904


def as_python_prints(error: BaseException) -> str:
    lines = "".join(traceback.format_exception(error)).splitlines(keepends=True)
    # Ours has no marks under the columns.
    return "".join(line for line in lines if not re.fullmatch(r"[ |+]*[\^~][\^~ ]*\n", line))


CASES = [simple, silent, caused, in_context, suppressed, noted, grouped, lambda: grouped(3, 20), lambda: grouped(13, 1)]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="notes and groups came with Python 3.11")
@pytest.mark.parametrize("function", CASES)
def test_text_is_what_python_prints(function: Callable[[], None]) -> None:
    error = caught(function)
    assert sent(error).remote_traceback == as_python_prints(error)


@pytest.mark.parametrize("function", [simple, silent, caused, in_context, suppressed])
def test_text_of_plain_exceptions_is_what_python_prints(function: Callable[[], None]) -> None:
    error = caught(function)
    assert sent(error).remote_traceback == as_python_prints(error)


def test_an_uncaught_error_prints_remote_frames_below_local_ones() -> None:
    def call() -> None:
        raise sent(caught(simple))

    arrived = caught(call)
    frames = traceback.extract_tb(arrived.__traceback__)
    assert [frame.name for frame in frames] == ["caught", "call", "caught", "simple"]
    assert frames[-1].line == r'raise ValueError("bad\nin two lines")'
    assert as_python_prints(arrived).endswith("ValueError: bad\nin two lines\n")


def test_a_long_traceback_keeps_its_ends() -> None:
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10_000)
    try:
        error = caught(recursive)
    finally:
        sys.setrecursionlimit(limit)
    frames = list(exceptions.to_tree(error).exceptions[0].frames)
    assert len(frames) == 201
    assert (frames[100].function, frames[100].line) == ("[1802 frames left out]", 0)
    assert frames[0].function == "caught"
    assert (frames[-1].function, frames[-1].source) == ("recursive", "raise ValueError")
    arrived = sent(error)
    assert len(traceback.extract_tb(arrived.__traceback__)) == 201
    assert "  [Previous line repeated 96 more times]\n" in arrived.remote_traceback
    assert "in [1802 frames left out]\n" in arrived.remote_traceback


def test_our_own_frames_are_left_out_at_the_top_only() -> None:
    def is_ours(frame: FrameType) -> bool:
        return frame.f_code.co_name == "caught"

    def twice() -> None:
        raise caught(simple)

    (node,) = exceptions.to_tree(caught(twice), skip=is_ours).exceptions
    assert [tracebacks.short_name(frame) for frame in node.frames] == ["twice", "caught", "simple"]

    def broken(frame: FrameType) -> bool:
        raise ValueError

    assert len(exceptions.to_tree(caught(simple), skip=broken).exceptions[0].frames) == 2


def test_tracebacks_can_be_withheld() -> None:
    tree = exceptions.to_tree(caught(caused), tracebacks=False)
    assert not any(node.frames for node in tree.exceptions)
    arrived = exceptions.from_tree(tree)
    assert arrived.remote_traceback == ""
    assert arrived.__traceback__ is None
    # A frame of ours is no reason to show theirs.
    assert exceptions.from_tree(exceptions.to_tree(arrived)).remote_traceback == ""


def test_qualified_names() -> None:
    class Local:
        def method(self) -> None:
            raise ValueError

    (node,) = exceptions.to_tree(caught(Local().method)).exceptions
    name = "test_qualified_names.<locals>.Local.method" if sys.version_info >= (3, 11) else "method"
    assert node.frames[-1].function == name
    assert tracebacks.short_name(node.frames[-1]) == "method"


def rebuilt(*frames: error_pb2.Frame) -> list[traceback.FrameSummary]:
    return list(traceback.extract_tb(tracebacks.to_traceback(frames)))


def test_no_line_of_another_file_is_printed(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text("first = 1\nsecond = 2\n")
    same = error_pb2.Frame(file=str(file), line=2, function="f", source="second = 2")
    other = error_pb2.Frame(file=str(file), line=1, function="f", source="another = 1")
    unknown = error_pb2.Frame(file=str(file), line=1, function="f")
    frames = rebuilt(same, other, unknown)
    assert [(frame.filename, frame.line) for frame in frames] == [
        (str(file), "second = 2"),
        (f"{file} (remote)", ""),
        (f"{file} (remote)", ""),
    ]
    file.write_text("changed = 1\nchanged = 2, again\n")
    assert rebuilt(same)[0].line == ""


def test_only_source_files_are_opened(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.py"
    os.mkfifo(pipe)
    frames = [error_pb2.Frame(file=str(file), line=1, source="x") for file in (pipe, "/dev/zero", "/etc/passwd")]
    done = threading.Thread(target=lambda: rebuilt(*frames), daemon=True)
    done.start()
    done.join(10)
    assert not done.is_alive()


@pytest.mark.parametrize(
    "frame",
    [
        error_pb2.Frame(),
        error_pb2.Frame(file="\0", line=2**32 - 1, function="\0"),
        error_pb2.Frame(file="<string>", line=1, function="<module>", source="x"),
        error_pb2.Frame(file="x" * 100_000, function="ä.\n.", source="\n"),
        error_pb2.Frame(file="Main.go", line=3, function="main.(*T).Run", source="panic(x)"),
    ],
    ids=lambda frame: frame.file[:10],
)
def test_odd_frames(frame: error_pb2.Frame) -> None:
    rebuilt_traceback = tracebacks.to_traceback([frame])
    assert isinstance(rebuilt_traceback, TracebackType)
    assert traceback.format_tb(rebuilt_traceback)
    tree = error_pb2.ExceptionTree(exceptions=[error_pb2.RemoteException(type="E", frames=[frame])])
    assert "E\n" in exceptions.from_tree(tree).remote_traceback


def test_a_text_is_no_longer_than_its_tree() -> None:
    """Nodes that name each other many times would print for ever."""
    nodes = [error_pb2.RemoteException(type="G", members=[(i + 1) % 12] * 15, cause=0) for i in range(12)]
    nodes[0].frames.add(file="f", line=1, function="g")
    arrived = exceptions.from_tree(error_pb2.ExceptionTree(exceptions=nodes))
    assert len(arrived.remote_traceback.splitlines()) < 1000
