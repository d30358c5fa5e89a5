"""tensorcall.rpc against torch.distributed.rpc over TensorPipe: both with two processes on this machine, in one run."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.measure import Figure, compare, rounds

ROOT = Path(__file__).resolve().parent.parent
_PATIENCE_SECONDS = 60.0


class _World:
    """A world of two workers; the first one measures."""

    def __init__(self, caller: subprocess.Popen[str]) -> None:
        self._caller = caller

    def answer(self) -> str:
        """Reads what the caller has to say."""
        assert self._caller.stdout is not None
        line = self._caller.stdout.readline()
        if not line:
            raise RuntimeError("the worker that measures has ended: its error stands above")
        return line.strip()

    def measure(self, what: str) -> float:
        """Has one measurement made."""
        assert self._caller.stdin is not None
        self._caller.stdin.write(f"{what}\n")
        self._caller.stdin.flush()
        return float(self.answer())


@contextmanager
def _world(which: str) -> Iterator[_World]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "bench.rpc_worker", which]
        callee = subprocess.Popen([*command, "1", f"{folder}/store"], cwd=ROOT)
        caller = subprocess.Popen(
            [*command, "0", f"{folder}/store"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            world = _World(caller)
            assert world.answer() == "ready"
            yield world
            assert caller.stdin is not None
            caller.stdin.close()
            for process in (caller, callee):
                process.wait(_PATIENCE_SECONDS)
        finally:
            for process in (caller, callee):
                if process.poll() is None:
                    process.kill()
                process.wait()


# The targets are those of work to come; a ratio is ours to torch's.
_MEASURED = (
    ("noop", "no-op rpc_sync", "µs", 12),
    ("add", "rpc_sync that adds 2×2 tensors", "µs", 12),
    ("in_flight", "rpc_async, 64 in flight", "calls/s", 8),
    ("remote", "remote() + to_here()", "µs", 8),
    ("up 1 15", "1 MiB up", "MiB/s", 8),
    ("up 16 5", "16 MiB up", "MiB/s", 8),
    ("up 256 1", "256 MiB up", "MiB/s", 5),
    ("echoed 1 15", "1 MiB echoed", "MiB/s", 8),
    ("echoed 16 5", "16 MiB echoed", "MiB/s", 8),
    ("echoed 256 1", "256 MiB echoed", "MiB/s", 5),
)


def against_torch() -> Iterator[Figure]:
    """Measures one thing after the other, in interleaved rounds."""
    with ExitStack() as worlds:
        torch_world = worlds.enter_context(_world("torch"))
        our_world = worlds.enter_context(_world("tensorcall"))
        for what, name, unit, count in _MEASURED:
            torch_world.measure(what), our_world.measure(what)
            found = rounds(
                {"torch": lambda w=what: torch_world.measure(w), "ours": lambda w=what: our_world.measure(w)}, count
            )
            faster = dict.fromkeys(("at_most" if unit == "µs" else "at_least",), 1.0)
            yield compare(f"{name}, against TensorPipe", unit, found["ours"], found["torch"], **faster)
