"""tensorcall.rpc in torch.distributed.rpc's place; in processes of their own, since it is for good."""

from __future__ import annotations

import subprocess
import sys

HEAD = """
import sys
import torch
import torch.distributed.rpc as theirs
"""


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", HEAD + code], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_everything_of_torch_finds_it() -> None:
    run("""
import torch.distributed.optim.optimizer
from torch.distributed.nn.api import remote_module
from tensorcall import rpc
assert rpc.is_available()
assert torch.distributed.rpc is theirs is not rpc
rpc.replace_torch_rpc()
rpc.replace_torch_rpc()
import torch.distributed.rpc as now, torch.distributed.rpc.api as api
from torch.distributed.rpc import RRef, functions, _testing
import torch.nn.parallel.distributed as ddp
assert now is rpc is torch.distributed.rpc
assert api is rpc.api and functions is rpc.functions and RRef is rpc.RRef
assert _testing.__name__ == "tensorcall.rpc._testing" and _testing.__spec__.name == "tensorcall.rpc._testing"
assert rpc.BackendType.FAULTY_TENSORPIPE
for module in (torch._jit_internal, torch.jit.annotations, ddp, torch.distributed.optim.optimizer):
    assert module.RRef is rpc.RRef, module
assert remote_module.rpc is rpc and torch.distributed.optim.optimizer.rpc is rpc
assert remote_module._internal_rpc_pickler is rpc.internal._internal_rpc_pickler
""")


def test_nothing_happens_without_the_call() -> None:
    run("""
import tensorcall.rpc
import torch.distributed.rpc as now
assert now is theirs and torch._jit_internal.RRef is theirs.RRef
""")


def test_it_comes_too_late_when_torchs_is_in_use() -> None:
    assert "already initialised" in run("""
import tempfile
from tensorcall import rpc
with tempfile.NamedTemporaryFile() as file:
    options = theirs.TensorPipeRpcBackendOptions(init_method=f"file://{file.name}")
    theirs.init_rpc("a", rank=0, world_size=1, rpc_backend_options=options)
    try:
        rpc.replace_torch_rpc()
    except RuntimeError as error:
        print(error)
    assert torch.distributed.rpc is theirs
    theirs.shutdown()
rpc.replace_torch_rpc()
assert torch.distributed.rpc is rpc
""")
