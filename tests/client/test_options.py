"""What may be set, and what is refused where it is set."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tensorcall.client import CallOptions, Remote, connect, connect_async


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"timeout": "5"}, TypeError),
        ({"timeout": True}, TypeError),
        ({"timeout": 1j}, TypeError),
        ({"timeout": math.nan}, ValueError),
        ({"prefetch": 0}, ValueError),
        ({"prefetch": 2**31}, ValueError),
        ({"prefetch": 1.5}, TypeError),
        ({"prefetch": True}, TypeError),
        ({"call_id": 5}, TypeError),
        ({"call_id": "é" * 65}, ValueError),
        ({"pickle": 1}, TypeError),
        ({"progress": "print"}, TypeError),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_name(settings: dict[str, Any], error: type[Exception]) -> None:
    (name,) = settings
    with pytest.raises(error, match=name):
        CallOptions(**settings)
    with pytest.raises(error, match=name):
        connect("127.0.0.1:1", **settings)
    with pytest.raises(error, match=name), connect("127.0.0.1:1") as remote:
        remote.options(**settings)


def test_for_ever_has_several_names() -> None:
    assert CallOptions(timeout=math.inf).timeout is CallOptions(timeout=10**400).timeout is None
    assert CallOptions(timeout=-math.inf).timeout == -math.inf
    assert CallOptions(timeout=np.float32(0.5)).timeout == 0.5
    assert CallOptions(timeout=3).timeout == 3.0
    assert CallOptions(call_id="é" * 64).call_id == "é" * 64


@pytest.mark.parametrize("timeout", [1e8, 1e10, 1e300])
def test_a_huge_timeout_is_fine_everywhere(remote: Remote, timeout: float) -> None:
    patient = remote.options(timeout=timeout)
    assert patient.call("served.add", 1) == 2.0
    assert patient.submit("served.add", 1).result(30) == 2.0
    assert list(patient.stream("served.count", 3)) == [0, 1, 2]
    assert patient.functions("team.")
    # Shorter ones still fire.
    with pytest.raises(TimeoutError):
        remote.options(timeout=0.1).submit("served.sleep_for_ever", "beside a huge timeout").result(30)


@pytest.mark.parametrize(
    ("settings", "error", "what"),
    [
        ({"carrier": "sesion"}, ValueError, "'auto', 'session', 'call'"),
        ({"connect_timeout": 0}, ValueError, "connect_timeout"),
        ({"connect_timeout": -1.0}, ValueError, "connect_timeout"),
        ({"connect_timeout": math.nan}, ValueError, "connect_timeout"),
        ({"connect_timeout": "5"}, TypeError, "connect_timeout"),
    ],
    ids=str,
)
def test_how_to_connect_is_checked_at_once(settings: Any, error: type[Exception], what: str) -> None:
    with pytest.raises(error, match=what):
        connect("127.0.0.1:1", **settings)
    with pytest.raises(error, match=what):
        connect_async("127.0.0.1:1", **settings)


def test_an_url_is_no_address() -> None:
    with pytest.raises(ValueError, match=r"HOST:PORT without http://, for example host:5000"):
        connect("http://host:5000/path")
    with pytest.raises(TypeError, match="HOST:PORT"):
        connect(5)  # type: ignore[arg-type]
    connect("dns:///localhost:1").close()


def test_connecting_may_take_for_ever(server: Any) -> None:
    with connect(server.address, connect_timeout=math.inf) as remote:
        assert remote.call("served.add", 1) == 2.0


async def test_a_function_is_called_by_its_name(remote: Remote) -> None:
    for method in (remote.call, remote.submit, remote.stream, connect_async(remote.address).submit):
        with pytest.raises(TypeError, match=r"pass the name.*'json\.dumps'"):
            import json

            method(json.dumps, 1)  # type: ignore[operator]
    with pytest.raises(TypeError, match="pass the name"):
        remote.call(5)  # type: ignore[arg-type]
