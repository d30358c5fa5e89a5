"""Runs something in a forked child of this process."""

from __future__ import annotations

import faulthandler
import os
import pickle
import select
import signal
import warnings
from collections.abc import Callable
from typing import Any


def in_child(function: Callable[[], Any], *, seconds: float = 30.0) -> Any:
    """Forks, calls it in the child, and returns what it returned, or the exception that it raised.

    Raises:
        AssertionError: the child did not end in time.
    """
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # It is what is tested that there are threads.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            faulthandler.dump_traceback_later(seconds - 2)
            try:
                told = function()
            except BaseException as error:
                told = error
            os.write(writing, pickle.dumps(told))
        finally:
            os._exit(0)
    os.close(writing)
    try:
        ready, _, _ = select.select([reading], [], [], seconds)
        assert ready, f"the child did not end within {seconds} s"
        told = os.read(reading, 1 << 16)
        assert told, "the child died"
        return pickle.loads(told)
    finally:
        os.close(reading)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
