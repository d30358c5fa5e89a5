"""Worlds of real worker processes: a test file's scenarios, run on every rank.

A scenario is a function `scenario_…(rank)` of a test file that ends with
`if __name__ == "__main__": ranks.main(globals())`. It runs on each rank between init_rpc and shutdown; what it calls
elsewhere is named as `__main__.…` on all of them.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

from support.foundry import Foundry


@functools.cache
def _foundry() -> Foundry:
    return Foundry()


def run(
    file: str, scenario: str, tmp_path: Path, size: int = 2, timeout: float = 60, codes: list[int] | None = None
) -> list[str]:
    """Runs a scenario on so many ranks; fails with what they wrote unless all end well, or as `codes` says.

    Returns:
        What each rank wrote.
    """
    logs = [tmp_path / f"rank{rank}.log" for rank in range(size)]
    ended = _foundry().run([file, scenario, "{rank}", str(size), str(tmp_path / "store")], logs, timeout)
    written = [log.read_text() for log in logs]
    expected = codes or [0] * size
    assert ended == expected, "\n".join(f"--- rank {rank}\n{text}" for rank, text in enumerate(written))
    return written


def main(names: dict[str, Any]) -> None:
    """Runs one rank."""
    scenario, rank, size, store = sys.argv[1:]
    import faulthandler

    import torch

    from tensorcall import rpc

    # Tells where it hangs, before whoever started it gives up.
    faulthandler.dump_traceback_later(50)

    torch.set_num_threads(1)
    prepare = names.get("prepare")
    if prepare is not None:
        prepare()
    backend = names.get("BACKEND")
    options = {**names.get("OPTIONS", {}).get(scenario, {}), "init_method": f"file://{store}"}
    kind = rpc.BackendType[backend] if backend else rpc.BackendType.TENSORPIPE  # type: ignore[attr-defined]
    rpc.init_rpc(
        f"worker{rank}",
        backend=kind,
        rank=int(rank),
        world_size=int(size),
        rpc_backend_options=rpc.construct_rpc_backend_options(kind, **options),
    )
    names[scenario](int(rank))
    # Unless the scenario did.
    if rpc._is_current_rpc_agent_set():
        rpc.shutdown()
