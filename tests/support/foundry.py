"""A process that has imported torch and tensorcall.rpc, and forks the ranks of worlds: see `ranks`.

Importing takes seconds and forking milliseconds. It works as long as no thread was started and no channel opened here.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import types
import warnings
from pathlib import Path

_TESTS = Path(__file__).parents[1]


class Foundry:
    """The process, as seen from the tests; it ends with them."""

    def __init__(self) -> None:
        env = {**os.environ, "PYTHONPATH": str(_TESTS), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "support.foundry"]
        self._process = subprocess.Popen(command, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        atexit.register(self._process.communicate)

    def run(self, arguments: list[str], logs: list[Path], timeout: float) -> list[int | None]:
        """Runs a program in one process for each log, with the log's number as its rank.

        Args:
            arguments: the program and its arguments; "{rank}" stands for the rank.
            logs: where each process writes to.
            timeout: how many seconds they have; what runs on is killed.

        Returns:
            Their exit codes, as subprocess tells them; None for one that was killed for want of time.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        request = {"arguments": arguments, "logs": [str(log) for log in logs], "timeout": timeout, "env": env}
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer, "the process that forks ranks has ended"
        codes: list[int | None] = json.loads(answer)
        return codes


def _become(arguments: list[str], rank: int, log: str) -> None:
    """Makes this process what `python PROGRAM ARGUMENTS` would be, up to running it."""
    from conformance.supervise import end_with_parent

    end_with_parent()
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, out), (2, out)):
        os.dup2(source, target)
    warnings.simplefilter("ignore")
    # Whoever started the tests may have it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [argument.replace("{rank}", str(rank)) for argument in arguments]
    # What pickle names as `__main__.…` is looked up there.
    program = types.ModuleType("__main__")
    program.__file__ = sys.argv[0]
    sys.modules["__main__"] = program


def _codes(pids: list[int], timeout: float) -> list[int | None]:
    """Waits for processes and kills what is left of them."""
    codes: dict[int, int | None] = {}
    end = time.monotonic() + timeout
    while len(codes) < len(pids):
        late = time.monotonic() >= end
        for pid in pids:
            if pid in codes:
                continue
            if late:
                os.kill(pid, signal.SIGKILL)
            ended, status = os.waitpid(pid, 0 if late else os.WNOHANG)
            if ended:
                codes[pid] = None if late else os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return [codes[pid] for pid in pids]


def main() -> None:
    """Forks what stdin asks for, until there is nothing more."""
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for module in ("torch", "grpc", "pytest", "tensorcall.rpc", "support.ranks"):
        importlib.import_module(module)
    # What is preloaded stays: the ranks need not look at it when they collect garbage.
    gc.collect()
    gc.freeze()
    for line in requests:
        request = json.loads(line)
        pids = []
        for rank, log in enumerate(request["logs"]):
            pid = os.fork()
            if not pid:
                with contextlib.suppress(OSError):
                    requests.close()
                answers.close()
                os.environ.clear()
                os.environ.update(request["env"])
                _become(request["arguments"], rank, log)
                source = Path(sys.argv[0]).read_text(encoding="utf-8")
                exec(compile(source, sys.argv[0], "exec"), sys.modules["__main__"].__dict__)
                # Ended by the interpreter, so that what goes wrong in its last moments shows in the exit code.
                return
            pids.append(pid)
        print(json.dumps(_codes(pids, request["timeout"])), file=answers, flush=True)


if __name__ == "__main__":
    main()
