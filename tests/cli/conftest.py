"""Runs the real command in real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
# Isolated: neither the caller's PYTHON… variables nor, as -m would have it, the current directory take part.
COMMAND = [sys.executable, "-I", "-m", "tensorcall.cli"]
SECONDS = 60.0


def eventually(condition: Callable[[], Any], what: str) -> Any:
    """Waits until the condition holds and returns its value."""
    end = time.monotonic() + SECONDS
    while not (value := condition()):
        assert time.monotonic() < end, f"{what} did not come about"
        time.sleep(0.005)
    return value


def environment(**settings: str) -> dict[str, str]:
    # Without what the caller may have set for servers of their own.
    return {name: value for name, value in os.environ.items() if not name.startswith("TENSORCALL_")} | settings


def run(*args: object, cwd: Path = HERE, **settings: str) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    return subprocess.run(
        [*COMMAND, *map(str, args)],
        cwd=cwd,
        env=environment(**settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


def _heed_ctrl_c() -> None:
    # Whoever runs the tests in the background may have it ignored, which children inherit.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Running:
    """A command that runs."""

    def __init__(self, folder: Path, *args: object, cwd: Path = HERE, **settings: str) -> None:
        self.out, self.log = folder / "stdout", folder / "stderr"
        with self.out.open("w") as out, self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*COMMAND, *map(str, args)],
                cwd=cwd,
                env=environment(**settings),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                preexec_fn=_heed_ctrl_c,
            )

    @property
    def stdout(self) -> str:
        return self.out.read_text()

    @property
    def stderr(self) -> str:
        return self.log.read_text()

    def appears(self, path: Path) -> str:
        """Waits until a file is there, which this process is to bring about, and returns its text."""
        eventually(lambda: path.exists() or self.process.poll() is not None, str(path))
        assert path.exists(), self.stderr
        return path.read_text()

    def until(self, condition: Callable[[], Any], what: str) -> None:
        """Waits for what follows from what it does."""
        eventually(condition, what)

    def logs(self, words: str) -> None:
        """Waits until it says so on stderr."""
        eventually(lambda: words in self.stderr or self.process.poll() is not None, words)
        assert words in self.stderr

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Waits for its end and returns the exit code."""
        return self.process.wait(SECONDS)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(SECONDS)


class Serving(Running):
    """A server."""

    def __init__(self, folder: Path, *args: object, cwd: Path = HERE, **settings: str) -> None:
        port = folder / "port"
        super().__init__(folder, "serve", "--bind", "127.0.0.1:0", "--port-file", port, *args, cwd=cwd, **settings)
        self.address = f"127.0.0.1:{int(self.appears(port))}"


@pytest.fixture
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Running]]:
    """Starts commands that end with the test at the latest."""
    running: list[Running] = []

    def start(*args: object, **settings: Any) -> Running:
        running.append(Running(tmp_path_factory.mktemp("command"), *args, **settings))
        return running[-1]

    yield start
    for process in running:
        process.end()


@pytest.fixture
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Serving]]:
    """Starts servers that end with the test at the latest."""
    running: list[Serving] = []

    def serve(*args: object, **settings: Any) -> Serving:
        running.append(Serving(tmp_path_factory.mktemp("server"), *args, **settings))
        return running[-1]

    yield serve
    for process in running:
        process.end()


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where one server listens that no test harms."""
    server = Serving(tmp_path_factory.mktemp("server"), "served")
    yield server.address
    server.send(signal.SIGTERM)
    assert server.wait() == 0, server.stderr


@pytest.fixture
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    return run


@pytest.fixture(scope="session")
def nobody() -> Iterator[str]:
    """An address where nobody answers: taken, so that nobody else can be given it, but not listened at."""
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"
