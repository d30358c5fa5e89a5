"""torch's RemoteModule over tensorcall.rpc."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from support import ranks

from tensorcall import rpc


def prepare() -> None:
    """Runs on each rank before init_rpc."""
    rpc.replace_torch_rpc()


def weight_of(module: Any) -> float:
    """Uses a RemoteModule that came as an argument."""
    return float(module.get_module_rref().to_here().weight.sum())


def scenario_remote_module(rank: int) -> None:
    if rank != 0:
        return
    from torch.distributed.nn.api.remote_module import RemoteModule

    module = RemoteModule("worker1/cpu", torch.nn.Linear, args=(3, 2), kwargs={"bias": False})
    inputs = torch.ones(4, 3)
    (parameter,) = module.remote_parameters()
    expected = inputs @ parameter.to_here().T
    assert torch.equal(module(inputs), expected)
    assert torch.equal(module.forward_async(inputs).wait(), expected)
    assert abs(rpc.rpc_sync("worker1", weight_of, args=(module,)) - float(parameter.to_here().sum())) < 1e-6
    assert parameter.owner_name() == "worker1"


def test_a_module_on_another_worker(tmp_path: Path) -> None:
    ranks.run(__file__, "scenario_remote_module", tmp_path)


if __name__ == "__main__":
    ranks.main(globals())
