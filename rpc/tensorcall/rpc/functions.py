"""`async_execution`: functions that give their result later."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

_F = TypeVar("_F", bound=Callable[..., Any])

__all__ = ["async_execution"]

# What marks such a function, under torch's name for it.
WRAPPED = "_wrapped_async_rpc_function"


def async_execution(fn: _F) -> _F:
    """Marks a function as one that returns a `torch.futures.Future` of its result.

    The worker that runs it keeps no thread for it: it answers when the future is done. As in torch, pass the marked
    function to the RPC API; `staticmethod` and `classmethod` go outside of this decorator, `torch.jit.script` inside.
    """

    @functools.wraps(fn)
    def marked(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    setattr(marked, WRAPPED, fn)
    return marked  # type: ignore[return-value]


def is_async(fn: object) -> bool:
    """Tells whether a function was marked by `async_execution`."""
    return hasattr(fn, WRAPPED)
