"""Starts and ends real server processes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_SERVE = Path(__file__).parent / "serve.py"


class ServerProcess:
    """A server in a process of its own."""

    def __init__(self, module: str = "served", **settings: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(_SERVE), json.dumps(settings), module],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        if not self.address:
            _, stderr = self.process.communicate(timeout=30)
            raise AssertionError(f"the server did not start:\n{stderr}")

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(30)

    def end(self) -> tuple[int, str]:
        """Ends it as an operator would; returns its exit code and what it logged."""
        if self.process.poll() is None:
            self.send(signal.SIGTERM)
        try:
            _, stderr = self.process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            _, stderr = self.process.communicate()
            raise AssertionError(f"the server did not end:\n{stderr}") from None
        return self.process.returncode, stderr

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


def eventually(condition: Callable[[], Any], what: str = "the condition", seconds: float = 30.0) -> Any:
    """Waits until the condition holds and returns its value."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"{what} did not come about within {seconds} s"
        time.sleep(0.005)
