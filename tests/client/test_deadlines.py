"""The one thread for all deadlines."""

from __future__ import annotations

import threading
import weakref

import pytest
from support.servers import eventually

from tensorcall.client.deadlines import Deadlines


def test_a_time_that_never_comes_harms_no_other() -> None:
    deadlines, rung = Deadlines(), threading.Event()
    deadlines.after(threading.TIMEOUT_MAX * 4, rung.set)
    deadlines.after(1e300, rung.set)
    deadlines.after(0.001, rung.set)
    assert rung.wait(30)


def test_a_callback_that_raises_harms_no_other(caplog: pytest.LogCaptureFixture) -> None:
    deadlines, rung = Deadlines(), threading.Event()
    deadlines.after(0.001, lambda: 1 // 0)  # type: ignore[arg-type, return-value]
    deadlines.after(0.002, rung.set)
    assert rung.wait(30)
    assert "ZeroDivisionError" in caplog.text


def test_what_is_called_off_does_not_stay() -> None:
    deadlines, rung = Deadlines(), threading.Event()
    kept = deadlines.after(3600, rung.set)
    called_off = [deadlines.after(3600 + i, rung.set) for i in range(20_000)]
    for call_off in called_off:
        call_off()
        call_off()
    eventually(lambda: len(deadlines._heap) < 1000)
    deadlines.after(0.001, rung.set)
    assert rung.wait(30)
    kept()


def test_what_has_rung_is_let_go() -> None:
    class Rung:
        def __call__(self) -> None:
            pass

    deadlines, callback = Deadlines(), Rung()
    gone = weakref.ref(callback)
    call_off = deadlines.after(0.001, callback)
    del callback
    eventually(lambda: gone() is None)
    call_off()
