"""What is known of the type of a value in another worker, in TorchScript's terms, before anybody asks there."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch

_C: Any = torch._C
_jit_internal: Any = torch._jit_internal


class TypeHint(NamedTuple):
    """A TorchScript type, as it travels."""

    text: str
    """As TorchScript writes it."""
    is_module: bool = False
    """Whether it is a module's interface: modules stay on their owner."""


def of_result(given: object) -> TypeHint | None:
    """Returns the type of what a call results in: a TorchScript function's, or that of an operator of this name."""
    if given is None:
        return None
    if isinstance(given, str):
        return _of_operator(given)
    returns: Any = getattr(getattr(given, "schema", None), "returns", ())
    return _of_type(returns[0].type) if len(returns) == 1 else None


def of_value(value: object, hint: Any) -> TypeHint | None:
    """Returns the type of a value of this worker, where it has a hint."""
    if isinstance(value, torch.jit.ScriptModule):
        return TypeHint(_jit_internal._qualified_name(hint), is_module=True)
    return None


@functools.lru_cache(1024)
def _of_operator(name: str) -> TypeHint | None:
    for schema in _C._jit_get_schemas_for_operator(name):
        if len(schema.returns) == 1:
            return _of_type(schema.returns[0].type)
    return None


def _of_type(jit_type: Any) -> TypeHint:
    is_module = jit_type.kind() == "InterfaceType" and "forward" in jit_type.getMethodNames()
    return TypeHint(jit_type.annotation_str, is_module)


def script_type(hint: TypeHint | None, value: Any = None) -> Any:
    """Returns a value's TorchScript type, as far as it is known: any object of Python, where it is not.

    Args:
        hint: what is known of it.
        value: the value, if it is this worker's.
    """
    if hint is not None:
        from tensorcall.server import torch_types
        from tensorcall.wire.errors import UnknownType

        try:
            return torch_types.parse(hint.text)
        except UnknownType:
            pass
    if value is not None:
        inferred = _C._jit_try_infer_type(value)
        if inferred.success():
            return inferred.type()
    return _C.PyObjectType.get()
