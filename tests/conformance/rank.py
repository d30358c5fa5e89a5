"""What one rank of a test does, in a process forked for it."""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import signal
import sys
import time
import traceback
import unittest
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .verdicts import FAILED, PASSED, SKIPPED, Told


def _redirect(folder: Path, rank: int) -> None:
    """Lets everything that this process writes, C++ too, go to the rank's log."""
    log = os.open(folder / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, log), (2, log)):
        os.dup2(source, target)
    os.close(log)
    os.close(nothing)
    faulthandler.enable(2)
    # For whoever wants to know where a rank hangs.
    faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)


def _last_line(error: BaseException) -> str:
    lines = [line for line in traceback.format_exception_only(type(error), error)[-1].splitlines() if line.strip()]
    return " ".join((lines or [repr(error)])[0].split())[:300]


def _skip_codes() -> dict[int, str]:
    """Exit codes by which torch's tests say that they were skipped, and what each means."""
    from torch.testing._internal.common_distributed import TEST_SKIPS

    return {skip.exit_code: skip.message for skip in TEST_SKIPS.values()}


def _call(test: Any, name: str) -> tuple[str, str]:
    """Runs the test method; returns what came of it."""
    try:
        getattr(test, name)()
    except unittest.SkipTest as skip:
        return SKIPPED, str(skip)
    except SystemExit as exit:
        if exit.code in (None, 0):
            return PASSED, ""
        if exit.code in (codes := _skip_codes()):
            return SKIPPED, codes[exit.code]
        return FAILED, f"SystemExit: {exit.code}"
    except BaseException as error:
        traceback.print_exc()
        return FAILED, _last_line(error)
    return PASSED, ""


def _end_process_group() -> None:
    """Does what torch's runner does after a test: many make a process group and leave it."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def run(test_class: type, name: str, rank: int, folder: Path) -> int:
    """Runs one rank and returns its exit code.

    The caller leaves it to the interpreter to end the process, so that whatever goes wrong in its last moments (a
    thread that aborts, an RRef deleted too late) shows in the exit code.
    """
    _redirect(folder, rank)
    # As torch's runner has it: with the C++ stack in the message, and the same random numbers in each rank.
    os.environ["TORCH_SHOW_CPP_STACKTRACES"] = "1"
    # Untyped, like all of torch.testing._internal.
    importlib.import_module("torch.testing._internal.common_utils").set_rng_seed()
    test: Any = test_class(name)
    test.rank = rank
    test.file_name = str(folder / "init")
    outcome, note = _call(test, name)
    told = Told(outcome, note, time.monotonic())
    part = folder / f"rank{rank}.part"
    part.write_text(json.dumps(asdict(told)))
    # At once, so that a rank that is ended while it writes has told nothing.
    part.rename(folder / f"rank{rank}.json")
    if outcome != FAILED:
        _end_process_group()
    sys.stdout.flush()
    return 1 if outcome == FAILED else 0


def told(folder: Path, rank: int) -> Told | None:
    """Reads what a rank wrote down, or None where it never came so far."""
    path = folder / f"rank{rank}.json"
    return Told(**json.loads(path.read_text())) if path.exists() else None
