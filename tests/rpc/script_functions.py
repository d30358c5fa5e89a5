"""What tests/rpc/test_script.py scripts: after replace_torch_rpc, and with annotations that TorchScript can read."""
# ruff: noqa: C420, SIM108

import torch
import torch.distributed.rpc as rpc
from torch import Tensor
from torch.distributed.rpc import RRef
from torch.futures import Future


@torch.jit.script
def double(a: Tensor, times: int = 2) -> Tensor:
    return a * times


@torch.jit.script
def words(a: Tensor, names: list[str]) -> dict[str, Tensor]:
    return {name: a for name in names}


@torch.jit.script
def fail(a: Tensor) -> Tensor:
    if a.numel() > 0:
        raise RuntimeError("scripted and broken")
    return a


@torch.jit.script
def call_all(to: str, a: Tensor):
    now = rpc.rpc_sync(to, double, (a,))
    later = rpc.rpc_async(to, double, (a,), {"times": 3})
    kept = rpc.remote(to, double, (a, 4))
    named = rpc.rpc_sync(to, words, (a, ["x", "y"]))
    return now, later.wait(), kept.to_here(), kept, named, kept.is_owner(), kept.owner_name()


@torch.jit.script
def call_later(to: str, a: Tensor) -> Future[Tensor]:
    return rpc.rpc_async(to, double, (a,))


@torch.jit.script
def call_failing(to: str, a: Tensor) -> Tensor:
    return rpc.rpc_sync(to, fail, (a,))


@torch.jit.script
def call_in_loop(to: str, a: Tensor, times: int) -> Tensor:
    for i in range(times):
        if i % 2 == 0:
            a = rpc.rpc_sync(to, double, (a,))
        else:
            a = rpc.rpc_async(to, double, (a,)).wait()
    return a


@torch.jit.script
def wait_for(future: Future[Tensor]) -> Tensor:
    return future.wait() + 1


@torch.jit.script
def use(rref: RRef[Tensor], times: int) -> Tensor:
    return rref.to_here() * times


@torch.jit.script
def use_local(rref: RRef[Tensor]) -> Tensor:
    return rref.local_value()


@torch.jit.script
def pass_on(to: str, rref: RRef[Tensor]) -> Tensor:
    return rpc.rpc_sync(to, use, (rref, 3))


@torch.jit.script
def give_back(rrefs: list[RRef[Tensor]]) -> RRef[Tensor]:
    return rrefs[1]


@torch.jit.script
def pair(rref: RRef[dict[str, int]]) -> int:
    return rref.to_here(5.0)["a"]


@torch.jit.script
def save(rref: RRef[Tensor], path: str) -> None:
    torch.save(rref, path)


class Holder(torch.nn.Module):
    """A module that holds references."""

    def __init__(self, rrefs: list[RRef[Tensor]]) -> None:
        super().__init__()
        self.rrefs = rrefs
        self.first = rrefs[0]

    def forward(self, to: str) -> Tensor:
        total = self.first.to_here()
        for rref in self.rrefs:
            total += rref.to_here()
        return rpc.rpc_sync(to, double, (total,))


@rpc.functions.async_execution
@torch.jit.script
def chained(to: str, a: Tensor) -> Future[Tensor]:
    return rpc.rpc_async(to, double, (a,))
