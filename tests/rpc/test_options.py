"""Options and backends: accepted and refused as torch does it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed.rpc as torch_rpc

from tensorcall.rpc import backend_registry, constants
from tensorcall.rpc.options import RpcBackendOptions, TensorPipeRpcBackendOptions

CUDA = [torch.device("cuda", number) for number in range(3)]


def both(**options: Any) -> list[Exception]:
    """What torch raises for these options, and what ours does."""
    raised = []
    for make in (torch_rpc.TensorPipeRpcBackendOptions, TensorPipeRpcBackendOptions):
        with pytest.raises((RuntimeError, TypeError, ValueError)) as info:
            make(**options)
        raised.append(info.value)
    return raised


def test_the_defaults_are_torchs() -> None:
    ours, theirs = TensorPipeRpcBackendOptions(), torch_rpc.TensorPipeRpcBackendOptions()
    for name in ("num_worker_threads", "rpc_timeout", "init_method", "device_maps", "devices"):
        assert getattr(ours, name) == getattr(theirs, name), name
    for name in [name for name in dir(constants) if name.isupper()]:
        assert getattr(constants, name) == getattr(torch_rpc.constants, name), name


@pytest.mark.parametrize(
    "options",
    [
        {"num_worker_threads": 0},
        {"rpc_timeout": -1.0},
        {"device_maps": {"a": {0: 1, 2: 1}}},
        {"devices": ["cpu"]},
        {"_transports": ["pigeon"]},
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_in_torchs_words(options: dict[str, Any]) -> None:
    theirs, ours = both(**options)
    assert (type(ours), str(ours)) == (type(theirs), str(theirs))


@pytest.mark.parametrize(
    "options", [{"rpc_timeout": timedelta(1)}, {"num_worker_threads": "many"}, {"init_method": 1}], ids=str
)
def test_other_types_are_refused(options: dict[str, Any]) -> None:
    theirs, ours = both(**options)
    assert type(ours) is type(theirs) is TypeError
    assert "incompatible constructor arguments" in str(ours)
    assert "incompatible constructor arguments" in str(theirs)


@pytest.mark.parametrize("make", [torch_rpc.TensorPipeRpcBackendOptions, TensorPipeRpcBackendOptions])
def test_device_maps_grow_and_stay_one_to_one(make: Any) -> None:
    options = make(device_maps={"a": {0: 1}})
    options.set_device_map("a", {"cuda:1": CUDA[2]})
    options.set_device_map("b", {0: 0})
    assert options.device_maps == {"a": {CUDA[0]: CUDA[1], CUDA[1]: CUDA[2]}, "b": {CUDA[0]: CUDA[0]}}
    with pytest.raises(ValueError, match="only supports 1-to-1 mapping, trying to map cuda:0 to cuda:0 and cuda:1"):
        options.set_device_map("a", {0: 0})
    options.set_devices([1, "cuda:0"])
    assert options.devices == [CUDA[1], CUDA[0]]


def test_torchs_own_options_are_options() -> None:
    theirs = torch_rpc.TensorPipeRpcBackendOptions(num_worker_threads=3, rpc_timeout=5, device_maps={"a": {0: 1}})
    assert isinstance(theirs, RpcBackendOptions)
    ours = backend_registry.own_options(theirs)
    assert ours is not None
    assert (ours.num_worker_threads, ours.rpc_timeout, ours.device_maps) == (3, 5.0, {"a": {CUDA[0]: CUDA[1]}})
    assert backend_registry.own_options(RpcBackendOptions()) is None


def test_backends_are_added_in_place() -> None:
    kinds = backend_registry.BackendType
    made: list[Any] = []

    def construct(rpc_timeout: float, init_method: str, **more: Any) -> Any:
        return rpc_timeout, init_method, more

    assert not backend_registry.backend_registered("PIGEON")
    pigeon = backend_registry.register_backend("PIGEON", construct, lambda **more: made.append(more) or "agent")
    try:
        assert isinstance(pigeon, kinds)
        assert kinds["PIGEON"] is kinds.PIGEON is pigeon  # type: ignore[attr-defined]
        assert list(kinds) == [kinds.TENSORPIPE, pigeon]  # type: ignore[attr-defined]
        assert repr(pigeon) == "BackendType.PIGEON"
        assert backend_registry.construct_rpc_backend_options(pigeon, feathers=2) == (60.0, "env://", {"feathers": 2})
        assert backend_registry.init_backend(pigeon, name="w") == "agent"
        assert made == [{"name": "w"}]
        with pytest.raises(RuntimeError, match=r"^RPC backend PIGEON: already registered$"):
            backend_registry.register_backend("PIGEON", construct, construct)
    finally:
        table: Any = kinds
        table._member_names_.remove("PIGEON")
        del table._member_map_["PIGEON"]


def test_another_backends_options_are_refused() -> None:
    store = torch.distributed.HashStore()
    with pytest.raises(TypeError, match="`rpc_backend_options` must be a `TensorPipeRpcBackendOptions`"):
        backend_registry.init_backend(
            backend_registry.BackendType.TENSORPIPE,  # type: ignore[attr-defined]
            store=store,
            name="w",
            rank=0,
            world_size=1,
            rpc_backend_options=RpcBackendOptions(),
        )
