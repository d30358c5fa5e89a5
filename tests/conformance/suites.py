"""Which of torch's test classes there are, and how one is made ready for either side."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from typing import Any

_RPC = "torch.testing._internal.distributed.rpc"
_REMOTE_MODULE = "torch.testing._internal.distributed.nn.api.remote_module_test"


@dataclass(frozen=True, slots=True)
class Suite:
    """A part of torch's tests that is run and counted together."""

    name: str
    classes: tuple[tuple[str, str], ...]
    """Module and name of each class."""
    kind: str = "plain"
    """Which zygote runs it: importing the faulty agent's fixture rebuilds torch's table of backends."""
    default: bool = True
    """Whether it runs unless asked for; the default ones are those that are about RPC itself."""


SUITES = (
    Suite("rpc", ((f"{_RPC}.rpc_test", "RpcTest"), (f"{_RPC}.rpc_test", "TensorPipeAgentRpcTest"))),
    Suite("faulty", ((f"{_RPC}.faulty_agent_rpc_test", "FaultyAgentRpcTest"),), kind="faulty"),
    Suite("jit", ((f"{_RPC}.jit.rpc_test", "JitRpcTest"),)),
    Suite("jit-faulty", ((f"{_RPC}.jit.rpc_test_faulty", "JitFaultyAgentRpcTest"),), kind="faulty"),
    Suite("remote-module", ((_REMOTE_MODULE, "RemoteModuleTest"), (_REMOTE_MODULE, "ThreeWorkersRemoteModuleTest"))),
    Suite(
        "examples",
        (
            (f"{_RPC}.examples.parameter_server_test", "ParameterServerTest"),
            (f"{_RPC}.examples.reinforcement_learning_rpc_test", "ReinforcementLearningRpcTest"),
        ),
    ),
    Suite(
        "autograd",
        (
            (f"{_RPC}.dist_autograd_test", "DistAutogradTest"),
            (f"{_RPC}.dist_autograd_test", "TensorPipeAgentDistAutogradTest"),
            (f"{_RPC}.dist_optimizer_test", "DistOptimizerTest"),
            (f"{_RPC}.jit.dist_autograd_test", "JitDistAutogradTest"),
            ("torch.testing._internal.distributed.ddp_under_dist_autograd_test", "DdpUnderDistAutogradTest"),
            ("torch.testing._internal.distributed.ddp_under_dist_autograd_test", "DdpComparisonTest"),
        ),
        default=False,
    ),
    Suite(
        "autograd-faulty",
        ((f"{_RPC}.dist_autograd_test", "FaultyAgentDistAutogradTest"),),
        kind="faulty",
        default=False,
    ),
    # The harness' own: tests that fail, hang and leave processes behind on purpose.
    Suite("probes", (("conformance.probes", "Probes"),), kind="probes", default=False),
)

# Left out, and counted: every test in them needs GPUs.
_CUDA = (
    (f"{_RPC}.rpc_test", "CudaRpcTest"),
    (f"{_RPC}.rpc_test", "TensorPipeAgentCudaRpcTest"),
    (_REMOTE_MODULE, "CudaRemoteModuleTest"),
)

# Which fixture each kind of zygote mixes into torch's classes.
_FIXTURES = {
    "plain": (f"{_RPC}.tensorpipe_rpc_agent_test_fixture", "TensorPipeRpcAgentTestFixture"),
    "faulty": (f"{_RPC}.faulty_rpc_agent_test_fixture", "FaultyRpcAgentTestFixture"),
}


def _find(place: tuple[str, str]) -> Any:
    module, name = place
    return getattr(importlib.import_module(module), name)


def _tests_of(test_class: type) -> list[str]:
    return [name for name in dir(test_class) if name.startswith("test")]


def replace(against: str) -> None:
    """Puts tensorcall.rpc in the place of torch.distributed.rpc, or does nothing for "torch".

    To be called before any of torch's tests is imported: they bind names of torch.distributed.rpc at import.
    """
    if against == "ours":
        importlib.import_module("tensorcall.rpc").replace_torch_rpc()


def load(kind: str) -> dict[str, type]:
    """Returns the test classes of a kind of zygote by name, made as torch's own scripts make them."""
    classes = [place for suite in SUITES if suite.kind == kind for place in suite.classes]
    if kind == "probes":
        return {name: _find((module, name)) for module, name in classes}
    fixture = _FIXTURES[kind]
    generate = importlib.import_module("torch.testing._internal.distributed.rpc_utils").generate_tests
    made: dict[str, type] = generate("", _find(fixture), [_find(place) for place in classes], __name__)
    # Some tests send themselves to another rank, whose pickle looks the class up here.
    vars(sys.modules[__name__]).update(made)
    return made


def listing(kind: str, classes: dict[str, type]) -> dict[str, list[str]]:
    """Returns the names of each suite's tests, "Class.test_name", for the suites of a kind."""
    return {
        suite.name: [f"{name}.{test}" for _, name in suite.classes for test in _tests_of(classes[name])]
        for suite in SUITES
        if suite.kind == kind
    }


def count_cuda() -> int:
    """Returns how many tests are left out since they need GPUs."""
    return sum(len(_tests_of(_find(place))) for place in _CUDA)
