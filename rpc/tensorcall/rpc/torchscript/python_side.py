"""What TorchScript's calls do in Python."""

from __future__ import annotations

from typing import Any, NoReturn

import torch

_state: Any = torch.jit._state


def call(to: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any] | None, timeout: float) -> Any:
    """Calls a TorchScript function by its qualified name; returns a future."""
    from tensorcall.rpc import api, internal

    return api._invoke_rpc(to, _function(name), internal.RPCExecMode.ASYNC_JIT, args, kwargs, timeout)


def call_remote(to: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any] | None, timeout: float) -> Any:
    """Calls a TorchScript function by its qualified name; returns an RRef."""
    from tensorcall.rpc import api

    return api.remote(to, _function(name), args, kwargs, timeout)


def _function(name: str) -> Any:
    # The compiler has found it, or else it would not have come here.
    return _state._python_cu.find_function(name)


def read(value: Any) -> Any:
    """Gives what a call resulted in; what it raised is the value of its future, as far as TorchScript sees it."""
    if isinstance(value, BaseException):
        raise value
    return value


def fetch(rref: Any, timeout: float) -> Any:
    """Gives a copy of a value."""
    return rref.to_here(timeout)


def fetch_module(rref: Any, timeout: float) -> Any:
    """Gives a module to its owner, and to nobody else.

    Raises:
        RuntimeError: somebody else asks.
    """
    from tensorcall.rpc import api

    if not rref.is_owner():
        raise RuntimeError(
            f"{rref} is an RRef to a ScriptModule. It can't be sent through RPC from owner, {rref.owner()}, "
            f"to user, {api.get_worker_info()}."
        )
    return rref.local_value()


def own(rref: Any) -> Any:
    """Gives a value to its owner.

    Raises:
        RuntimeError: somebody else asks; in TorchScript's words, which aren't Python's.
    """
    if not rref.is_owner():
        raise RuntimeError(f"Can't call RRef.local_value() on a non-owner RRef: {rref}")
    return rref.local_value()


def enable_pickle() -> NoReturn:
    """Would let TorchScript pickle RRefs, as torch's `_enable_jit_rref_pickle` does.

    Raises:
        RuntimeError: here it can't.
    """
    raise RuntimeError("tensorcall.rpc has no RRefs that torch.jit.save could save: see docs/torchscript.md")


def disable_pickle() -> None:
    """Has TorchScript pickle no RRefs, as torch's `_disable_jit_rref_pickle` does. It never does here."""


def refuse_to_pickle() -> NoReturn:
    """Has TorchScript's own pickling of an RRef fail."""
    raise RuntimeError("RRef jit pickling is only allowed inside RPC calls.")
