"""rpc in worlds without ranks: workers join, leave and die at any time while others call each other."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.servers import eventually

from tensorcall.client import connect
from tensorcall.rpc.world_secret import SECRET
from tensorcall.wire.errors import Unauthenticated

WORKER = Path(__file__).parent / "elastic_rpc_worker.py"
# Each process imports torch, which takes seconds.
pytestmark = pytest.mark.timeout(180)


class Failed(Exception):
    pass


class Process:
    def __init__(self, name: str, place: str, home: Path) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), name, place],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "HOME": str(home)},
        )

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"{self.name} ended with {self.process.wait(20)}"
        told = json.loads(line)
        if "error" in told:
            raise Failed(told["error"])
        return told["result"]

    def ask(self, *command: str) -> Any:
        assert self.process.stdin is not None
        print(*command, file=self.process.stdin, flush=True)
        return self.answer()

    def quit(self) -> None:
        assert self.ask("quit") == "quit"
        assert self.process.wait(20) == 0

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def spawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[Process]]]:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(SECRET, raising=False)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        place = f"tcp://127.0.0.1:{found.getsockname()[1]}"
    made: list[Process] = []

    def spawn(*names: str) -> list[Process]:
        started = [Process(name, place, tmp_path) for name in names]
        made.extend(started)
        for process in started:
            process.answer()
        return started

    yield spawn
    for process in made:
        process.process.kill()
        process.process.communicate()


def test_workers_come_and_go_while_others_call_each_other(spawn: Callable[..., list[Process]]) -> None:
    (host,) = spawn("w0")
    w1, w2 = spawn("w1", "w2")
    w1.ask("pester", "w2")
    w2.ask("pester", "w1")
    assert host.ask("call", "w1") == w1.ask("call", "w0") == [2, 2]
    # One comes, is called by those who were there, calls them, and goes.
    (w3,) = spawn("w3")
    assert w3.ask("call", "w2") == w2.ask("call", "w3") == w1.ask("relay", "w3", "w0") == [2, 2]
    w3.quit()
    eventually(lambda: w1.ask("who") == ["w0", "w1", "w2"])
    with pytest.raises(Failed, match="could not find destination 'w3'"):
        w1.ask("call", "w3")
    # References are passed on to third ones.
    assert w1.ask("count", "w2", "w0") == [1, 2, "w2"]
    # Whoever keeps the directory goes: nobody else notices.
    host.quit()
    eventually(lambda: w1.ask("who") == w2.ask("who") == ["w1", "w2"])
    info = w1.ask("info")
    (again,) = spawn("w0")
    assert again.ask("call", "w1") == w2.ask("call", "w0") == [2, 2]
    assert again.ask("info", "w1") == info
    # Whoever keeps it now dies, or not; one of the others does in any case.
    again.kill()
    for ended in (*w1.ask("end"), *w2.ask("end")):
        assert ended["errors"] == []
        assert ended["calls"] > 100
    # init_rpc again, by one who was there, in the time in which a dead one is still on the list.
    w1.ask("again")
    eventually(lambda: w1.ask("who") == w2.ask("who") and "w2" in w1.ask("who") and "w1" in w2.ask("who"))
    assert w1.ask("call", "w2") == w2.ask("call", "w1") == [2, 2]
    assert w1.ask("info") != info
    w1.quit()
    w2.quit()


def test_the_one_that_keeps_the_directory_may_die(spawn: Callable[..., list[Process]]) -> None:
    (host,) = spawn("w0")
    w1, w2 = spawn("w1", "w2")
    w1.ask("pester", "w2")
    host.kill()
    (w3,) = spawn("w3")
    assert w3.ask("call", "w1") == w2.ask("call", "w3") == [2, 2]
    # It is known that the dead one died when its lease has lapsed.
    eventually(lambda: w1.ask("who") == ["w1", "w2", "w3"])
    (ended,) = w1.ask("end")
    assert ended["errors"] == []
    for worker in (w3, w1, w2):
        worker.quit()


def test_strangers_and_namesakes_are_refused(spawn: Callable[..., list[Process]]) -> None:
    (w0,) = spawn("w0")
    with pytest.raises(Failed, match="RPC worker name w0 is not unique: the name 'w0' is taken"):
        spawn("w0")
    for token in (None, "guess"):
        with connect(w0.ask("address"), token=token) as remote, pytest.raises(Unauthenticated):
            remote.options(pickle=True).call("rpc.run", print, (), {}, None)
    w0.quit()
