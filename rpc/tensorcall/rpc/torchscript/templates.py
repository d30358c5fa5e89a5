# mypy: ignore-errors
# TorchScript compiles what is defined here, and reads its annotations as it does, which are variables: type checkers
# can't follow. For the same reason there is no `from __future__ import annotations`.
"""What TorchScript runs in place of torch's own calls and RRefs, made for each type T of a result."""

from typing import Any

import torch
from torch.futures import Future

from tensorcall.rpc.torchscript import python_side


def calls(element, rref):
    """Defines the calls.

    Args:
        element: annotation of T.
        rref: annotation of RRef[T].
    """

    @torch.jit.ignore
    def start(to: Any, name: str, args: Any, kwargs: Any, timeout: float) -> Future[Any]:
        return python_side.call(to, name, args, kwargs, timeout)

    @torch.jit.ignore
    def start_remote(to: Any, name: str, args: Any, kwargs: Any, timeout: float) -> rref:
        return python_side.call_remote(to, name, args, kwargs, timeout)

    @torch.jit.ignore
    def read(value: Any) -> element:
        return python_side.read(value)

    def read_when_done(future: Future[Any]):
        return read(future.wait())

    def rpc_sync(to: Any, name: str, args: Any, kwargs: Any, timeout: float):
        return read(start(to, name, args, kwargs, timeout).wait())

    def rpc_async(to: Any, name: str, args: Any, kwargs: Any, timeout: float):
        return torch.jit._fork(read_when_done, start(to, name, args, kwargs, timeout))

    def rpc_remote(to: Any, name: str, args: Any, kwargs: Any, timeout: float):
        return start_remote(to, name, args, kwargs, timeout)

    return {"rpc_sync": rpc_sync, "rpc_async": rpc_async, "rpc_remote": rpc_remote, "wait": read_when_done}


def rref_class(element, py_object, fetches):
    """Defines what RRef[T] is.

    Args:
        element: annotation of T.
        py_object: annotation of any object of Python.
        fetches: gets the value, of the RRef and a timeout.
    """

    @torch.jit.ignore
    def fetch(rref: py_object, timeout: float) -> element:
        return fetches(rref, timeout)

    @torch.jit.ignore
    def own(rref: py_object) -> element:
        return python_side.own(rref)

    @torch.jit.ignore
    def owns(rref: py_object) -> bool:
        return rref.is_owner()

    @torch.jit.ignore
    def name_of_owner(rref: py_object) -> str:
        return rref.owner_name()

    @torch.jit.ignore
    def is_confirmed(rref: py_object) -> bool:
        return rref.confirmed_by_owner()

    @torch.jit.ignore
    def pickle(rref: py_object) -> int:
        return python_side.refuse_to_pickle()

    @torch.jit.ignore
    def unpickle(state: int) -> py_object:
        return python_side.refuse_to_pickle()

    class ScriptRRef:
        def __init__(self, rref: py_object) -> None:
            self._script_handle = rref

        def to_here(self, timeout: float = -1.0) -> element:
            return fetch(self._script_handle, timeout)

        def local_value(self) -> element:
            return own(self._script_handle)

        def is_owner(self) -> bool:
            return owns(self._script_handle)

        def owner_name(self) -> str:
            return name_of_owner(self._script_handle)

        def owner(self) -> str:
            # torch's own is an object that TorchScript can do nothing with but pass it on as a worker.
            return name_of_owner(self._script_handle)

        def confirmed_by_owner(self) -> bool:
            return is_confirmed(self._script_handle)

        def __getstate__(self) -> int:
            return pickle(self._script_handle)

        def __setstate__(self, state: int) -> None:
            self._script_handle = unpickle(state)

    return ScriptRRef


def methods(rref):
    """Defines the methods of an RRef[T] as functions.

    Args:
        rref: annotation of RRef[T].
    """

    def to_here(self: rref, timeout: float):
        return self.to_here(timeout)

    def local_value(self: rref):
        return self.local_value()

    def is_owner(self: rref):
        return self.is_owner()

    def owner(self: rref):
        return self.owner()

    def owner_name(self: rref):
        return self.owner_name()

    def confirmed_by_owner(self: rref):
        return self.confirmed_by_owner()

    return {
        "to_here": to_here,
        "local_value": local_value,
        "is_owner": is_owner,
        "owner": owner,
        "owner_name": owner_name,
        "confirmed_by_owner": confirmed_by_owner,
    }
