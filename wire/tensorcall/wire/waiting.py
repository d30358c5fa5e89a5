"""Lets a thread tell whoever runs it that it is about to wait for another call.

A pool of fixed size deadlocks when all of its threads wait for calls that the same pool would have to run. The client
can't know the server's pool (imports point down), so the pool leaves itself with each of its threads, and whatever
waits does so within `waiting()`.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext

_runners = threading.local()
_nobody: AbstractContextManager[None] = nullcontext()


def install(runner: AbstractContextManager[None]) -> None:
    """Makes `waiting()` enter and leave this on the current thread; it must allow that any number of times."""
    _runners.runner = runner


def uninstall() -> None:
    """Has nobody told any more."""
    _runners.runner = _nobody


def waiting() -> AbstractContextManager[None]:
    """Wrap around anything that waits for a call to be run elsewhere."""
    runner: AbstractContextManager[None] = getattr(_runners, "runner", _nobody)
    return runner
