"""RRef[T] in TorchScript: a class there, made for each T, whose methods call the RRef of Python.

torch has a type of its own for RRefs, but its values are objects of its C++ agent. What TorchScript compiles to a class
takes an object of Python by reference and gives it back, so that is what `RRef[T]` in a signature stands for here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

from tensorcall.rpc.torchscript import python_side, templates
from tensorcall.rpc.torchscript.types import PY_OBJECT, annotation

_C: Any = torch._C
_state: Any = torch.jit._state
_jit_internal: Any = torch._jit_internal
_script: Any = torch.jit.script
_templates: Any = templates

_classes: dict[str, Any] = {}
_lock = threading.RLock()


def rref_type(element: Any) -> Any:
    """Returns what RRef[T] is in TorchScript, for the TorchScript type T."""
    key = element.annotation_str
    with _lock:
        made = _classes.get(key)
        if made is None:
            made = _classes[key] = _compile(element, len(_classes))
    return made


def _compile(element: Any, number: int) -> Any:
    fetch = python_side.fetch_module if _is_module(element) else python_side.fetch
    script_class = _templates.rref_class(annotation(element), PY_OBJECT, fetch)
    script_class.__name__ = f"RRef_{number}"
    # Its methods' own closures, where the compiler would look into the frame that calls it.
    _script(script_class, _rcb=_jit_internal.createResolutionCallbackForClassMethods(script_class))
    compiled = _state._get_script_class(script_class)
    # What TorchScript makes of such a value that it returns to Python.
    _state._name_to_pyclass[compiled.qualified_name()] = _Returned
    return compiled


def _is_module(element: Any) -> bool:
    return element.kind() == "InterfaceType" and "forward" in element.getMethodNames()


class _Returned:
    """What TorchScript makes to return an RRef: an RRef that takes over the state of the one that went in."""

    def __new__(cls) -> Any:
        from tensorcall.rpc import RRef

        return RRef.__new__(RRef)


def infer(value: Any, otherwise: Callable[[Any], Any]) -> Any:
    """Infers the TorchScript type of an RRef, or of a list of RRefs, that is an attribute of a module.

    Args:
        value: what the attribute holds.
        otherwise: torch's own inference.

    Returns:
        A torch._C.InferredType.
    """
    from tensorcall.rpc import PyRRef

    if isinstance(value, PyRRef):
        return _of([value], lambda made: made)
    if isinstance(value, list) and value and all(isinstance(each, PyRRef) for each in value):
        return _of(value, _C.ListType)
    return otherwise(value)


def _of(values: list[Any], wrap: Callable[[Any], Any]) -> Any:
    elements = {rref._script_type().annotation_str: rref._script_type() for rref in values}
    if len(elements) > 1:
        return _C.InferredType(f"the RRefs of a list have different types: {', '.join(elements)}")
    return _C.InferredType(wrap(rref_type(elements.popitem()[1])))
