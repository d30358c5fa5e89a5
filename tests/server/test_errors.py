"""What functions raise, as callers see it, over each carrier."""

from __future__ import annotations

import sys
import traceback

import pytest
from support.servers import ServerProcess

from tensorcall.client import Remote, connect
from tensorcall.wire import errors


def raised(remote: Remote, kind: str) -> errors.RemoteError:
    with pytest.raises(errors.RemoteError) as caught:
        remote.call("served.raises", kind)
    return caught.value


def test_an_exception_arrives_whole(remote: Remote) -> None:
    error = raised(remote, "value")
    assert isinstance(error, ValueError)
    assert error.args == ("bad value", 7)
    assert error.hint == "try 8"  # type: ignore[attr-defined]
    assert isinstance(error.__cause__, KeyError)
    assert error.__cause__.args == ("why",)
    if sys.version_info >= (3, 11):
        assert error.__notes__ == ["noted"]
    assert error.remote_type == "builtins.ValueError"
    assert "served.py" in error.remote_traceback
    assert "raise error from KeyError" in error.remote_traceback
    printed = "".join(traceback.format_exception(error))
    assert "_value_error" in printed
    assert "KeyError: 'why'" in printed
    # The first frame is the function's own: what called it is of no interest to anybody.
    assert "core.py" not in error.remote_traceback


@pytest.mark.parametrize(
    ("kind", "cls", "text"),
    [
        ("awkward", errors.RemoteError, "1 and 2"),
        ("unprintable", errors.RemoteError, "Unprintable"),
        ("non-ascii", ValueError, "日本語 \\udcff ✓"),
        ("keyboard interrupt", errors.RemoteError, ""),
        ("system exit", errors.RemoteError, "1"),
        ("deep", RecursionError, "recursion"),
        ("stop iteration", errors.RemoteError, "5"),
        ("memory", MemoryError, "much"),
        ("os", FileNotFoundError, "/nonexistent/file"),
        ("not exposed", errors.RemoteError, "raised by the function itself"),
    ],
)
def test_awkward_exceptions(remote: Remote, kind: str, cls: type, text: str) -> None:
    error = raised(remote, kind)
    assert isinstance(error, cls)
    assert text in str(error)
    assert isinstance(error, Exception)
    assert remote.call("served.add", 1) == 2.0


def test_a_long_message(remote: Remote) -> None:
    error = raised(remote, "long")
    assert isinstance(error, ValueError)
    assert str(error).startswith("é" * 1000)


def test_a_chain_of_200(remote: Remote) -> None:
    error: BaseException | None = raised(remote, "chain")
    for i in range(200, -1, -1):
        assert isinstance(error, ValueError)
        assert str(error) == str(i)
        error = error.__cause__
    assert error is None


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups came with 3.11")
def test_a_group(remote: Remote) -> None:
    error = raised(remote, "group")
    assert isinstance(error, ExceptionGroup)  # noqa: F821
    assert isinstance(error.exceptions[0], ValueError)
    assert isinstance(error.exceptions[1].exceptions[0], KeyError)


def test_a_coroutine_that_exits_leaves_the_others_alone(remote: Remote) -> None:
    with pytest.raises(errors.RemoteError, match="3"):
        remote.call("served.coroutine_that_exits")
    assert remote.call("served.coroutine", 1) == 1


def test_an_error_of_a_nested_call_shows_both_servers_frames(server: ServerProcess) -> None:
    with connect(server.address) as remote, pytest.raises(ValueError, match="bad value") as caught:
        remote.call("served.raise_through", server.address)
    error = caught.value
    assert isinstance(error, errors.RemoteError)
    assert error.remote_type == "builtins.ValueError"
    assert "raise_through" in error.remote_traceback
    assert "_value_error" in error.remote_traceback


def test_tracebacks_may_be_kept_from_callers() -> None:
    with ServerProcess(tracebacks="never") as server:
        for carrier in ("session", "call"):
            with connect(server.address, carrier=carrier) as remote:  # type: ignore[arg-type]
                error = raised(remote, "value")
                assert isinstance(error, ValueError)
                assert error.remote_traceback == ""
        server.end()


def test_a_stop_iteration_does_not_pass_for_the_end_of_a_stream(remote: Remote) -> None:
    error = raised(remote, "stop iteration")
    assert not isinstance(error, StopIteration)
    assert error.remote_type == "builtins.StopIteration"
    with pytest.raises(errors.RemoteError, match="5"):
        list(remote.stream("served.raises", "stop iteration"))
