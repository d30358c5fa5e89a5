"""torch.distributed.rpc over tensorcall: change one import, `from tensorcall import rpc`.

rpc.init_rpc("worker0", rank=0, world_size=2)
rpc.rpc_sync("worker1", torch.add, args=(torch.ones(2), 1))
rpc.shutdown()
"""

from __future__ import annotations

import contextlib
import logging
import numbers
import threading
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.autograd as dist_autograd

from tensorcall.rpc import api, backend_registry, constants, functions, options, world_secret
from tensorcall.rpc.agent import Agent as TensorPipeAgent
from tensorcall.rpc.agent import RpcAgent
from tensorcall.rpc.api import (
    AllGatherStates,
    RRef,
    _cleanup_python_rpc_handler,
    _delete_all_user_and_unforked_owner_rrefs,
    _destroy_rref_context,
    _get_current_rpc_agent,
    _invoke_remote_builtin,
    _invoke_remote_python_udf,
    _invoke_remote_torchscript,
    _invoke_rpc_builtin,
    _invoke_rpc_python_udf,
    _invoke_rpc_torchscript,
    _is_current_rpc_agent_set,
    _reset_current_rpc_agent,
    _rref_context_get_debug_info,
    _set_and_start_rpc_agent,
    _set_rpc_timeout,
    enable_gil_profiling,
    get_rpc_timeout,
    get_worker_info,
    method_factory,
    new_method,
    remote,
    rpc_async,
    rpc_sync,
    shutdown,
)
from tensorcall.rpc.backend_registry import (
    BackendType,
    BackendValue,
    backend_registered,
    construct_rpc_backend_options,
    init_backend,
    register_backend,
)
from tensorcall.rpc.options import RpcBackendOptions, TensorPipeRpcBackendOptions
from tensorcall.rpc.rref import PyRRef
from tensorcall.rpc.server_process_global_profiler import _server_process_global_profile
from tensorcall.rpc.torch_modules import replace_torch_rpc
from tensorcall.rpc.torchscript import python_side
from tensorcall.rpc.worker_info import WorkerInfo
from tensorcall.rpc.world import interruptible, tell_trouble, told_trouble
from tensorcall.wire.errors import Unauthenticated

__all__ = [
    "AllGatherStates",
    "BackendType",
    "BackendValue",
    "PyRRef",
    "RRef",
    "RpcAgent",
    "RpcBackendOptions",
    "TensorPipeAgent",
    "TensorPipeRpcBackendOptions",
    "WorkerInfo",
    "_cleanup_python_rpc_handler",
    "_delete_all_user_and_unforked_owner_rrefs",
    "_destroy_rref_context",
    "_get_current_rpc_agent",
    "_get_debug_info",
    "_init_rpc_backend",
    "_invoke_remote_builtin",
    "_invoke_remote_python_udf",
    "_invoke_remote_torchscript",
    "_invoke_rpc_builtin",
    "_invoke_rpc_python_udf",
    "_invoke_rpc_torchscript",
    "_is_current_rpc_agent_set",
    "_reset_current_rpc_agent",
    "_rref_context_get_debug_info",
    "_server_process_global_profile",
    "_set_and_start_rpc_agent",
    "_set_rpc_timeout",
    "api",
    "backend_registered",
    "backend_registry",
    "constants",
    "construct_rpc_backend_options",
    "enable_gil_profiling",
    "functions",
    "get_rpc_timeout",
    "get_worker_info",
    "init_backend",
    "init_rpc",
    "is_available",
    "method_factory",
    "new_method",
    "options",
    "register_backend",
    "remote",
    "replace_torch_rpc",
    "rpc_async",
    "rpc_sync",
    "shutdown",
]

_log = logging.getLogger(__name__)

# What a server says to whoever shows another secret than its own.
_WRONG_SECRET = "this server wants its secret"

_DEFAULT_INIT_METHOD = constants.DEFAULT_INIT_METHOD
_DEFAULT_NUM_WORKER_THREADS = constants.DEFAULT_NUM_WORKER_THREADS
_DEFAULT_RPC_TIMEOUT_SEC = constants.DEFAULT_RPC_TIMEOUT_SEC
_UNSET_RPC_TIMEOUT = constants.UNSET_RPC_TIMEOUT
_is_tensorpipe_available = True
_enable_jit_rref_pickle, _disable_jit_rref_pickle = python_side.enable_pickle, python_side.disable_pickle

_init_counter = 0
_init_counter_lock = threading.Lock()
# The store that rank 0 hosts must outlive the meeting.
rendezvous_iterator: Any = None


def is_available() -> bool:
    """Tells whether torch has what a rendezvous needs; on all machines that torch.distributed is built for."""
    return dist.is_available()


def init_rpc(
    name: str,
    backend: Any = None,
    rank: int = -1,
    world_size: int | None = None,
    rpc_backend_options: Any = None,
) -> None:
    """Makes this process a worker: ready to call the others of its world, and to be called by them.

    Args:
        name: the worker's, unique in its world: letters, digits, "_", ":" and "-", fewer than 128.
        backend: a member of `BackendType`; by default the one that the options belong to.
        rank: the worker's number, unique in its world. Without rank and world_size the world is an elastic one: workers
            come and go at any time, and meet in a directory that the first of them keeps at `init_method`.
        world_size: how many workers there are; None: they come and go.
        rpc_backend_options: see `TensorPipeRpcBackendOptions`; by default its defaults.

    Raises:
        TypeError: the backend or the options are none.
        RuntimeError: this process is a worker already; or the name is none, or taken; or the others did not come
            within the options' `rpc_timeout`.
    """
    if backend is not None and not isinstance(backend, backend_registry.BackendType):
        raise TypeError("Argument backend must be a member of BackendType")
    if rpc_backend_options is not None and not isinstance(rpc_backend_options, RpcBackendOptions):
        raise TypeError("Argument rpc_backend_options must be an instance of RpcBackendOptions")
    _check_no_worker()
    if backend is None:
        backend = _infer_backend(rpc_backend_options)
    if rpc_backend_options is None:
        rpc_backend_options = backend_registry.construct_rpc_backend_options(backend)
    store = _meet(rpc_backend_options, rank, world_size)
    # It takes one rank a process and no other; nothing here needs it but its debug info.
    with contextlib.suppress(RuntimeError):
        dist_autograd._init(max(0, rank))  # type: ignore[attr-defined]
    _set_profiler_node_id(max(0, rank))
    _init_rpc_backend(backend, store, name, rank, world_size, rpc_backend_options)


def _check_no_worker() -> None:
    # Before anybody is met: those who are counted on would wait in vain, and the next world's keys would differ.
    if _is_current_rpc_agent_set():
        raise RuntimeError("RPC is already initialized")


def _infer_backend(given: Any) -> Any:
    """Returns the backend that options belong to."""
    if given is None or backend_registry.own_options(given) is not None:
        return BackendType["TENSORPIPE"]
    for candidate in BackendType:
        if isinstance(given, type(backend_registry.construct_rpc_backend_options(candidate))):
            _log.warning(
                "RPC was initialized with no explicit backend but with options corresponding to %(backend)s, hence "
                "that backend will be used instead of the default BackendType.TENSORPIPE. To silence this warning "
                "pass `backend=%(backend)s` explicitly.",
                {"backend": candidate},
            )
            return candidate
    raise TypeError(f"Could not infer backend for options {given}")


def _meet(given: Any, rank: int, world_size: int | None) -> Any:
    """Meets the others, by torch's rendezvous; returns a store whose keys are this world's own."""
    global rendezvous_iterator, _init_counter
    torch_distributed: Any = dist
    if rank >= 0 or world_size:
        world_secret.make_private(given.init_method)
    if rank < 0 and not world_size:
        # Workers without ranks meet in a directory (see elastic); backends are given a store all the same.
        return torch_distributed.HashStore()
    if world_size:
        rendezvous_iterator = torch_distributed.rendezvous(given.init_method, rank=rank, world_size=world_size)
        store, _, _ = interruptible(lambda: next(rendezvous_iterator))
    else:
        store = interruptible(lambda: torch_distributed._create_store_from_options(given, rank))
    if given.rpc_timeout:
        store.set_timeout(timedelta(seconds=given.rpc_timeout))
    with _init_counter_lock:
        prefix = f"rpc_prefix_{_init_counter}"
        _init_counter += 1
    return torch_distributed.PrefixStore(prefix, store)


def _validate_rpc_args(
    backend: Any, store: Any, name: Any, rank: Any, world_size: Any, rpc_backend_options: Any
) -> None:
    expected: list[tuple[Any, Any]] = [
        (backend, backend_registry.BackendType),
        (store, vars(dist)["Store"]),
        (name, str),
        (rank, numbers.Integral),
        (world_size, (numbers.Integral, type(None))),
        (rpc_backend_options, RpcBackendOptions),
    ]
    for argument, kind in expected:
        if not isinstance(argument, kind):
            raise RuntimeError(f"Argument {argument} must be of type {kind} but got type {type(argument)}")


def _init_rpc_backend(
    backend: Any = None,
    store: Any = None,
    name: Any = None,
    rank: int = -1,
    world_size: int | None = None,
    rpc_backend_options: Any = None,
) -> None:
    """Does what `init_rpc` does once the others were met."""
    _validate_rpc_args(backend, store, name, rank, world_size, rpc_backend_options)
    _check_no_worker()
    agent = backend_registry.init_backend(
        backend,
        store=store,
        name=name,
        rank=rank,
        world_size=world_size,
        rpc_backend_options=rpc_backend_options,
    )
    api._init_rpc_states(agent)
    if isinstance(agent, TensorPipeAgent) and agent.is_static_group:
        _wait_for_all(agent, store)


def _wait_for_all(agent: Any, store: Any) -> None:
    """Returns when all workers are here: whoever hosts the store may go then, and all can be called."""
    try:
        api._all_gather(None, timeout=agent.rpc_timeout)
    except BaseException as error:
        # It may be known in words only, or to another worker only: to this one that is gone by then.
        if isinstance(error, Unauthenticated) or _WRONG_SECRET in str(error):
            tell_trouble(store, world_secret.DIFFERENT)
        trouble = told_trouble(store) if isinstance(error, RuntimeError) else ""
        api.shutdown(graceful=False)
        if trouble:
            raise RuntimeError(f"{trouble}; {error}") from error
        raise


def _set_profiler_node_id(default_node_id: int) -> None:
    """Has torch's profiler name this worker's rank in events."""
    bindings = getattr(torch._C, "_distributed_rpc", None)
    if bindings is not None:
        bindings._set_profiler_node_id(default_node_id)


@api._require_initialized
def _get_debug_info() -> dict[str, str]:
    """Returns what there is to know for debugging: of references, of the agent and of distributed autograd."""
    info = dict(_rref_context_get_debug_info())
    info.update(_get_current_rpc_agent().get_debug_info())
    info.update(dist_autograd._get_debug_info())  # type: ignore[attr-defined]
    return info
