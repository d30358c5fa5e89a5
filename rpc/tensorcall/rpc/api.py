"""The calls: torch.distributed.rpc.api, with its names, signatures and defaults."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch.futures import Future

from tensorcall.rpc import callees, futures, gathering, profiling, serving
from tensorcall.rpc._utils import _group_membership_management as _group_membership_management
from tensorcall.rpc.agent import Agent
from tensorcall.rpc.constants import DEFAULT_SHUTDOWN_TIMEOUT, UNSET_RPC_TIMEOUT
from tensorcall.rpc.gathering import AllGatherStates as AllGatherStates
from tensorcall.rpc.gathering import gatherings
from tensorcall.rpc.internal import (
    PythonUDF,
    RPCExecMode,
    _build_rpc_profiling_key,
    _internal_rpc_pickler,
    run_serialized,
    serialize_keeping,
)
from tensorcall.rpc.outgoing import Call
from tensorcall.rpc.rref import PyRRef, RRef, create
from tensorcall.rpc.rref_context import FLUSH, call_site
from tensorcall.rpc.rref_types import of_result
from tensorcall.rpc.worker_info import WorkerInfo
from tensorcall.server.handler import Handler
from tensorcall.wire.calls import Target

_log = logging.getLogger(__name__)
_F = TypeVar("_F", bound=Callable[..., Any])

__all__ = [
    "AllGatherStates",
    "RRef",
    "get_worker_info",
    "method_factory",
    "new_method",
    "remote",
    "rpc_async",
    "rpc_sync",
    "shutdown",
]

# Set it to False to have shutdown raise where values of this worker are still held by others.
_ignore_rref_leak = True
_default_pickler: Any = _internal_rpc_pickler
_ALL_WORKER_NAMES: set[str] = set()
_thread_local_var = threading.local()

# --- the agent ---

_agent: Any = None


def _is_current_rpc_agent_set() -> bool:
    """Tells whether this process is a worker."""
    return _agent is not None


def _get_current_rpc_agent() -> Any:
    """Returns what stands for this process in its world.

    Raises:
        RuntimeError: it is no worker.
    """
    if _agent is None:
        raise RuntimeError(
            "Current RPC agent is not set! Did you initialize the RPC framework (e.g. by calling `rpc.init_rpc`)?"
        )
    return _agent


def _set_and_start_rpc_agent(agent: Any) -> None:
    """Makes this the process' agent."""
    global _agent
    _agent = agent
    if isinstance(agent, Agent):
        agent.start()


def _reset_current_rpc_agent() -> None:
    """Leaves the process without an agent."""
    global _agent
    _agent = None


def _init_rpc_states(agent: Any) -> None:
    """Makes an agent that has joined its world the process' own."""
    global _ALL_WORKER_NAMES
    _ALL_WORKER_NAMES = {info.name for info in agent.get_worker_infos()}
    if not _is_current_rpc_agent_set():
        gatherings.clear()
        _set_and_start_rpc_agent(agent)


def _require_initialized(func: _F) -> _F:
    """Has a function raise where this process is no worker."""

    @functools.wraps(func)
    def checked(*args: Any, **kwargs: Any) -> Any:
        if _agent is None:
            raise RuntimeError("RPC has not been initialized. Call torch.distributed.rpc.init_rpc first.")
        return func(*args, **kwargs)

    return checked  # type: ignore[return-value]


@_require_initialized
def get_worker_info(worker_name: str | int | None = None) -> WorkerInfo:
    """Returns a worker by its name, or this one.

    Raises:
        RuntimeError: there is none of that name.
    """
    info: WorkerInfo = _get_current_rpc_agent().get_worker_info(worker_name)
    return info


def _to_worker_info(to: Any) -> WorkerInfo:
    if isinstance(to, WorkerInfo):
        return to
    if isinstance(to, (str, int)):
        return get_worker_info(to)
    raise ValueError(f"Cannot get WorkerInfo from name {to}")


def get_rpc_timeout() -> float:
    """Returns how many seconds a call may take unless it says otherwise; 0: for ever."""
    timeout: float = _get_current_rpc_agent().rpc_timeout
    return timeout


def _set_rpc_timeout(rpcTimeoutSeconds: float) -> None:  # noqa: N803 torch's name
    """Sets how many seconds a call may take unless it says otherwise; 0: for ever."""
    _get_current_rpc_agent().rpc_timeout = float(rpcTimeoutSeconds)


def enable_gil_profiling(flag: bool) -> None:
    """Turns measuring the mean wait for the GIL on or off; see `get_metrics`."""
    Handler.get_instance().enable_gil_profiling(flag)


# --- calls ---


@contextlib.contextmanager
def _use_rpc_pickler(rpc_pickler: Any) -> Iterator[None]:
    """Has calls pickled by another pickler, which has `serialize` as `internal._InternalRPCPickler` has."""
    global _default_pickler
    _default_pickler = rpc_pickler
    try:
        yield
    finally:
        _default_pickler = _internal_rpc_pickler


def _prepare(callee: callees.Callee, span: profiling.Span | None, *, stays: bool = False) -> Call:
    """Makes a call of what the user gave.

    Args:
        callee: what is called.
        span: records it; None: it is not recorded.
        stays: whether the result stays there.
    """
    func, args, kwargs = callee.func, callee.args, dict(callee.kwargs)
    later = callee.answers_later
    if span is not None:
        func, args = span.wrap(func, args, kwargs, keep=stays)
        kwargs, later = {}, False
    kept: list[Any] = []
    if _default_pickler is not _internal_rpc_pickler and callee.kind is callees.Kind.PYTHON:
        data, tensors, kept = serialize_keeping(_default_pickler, PythonUDF(func, args, kwargs))
        func, args, kwargs = run_serialized, (data, tensors), {}
    target = Target(function=serving.RUN_LATER if later else serving.RUN)
    return Call(target, (func, args, kwargs), kept, f"{callee.kind.name}_{'REMOTE_' if stays else ''}CALL")


def _invoke_rpc(
    to: Any,
    func: Any,
    rpc_type: RPCExecMode,
    args: tuple[Any, ...] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    rpc_timeout: float = UNSET_RPC_TIMEOUT,
) -> Any:
    """Calls a function on another worker and returns the future of its result."""
    callee = callees.callee(func, args, kwargs)
    info = _to_worker_info(to)
    agent: Agent = _get_current_rpc_agent()
    with profiling.span(rpc_type, callee.name, agent.me.name, info.name) as span:
        call = _prepare(callee, span)
        future: Any = agent.outgoing.submit(agent.member(info.name), call, agent.seconds(rpc_timeout))
        return future if span is None else span.finish(future)


@_require_initialized
def rpc_sync(
    to: Any,
    func: Any,
    args: tuple[Any, ...] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    timeout: float = UNSET_RPC_TIMEOUT,
) -> Any:
    """Calls a function on a worker and waits for its result.

    Args:
        to: the worker: its name, its rank or a WorkerInfo.
        func: a function, a class, a builtin operator of torch, or a TorchScript function. Python ones are named, not
            sent: both workers must be able to import them.
        args: its arguments.
        kwargs: the same by name.
        timeout: how many seconds to wait; 0: for ever; -1: as `get_rpc_timeout` says. The function runs on there.

    Raises:
        RuntimeError: the time ran out, or the worker can't be reached.
        Exception: what the function raised, with its type, args, cause, notes and remote traceback; unless it is a
            ValueError or a TypeError, it is a RuntimeError, too, as torch makes it.
    """
    if profiling.should_profile():
        return _invoke_rpc(to, func, RPCExecMode.SYNC, args, kwargs, timeout).wait()
    call = _prepare(callees.callee(func, args, kwargs), None)
    agent: Agent = _get_current_rpc_agent()
    return agent.outgoing.call(agent.member(_to_worker_info(to).name), call, agent.seconds(timeout))


@_require_initialized
def rpc_async(
    to: Any,
    func: Any,
    args: tuple[Any, ...] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    timeout: float = UNSET_RPC_TIMEOUT,
) -> Future[Any]:
    """Calls a function on a worker and returns at once the future of its result; else as `rpc_sync`."""
    future: Future[Any] = _invoke_rpc(to, func, RPCExecMode.ASYNC, args, kwargs, timeout)
    if hasattr(_thread_local_var, "future_list"):
        _thread_local_var.future_list.append(future)
    return future


@_require_initialized
def remote(
    to: Any,
    func: Any,
    args: tuple[Any, ...] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    timeout: float = UNSET_RPC_TIMEOUT,
) -> RRef[Any]:
    """Calls a function on a worker, where its result stays, and returns at once an RRef to that; else as `rpc_sync`.

    What the function raises is raised where the value is asked for.
    """
    callee = callees.callee(func, args, kwargs)
    info = _to_worker_info(to)
    agent: Agent = _get_current_rpc_agent()
    with profiling.span(RPCExecMode.REMOTE, callee.name, agent.me.name, info.name) as span:
        call = _prepare(callee, span, stays=True)
        made_by = f"remote({callee.name}) at {call_site()} on {agent.me.name}"
        rref = create(agent, agent.member(info.name), call, agent.seconds(timeout), made_by, of_result(callee.given))
        if span is not None:
            rref._set_profiling_future(span.fetch(rref._get_future(), rpc_async, info))
    return rref


# --- calls that are prepared already, as torch's C++ takes them ---


def _made(func: Callable[..., Any], args: tuple[Any, ...], kind: callees.Kind, later: bool, stays: bool) -> Call:
    target = Target(function=serving.RUN_LATER if later else serving.RUN)
    return Call(target, (func, args, {}), [], f"{kind.name}_{'REMOTE_' if stays else ''}CALL")


def _submit(to: str, call: Call, timeout: float) -> Any:
    agent: Agent = _get_current_rpc_agent()
    return agent.outgoing.submit(agent.member(to), call, agent.seconds(timeout))


def _create(to: str, call: Call, timeout: float, name: str, given: object = None) -> RRef[Any]:
    agent: Agent = _get_current_rpc_agent()
    made_by = f"remote({name}) at {call_site()} on {agent.me.name}"
    return create(agent, agent.member(to), call, agent.seconds(timeout), made_by, of_result(given))


def _invoke_rpc_python_udf(
    dst: WorkerInfo,
    pickledPythonUDF: bytes,  # noqa: N803 torch's name
    tensors: list[Any],
    rpcTimeoutSeconds: float,  # noqa: N803 torch's name
    isAsyncExecution: bool,  # noqa: N803 torch's name
) -> Any:
    """Runs a `PythonUDF` that `internal.serialize` has pickled; returns the future of its result."""
    args = (pickledPythonUDF, tensors)
    return _submit(
        dst.name, _made(run_serialized, args, callees.Kind.PYTHON, isAsyncExecution, False), rpcTimeoutSeconds
    )


def _invoke_rpc_builtin(
    dst: WorkerInfo,
    opName: str,  # noqa: N803 torch's name
    rpcTimeoutSeconds: float,  # noqa: N803 torch's name
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Runs one of torch's operators, by its name in TorchScript; returns the future of its result."""
    call = _made(callees.run_builtin, (opName, args, kwargs), callees.Kind.SCRIPT, False, False)
    return _submit(dst.name, call, rpcTimeoutSeconds)


def _invoke_rpc_torchscript(
    dstWorkerName: str,  # noqa: N803 torch's name
    qualifiedNameStr: str,  # noqa: N803 torch's name
    argsTuple: tuple[Any, ...],  # noqa: N803 torch's name
    kwargsDict: Mapping[str, Any],  # noqa: N803 torch's name
    rpcTimeoutSeconds: float,  # noqa: N803 torch's name
    isAsyncExecution: bool,  # noqa: N803 torch's name
) -> Any:
    """Runs a TorchScript function, by its qualified name; returns the future of its result."""
    run_it = callees.run_script_later if isAsyncExecution else callees.run_script
    args = (qualifiedNameStr, argsTuple, dict(kwargsDict))
    return _submit(dstWorkerName, _made(run_it, args, callees.Kind.SCRIPT, isAsyncExecution, False), rpcTimeoutSeconds)


def _invoke_remote_python_udf(
    dst: WorkerInfo,
    pickledPythonUDF: bytes,  # noqa: N803 torch's name
    tensors: list[Any],
    rpcTimeoutSeconds: float,  # noqa: N803 torch's name
    isAsyncExecution: bool,  # noqa: N803 torch's name
) -> RRef[Any]:
    """As `_invoke_rpc_python_udf`; returns an RRef to the result, which stays there."""
    call = _made(run_serialized, (pickledPythonUDF, tensors), callees.Kind.PYTHON, isAsyncExecution, True)
    return _create(dst.name, call, rpcTimeoutSeconds, "PythonUDF")


def _invoke_remote_builtin(
    dst: WorkerInfo,
    opName: str,  # noqa: N803 torch's name
    rpcTimeoutSeconds: float,  # noqa: N803 torch's name
    *args: Any,
    **kwargs: Any,
) -> RRef[Any]:
    """As `_invoke_rpc_builtin`; returns an RRef to the result, which stays there."""
    call = _made(callees.run_builtin, (opName, args, kwargs), callees.Kind.SCRIPT, False, True)
    return _create(dst.name, call, rpcTimeoutSeconds, opName, opName)


def _invoke_remote_torchscript(
    dstWorkerName: str,  # noqa: N803 torch's name
    qualifiedNameStr: str,  # noqa: N803 torch's name
    rpcTimeoutSeconds: float,  # noqa: N803 torch's name
    isAsyncExecution: bool,  # noqa: N803 torch's name
    *args: Any,
    **kwargs: Any,
) -> RRef[Any]:
    """As `_invoke_rpc_torchscript`; returns an RRef to the result, which stays there."""
    run_it = callees.run_script_later if isAsyncExecution else callees.run_script
    call = _made(run_it, (qualifiedNameStr, args, kwargs), callees.Kind.SCRIPT, isAsyncExecution, True)
    given = callees.scripted(qualifiedNameStr)
    return _create(dstWorkerName, call, rpcTimeoutSeconds, qualifiedNameStr, given)


def _rref_typeof_on_owner(rref: Any, blocking: bool = True) -> Any:
    """Returns the type of a value of this worker, or a future of it."""
    kind = type(rref.local_value())
    return kind if blocking else futures.completed(kind)


def _rref_typeof_on_user(rref: Any, timeout: float = UNSET_RPC_TIMEOUT, blocking: bool = True) -> Any:
    """Returns the type of another worker's value, or a future of it."""
    future = rpc_async(rref.owner(), _rref_typeof_on_owner, args=(rref,), timeout=timeout)
    return future.wait() if blocking else future


@contextlib.contextmanager
def _wait_all() -> Iterator[None]:
    """Waits at its end for all `rpc_async` of this thread that were made inside."""
    _thread_local_var.future_list = []
    try:
        yield
    finally:
        try:
            futures.wait_all(_thread_local_var.future_list)
        finally:
            del _thread_local_var.future_list


# --- all workers ---


def _gather_to_leader(sequence_id: str, worker_name: str, obj: Any, worker_names: set[str] | None = None) -> None:
    gatherings.report(sequence_id, worker_name, obj, worker_names or _ALL_WORKER_NAMES)


def _broadcast_to_followers(sequence_id: str, objects_map: dict[str, Any]) -> None:
    gatherings.proceed(sequence_id, objects_map)


@_require_initialized
def _all_gather(obj: Any, worker_names: set[str] | None = None, timeout: float = UNSET_RPC_TIMEOUT) -> dict[str, Any]:
    """Gathers an object of each worker on each worker, by name.

    Raises:
        RuntimeError: one of them is gone, or it took too long.
    """
    names = set(worker_names or _ALL_WORKER_NAMES)
    return gathering.gather(_get_current_rpc_agent(), obj, names, timeout, _gather_to_leader, _broadcast_to_followers)


@_require_initialized
def _barrier(worker_names: Any) -> None:
    """Waits until these workers are all here."""
    try:
        _all_gather(None, set(worker_names))
    except RuntimeError:
        _log.exception("Failed to complete barrier")


@_require_initialized
def _wait_all_workers(timeout: float = DEFAULT_SHUTDOWN_TIMEOUT) -> None:
    """Waits until all workers are here."""
    try:
        _all_gather(None, timeout=timeout)
    except RuntimeError as error:
        _log.error("Failed to respond to 'Shutdown Proceed' in time: %s", error)
        raise


# --- the end ---


@_require_initialized
def shutdown(graceful: bool = True, timeout: float = DEFAULT_SHUTDOWN_TIMEOUT) -> None:
    """Leaves the world. `init_rpc` may be called again then.

    Args:
        graceful: wait for the others, and until no call is in flight anywhere.
        timeout: how many seconds to wait for all of that at most; 0: as long as they live.

    Raises:
        RuntimeError: another worker is gone, or took too long; or, with `api._ignore_rref_leak = False`, others still
            hold values of this worker. It has left all the same.
    """
    agent = _get_current_rpc_agent()
    if not graceful:
        _finalize_shutdown()
        return
    deadline = gathering.Deadline(timeout)

    def limit() -> tuple[timedelta, ...]:
        left = deadline.left()
        return (timedelta(seconds=left),) if left else ()

    try:
        if getattr(agent, "is_static_group", True):
            _wait_all_workers(timeout)
            _delete_all_user_and_unforked_owner_rrefs(*limit())
            agent.join(shutdown=True, timeout=deadline.left())
        else:
            # The others stay: what they hold of this worker's values is gone, and they are told so.
            agent.wait_idle(deadline.left() or None)
            agent.rrefs.delete_users(*limit())
    finally:
        # Whatever went wrong with the others, this worker ends in order.
        _finalize_shutdown()


def _finalize_shutdown() -> None:
    try:
        _destroy_rref_context(_ignore_rref_leak)
    finally:
        try:
            _get_current_rpc_agent().shutdown()
        finally:
            _cleanup_python_rpc_handler()
            _reset_current_rpc_agent()


def _cleanup_python_rpc_handler() -> None:
    """Ends what the handler does for RPC alone: other servers of this process use it, too."""
    Handler.get_instance().enable_gil_profiling(False)


def _delete_all_user_and_unforked_owner_rrefs(timeout: timedelta = FLUSH) -> None:
    """Lets go of all values of others, and waits until others have let go of this worker's."""
    agent = _get_current_rpc_agent()
    if isinstance(agent, Agent):
        agent.rrefs.delete_all(timeout)


def _destroy_rref_context(ignoreRRefLeak: bool) -> None:  # noqa: N803 torch's name
    """Checks that nobody holds values of this worker.

    Raises:
        RuntimeError: somebody does, and it is not to be ignored.
    """
    agent = _get_current_rpc_agent()
    if isinstance(agent, Agent):
        agent.rrefs.check_leaks(ignoreRRefLeak)


def _rref_context_get_debug_info() -> dict[str, str]:
    """Returns what there is to know of references, under torch's names."""
    info: dict[str, str] = _get_current_rpc_agent().rrefs.debug_info()
    return info


# --- profiles ---


def _get_should_profile() -> bool:
    return profiling.should_profile()


def _enable_rpc_profiler(
    should_profile: bool, qualified_name: str | None, func: Any, rpc_type: RPCExecMode, dst_worker_info: WorkerInfo
) -> Any:
    """Returns what records a call; nothing if it is not to be recorded."""
    if not should_profile:
        return contextlib.nullcontext()
    name = qualified_name or callees.callee(func, (), {}).name
    key = _build_rpc_profiling_key(rpc_type, name, get_worker_info().name, dst_worker_info.name)
    return torch.autograd.profiler.record_function(key)


# --- torch's helpers by which it makes RRef of PyRRef; here they are one class ---


def method_factory(method_name: str, docstring: str) -> Callable[..., Any]:
    """Makes a method of RRef that calls PyRRef's; torch's, kept for its name."""

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(super(RRef, self), method_name)(*args, **kwargs)

    method.__doc__ = docstring
    return method


new_method = method_factory("to_here", PyRRef.to_here.__doc__ or "")
