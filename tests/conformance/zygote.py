"""A process with torch preloaded that forks the ranks of one test after the other.

Importing torch and its tests takes seconds; forking takes milliseconds. It works as long as nobody has started a thread
or opened a gRPC channel before.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, Any

from . import rank, suites
from .results import Result
from .supervise import Watch, adopt_orphans, end_with_parent
from .verdicts import Ended, judge

# As much of a rank's log as goes into a result.
_LOG_BYTES = 200_000
# What triton's bindings say whenever an interpreter that has imported them ends.
_NOISE = re.compile(r"nanobind: leaked .*?refleaks\.html\n?", re.DOTALL)


class _Forked(Exception):
    """Raised in a new rank, to leave everything that belongs to the zygote."""


class _Zygote:
    """Runs tests of one kind."""

    def __init__(self, kind: str, against: str) -> None:
        for module in ("torch", "grpc"):
            importlib.import_module(module)
        suites.replace(against)
        self.classes = suites.load(kind)
        self._lists = suites.listing(kind, self.classes)
        self._rank: tuple[type, str, int, Path] | None = None

    def introduction(self) -> dict[str, Any]:
        """What the other side should know about it."""
        return {
            "tests": self._lists,
            "cuda": suites.count_cuda(),
            "torch": importlib.import_module("torch").__version__,
            "threads": [thread.name for thread in threading.enumerate()],
        }

    def _fork(self, test_class: Any, name: str, world_size: int, folder: Path) -> list[int]:
        pids: list[int] = []
        for number in range(world_size):
            group = pids[0] if pids else 0
            pid = os.fork()
            if not pid:
                os.setpgid(0, group)
                end_with_parent()
                self._rank = (test_class, name, number, folder)
                raise _Forked
            # Here as in the rank, so that the group is there whichever of the two comes first.
            os.setpgid(pid, group)
            pids.append(pid)
        return pids

    def run(self, test: str, limit: float) -> Result:
        """Runs one test, all its ranks."""
        class_name, name = test.split(".")
        test_class: Any = self.classes[class_name]
        # What one rank writes must not be read by another test's: each has a folder.
        folder = Path(tempfile.mkdtemp(prefix="conformance-"))
        try:
            (folder / "init").touch()
            start = time.monotonic()
            world_size = int(test_class(name).world_size)
            ending = Watch(self._fork(test_class, name, world_size, folder)).wait(limit)
            seconds = time.monotonic() - start
            ranks = [Ended(rank.told(folder, number), code) for number, code in enumerate(ending.codes)]
            result, note = judge(ranks, timed_out=ending.timed_out, left_behind=ending.left_behind)
            logs = [] if result == "ok" else [_tail(folder / f"rank{n}.log") for n in range(world_size)]
            return Result(test, result, round(seconds, 2), note, tuple(logs))
        finally:
            # Not in a rank, which is still within this block when it leaves it.
            if self._rank is None:
                shutil.rmtree(folder, ignore_errors=True)

    def serve(self, requests: IO[str], answers: IO[str]) -> int:
        """Answers requests, one a line, until there are no more; in a rank returns the rank's exit code."""
        try:
            print(json.dumps(self.introduction()), file=answers, flush=True)
            for line in requests:
                request = json.loads(line)
                print(self.run(request["test"], request["limit"]).to_json(), file=answers, flush=True)
        except _Forked:
            requests.close()
            answers.close()
            assert self._rank is not None
        return rank.run(*self._rank) if self._rank is not None else 0


def _tail(path: Path) -> str:
    text = path.read_bytes()[-_LOG_BYTES:] if path.exists() else b""
    return _NOISE.sub("", text.decode(errors="replace"))


def main() -> int:
    """Serves on the standard streams; everything else that is printed goes to stderr."""
    kind, against = sys.argv[1:]
    # Streams of our own, so that no print of a module can get in between.
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    adopt_orphans()
    zygote = _Zygote(kind, against)
    # What is preloaded stays: without a look at each of its objects a rank's last collection takes a third of the time.
    gc.collect()
    gc.freeze()
    return zygote.serve(requests, answers)


if __name__ == "__main__":
    sys.exit(main())
