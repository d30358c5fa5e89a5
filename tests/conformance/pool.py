"""Hands tests to zygotes, a few at a time, and gathers what came of them."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .results import Result

_TESTS = Path(__file__).resolve().parent.parent
_ROOT = _TESTS.parent


class ZygoteError(Exception):
    """A zygote did not start, or died: what it wrote tells why."""


@dataclass(frozen=True, slots=True)
class Job:
    """One test to be run."""

    test: str
    kind: str
    limit: float
    """Seconds after which it is ended."""


class Zygote:
    """The other end of a `zygote` process."""

    def __init__(self, kind: str, against: str) -> None:
        # A file, since nobody reads while it works.
        self._stderr = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed by close()
        path = os.pathsep.join(filter(None, [str(_TESTS), os.environ.get("PYTHONPATH", "")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "conformance.zygote", kind, against],
            cwd=_ROOT,
            env={**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )
        self.pid = self._process.pid
        try:
            self.introduction: dict[str, Any] = json.loads(self._line())
            if len(threads := self.introduction["threads"]) > 1:
                raise ZygoteError(f"importing starts threads, which forked processes would lack: {threads}")
        except BaseException:
            self.close()
            raise

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._stderr.seek(0)
            raise ZygoteError(f"exited with {code}:\n{self._stderr.read()}")
        return line

    def send(self, job: Job) -> None:
        """Asks for a test to be run."""
        assert self._process.stdin is not None
        print(json.dumps({"test": job.test, "limit": job.limit}), file=self._process.stdin, flush=True)

    def receive(self) -> Result:
        """Waits for the end of what was asked for."""
        return Result.from_json(self._line())

    def run(self, job: Job) -> Result:
        """Runs one test and waits for its end."""
        self.send(job)
        return self.receive()

    def close(self) -> None:
        """Ends it; a test that still runs is given up."""
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()
            if self._process.poll() is None:
                try:
                    self._process.wait(10)
                except subprocess.TimeoutExpired:
                    self._process.kill()
        self._stderr.close()


class Pool:
    """Runs tests, up to so many at a time, each of these with zygotes of its own."""

    def __init__(self, against: str, jobs: int = 2) -> None:
        self._against = against
        self._jobs = jobs
        self._idle: dict[str, list[Zygote]] = {}
        self._lock = threading.Lock()
        self._stopped = False

    def _take(self, kind: str) -> Zygote:
        with self._lock:
            if self._idle.get(kind):
                return self._idle[kind].pop()
        return Zygote(kind, self._against)

    def _give_back(self, kind: str, zygote: Zygote) -> None:
        with self._lock:
            self._idle.setdefault(kind, []).append(zygote)

    def introduction(self, kind: str) -> dict[str, Any]:
        """What a zygote of that kind tells about itself: its tests above all."""
        zygote = self._take(kind)
        self._give_back(kind, zygote)
        return zygote.introduction

    def run(self, jobs: Sequence[Job], tell: Callable[[Result], None]) -> None:
        """Runs tests in their order; calls `tell` with each result, from one thread at a time.

        Raises:
            ZygoteError: A zygote did not start, or died.
        """
        waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
        for job in jobs:
            waiting.put(job)
        errors: list[BaseException] = []
        telling = threading.Lock()

        def work() -> None:
            try:
                while not errors and not self._stopped:
                    job = waiting.get_nowait()
                    zygote = self._take(job.kind)
                    try:
                        result = zygote.run(job)
                    except BaseException:
                        zygote.close()
                        raise
                    self._give_back(job.kind, zygote)
                    with telling:
                        tell(result)
            except queue.Empty:
                pass
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, daemon=True) for _ in range(self._jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]

    def stop(self) -> None:
        """Lets `run` return when the tests that run at the moment have ended."""
        self._stopped = True

    def close(self) -> None:
        """Ends every zygote."""
        for zygotes in self._idle.values():
            for zygote in zygotes:
                zygote.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
