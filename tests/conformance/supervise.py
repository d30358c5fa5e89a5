"""Watches over the processes of one test, and sees to it that none outlives it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

# How long ranks may go on when another has failed: they hear of it and raise errors of their own, which tell more.
GRACE = 5.0
# How long what the ranks started may take to end after them.
_LINGER = 3.0
# How long the ranks may take to write their stacks.
_DUMP = 1.0
_POLL = 0.02
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, slots=True)
class Ending:
    """How the processes of a test ended."""

    codes: list[int | None]
    """Exit codes by rank, negative for a signal; None for those that had to be ended."""
    timed_out: bool
    left_behind: bool
    """Whether the ranks had started processes that outlived them."""


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def adopt_orphans() -> None:
    """Makes what the ranks leave behind children of this process, so that it can wait for them."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_with_parent() -> None:
    """Lets this process end when the one that forked it does, however that ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _signal_group(group: int, number: int) -> bool:
    """Signals every process of a group; False where none is left."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def _children() -> list[int]:
    """This process' children. One that has just ended is among them until it is waited for: none is ever a stranger."""
    path = Path(f"/proc/self/task/{os.getpid()}/children")
    return [int(pid) for pid in path.read_text().split()] if path.exists() else []


class Watch:
    """The ranks of one test: a process group."""

    def __init__(self, pids: list[int]) -> None:
        """Takes the ranks' processes in order; the first one's id is the group's."""
        self._ranks = {pid: rank for rank, pid in enumerate(pids)}
        self._group = pids[0]
        self._codes: list[int | None] = [None] * len(pids)
        self._parent = os.getppid()

    def _reap(self) -> bool:
        """Takes note of whatever has ended, orphans included; True where no child is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if not pid:
                return False
            if pid in self._ranks:
                self._codes[self._ranks.pop(pid)] = os.waitstatus_to_exitcode(status)

    def _gone(self) -> bool:
        return self._reap() and not _signal_group(self._group, 0)

    def _wait(self, until: float) -> None:
        """Waits for the ranks until a time, and from the first failure on for GRACE at most."""
        failed = False
        while True:
            self._reap()
            if not failed and any(self._codes):
                failed = True
                until = min(until, time.monotonic() + GRACE)
            if not self._ranks or time.monotonic() > until:
                return
            if os.getppid() != self._parent:
                # Nobody is left who wants to know.
                self.kill()
                sys.exit(1)
            time.sleep(_POLL)

    def _all_end(self) -> bool:
        until = time.monotonic() + _LINGER
        while not self._gone():
            if time.monotonic() > until:
                return False
            time.sleep(_POLL)
        return True

    def kill(self) -> None:
        """Ends every process of the test, also one that made a group of its own, and waits for them to be gone."""
        while not self._gone():
            _signal_group(self._group, signal.SIGKILL)
            for pid in _children():
                os.kill(pid, signal.SIGKILL)
            time.sleep(_POLL)

    def wait(self, limit: float) -> Ending:
        """Waits for all to end, for so many seconds; then lets them write their stacks, and ends them."""
        start = time.monotonic()
        try:
            self._wait(start + limit)
            if not self._ranks:
                return Ending(self._codes, timed_out=False, left_behind=not self._all_end())
            timed_out = not any(self._codes)
            codes = list(self._codes)
            for pid in self._ranks:
                os.kill(pid, signal.SIGUSR1)
            time.sleep(_DUMP)
            return Ending(codes, timed_out, left_behind=False)
        finally:
            self.kill()
