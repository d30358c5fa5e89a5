"""`rref.rpc_sync().method(…)` and its like: calls of a remote value's methods."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.futures import Future

from tensorcall.rpc import functions
from tensorcall.rpc.constants import UNSET_RPC_TIMEOUT
from tensorcall.rpc.futures import RpcFuture


class RRefProxy:
    """Gives the methods of a remote value as functions that call them there.

    Args:
        rref: the value.
        rpc_api: `rpc_sync`, `rpc_async` or `remote`.
        timeout: of each call, in seconds.
    """

    def __init__(self, rref: Any, rpc_api: Callable[..., Any], timeout: float = UNSET_RPC_TIMEOUT) -> None:
        self.rref = rref
        self.rpc_api = rpc_api
        self.rpc_timeout = timeout

    def __getattr__(self, func_name: str) -> Callable[..., Any]:
        return functools.partial(_invoke_rpc, self.rref, self.rpc_api, func_name, self.rpc_timeout)


def _local_invoke(rref: Any, func_name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return getattr(rref.local_value(), func_name)(*args, **kwargs)


@functions.async_execution
def _local_invoke_async_execution(rref: Any, func_name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return getattr(rref.local_value(), func_name)(*args, **kwargs)


def _invoke_rpc(
    rref: Any, rpc_api: Callable[..., Any], func_name: str, timeout: float, *args: Any, **kwargs: Any
) -> Any:
    """Calls a method, once the value's type tells whether the method answers later."""
    from tensorcall.rpc import api

    def call(rref_type: type) -> Any:
        run = _local_invoke_async_execution if _answers_later(rref_type, func_name) else _local_invoke
        return rpc_api(rref.owner(), run, args=(rref, func_name, args, kwargs), timeout=timeout)

    known = rref._get_type(timeout=timeout, blocking=False)
    if rpc_api is not api.rpc_async:
        return call(known.wait())
    result = RpcFuture()

    def when_known(future: Future[type]) -> None:
        try:
            call(future.value()).add_done_callback(functools.partial(_pass_on, to=result))
        except BaseException as error:
            result.fail(error)

    known.add_done_callback(when_known)
    return result


def _answers_later(rref_type: type, func_name: str) -> bool:
    # What a ScriptModule's class has says nothing about its methods.
    if issubclass(rref_type, (torch.jit.ScriptModule, torch._C.ScriptModule)):
        return False
    return functions.is_async(getattr(rref_type, func_name))


def _pass_on(future: Future[Any], to: RpcFuture) -> None:
    try:
        to.resolve(future.value())
    except BaseException as error:
        to.fail(error)
