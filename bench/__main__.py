"""Runs all measurements; prints a table and writes build/bench.json."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import torch
from rich.console import Console
from rich.table import Table

from bench import bare
from bench.against_torch import against_torch
from bench.measure import Figure, compare, median_seconds, rounds, seconds
from tensorcall.client import Remote, connect

MIB = 1 << 20
ROOT = Path(__file__).resolve().parent.parent
# As long as a no-op's request and its reply, on the average of both.
SMALL = b"x" * 16


@contextmanager
def servers() -> Iterator[tuple[str, str]]:
    """Runs both servers in one process of their own; yields our address and the bare one."""
    command = [sys.executable, "-m", "bench.served"]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdin is not None
        ours, echo = process.stdout.readline().split()
        try:
            yield f"127.0.0.1:{ours}", f"127.0.0.1:{echo}"
        finally:
            process.stdin.write("\n")
            process.stdin.flush()


def latency(call: Remote, session: Remote, plain: bare.Client) -> list[Figure]:
    """A call that does nothing, one at a time."""
    times = 300
    found = rounds(
        {
            "bare unary": lambda: median_seconds(lambda: plain.unary(SMALL), times) * 1e6,
            "call": lambda: median_seconds(lambda: call.call("served.noop"), times) * 1e6,
            "bare stream": lambda: median_seconds(lambda: plain.ping_pong(SMALL), times) * 1e6,
            "session": lambda: median_seconds(lambda: session.call("served.noop"), times) * 1e6,
        },
        12,
    )
    return [
        compare("no-op over Call, against a unary echo", "µs", found["call"], found["bare unary"], at_most=1.3),
        compare(
            "no-op over Session, against a stream ping-pong", "µs", found["session"], found["bare stream"], at_most=1.3
        ),
    ]


def throughput(session: Remote, plain: bare.Client) -> list[Figure]:
    """Calls with 64 in flight from one thread."""
    count, at_once = 4000, 64

    def submits() -> None:
        calls: deque[Future[Any]] = deque()
        for _ in range(count):
            if len(calls) >= at_once:
                calls.popleft().result()
            calls.append(session.submit("served.noop"))
        for call in calls:
            call.result()

    found = rounds(
        {
            "bare": lambda: count / seconds(lambda: plain.in_flight(SMALL, count, at_once)),
            "session": lambda: count / seconds(submits),
        },
        10,
    )
    what = "submits, 64 in flight, against unary futures"
    return [compare(what, "calls/s", found["session"], found["bare"], at_least=3.0)]


def tensors(session: Remote, plain: bare.Client) -> list[Figure]:
    """Tensors echoed, against bytes of the same size in one message."""
    figures = []
    for size, name, times, count in (
        (4096, "4 KiB", 200, 10),
        (MIB, "1 MiB", 15, 10),
        (16 * MIB, "16 MiB", 3, 10),
        (256 * MIB, "256 MiB", 1, 7),
    ):
        tensor = torch.randint(0, 255, (size,), dtype=torch.uint8)
        data = tensor.numpy().tobytes()

        def ours(tensor: torch.Tensor = tensor, times: int = times, size: int = size) -> float:
            return size / MIB / median_seconds(lambda: session.call("served.echo", tensor), times)

        def theirs(data: bytes = data, times: int = times, size: int = size) -> float:
            return size / MIB / median_seconds(lambda: plain.unary(data), times)

        ours(times=1), theirs(times=1)
        found = rounds({"bare": theirs, "session": ours}, count)
        target = 1.5 if size >= 256 * MIB else 0.9
        what = f"{name} tensor echoed, against bytes"
        figures.append(compare(what, "MiB/s", found["session"], found["bare"], at_least=target))
    return figures


_UPLOAD = """
import sys, torch
from bench.served import memory, reset_peak
from tensorcall.client import connect
with connect(sys.argv[1]) as remote:
    remote.call("served.size", torch.zeros(2_000_000, dtype=torch.uint8))
    empty, there = reset_peak(), remote.call("served.resident")
    tensor = torch.ones(1 << 30, dtype=torch.uint8)
    remote.call("served.size", tensor)
    print(memory("VmHWM") - empty, remote.call("served.peak") - there)
"""


def memory_peak(address: str) -> list[Figure]:
    """How much memory a tensor of 1 GiB takes on each side while it is uploaded, its own included."""
    sides: list[list[float]] = [[], []]
    for _ in range(3):
        command = [sys.executable, "-c", _UPLOAD, address]
        printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
        for side, value in zip(sides, printed, strict=True):
            side.append(int(value) / MIB)
    return [
        compare(f"memory peak of a 1 GiB upload, {name}", "MiB", side, [1024.0] * len(side), at_most=1.25)
        for name, side in zip(("client", "server"), sides, strict=True)
    ]


def show(figures: list[Figure], console: Console) -> None:
    """Prints the table."""
    table = Table(title="tensorcall against others (medians over interleaved rounds)")
    for name in ("what", "tensorcall", "the other", "ratio", "rounds", "target", ""):
        table.add_column(name, justify="left" if name in ("what", "") else "right")
    for f in figures:
        low, high = f.spread
        table.add_row(
            f.what,
            f"{f.ours:,.0f} {f.unit}",
            f"{f.bare:,.0f} {f.unit}",
            f"{f.ratio:.2f} ×",
            f"{low:.2f} – {high:.2f}",
            f.target,
            "[green]met" if f.met else "[red]missed",
        )
    console.print(table)


def main() -> int:
    """Measures, prints, writes."""
    console = Console(width=None if sys.stdout.isatty() else 150)
    figures: list[Figure] = []
    started = time.time()
    with servers() as (ours, echo):
        plain = bare.Client(echo)
        with connect(ours, carrier="call") as call, connect(ours, carrier="session") as session:
            median_seconds(lambda: call.call("served.noop"), 300)
            median_seconds(lambda: session.call("served.noop"), 300)
            for name, measure in (
                ("latency", lambda: latency(call, session, plain)),
                ("throughput", lambda: throughput(session, plain)),
                ("tensors", lambda: tensors(session, plain)),
                ("memory", lambda: memory_peak(ours)),
                ("rpc", lambda: list(against_torch())),
            ):
                if len(sys.argv) > 1 and name not in sys.argv[1:]:
                    continue
                with console.status(f"measuring {name} …"):
                    figures += measure()
        plain.close()
    show(figures, console)
    path = ROOT / "build" / "bench.json"
    path.parent.mkdir(exist_ok=True)
    result = {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "grpcio": grpc.__version__,
        "torch": torch.__version__,
        "seconds": round(time.time() - started, 1),
        "figures": [figure.json() for figure in figures],
    }
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    console.print(f"written to {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
