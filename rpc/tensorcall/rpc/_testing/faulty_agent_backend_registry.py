"""Registers the backend FAULTY_TENSORPIPE."""

from __future__ import annotations

from typing import Any

from tensorcall.rpc import backend_registry, world
from tensorcall.rpc._testing.faulty_agent import FaultyTensorPipeAgent, FaultyTensorPipeRpcBackendOptions


def _construct_options(
    rpc_timeout: float,
    init_method: str,
    num_worker_threads: int,
    messages_to_fail: list[str],
    messages_to_delay: dict[str, float],
    num_fail_sends: int,
    **_: Any,
) -> FaultyTensorPipeRpcBackendOptions:
    return FaultyTensorPipeRpcBackendOptions(
        num_worker_threads=num_worker_threads,
        rpc_timeout=rpc_timeout,
        init_method=init_method,
        messages_to_fail=messages_to_fail,
        messages_to_delay=messages_to_delay,
        num_fail_sends=num_fail_sends,
    )


def _init_backend(store: Any, name: str, rank: int, world_size: int, rpc_backend_options: Any) -> Any:
    if not isinstance(rpc_backend_options, FaultyTensorPipeRpcBackendOptions):
        raise TypeError(f"`rpc_backend_options` must be a `FaultyTensorPipeRpcBackendOptions`. {rpc_backend_options}")
    options = rpc_backend_options
    there = world.StaticWorld(store, rank, world_size, options.rpc_timeout, options.init_method)
    return FaultyTensorPipeAgent(name, rank, there, rpc_backend_options)


backend_registry.register_backend("FAULTY_TENSORPIPE", _construct_options, _init_backend)
