"""One worker of a world of two, of torch.distributed.rpc or of tensorcall.rpc: worker 0 measures, worker 1 is called.

    python -m bench.rpc_worker torch|tensorcall RANK STORE_FILE

Worker 0 reads names of measurements from stdin, one a line, and answers each with a number; both end with stdin.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

MIB = 1 << 20
CALLEE = "worker1"


def noop() -> None:
    """Does nothing."""


def add(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Adds."""
    return a + b


def echo(tensor: torch.Tensor) -> torch.Tensor:
    """Gives back what it gets."""
    return tensor


def take(tensor: torch.Tensor) -> None:
    """Takes a tensor."""


def _median(call: Callable[[], object], times: int) -> float:
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


class Measurements:
    """What is measured, by name."""

    def __init__(self, rpc: Any) -> None:
        self._rpc = rpc
        self._small = torch.ones(2, 2)
        self._tensors = {size: torch.randint(0, 255, (size * MIB,), dtype=torch.uint8) for size in (1, 16, 256)}

    def noop(self) -> float:
        """rpc_sync of nothing: µs."""
        return _median(lambda: self._rpc.rpc_sync(CALLEE, noop), 200) * 1e6

    def add(self) -> float:
        """rpc_sync of a function that adds two tensors of 2×2: µs."""
        return _median(lambda: self._rpc.rpc_sync(CALLEE, add, args=(self._small, self._small)), 200) * 1e6

    def in_flight(self) -> float:
        """rpc_async of nothing, 64 in flight: calls/s."""
        count, futures = 3000, deque[Any]()
        start = time.perf_counter()
        for _ in range(count):
            if len(futures) >= 64:
                futures.popleft().wait()
            futures.append(self._rpc.rpc_async(CALLEE, noop))
        for future in futures:
            future.wait()
        return count / (time.perf_counter() - start)

    def remote(self) -> float:
        """A value made on the callee, and fetched: µs."""
        call = lambda: self._rpc.remote(CALLEE, add, args=(self._small, self._small)).to_here()  # noqa: E731
        return _median(call, 100) * 1e6

    def up(self, size: int, times: int) -> float:
        """A tensor sent: MiB/s."""
        return size / _median(lambda: self._rpc.rpc_sync(CALLEE, take, args=(self._tensors[size],)), times)

    def echoed(self, size: int, times: int) -> float:
        """A tensor sent and given back: MiB/s, counted once."""
        return size / _median(lambda: self._rpc.rpc_sync(CALLEE, echo, args=(self._tensors[size],)), times)


def main() -> None:
    """Joins the world, and measures what stdin asks for."""
    which, rank, store = sys.argv[1:]
    if which == "torch":
        import torch.distributed.rpc as rpc
    else:
        from tensorcall import rpc  # type: ignore[no-redef]
    options = rpc.TensorPipeRpcBackendOptions(init_method=f"file://{store}", rpc_timeout=120)
    rpc.init_rpc(f"worker{rank}", rank=int(rank), world_size=2, rpc_backend_options=options)
    if rank == "0":
        measurements = Measurements(rpc)
        print("ready", flush=True)
        for line in sys.stdin:
            name, *numbers = line.split()
            print(getattr(measurements, name)(*map(int, numbers)), flush=True)
    rpc.shutdown()


if __name__ == "__main__":
    # Under this name on both sides, since pickle sends functions by name.
    from bench import rpc_worker

    rpc_worker.main()
