"""Backends by name, as torch.distributed.rpc.backend_registry has them; TENSORPIPE's name stands for ours.

Unlike torch's, `BackendType` is extended in place by `register_backend`: whoever imported it before sees new backends.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, NamedTuple

from tensorcall.rpc import constants, futures, recording
from tensorcall.rpc.options import RpcBackendOptions, TensorPipeRpcBackendOptions, from_torch

__all__ = [
    "BackendType",
    "BackendValue",
    "backend_registered",
    "construct_rpc_backend_options",
    "init_backend",
    "register_backend",
]


class BackendValue(NamedTuple):
    """What a backend brings."""

    construct_rpc_backend_options_handler: Callable[..., Any]
    """(rpc_timeout, init_method, **more) → options."""
    init_backend_handler: Callable[..., Any]
    """(store=, name=, rank=, world_size=, rpc_backend_options=) → the agent."""


class BackendType(enum.Enum):
    """The backends: TENSORPIPE, which is tensorcall's own, and those that `register_backend` added."""

    def __repr__(self) -> str:
        return f"BackendType.{self.name}"


def backend_registered(backend_name: str) -> bool:
    """Tells whether there is a backend of this name."""
    return backend_name in BackendType.__members__


def register_backend(
    backend_name: str,
    construct_rpc_backend_options_handler: Callable[..., Any],
    init_backend_handler: Callable[..., Any],
) -> BackendType:
    """Adds a backend.

    Args:
        backend_name: its name; becomes a member of `BackendType`.
        construct_rpc_backend_options_handler: makes its options; see `construct_rpc_backend_options`.
        init_backend_handler: makes its agent; see `init_backend`.

    Raises:
        RuntimeError: there is one of this name.
    """
    if backend_registered(backend_name):
        raise RuntimeError(f"RPC backend {backend_name}: already registered")
    value = BackendValue(construct_rpc_backend_options_handler, init_backend_handler)
    # As enum's metaclass makes members.
    made: Any = BackendType
    member = object.__new__(BackendType)
    member._name_, member._value_ = backend_name, value
    member.__objclass__ = BackendType  # type: ignore[attr-defined]
    member._sort_order_ = len(made._member_names_)  # type: ignore[attr-defined]
    setattr(BackendType, backend_name, member)
    made._member_names_.append(backend_name)
    made._member_map_[backend_name] = member
    made._value2member_map_[value] = member
    return member


def construct_rpc_backend_options(
    backend: Any,
    rpc_timeout: float = constants.DEFAULT_RPC_TIMEOUT_SEC,
    init_method: str = constants.DEFAULT_INIT_METHOD,
    **kwargs: Any,
) -> Any:
    """Makes the options of a backend."""
    return backend.value.construct_rpc_backend_options_handler(rpc_timeout, init_method, **kwargs)


def init_backend(backend: Any, *args: Any, **kwargs: Any) -> Any:
    """Makes the agent of a backend, which makes this process a worker."""
    # Profiles that begin from now on may be told what other workers did.
    recording.install()
    # torch's own would hear no Ctrl-C, and nobody would know that they wait.
    futures.install()
    return backend.value.init_backend_handler(*args, **kwargs)


def _construct_options(
    rpc_timeout: float,
    init_method: str,
    num_worker_threads: int = constants.DEFAULT_NUM_WORKER_THREADS,
    _transports: list[str] | None = None,
    _channels: list[str] | None = None,
    bind: str | None = None,
    advertise: str | None = None,
    **_: Any,
) -> TensorPipeRpcBackendOptions:
    return TensorPipeRpcBackendOptions(
        rpc_timeout=rpc_timeout,
        init_method=init_method,
        num_worker_threads=num_worker_threads,
        bind=bind,
        advertise=advertise,
        _transports=_transports,
        _channels=_channels,
    )


def _init_backend(store: Any, name: str, rank: int, world_size: int | None, rpc_backend_options: Any) -> Any:
    # Late: the agent is far above its options.
    from torch._C._distributed_c10d import Store

    from tensorcall.rpc import world

    if not isinstance(store, Store):
        raise TypeError(f"`store` must be a c10d::Store. {store}")
    options = own_options(rpc_backend_options)
    if options is None:
        raise TypeError(f"`rpc_backend_options` must be a `TensorPipeRpcBackendOptions`. {rpc_backend_options}")
    return world.join(store, name, rank, world_size, options)


def own_options(options: object) -> TensorPipeRpcBackendOptions | None:
    """Gives options as ours, also for torch's own ones; None if they are another backend's."""
    if isinstance(options, TensorPipeRpcBackendOptions):
        return options
    theirs = _torch_class("_TensorPipeRpcBackendOptionsBase")
    return from_torch(options) if theirs is not None and isinstance(options, theirs) else None


def _torch_class(name: str) -> type | None:
    import torch

    # A torch built without distributed or TensorPipe has none.
    return getattr(getattr(torch._C, "_distributed_rpc", None), name, None)


_torch_options = _torch_class("RpcBackendOptions")
if _torch_options is not None:
    # Options made with torch's classes are options here.
    RpcBackendOptions.register(_torch_options)

register_backend("TENSORPIPE", _construct_options, _init_backend)
